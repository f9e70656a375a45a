package io.github.gatedfwa.examples;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;

/** Small Java files to train on. */
final class TestSources {
  private TestSources() {}

  static void write(Path folder, int files) throws IOException {
    Files.createDirectories(folder.resolve("sub"));
    for (int i = 0; i < files; i++) {
      Path file = folder.resolve((i % 2 == 0 ? "Type" : "sub/Type") + i + ".java");
      Files.writeString(
          file,
          "package test;\n\n/** Type number %d. */\nclass Type%d {\n  int value = %d;\n}\n"
              .formatted(i, i, i * i));
    }
  }
}
