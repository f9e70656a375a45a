package io.github.gatedfwa.samediff;

import static org.assertj.core.api.Assertions.assertThat;
import static org.nd4j.linalg.indexing.NDArrayIndex.all;
import static org.nd4j.linalg.indexing.NDArrayIndex.interval;

import io.github.gatedfwa.nativeops.DeviceUsage;
import io.github.gatedfwa.nativeops.JavaProcess;
import io.github.gatedfwa.nativeops.OnGpu;
import io.github.gatedfwa.samediff.ViewsTest.Layout;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.regex.Pattern;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

/** The native ops of nd4j-native on a GPU: results, copies, memory, threads, properties. */
@OnGpu
class OpsOnGpuTest {

  private static final List<DataType> TYPES =
      List.of(DataType.FLOAT, DataType.DOUBLE, DataType.FLOAT16, DataType.BFLOAT16);

  /** What {@code calls} did on the GPU; they must not have run on the CPU. */
  private static DeviceUsage onlyOnGpu(Calls calls) throws IOException {
    DeviceUsage before = GatedFwaOps.deviceUsage();
    calls.run();
    DeviceUsage usage = GatedFwaOps.deviceUsage().since(before);
    assertThat(usage.deviceCalls()).as("calls on the GPU").isPositive();
    assertThat(usage.cpuCalls()).as("calls on the CPU").isZero();
    return usage;
  }

  private interface Calls {
    void run() throws IOException;
  }

  static Stream<Arguments> golden() {
    return GoldenTest.cases().filter(c -> c.get()[2] == Implementation.NATIVE);
  }

  @ParameterizedTest
  @MethodSource
  void golden(String name, DataType type, Implementation implementation) throws IOException {
    GoldenTest test = new GoldenTest();
    assertThat(onlyOnGpu(() -> test.attention(name, type, implementation)).deviceCalls())
        .isEqualTo(2);
    test.gate(name, type, implementation);
  }

  static Stream<Arguments> shapes() {
    return Stream.of(
            // Operands of several pieces: heads of one sequence, then entries of a batch.
            AttentionCase.random(11, 1, 1500, 1500, 8, 4, 64, 64, 100, 1),
            AttentionCase.random(12, 10, 300, 300, 8, 8, 64, 32, 70, 1),
            AttentionCase.random(13, 3, 333, 333, 6, 2, 80, 40, 64, 50),
            // Decoding and a chunk against a cache.
            AttentionCase.random(14, 4, 1, 2000, 8, 2, 64, 64, 512, 1),
            AttentionCase.random(15, 2, 3, 777, 4, 4, 128, 128, 1000, 1),
            AttentionCase.random(16, 2, 65, 900, 4, 1, 32, 32, 300, 1))
        .flatMap(c -> TYPES.stream().map(type -> Arguments.of(c, type)));
  }

  /**
   * No further from float64 than the type's bound or twice what a dense implementation in the type
   * is.
   */
  @ParameterizedTest(name = "[{index}] {1}")
  @MethodSource
  void shapes(AttentionCase exactly, DataType type) throws IOException {
    AttentionCase c = exactly.castTo(type);
    List<INDArray> results = new ArrayList<>();
    onlyOnGpu(() -> results.addAll(Implementation.NATIVE.attention(c)));
    List<INDArray> exact = DenseOracle.exact(c);
    List<INDArray> dense = null;
    for (int i = 0; i < results.size(); i++) {
      double allowed = Errors.bound(type);
      double error = Errors.relative(results.get(i), exact.get(i));
      if (error > allowed && type != DataType.DOUBLE) {
        dense = dense == null ? DenseOracle.inType(c) : dense;
        allowed = Math.max(allowed, 2 * Errors.relative(dense.get(i), exact.get(i)));
      }
      assertThat(error)
          .as("relative error of %s", Implementation.ATTENTION_NAMES.get(i))
          .isLessThanOrEqualTo(allowed);
    }
  }

