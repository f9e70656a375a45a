package io.github.gatedfwa.nativeops;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatCode;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.Properties;
import java.util.jar.JarEntry;
import java.util.jar.JarOutputStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.nd4j.linalg.api.ops.executioner.OpExecutioner.ExecutionerType;
import org.nd4j.linalg.factory.Nd4j;

class PlugInTest {

  @TempDir Path directory;

  @Test
  void thereIsOneForEachBackEnd() {
    for (ExecutionerType backend : ExecutionerType.values()) {
      assertThat(PlugIn.of(backend).resource("linux-x86_64")).startsWith("linux-x86_64");
    }
    assertThat(PlugIn.of(ExecutionerType.CUDA).resource("linux-x86_64"))
        .isEqualTo("linux-x86_64-gpu/libgatedfwa_nd4jcuda.so");
  }

  @Test
  void missingGpuJarIsNamed() {
    assertThatThrownBy(() -> PlugIn.CUDA.library("linux-riscv64"))
        .isInstanceOf(NativeLibraryException.class)
        .hasMessage(
            "the class path has no GatedFWA library for ND4J's CUDA back end; it is in the jar of"
                + " native-ops with the classifier linux-riscv64-gpu");
  }

  @Test
  void versionsOfTheCpuBackEndAreFound() {
    assertThat(PlugIn.CPU.nd4jVersions(Nd4j.getBackend().getClass()))
        .containsOnly(Map.entry("nd4j-api", "1.0.0-M2.1"), Map.entry("nd4j-native", "1.0.0-M2.1"));
  }

  @Test
  void versionsOfCudaBackEndsAreFoundInTheirJar() throws IOException {
    Path jar = directory.resolve("back end.jar");
    try (JarOutputStream out = new JarOutputStream(Files.newOutputStream(jar))) {
      for (String artifact : new String[] {"nd4j-cuda-12.1", "nd4j-cuda-12.1-preset", "nd4j-api"}) {
        out.putNextEntry(new JarEntry("META-INF/maven/org.nd4j/" + artifact + "/pom.properties"));
        out.write("groupId=org.nd4j\nversion=1.0.0-SNAPSHOT\n".getBytes(StandardCharsets.US_ASCII));
      }
    }
    Map<String, String> versions = PlugIn.cudaVersions(jar);
    assertThat(versions)
        .containsOnly(
            Map.entry("nd4j-cuda-12.1", "1.0.0-SNAPSHOT"),
            Map.entry("nd4j-cuda-12.1-preset", "1.0.0-SNAPSHOT"));
    assertThatThrownBy(() -> NativeLibrary.checkVersions(versions))
        .isInstanceOf(NativeLibraryException.class)
        .hasMessage("nd4j-cuda-12.1 is version 1.0.0-SNAPSHOT; supported: 1.0.0-M2.1");
  }

  @Test
  void nd4jCudaChoosesTheDevice() {
    Properties properties = new Properties();
    assertThatCode(() -> DeviceSettings.checkNd4jCuda(properties)).doesNotThrowAnyException();
    properties.setProperty("gatedfwa.device", "cuda");
    assertThatCode(() -> DeviceSettings.checkNd4jCuda(properties)).doesNotThrowAnyException();
    for (String device : new String[] {"cpu", "cuda:1"}) {
      properties.setProperty("gatedfwa.device", device);
      assertThatThrownBy(() -> DeviceSettings.checkNd4jCuda(properties))
          .isInstanceOf(NativeLibraryException.class)
          .hasMessage(
              "the system property gatedfwa.device is '"
                  + device
                  + "'; expected auto or cuda: nd4j-cuda chooses the device");
    }
  }
}
