package io.github.gatedfwa.examples;

import static io.github.gatedfwa.examples.Programs.run;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import java.awt.image.BufferedImage;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import javax.imageio.ImageIO;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class GateMapTest {
  @TempDir Path folder;

  @Test
  void printsATableAndDrawsTheText() throws IOException {
    Path text = folder.resolve("Type.java");
    Files.writeString(text, "/** Straße. */\nclass Type {\n\tint value;\n}\n");
    Path image = folder.resolve("gates.png");
    String[] options = {"--model=TINY_JAVA", "--text=" + text, "--image=" + image};
    assertThat(run(new GateMap(), 0, options))
        .contains("effective window", "Saved: " + image)
        .containsPattern("block3-attention +3 +\\d\\.\\d+ +\\S+\n");
    BufferedImage picture = ImageIO.read(image.toFile());
    Set<Integer> colors = new HashSet<>();
    for (int x = 0; x < picture.getWidth(); x++) {
      colors.add(picture.getRGB(x, 70));
    }
    assertThat(colors).hasSizeGreaterThan(4);

    assertThat(
            run(
                new GateMap(),
                1,
                "--model=TINY_JAVA",
                "--text=" + text,
                "--layer=block9-attention"))
        .contains("--layer block9-attention", "block3-attention");
    Files.writeString(text, "");
    assertThat(run(new GateMap(), 1, options)).contains("Type.java is empty");
    assertThat(run(new GateMap(), 1, "--model=TINY", "--text=" + text))
        .contains("--model is neither one of [TINY_JAVA, SMALL_JAVA] nor a file");
  }

  @Test
  void aPartOfATextHasTheGatesOfTheWhole() throws IOException {
    ComputationGraph network = CodeModel.open("TINY_JAVA");
    String text = "// Größe 𝄞\n".repeat(260); // longer than the context of a pass
    List<TextGates.Cell> whole = TextGates.of(network, text, 0);
    assertThat(whole).hasSize(text.codePointCount(0, text.length()));
    int from = 2502; // the pass starts inside of a character
    List<TextGates.Cell> part = TextGates.of(network, text, from);
    assertThat(part).hasSize(text.codePointCount(from, text.length()));
    int first = whole.size() - part.size();
    for (int i = 0; i < part.size(); i++) {
      assertThat(part.get(i).character()).isEqualTo(whole.get(first + i).character());
      for (int head = 0; head < TextGates.heads(network).size(); head++) {
        assertThat(part.get(i).forgotten().get(head))
            .isCloseTo(whole.get(first + i).forgotten().get(head), within(1e-4));
      }
    }
  }
}