  /** INDArray's own equality allows for 1e-5. */
  private static boolean same(List<INDArray> a, List<INDArray> b) {
    assertThat(a).hasSameSizeAs(b);
    return IntStream.range(0, a.size()).allMatch(i -> Errors.relative(a.get(i), b.get(i)) == 0);
  }

  @ParameterizedTest
  @EnumSource(Layout.class)
  void views(Layout layout) {
    ViewsTest test = new ViewsTest();
    for (DataType type : TYPES) {
      test.inputsOfAttention(layout, type);
      test.outputsOfAttention(layout, type);
    }
    test.gate(layout);
  }

  /** The corners of the definition. */
  @Test
  void semantics() throws Exception {
    SemanticsTest test = new SemanticsTest();
    test.rowsThatSeeNothingGiveZeroAndPassNoGradient(Implementation.NATIVE);
    test.resetAtMaskedTokenSeesNothing(Implementation.NATIVE);
    test.fewQueriesAgainstACacheAreTheLastRows(Implementation.NATIVE);
    test.emptyArraysGiveEmptyResults(Implementation.NATIVE);
    test.noQueriesGiveZeroGradients(Implementation.NATIVE);
    assertThat(GatedFwaOps.lastDecision()).endsWith(": cpu: nothing to compute");
    test.gateKeepsTheTailAndDoesNotOverflow(Implementation.NATIVE);
    test.hugeWindowIsFullAttention();
    test.manyThreadsGetTheSameBits();
  }

  /** Native sparse attention: forward and gradient of both branches, and the choice. */
  @ParameterizedTest
  @EnumSource(names = {"FLOAT", "DOUBLE", "HALF", "BFLOAT16"})
  void nsaGolden(DataType type) throws IOException {
    NsaGoldenTest test = new NsaGoldenTest();
    assertThat(onlyOnGpu(() -> test.branches(type, NsaImplementation.NATIVE)).deviceCalls())
        .isEqualTo(5);
  }

  static Stream<NsaProblem> nsaShapes() {
    return TYPES.stream()
        .flatMap(
            type ->
                Stream.of(
                    new NsaProblem(
                        51,
                        new NsaCase.Sizes(2, 300, 300, 8, 2, 64, 64, 32, 16, 64, 4),
                        NsaProblem.Mask.NONE,
                        type),
                    new NsaProblem(
                        52,
                        new NsaCase.Sizes(3, 130, 333, 6, 3, 20, 36, 8, 4, 16, 5),
                        NsaProblem.Mask.MOST,
                        type),
                    // Decoding.
                    new NsaProblem(
                        53,
                        new NsaCase.Sizes(2, 1, 900, 16, 1, 128, 128, 32, 16, 64, 6),
                        NsaProblem.Mask.BOOL,
                        type)));
  }

  @ParameterizedTest
  @MethodSource
  void nsaShapes(NsaProblem problem) throws IOException {
    onlyOnGpu(() -> problem.check(NsaImplementation.NATIVE));
  }

  @ParameterizedTest
  @EnumSource(Layout.class)
  void nsaViews(Layout layout) {
    NsaViewsTest test = new NsaViewsTest();
    for (DataType type : TYPES) {
      test.inputs(layout, type);
      test.outputs(layout, type);
    }
  }

  @Test
  void nsaSemantics() throws Exception {
    NsaSemanticsTest test = new NsaSemanticsTest();
    test.rowsThatSeeNothingGiveZeroAndPassNoGradient(NsaImplementation.NATIVE);
    test.fewQueriesAgainstACacheAreTheLastRows(NsaImplementation.NATIVE);
    test.paddingChangesNothing(NsaImplementation.NATIVE);
    test.tiesGoToTheLowerIndex(NsaImplementation.NATIVE);
    test.limitsAreFullCausalAttention(NsaImplementation.NATIVE);
    test.emptyArraysAndShortSequences(NsaImplementation.NATIVE);
    test.manyThreadsGetTheSameBits();
  }

