package io.github.gatedfwa.layers;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.Random;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.multilayer.MultiLayerNetwork;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

/** A stream of a million tokens, really streamed. Takes minutes: run by the nightly profile. */
@Tag("nightly")
class LongStreamTest {
  private static final int TOKENS = 1_000_000;
  private static final int N_IN = 4;

  private static MultiLayerNetwork net() {
    return Nets.shaken(
        Nets.net(
            DataType.FLOAT,
            N_IN,
            RNNFormat.NWC,
            Options.everything().dataFormat(RNNFormat.NWC).windowSize(16).build()));
  }

  private static INDArray tokens() {
    Random random = new Random(1);
    float[] values = new float[TOKENS * N_IN];
    for (int i = 0; i < values.length; i++) {
      values[i] = (float) random.nextGaussian();
    }
    return Nd4j.createFromArray(values).reshape(1, TOKENS, N_IN);
  }

  /** Distances of the first, the middle and the last thousand tokens from one full pass. */
  private static void assertStreams(Random chunks, double bound) {
    MultiLayerNetwork net = net();
    INDArray x = tokens();
    INDArray full = net.output(x);
    double[] worst = new double[TOKENS / 1000];
    for (int at = 0; at < TOKENS; ) {
      int to = Math.min(TOKENS, at + (chunks == null ? 1 : 1 + chunks.nextInt(300)));
      INDArray part = net.rnnTimeStep(Nets.steps(x, RNNFormat.NWC, at, to).dup());
      double error = Nets.distance(part, Nets.steps(full, RNNFormat.NWC, at, to));
      worst[at / 1000] = Math.max(worst[at / 1000], error);
      at = to;
    }
    double all = 0;
    for (double error : worst) {
      all = Math.max(all, error);
    }
    System.out.printf(
        "a million tokens %s: largest error of the first thousand %.2e, of the last %.2e, of all %.2e%n",
        chunks == null ? "one by one" : "in chunks of up to 300", worst[0], worst[999], all);
    assertThat(all).isLessThan(bound);
    assertThat(net.rnnGetPreviousState(0).get("position").getLong(0)).isEqualTo(TOKENS);
    assertThat(net.rnnGetPreviousState(0).get("keys").size(1)).isEqualTo(15);
  }

  @Test
  void chunksEqualTheFullPass() {
    assertStreams(new Random(2), 5e-6);
  }

  @Test
  void singleTokensEqualTheFullPass() {
    assertStreams(null, 5e-6);
  }
}
