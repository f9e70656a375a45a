package io.github.gatedfwa.benchmarks;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Locale;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * Prints how far the first forward and backward pass raises a process's resident memory above its
 * operands and results, a fresh process for each length. Linux only: it reads /proc.
 */
public final class PeakMemory {

  private PeakMemory() {}

  public static void main(String[] args) throws IOException, InterruptedException {
    if (args.length == 1) {
      measure(Long.parseLong(args[0]));
      return;
    }
    System.out.println(
        "| N | operands and results, MB | forward + backward add, MB |\n|---|---|---|");
    for (long length = 1024; length <= 65536; length *= 4) {
      new ProcessBuilder(
              Path.of(System.getProperty("java.home"), "bin", "java").toString(),
              "-classpath",
              System.getProperty("java.class.path"),
              PeakMemory.class.getName(),
              Long.toString(length))
          .inheritIO()
          .start()
          .waitFor();
    }
  }

  private static void measure(long length) throws IOException {
    // Loads classes and the library; the first long-sequence call is still the one below.
    AttentionOperands warm = new AttentionOperands(1, 64, 512);
    warm.forward();
    warm.backward();
    AttentionOperands operands = new AttentionOperands(length, 64, 512);
    for (INDArray result :
        List.of(operands.o, operands.lse, operands.dq, operands.dk, operands.dv, operands.dalpha)) {
      result.assign(1); // makes its pages resident
    }
    Files.writeString(Path.of("/proc/self/clear_refs"), "5"); // resets the peak
    double before = kilobytes("VmHWM:");
    operands.forward();
    operands.backward();
    System.out.printf(
        Locale.ROOT,
        "| %d | %.0f | %.1f |%n",
        length,
        (8.0 * 64 + 3) * AttentionOperands.HEADS * length * Float.BYTES / 1e6,
        (kilobytes("VmHWM:") - before) * 1024 / 1e6);
  }

  private static double kilobytes(String field) throws IOException {
    for (String line : Files.readAllLines(Path.of("/proc/self/status"))) {
      if (line.startsWith(field)) {
        return Double.parseDouble(line.replaceAll("[^0-9]", ""));
      }
    }
    throw new IOException("/proc/self/status has no " + field);
  }
}
