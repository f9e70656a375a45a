package io.github.gatedfwa.layers;

import static org.assertj.core.api.Assertions.assertThat;

import io.github.gatedfwa.nativeops.JavaProcess;
import io.github.gatedfwa.nativeops.NativeLibrary;
import io.github.gatedfwa.nativeops.OnGpu;
import java.io.File;
import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.multilayer.MultiLayerNetwork;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.dataset.DataSet;
import org.nd4j.linalg.factory.Nd4j;

/** The layer in a network under nd4j-native, with its attention on a GPU. */
@OnGpu
@Tag("nd4j-native")
class GatedFWALayerOnGpuTest {

  /** One training step of a network with masks, on whatever device this JVM uses. */
  static final class Step {

    private static final List<String> RESULTS = List.of("output", "gradient", "parameters");

    private static final int SIZE = 24;

    private Step() {}

    /** Writes the results of a FLOAT network into the directory that a property names. */
    public static void main(String[] args) throws IOException {
      List<INDArray> results = run(DataType.FLOAT);
      for (int i = 0; i < results.size(); i++) {
        Nd4j.saveBinary(results.get(i), new File(System.getProperty("results"), RESULTS.get(i)));
      }
      System.out.println("ran on " + NativeLibrary.device());
    }

    /** Output before the step, gradient and parameters after it. */
    static List<INDArray> run(DataType type) {
      int time = 300;
      MultiLayerNetwork net = net(type);
      net.setParams(net(DataType.FLOAT).params().castTo(type));
      INDArray mask = Nd4j.ones(type, 4, time);
      for (int t = 200; t < time; t++) {
        mask.putScalar(1, t, 0); // padding after the tokens
        mask.putScalar(2, time - 1 - t, 0); // and before them
      }
      INDArray x = Nets.random(DataType.FLOAT, 81, 4, SIZE, time).castTo(type);
      INDArray output = net.output(x, false, mask, mask).dup();
      net.fit(new DataSet(x, Nets.labels(type, 4, 3, time, RNNFormat.NCW), mask, mask));
      return List.of(output, net.getFlattenedGradients(), net.params());
    }

    private static MultiLayerNetwork net(DataType type) {
      return Nets.shaken(
          Nets.net(
              type,
              SIZE,
              RNNFormat.NCW,
              Options.everything().nOut(SIZE).headSize(32).windowSize(64).build(),
              Options.window().nOut(SIZE).windowSize(100).build(),
              Nets.output(3)));
    }
  }

  /** As far from float64 as the CPU's step is, give or take. */
  @Test
  void fitStepIsTheCpus(@TempDir Path directory) throws IOException {
    long before = NativeLibrary.deviceUsage().deviceCalls();
    List<INDArray> gpu = Step.run(DataType.FLOAT);
    // Gate and attention of two layers, for the output, and forward and backward for the step.
    assertThat(NativeLibrary.deviceUsage().deviceCalls() - before).isEqualTo(12);
    JavaProcess.Result process =
        JavaProcess.run(Step.class, List.of("-Dgatedfwa.device=cpu", "-Dresults=" + directory));
    assertThat(process.output()).containsPattern("(?m)^ran on cpu$");
    List<INDArray> exact = Step.run(DataType.DOUBLE);
    for (int i = 0; i < exact.size(); i++) {
      String name = Step.RESULTS.get(i);
      INDArray cpu = Nd4j.readBinary(directory.resolve(name).toFile());
      assertThat(error(gpu.get(i), exact.get(i)))
          .as("error of the %s, against the CPU's", name)
          .isLessThan(3 * error(cpu, exact.get(i)) + 1e-6);
    }
  }

  private static double error(INDArray x, INDArray exact) {
    INDArray difference = x.castTo(DataType.DOUBLE).sub(exact.castTo(DataType.DOUBLE));
    return difference.norm2Number().doubleValue() / exact.norm2Number().doubleValue();
  }
}
