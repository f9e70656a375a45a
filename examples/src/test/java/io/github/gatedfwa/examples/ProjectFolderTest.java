package io.github.gatedfwa.examples;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.file.Path;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;

class ProjectFolderTest {
  private final Path here = Path.of("").toAbsolutePath();

  @AfterEach
  void noProject() {
    System.clearProperty(ProjectFolder.PROPERTY);
  }

  @Test
  void defaultsLieInTheProjectWhereverAProgramIsStarted() {
    assertThat(ProjectFolder.file("build", "a.zip")).isEqualTo(Path.of("build", "a.zip"));
    System.setProperty(ProjectFolder.PROPERTY, here.toString());
    assertThat(ProjectFolder.file("build", "a.zip")).isEqualTo(Path.of("build", "a.zip"));
    System.setProperty(ProjectFolder.PROPERTY, here.getParent().toString());
    assertThat(ProjectFolder.file("build", "a.zip"))
        .isEqualTo(here.resolveSibling("build").resolve("a.zip"));
  }
}
