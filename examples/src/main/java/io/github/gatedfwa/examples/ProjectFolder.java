package io.github.gatedfwa.examples;

import java.nio.file.Path;

/** Where the files are that the programs use unless told otherwise. */
final class ProjectFolder {
  /** The project's folder; examples/run sets it. Without it the current folder is that. */
  static final String PROPERTY = "gatedfwa.project";

  private ProjectFolder() {}

  /** A file of the project, as seen from the current folder. */
  static Path file(String first, String... more) {
    Path here = Path.of("").toAbsolutePath();
    Path project = Path.of(System.getProperty(PROPERTY, here.toString()));
    return here.relativize(project).resolve(Path.of(first, more));
  }
}
