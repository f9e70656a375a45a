package io.github.gatedfwa.examples;

import io.github.gatedfwa.zoo.lm.GatedFwaLM;
import io.github.gatedfwa.zoo.lm.GatedFwaLM.Pretrained;
import io.github.gatedfwa.zoo.lm.TextGenerator;
import java.io.IOException;
import org.deeplearning4j.nn.graph.ComputationGraph;

/** The code that docs/zoo.md shows. A test compares the two and runs it. */
final class ZooGuide {
  private ZooGuide() {}

  static String complete() throws IOException {
    // zoo.md: complete
    ComputationGraph network = GatedFwaLM.builder().build().initPretrained(Pretrained.SMALL_JAVA);
    TextGenerator generator =
        TextGenerator.builder(network).temperature(0.6).topP(0.95).maxBytes(300).build();
    String text = generator.generate("public class ").text();
    // zoo.md: end
    return text;
  }
}
