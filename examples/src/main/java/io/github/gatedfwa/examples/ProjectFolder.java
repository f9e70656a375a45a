package io.github.gatedfwa.examples;

import java.nio.file.Path;

/** Where the files are that the programs use unless told otherwise. */
final class ProjectFolder {
  /** The project's folder; examples/run sets it. Without it the current folder is that. */
  static final String PROPERTY = "gatedfwa.project";

  private ProjectFolder() {}

  /** A file of the project; a short path where that is the current folder. */
  static Path file(String first, String... more) {
    Path file = Path.of(first, more);
    Path project = Path.of(System.getProperty(PROPERTY, ""));
    return project.equals(Path.of("").toAbsolutePath()) ? file : project.resolve(file);
  }
}
