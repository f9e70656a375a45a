package io.github.gatedfwa.benchmarks;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/** A process's resident memory, and fresh processes to measure it in. Linux only: reads /proc. */
final class ResidentMemory {
  private ResidentMemory() {}

  static double megabytes() throws IOException {
    return megabytes("VmRSS:");
  }

  /** The highest since the process started or {@link #resetPeak} was called. */
  static double peakMegabytes() throws IOException {
    return megabytes("VmHWM:");
  }

  static void resetPeak() throws IOException {
    Files.writeString(Path.of("/proc/self/clear_refs"), "5");
  }

  private static double megabytes(String field) throws IOException {
    for (String line : Files.readAllLines(Path.of("/proc/self/status"))) {
      if (line.startsWith(field)) {
        return Double.parseDouble(line.replaceAll("[^0-9]", "")) * 1024 / 1e6;
      }
    }
    throw new IOException("/proc/self/status has no " + field);
  }

  /** Runs a program of this class path, its output on ours; its exit code. */
  static int inFreshProcess(Class<?> program, List<String> jvmArguments, String... arguments)
      throws IOException, InterruptedException {
    List<String> command = new ArrayList<>();
    command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
    command.addAll(jvmArguments);
    command.addAll(List.of("-classpath", System.getProperty("java.class.path"), program.getName()));
    command.addAll(List.of(arguments));
    return new ProcessBuilder(command).inheritIO().start().waitFor();
  }
}
