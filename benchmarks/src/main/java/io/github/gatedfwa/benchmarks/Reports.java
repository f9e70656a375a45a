package io.github.gatedfwa.benchmarks;

import io.github.gatedfwa.zoo.io.WholeFile;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;

/** What the reports have in common. */
final class Reports {

  private Reports() {}

  static void write(Path file, byte[] content) throws IOException {
    WholeFile.write(file, stream -> stream.write(content));
  }

  /** The processor's name where the system tells it, else its architecture. */
  static String processor() throws IOException {
    Path information = Path.of("/proc/cpuinfo");
    if (!Files.isReadable(information)) {
      return System.getProperty("os.arch");
    }
    try (var lines = Files.lines(information)) {
      return lines
          .filter(line -> line.startsWith("model name"))
          .map(line -> line.substring(line.indexOf(':') + 2))
          .findFirst()
          .orElse(System.getProperty("os.arch"));
    }
  }
}