  @Test
  void manyThreadsWithDifferentShapes() throws Exception {
    List<AttentionCase> cases = new ArrayList<>();
    List<List<INDArray>> expected = new ArrayList<>();
    for (int i = 0; i < 8; i++) {
      AttentionCase c =
          AttentionCase.random(
                  20 + i, 1 + i % 3, 200 + 117 * i, 300 + 117 * i, 8, 2, 64, 64, 128, 1)
              .castTo(TYPES.get(i % TYPES.size()));
      cases.add(c);
      expected.add(Implementation.NATIVE.attention(c));
    }
    CyclicBarrier barrier = new CyclicBarrier(cases.size());
    ExecutorService pool = Executors.newFixedThreadPool(cases.size());
    try {
      List<Future<Integer>> equal = new ArrayList<>();
      for (int i = 0; i < cases.size(); i++) {
        AttentionCase c = cases.get(i);
        List<INDArray> alone = expected.get(i);
        equal.add(
            pool.submit(
                () -> {
                  barrier.await();
                  int count = 0;
                  for (int run = 0; run < 10; run++) {
                    count += same(Implementation.NATIVE.attention(c), alone) ? 1 : 0;
                  }
                  return count;
                }));
      }
      for (Future<Integer> count : equal) {
        assertThat(count.get()).as("runs with the bits of the call alone").isEqualTo(10);
      }
    } finally {
      pool.shutdown();
    }
  }

  /** q, k, v, alpha and the forward's results stay on the GPU; only dO goes up for the backward. */
  @Tag("nd4j-native")
  @Test
  void backwardFindsTheForwardsOperands() throws IOException {
    AttentionCase c = large();
    INDArray[] results = forward(c);
    DeviceUsage usage = onlyOnGpu(() -> backward(c, results));
    assertThat(usage.uploadedBytes()).isEqualTo(bytes(c.dO()));
    assertThat(usage.residentBytes())
        .isEqualTo(bytes(c.q(), c.k(), c.v(), c.alpha(), results[0], results[1]));
    assertThat(usage.downloadedBytes()).isEqualTo(bytes(c.q(), c.k(), c.v(), c.alpha()));
  }

  /** What was written into an operand after the forward counts, be it all of it or one number. */
  @Tag("nd4j-native")
  @ParameterizedTest
  @CsvSource({"q,true", "q,false", "k,true", "k,false", "v,true", "alpha,false", "o,false"})
  void backwardSeesWhatWasWrittenMeanwhile(String name, boolean whole) throws IOException {
    AttentionCase c = large();
    INDArray[] results = forward(c);
    INDArray written =
        switch (name) {
          case "q" -> c.q();
          case "k" -> c.k();
          case "v" -> c.v();
          case "alpha" -> c.alpha();
          default -> results[0];
        };
    if (whole) {
      written.muli(-0.5);
    } else {
      long[] last = Arrays.stream(written.shape()).map(size -> size - 1).toArray();
      written.putScalar(last, written.getDouble(last) + 0.25);
    }
    // Copies lie at addresses that the GPU knows nothing of.
    AttentionCase copy =
        new AttentionCase(
            c.q().dup(), c.k().dup(), c.v().dup(), c.alpha().dup(), null, c.dO().dup(), 200, 0);
    List<INDArray> expected = backward(copy, new INDArray[] {results[0].dup(), results[1].dup()});
    List<INDArray> actual = new ArrayList<>();
    DeviceUsage usage = onlyOnGpu(() -> actual.addAll(backward(c, results)));
    assertThat(same(actual, expected)).isTrue();
    assertThat(usage.residentBytes()).as("bytes that had stayed as they were").isPositive();
    assertThat(usage.uploadedBytes()).isGreaterThan(bytes(c.dO()));
    if (whole) {
      assertThat(usage.uploadedBytes()).isEqualTo(bytes(c.dO(), written));
    }
  }

