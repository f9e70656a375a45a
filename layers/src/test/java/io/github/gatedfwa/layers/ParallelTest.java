package io.github.gatedfwa.layers;

import static java.nio.charset.StandardCharsets.UTF_8;
import static org.assertj.core.api.Assertions.assertThat;

import io.github.gatedfwa.nativeops.Bits;
import io.github.gatedfwa.nativeops.JavaProcess;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.deeplearning4j.datasets.iterator.ExistingDataSetIterator;
import org.deeplearning4j.nn.api.Model;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.conf.layers.Layer;
import org.deeplearning4j.parallelism.ParallelInference;
import org.deeplearning4j.parallelism.ParallelWrapper;
import org.deeplearning4j.parallelism.inference.InferenceMode;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.dataset.DataSet;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.learning.config.Adam;
import org.nd4j.linalg.learning.config.Sgd;

/** Several threads, several networks, one JVM. */
class ParallelTest {
  private static final int N_IN = 4;
  private static final int TIME = 20;

  private static Layer[] layers() {
    return new Layer[] {
      RMSNormLayer.builder().build(),
      Options.everything().windowSize(8).build(),
      Options.NSA_SHARING_TWO.builder().build(),
      SwiGLULayer.builder().nOut(4).hiddenSize(6).build(),
      Nets.output(2)
    };
  }

  private static Model net(Nets.Kind kind, RNNFormat format) {
    return Nets.shaken(
        kind.net(Nets.config(DataType.FLOAT).updater(new Adam(0.01)), N_IN, format, layers()));
  }

  private static DataSet data(int seed, int minibatch) {
    return new DataSet(
        Nets.random(DataType.FLOAT, seed, minibatch, N_IN, TIME),
        Nets.labels(DataType.FLOAT, minibatch, 2, TIME, RNNFormat.NCW));
  }

  private static <T> List<T> together(List<Callable<T>> tasks)
      throws InterruptedException, ExecutionException {
    ExecutorService pool = Executors.newFixedThreadPool(tasks.size());
    try {
      CyclicBarrier barrier = new CyclicBarrier(tasks.size());
      List<Future<T>> futures = new ArrayList<>();
      for (Callable<T> task : tasks) {
        futures.add(
            pool.submit(
                () -> {
                  barrier.await();
                  return task.call();
                }));
      }
      List<T> results = new ArrayList<>();
      for (Future<T> future : futures) {
        results.add(future.get());
      }
      return results;
    } finally {
      pool.shutdown();
    }
  }

  @ParameterizedTest
  @CsvSource({
    "MULTI_LAYER, SEQUENTIAL",
    "MULTI_LAYER, BATCHED",
    "MULTI_LAYER, INPLACE",
    "GRAPH, SEQUENTIAL",
    "GRAPH, BATCHED",
    "GRAPH, INPLACE"
  })
  void parallelInferenceGivesEveryCallerItsOwnOutput(Nets.Kind kind, InferenceMode mode)
      throws Exception {
    Model net = net(kind, RNNFormat.NCW);
    int callers = 4;
    List<INDArray> inputs = new ArrayList<>();
    List<INDArray> expected = new ArrayList<>();
    for (int i = 0; i < callers; i++) {
      inputs.add(Nets.random(DataType.FLOAT, i, 1 + i % 3, N_IN, TIME));
      expected.add(Nets.output(net, inputs.get(i)).dup());
    }
    ParallelInference inference =
        new ParallelInference.Builder(net).inferenceMode(mode).workers(2).batchLimit(8).build();
    List<Callable<Double>> tasks = new ArrayList<>();
    for (int i = 0; i < callers; i++) {
      int caller = i;
      tasks.add(
          () -> {
            double worst = 0;
            for (int round = 0; round < 20; round++) {
              INDArray output = inference.output(inputs.get(caller).dup());
              worst = Math.max(worst, Nets.distance(output, expected.get(caller)));
            }
            return worst;
          });
    }
    assertThat(together(tasks)).allSatisfy(worst -> assertThat(worst).isLessThan(1e-6));
    inference.shutdown();
  }

  private static ParallelInference server(Model network) {
    // layers.md: parallel
    ParallelInference inference =
        new ParallelInference.Builder(network)
            .inferenceMode(InferenceMode.BATCHED)
            .workers(2)
            .batchLimit(8)
            .build(); // output(x) may be called from any thread
    // layers.md: end
    return inference;
  }

