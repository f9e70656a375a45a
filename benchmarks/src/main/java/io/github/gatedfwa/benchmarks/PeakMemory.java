package io.github.gatedfwa.benchmarks;

import java.io.IOException;
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
      ResidentMemory.inFreshProcess(PeakMemory.class, List.of(), Long.toString(length));
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
    ResidentMemory.resetPeak();
    double before = ResidentMemory.peakMegabytes();
    operands.forward();
    operands.backward();
    System.out.printf(
        Locale.ROOT,
        "| %d | %.0f | %.1f |%n",
        length,
        (8.0 * 64 + 3) * AttentionOperands.HEADS * length * Float.BYTES / 1e6,
        ResidentMemory.peakMegabytes() - before);
  }
}
