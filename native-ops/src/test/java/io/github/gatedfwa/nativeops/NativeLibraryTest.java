package io.github.gatedfwa.nativeops;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatCode;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assumptions.assumeThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.nd4j.linalg.factory.Nd4j;

class NativeLibraryTest {

  private static final String RESOURCE =
      "io/github/gatedfwa/nativeops/linux-x86_64/libgatedfwa_cpu.so";

  private static final String CUDA_RESOURCE =
      "io/github/gatedfwa/nativeops/linux-x86_64-gpu/libgatedfwa_cuda.so";

  @TempDir Path directory;

  @Test
  void threadsAreThoseOfNd4j() {
    NativeLibrary.load();
    int before = Nd4j.getEnvironment().maxMasterThreads();
    try {
      for (int threads : new int[] {1, before}) {
        Nd4j.getEnvironment().setMaxMasterThreads(threads);
        assertThat(NativeLibrary.threads()).isEqualTo(threads);
      }
    } finally {
      Nd4j.getEnvironment().setMaxMasterThreads(before);
    }
  }

  @Test
  void loadsAndDescribesItself() {
    NativeLibrary.load();
    NativeLibrary.load();
    assertThat(NativeLibrary.instructionSet()).isIn("plain", "avx2", "avx512", "cuda");
    assertThat(NativeLibrary.threads()).isPositive();
    assertThat(NativeLibrary.descriptor("gated_fwa_bp").getHash()).isNotZero();
    assertThatThrownBy(() -> NativeLibrary.descriptor("gated"))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("no op gated")
        .hasMessageContaining("gated_fwa_gate_bp");
  }

  @Test
  void isLoadedOnceByManyThreads() {
    JavaProcess.Result result = JavaProcess.run(Programs.Race.class, List.of());
    assertThat(result.output()).contains("16 threads agree");
    assertThat(result.exitCode()).isZero();
  }

  @Test
  void builderFindsOpsAfterLateLoad() {
    JavaProcess.Result result = JavaProcess.run(Programs.Late.class, List.of());
    assertThat(result.output()).contains("before: false, after: true");
  }

  @Tag("nd4j-native")
  @Test
  void jvmsShareOneCacheThatIsEmptyAtFirst() throws IOException {
    String cache = "-Dorg.bytedeco.javacpp.cachedir=" + directory;
    Process first = JavaProcess.start(Programs.Load.class, List.of(cache));
    Process second = JavaProcess.start(Programs.Load.class, List.of(cache));
    assertThat(JavaProcess.finish(first).output()).contains("loaded");
    assertThat(JavaProcess.finish(second).output()).contains("loaded");
    try (Stream<Path> files = Files.walk(directory.resolve("gatedfwa"))) {
      assertThat(files.filter(Files::isRegularFile))
          .singleElement()
          .satisfies(file -> assertThat(file).hasFileName("libgatedfwa_cpu.so"));
    }
  }

  @Tag("nd4j-native")
  @Test
  void instructionSetIsTheUsersChoice() {
    JavaProcess.Result result =
        JavaProcess.run(
            Programs.Load.class, List.of("-D" + NativeLibrary.INSTRUCTIONS_PROPERTY + "=plain"));
    assertThat(result.output()).contains("loaded plain");
  }

  @Tag("nd4j-native")
  @Test
  void unknownInstructionSetIsRefusedEachTime() {
    JavaProcess.Result result =
        JavaProcess.run(
            Programs.Load.class, List.of("-D" + NativeLibrary.INSTRUCTIONS_PROPERTY + "=sse9"));
    assertThat(result.output())
        .containsSubsequence(
            "failed: the system property gatedfwa.cpu.instructions asks for instruction set 'sse9';"
                + " expected auto, plain, avx2 or avx512",
            "failed: the system property gatedfwa.cpu.instructions");
  }

  @Tag("nd4j-native")
  @Test
  void saysThatThereIsNoCudaLibrary() {
    String reason = "no CUDA library on the class path (native-ops, classifier linux-x86_64-gpu)";
    assertThat(loadWithoutCudaLibrary("auto"))
        .contains("device cpu: " + reason)
        .doesNotContain("WARN");
    String warning = "GatedFWA runs on the CPU, not on a GPU as gatedfwa.device asks: " + reason;
    assertThat(loadWithoutCudaLibrary("cuda"))
        .contains("device cpu: " + reason)
        .containsOnlyOnce(warning);
    assertThat(loadWithoutCudaLibrary("cpu"))
        .containsPattern("(?m)^device cpu$")
        .doesNotContain("WARN");
  }

