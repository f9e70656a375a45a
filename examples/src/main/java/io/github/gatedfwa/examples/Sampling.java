package io.github.gatedfwa.examples;

import io.github.gatedfwa.zoo.lm.TextGenerator;
import org.deeplearning4j.nn.graph.ComputationGraph;
import picocli.CommandLine.Option;

/** Options of the programs that let a model write. */
final class Sampling {
  @Option(names = "--length", description = "most bytes to write")
  int length = 500;

  @Option(
      names = "--temperature",
      description = "0: always the likeliest byte; 1: as the model predicts")
  double temperature;

  @Option(names = "--top-k", description = "choose among this many likeliest bytes; 0: all")
  int topK = 0;

  @Option(names = "--seed", description = "another seed, another text")
  long seed = 1;

  Sampling(double temperature) {
    this.temperature = temperature;
  }

  /**
   * A generator with these options.
   *
   * @throws IllegalArgumentException if the length is not at least 1; the generator checks the rest
   */
  TextGenerator.Builder generator(ComputationGraph network) {
    CommandLines.requireAtLeast(1, "--length", length);
    return TextGenerator.builder(network)
        .maxBytes(length)
        .temperature(temperature)
        .topK(topK)
        .seed(seed);
  }
}