  @Test
  void thePageShowsThisCode() throws IOException {
    String code =
        Files.readString(
            Path.of("src/test/java", ParallelTest.class.getName().replace('.', '/') + ".java"));
    int start = code.indexOf("\n", code.indexOf("// layers.md: parallel")) + 1;
    String shown = code.substring(start, code.lastIndexOf("\n", code.indexOf("// layers.md: end")));
    assertThat(Path.of("..", "docs", "layers.md")).content(UTF_8).contains(shown.stripIndent());
    ParallelInference inference = server(net(Nets.Kind.GRAPH, RNNFormat.NCW));
    assertThat(inference.output(Nets.random(DataType.FLOAT, 1, 3, N_IN, TIME)).shape())
        .containsExactly(3, 2, TIME);
    inference.shutdown();
  }

  /** Plain SGD, averaged after each step of two workers, is one step of both minibatches. */
  @ParameterizedTest
  @EnumSource
  void parallelWrapperTrainsLikeTheWholeMinibatch(Nets.Kind kind) throws Exception {
    Model net =
        Nets.shaken(
            kind.net(
                Nets.config(DataType.DOUBLE).updater(new Sgd(0.005)),
                N_IN,
                RNNFormat.NCW,
                layers()));
    Model alone =
        kind.net(
            Nets.config(DataType.DOUBLE).updater(new Sgd(0.005)), N_IN, RNNFormat.NCW, layers());
    alone.setParams(net.params().dup());
    List<DataSet> halves = new ArrayList<>();
    for (int i = 0; i < 8; i++) {
      // DL4J makes a worker's copy of the network while another may already be at its first step:
      // the first minibatches have no gradient.
      INDArray mask = Nd4j.valueArrayOf(new long[] {3, TIME}, i < 2 ? 0 : 1, DataType.DOUBLE);
      halves.add(
          new DataSet(
              Nets.random(DataType.DOUBLE, i, 3, N_IN, TIME),
              Nets.labels(DataType.DOUBLE, 3, 2, TIME, RNNFormat.NCW),
              null,
              mask));
    }
    ParallelWrapper wrapper =
        new ParallelWrapper.Builder<>(net)
            .workers(2)
            .averagingFrequency(1)
            .prefetchBuffer(0)
            .trainingMode(ParallelWrapper.TrainingMode.AVERAGING)
            .build();
    wrapper.fit(new ExistingDataSetIterator(halves));
    wrapper.shutdown();
    for (int i = 0; i < 8; i += 2) {
      Nets.fit(alone, DataSet.merge(halves.subList(i, i + 2)));
    }
    assertThat(Nets.distance(net.params(), alone.params())).isLessThan(1e-9);
  }

  @ParameterizedTest
  @EnumSource
  void twoNetworksTrainAtOnceAsTheyDoAlone(Nets.Kind kind) throws Exception {
    List<Callable<INDArray>> tasks = new ArrayList<>();
    for (RNNFormat format : RNNFormat.values()) {
      tasks.add(() -> trained(kind, format));
    }
    List<INDArray> atOnce = together(tasks);
    for (int i = 0; i < atOnce.size(); i++) {
      assertThat(Bits.of(atOnce.get(i))).isEqualTo(Bits.of(tasks.get(i).call()));
    }
  }

  private static INDArray trained(Nets.Kind kind, RNNFormat format) {
    Model net = net(kind, format);
    for (int i = 0; i < 25; i++) {
      DataSet data = data(i, 3);
      Nets.fit(
          net,
          new DataSet(
              Nets.toFormat(data.getFeatures(), format), Nets.toFormat(data.getLabels(), format)));
    }
    return net.params();
  }

  @Test
  void sixteenThreadsMakeAndTrainTheFirstNetworksOfAJvm() {
    JavaProcess.Result result = JavaProcess.run(Race.class, List.of());
    assertThat(result.output()).contains("16 threads agree");
    assertThat(result.exitCode()).isZero();
  }

  /** In a JVM of its own: nothing of ND4J or of the op library is loaded yet. */
  static final class Race {
    private Race() {}

    public static void main(String[] arguments) throws IOException, InterruptedException {
      List<Callable<Bits>> tasks = new ArrayList<>();
      for (int i = 0; i < 16; i++) {
        tasks.add(
            () -> {
              Model net = net(Nets.Kind.MULTI_LAYER, RNNFormat.NCW);
              for (int step = 0; step < 3; step++) {
                Nets.fit(net, data(1, 2));
              }
              return Bits.of(net.params());
            });
      }
      try {
        List<Bits> params = together(tasks);
        long agree = params.stream().filter(params.get(0)::equals).count();
        System.out.println(agree + " threads agree");
      } catch (ExecutionException e) {
        throw new IOException(e);
      }
    }
  }
}