  private static String loadWithoutCudaLibrary(String device) {
    String classPath =
        Stream.of(System.getProperty("java.class.path").split(":", -1))
            .filter(
                entry ->
                    !Files.exists(Path.of(entry, CUDA_RESOURCE)) && !entry.endsWith("-gpu.jar"))
            .collect(Collectors.joining(":"));
    return JavaProcess.run(
            Programs.Load.class,
            List.of("-cp", classPath, "-D" + NativeLibrary.DEVICE_PROPERTY + "=" + device))
        .output();
  }

  /** The library loads where there is no NVIDIA driver, and says so. */
  @Tag("nd4j-native")
  @Test
  void saysThatThereIsNoDriver() {
    Path classes = Path.of("target/gpu-classes");
    assumeThat(classes.resolve(CUDA_RESOURCE))
        .as("the CUDA library, which takes nvcc to build")
        .exists();
    assumeThat(Path.of("/proc/driver/nvidia")).as("an NVIDIA driver").doesNotExist();
    JavaProcess.Result result =
        JavaProcess.run(
            Programs.Load.class,
            List.of("-cp", classes + ":" + System.getProperty("java.class.path")));
    assertThat(result.output())
        .contains("device cpu: no NVIDIA driver, or one older than the CUDA library needs");
    assertThat(result.exitCode()).isZero();
  }

  @Test
  void unknownDeviceIsRefused() {
    assertThat(
            JavaProcess.run(
                    Programs.Load.class, List.of("-D" + NativeLibrary.DEVICE_PROPERTY + "=gpu"))
                .output())
        .contains(
            "failed: the system property gatedfwa.device is 'gpu'; expected auto, cpu, cuda or"
                + " cuda:N")
        .doesNotContain("loaded");
  }

  @Test
  void unsupportedPlatformIsNamed() {
    JavaProcess.Result result =
        JavaProcess.run(
            Programs.Load.class, List.of("-Dorg.bytedeco.javacpp.platform=linux-riscv64"));
    assertThat(result.output())
        .contains("no native GatedFWA library for the platform linux-riscv64")
        .contains("supported: linux-x86_64");
  }

  @Tag("nd4j-native")
  @Test
  void brokenLibraryIsReportedWithItsCause() throws IOException {
    Path library = directory.resolve(RESOURCE);
    Files.createDirectories(library.getParent());
    Files.writeString(library, "not a library");
    JavaProcess.Result result =
        JavaProcess.run(
            Programs.Load.class,
            List.of("-cp", directory + ":" + System.getProperty("java.class.path")));
    assertThat(result.output())
        .containsSubsequence(
            "failed: the native GatedFWA library cannot be loaded from",
            "supported: linux-x86_64 with glibc, ND4J 1.0.0-M2.1",
            "cause: UnsatisfiedLinkError");
  }

  @Tag("nd4j-native")
  @Test
  void missingBackEndIsReported() {
    String withoutNative =
        Stream.of(System.getProperty("java.class.path").split(":", -1))
            .filter(entry -> !entry.contains("/nd4j-native/"))
            .reduce((a, b) -> a + ":" + b)
            .orElseThrow();
    JavaProcess.Result result = JavaProcess.run(Programs.Load.class, List.of("-cp", withoutNative));
    assertThat(result.output())
        .contains("failed: ND4J cannot be started")
        .contains("org.nd4j:nd4j-native:1.0.0-M2.1");
  }

  @Test
  void otherVersionsAreRefused() {
    assertThatCode(() -> NativeLibrary.checkVersions(Map.of("nd4j-api", "1.0.0-M2.1")))
        .doesNotThrowAnyException();
    assertThatThrownBy(() -> NativeLibrary.checkVersions(Map.of("nd4j-native", "1.0.0-M1.1")))
        .isInstanceOf(NativeLibraryException.class)
        .hasMessage("nd4j-native is version 1.0.0-M1.1; supported: 1.0.0-M2.1");
  }
}
