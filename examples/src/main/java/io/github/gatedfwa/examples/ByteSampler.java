package io.github.gatedfwa.examples;

import io.github.gatedfwa.zoo.text.TextWindowSequenceRecordReader;
import java.util.Arrays;
import java.util.Comparator;
import java.util.SplittableRandom;
import java.util.function.IntPredicate;
import java.util.stream.IntStream;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.indexing.NDArrayIndex;

/** Samples text from a byte-level language model, one byte per {@code rnnTimeStep}. */
final class ByteSampler {
  /** Time steps of a chunk of the prompt: bounds the memory that a long prompt takes. */
  private static final int CHUNK = 1024;

  private final ComputationGraph network;
  private final double temperature;
  private final int topK;
  private final SplittableRandom random;

  /**
   * @param temperature 0 takes the likeliest byte, 1 samples from the model's own distribution
   * @param topK sample among this many of the likeliest bytes; 0 for all
   * @throws IllegalArgumentException if temperature or topK is negative or not finite
   */
  ByteSampler(ComputationGraph network, double temperature, int topK, long seed) {
    if (!(temperature >= 0) || Double.isInfinite(temperature)) {
      throw new IllegalArgumentException("temperature must be 0 or greater, got " + temperature);
    }
    if (topK < 0) {
      throw new IllegalArgumentException("top-k must be 0 (all) or greater, got " + topK);
    }
    this.network = network;
    this.temperature = temperature;
    this.topK = topK;
    this.random = new SplittableRandom(seed);
  }

  /**
   * Continues a text that begins a file.
   *
   * @param prompt the text's bytes; may be empty
   * @param sink takes each byte, 0 to 255, as soon as it is known; answers whether to go on
   */
  void generate(byte[] prompt, IntPredicate sink) {
    network.rnnClearPreviousState();
    int[] tokens = new int[prompt.length + 1];
    tokens[0] = TextWindowSequenceRecordReader.START;
    for (int i = 0; i < prompt.length; i++) {
      tokens[i + 1] = Byte.toUnsignedInt(prompt[i]);
    }
    double[] probabilities = null;
    for (int from = 0; from < tokens.length; from += CHUNK) {
      probabilities = next(Arrays.copyOfRange(tokens, from, Math.min(tokens.length, from + CHUNK)));
    }
    int sampled = sample(probabilities);
    while (sink.test(sampled)) {
      sampled = sample(next(new int[] {sampled}));
    }
    network.rnnClearPreviousState();
  }

  /** Feeds tokens and gives the distribution of the byte after them. */
  private double[] next(int[] tokens) {
    INDArray input = Nd4j.createFromArray(tokens).castTo(network.getConfiguration().getDataType());
    INDArray output = network.rnnTimeStep(input.reshape(1, 1, tokens.length))[0];
    return output
        .get(NDArrayIndex.point(0), NDArrayIndex.point(tokens.length - 1), NDArrayIndex.all())
        .dup()
        .toDoubleVector();
  }

  private int sample(double[] probabilities) {
    int[] likeliest =
        IntStream.range(0, probabilities.length)
            .boxed()
            .sorted(Comparator.comparingDouble(i -> -probabilities[i]))
            .mapToInt(Integer::intValue)
            .limit(topK == 0 ? probabilities.length : topK)
            .toArray();
    if (temperature == 0) {
      return likeliest[0];
    }
    double[] weights = new double[likeliest.length];
    double sum = 0;
    for (int i = 0; i < weights.length; i++) {
      // Relative to the likeliest: a small temperature must not underflow all weights to 0.
      weights[i] =
          Math.pow(probabilities[likeliest[i]] / probabilities[likeliest[0]], 1 / temperature);
      sum += weights[i];
    }
    double left = random.nextDouble() * sum;
    for (int i = 0; i < weights.length; i++) {
      left -= weights[i];
      if (left < 0) {
        return likeliest[i];
      }
    }
    return likeliest[0];
  }
}