  /** A forward into arrays that an earlier one had filled, with other operands. */
  @Test
  void forwardAgainAfterAnOperandChanged() throws IOException {
    AttentionCase c = large();
    INDArray first = forward(c)[0].dup();
    c.v().get(all(), interval(500, 501), all(), all()).addi(1);
    AttentionCase copy = c.castTo(DataType.DOUBLE).castTo(DataType.FLOAT);
    INDArray second = forward(c)[0];
    assertThat(same(List.of(second), List.of(first))).isFalse();
    assertThat(same(List.of(second), List.of(forward(copy)[0]))).isTrue();
  }

  private static AttentionCase large() {
    return AttentionCase.random(31, 1, 2048, 2048, 8, 8, 64, 64, 200, 1).castTo(DataType.FLOAT);
  }

  private static INDArray[] forward(AttentionCase c) {
    return Nd4j.exec(new GatedFwa(c.q(), c.k(), c.v(), c.alpha(), c.mask(), c.window(), c.scale()));
  }

  private static List<INDArray> backward(AttentionCase c, INDArray[] forward) {
    return List.of(
        Nd4j.exec(
            new GatedFwaBp(
                c.q(),
                c.k(),
                c.v(),
                c.alpha(),
                c.mask(),
                forward[0],
                forward[1],
                c.dO(),
                c.window(),
                c.scale())));
  }

  private static double bytes(INDArray... arrays) {
    return Stream.of(arrays).mapToDouble(x -> (double) x.length() * x.dataType().width()).sum();
  }

  @Tag("nd4j-native")
  @Test
  void saysThatACallWasPutHereBecauseItWasAskedFor() throws IOException {
    onlyOnGpu(() -> forward(large()));
    assertThat(GatedFwaOps.lastDecision())
        .isEqualTo(
            "gated_fwa FLOAT B 1, N 2048, M 2048, H 8/8, D 64/64, w 200: "
                + GatedFwaOps.device()
                + ", as asked for");
  }

  /** A small call, then two large ones, and what became of them; each JVM has other settings. */
  static final class SmallAndLarge {

    private SmallAndLarge() {}

    public static void main(String[] args) {
      System.out.println("device " + GatedFwaOps.device());
      AttentionCase small =
          AttentionCase.random(41, 1, 32, 32, 2, 2, 16, 16, 8, 1).castTo(DataType.FLOAT);
      AttentionCase large =
          AttentionCase.random(42, 1, 4096, 4096, 8, 8, 64, 64, 256, 1).castTo(DataType.FLOAT);
      run("small", small);
      System.out.println("bits " + bits(run("large", large)));
      System.out.println("bits " + bits(run("large", large)));
      runNsa(
          NsaCase.random(43, new NsaCase.Sizes(1, 2048, 2048, 8, 2, 64, 64, 32, 16, 64, 8))
              .castTo(DataType.FLOAT));
    }

    private static void runNsa(NsaCase c) {
      DeviceUsage before = GatedFwaOps.deviceUsage();
      List<INDArray> compressed = NsaImplementation.NATIVE.compressed(c);
      INDArray indices = NsaImplementation.NATIVE.select(c, compressed.get(1));
      NsaImplementation.NATIVE.selected(c, indices);
      DeviceUsage usage = GatedFwaOps.deviceUsage().since(before);
      System.out.println("nsa on cpu " + usage.cpuCalls() + " on gpu " + usage.deviceCalls());
      System.out.println("nsa decision " + GatedFwaOps.lastDecision());
    }

    private static List<INDArray> run(String name, AttentionCase c) {
      DeviceUsage before = GatedFwaOps.deviceUsage();
      List<INDArray> results = Implementation.NATIVE.attention(c);
      DeviceUsage usage = GatedFwaOps.deviceUsage().since(before);
      System.out.println(name + " on cpu " + usage.cpuCalls() + " on gpu " + usage.deviceCalls());
      System.out.println("decision " + GatedFwaOps.lastDecision());
      return results;
    }

