package io.github.gatedfwa.examples;

import static java.nio.charset.StandardCharsets.UTF_8;
import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;

/** The code of docs/zoo.md, which the README shows too, does what the pages say. */
class ZooGuideTest {
  @Test
  void thePageShowsThisCode() throws IOException {
    assertThat(Snippets.of(ZooGuide.class, "zoo.md"))
        .hasSize(1)
        .allSatisfy(
            snippet -> {
              assertThat(Path.of("..", "docs", "zoo.md")).content(UTF_8).contains(snippet);
              assertThat(Path.of("..", "README.md")).content(UTF_8).contains(snippet);
            });
  }

  @Test
  void itWritesJava() throws IOException {
    // What is drawn depends on rounding and so on the CPU; any 300 bytes of Java have such words.
    assertThat(ZooGuide.complete())
        .matches("[\\n\\t -~]{50,300}")
        .containsPattern("\\b(public|private|static|final|return|class|void|int|String|@param)\\b");
  }
}
