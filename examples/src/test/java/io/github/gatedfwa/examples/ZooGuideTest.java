package io.github.gatedfwa.examples;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;

/** The code of docs/zoo.md does what the page says. */
class ZooGuideTest {
  @Test
  void thePageShowsThisCode() throws IOException {
    assertThat(Snippets.of(ZooGuide.class, "zoo.md"))
        .hasSize(1)
        .allSatisfy(
            snippet -> assertThat(Path.of("..", "docs", "zoo.md")).content().contains(snippet));
  }

  @Test
  void itWritesJava() throws IOException {
    assertThat(ZooGuide.complete()).contains(" {\n", ";\n");
  }
}