    private static int bits(List<INDArray> results) {
      int hash = 0;
      for (INDArray x : results) {
        hash = 31 * hash + Arrays.hashCode(x.dup('c').data().asFloat());
      }
      return hash;
    }

    static String inJvm(String... properties) {
      List<String> arguments = new ArrayList<>(List.of("-Xmx1g"));
      for (String property : properties) {
        arguments.add("-D" + property);
      }
      JavaProcess.Result result = JavaProcess.run(SmallAndLarge.class, arguments);
      assertThat(result.exitCode()).as(result.output()).isZero();
      return result.output();
    }
  }

  @Tag("nd4j-native")
  @Test
  void whatDoesNotFitIntoTheMemoryLimitRunsOnTheCpu() {
    String limited = SmallAndLarge.inJvm("gatedfwa.device=cuda", "gatedfwa.cuda.memory=8");
    assertThat(limited)
        .contains("device cuda:0 ", "small on cpu 0 on gpu 2", "w 256: cpu: out of device memory")
        .containsOnlyOnce("WARN")
        .containsOnlyOnce("out of memory on cuda:0 ")
        .contains("calls that do not fit run on the CPU");
    assertThat(lines(limited, "large on cpu 2 on gpu 0")).hasSize(2);
    assertThat(limited).contains("nsa on cpu 4 on gpu 1"); // the choice fits
    String cpu = SmallAndLarge.inJvm("gatedfwa.device=cpu");
    assertThat(cpu).contains("nsa on cpu 5 on gpu 0");
    assertThat(lines(limited, "bits ")).hasSize(2).isEqualTo(lines(cpu, "bits "));
  }

  @Test
  void keepsNothingWithoutACache() {
    String without = SmallAndLarge.inJvm("gatedfwa.device=cuda", "gatedfwa.cuda.cache=0");
    String with = SmallAndLarge.inJvm("gatedfwa.device=cuda");
    assertThat(with)
        .contains(
            "nsa on cpu 0 on gpu 5",
            "nsa decision nsa_selected_attention_bp FLOAT B 1, N 2048, M 2048, H 8/2, D 64/64,"
                + " l' 64, topN 8: cuda:0 ");
    assertThat(lines(without, "large on cpu 0 on gpu 2")).hasSize(2);
    assertThat(lines(without, "bits ")).hasSize(2).isEqualTo(lines(with, "bits "));
  }

  @Tag("nd4j-native")
  @Test
  void automaticDecisionsCanBeRead() {
    String output = SmallAndLarge.inJvm("gatedfwa.device=auto");
    Pattern decision =
        Pattern.compile(
            "decision gated_fwa_bp FLOAT B 1, N \\d+, M \\d+, H \\d/\\d, D \\d+/\\d+, w \\d+:"
                + " (cpu|cuda:0 .* \\(sm_\\d+\\)), expected to take .+ ms on the device, .+ ms on"
                + " the CPU");
    assertThat(lines(output, "nsa decision "))
        .allMatch(line -> line.contains(", topN 8: ") && line.contains(", expected to take "));
    assertThat(lines(output, "decision "))
        .hasSize(3)
        .allMatch(line -> decision.matcher(line).matches());
    // 40 kilobytes to compute less than a million operations: no GPU is worth that.
    assertThat(output).contains("device cuda:0 ", "small on cpu 2 on gpu 0").doesNotContain("WARN");
  }

  @Tag("nd4j-native")
  @Test
  void deviceThatIsNotThereIsNamed() {
    assertThat(SmallAndLarge.inJvm("gatedfwa.device=cuda:99"))
        .contains("device cpu: there is no device cuda:99; devices: ")
        .containsOnlyOnce("GatedFWA runs on the CPU, not on a GPU as gatedfwa.device asks: ");
  }

  private static List<String> lines(String output, String start) {
    return output.lines().filter(line -> line.startsWith(start)).toList();
  }
}
