package io.github.gatedfwa.benchmarks;

import io.github.gatedfwa.zoo.lm.GatedFwaLM;
import io.github.gatedfwa.zoo.lm.GatedFwaLM.Pretrained;
import io.github.gatedfwa.zoo.lm.TextGenerator;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.lang.management.ThreadMXBean;
import java.util.List;
import java.util.Locale;
import java.util.SplittableRandom;
import java.util.function.Predicate;
import javax.management.JMException;
import org.deeplearning4j.nn.graph.ComputationGraph;

/**
 * Lets a pretrained model write a long text: its speed, and that neither time per byte nor memory
 * grows with the text.
 *
 * <pre>
 *   LongGeneration [MODEL [BYTES]]     default: TINY_JAVA 100000
 * </pre>
 *
 * <p>Ten rows, for a tenth of the text each. It runs in a fresh process, whose heap is resident
 * from the start, so that what grows in its resident memory is native. Linux only.
 */
public final class LongGeneration {
  private static final int HEAP_MEGABYTES = 512;
  private static final int ROWS = 10;

  /** More than the window of any block, so that all of a prompt's caches are full. */
  private static final int PROMPT = 2048;

  private static final int WARM_UP = 500;
  private static final double NANOS = 1e9;

  private LongGeneration() {}

  public static void main(String[] args) throws Exception {
    Pretrained model = Pretrained.valueOf(args.length > 0 ? args[0] : "TINY_JAVA");
    int bytes = args.length > 1 ? Integer.parseInt(args[1]) : 100_000;
    if (args.length == 3) {
      write(model, bytes);
      return;
    }
    ResidentMemory.inFreshProcess(
        LongGeneration.class,
        List.of(
            "-Xms" + HEAP_MEGABYTES + "m",
            "-Xmx" + HEAP_MEGABYTES + "m",
            "-XX:+AlwaysPreTouch",
            "-XX:+UseSerialGC",
            "-XX:NativeMemoryTracking=summary"),
        model.name(),
        Integer.toString(bytes),
        "here");
  }

  private static void write(Pretrained model, int bytes) throws IOException {
    ComputationGraph network = GatedFwaLM.builder().build().initPretrained(model);
    network.getLayer("output").getParam("b").putScalar(0, -100); // it never ends a file
    TextGenerator generator = TextGenerator.builder(network).maxBytes(Integer.MAX_VALUE).build();
    String prompt = letters(PROMPT);
    generator.generate(prompt, stopAfter(WARM_UP));
    long started = System.nanoTime();
    generator.generate(prompt, piece -> false);
    double seconds = (System.nanoTime() - started) / NANOS;
    System.out.printf(
        Locale.ROOT,
        "%s reads a prompt of %,d bytes, as far as it can be seen, in %.2f s%n%n"
            + "| characters written | seconds | a second | CPU ms each | native memory, MB | heap, MB |%n"
            + "|---|---|---|---|---|---|%n",
        model,
        PROMPT,
        seconds);
    generator.generate("public class ", new Rows(bytes));
  }

  private static String letters(int length) {
    SplittableRandom random = new SplittableRandom(1);
    StringBuilder text = new StringBuilder();
    for (int i = 0; i < length; i++) {
      text.append((char) random.nextInt('a', 'z' + 1));
    }
    return text.toString();
  }

  private static Predicate<String> stopAfter(int characters) {
    int[] heard = {0};
    return piece -> {
      heard[0] += piece.length();
      return heard[0] < characters;
    };
  }

  /** Prints a row after each tenth of the text, and ends it. */
  private static final class Rows implements Predicate<String> {
    private final int length;
    private int written;
    private int rows;
    private final ThreadMXBean threads = ManagementFactory.getThreadMXBean();
    private long started = System.nanoTime();
    private long startedCpu = threads.getCurrentThreadCpuTime();

    Rows(int length) {
      this.length = length;
    }

    @Override
    public boolean test(String piece) {
      written += piece.length();
      if (written >= (long) length * (rows + 1) / ROWS) {
        rows++;
        try {
          print(
              (System.nanoTime() - started) / NANOS,
              (threads.getCurrentThreadCpuTime() - startedCpu) / NANOS);
        } catch (IOException | JMException e) {
          throw new IllegalStateException(e);
        }
        started = System.nanoTime();
        startedCpu = threads.getCurrentThreadCpuTime();
      }
      return written < length;
    }

    /** The CPU time is the calling thread's: it tells of growth on a busy machine, too. */
    private void print(double seconds, double cpuSeconds) throws IOException, JMException {
      long heap = ResidentMemory.collectGarbage();
      ResidentMemory.trim();
      System.out.printf(
          Locale.ROOT,
          "| %,d | %.1f | %.0f | %.2f | %.1f | %.1f |%n",
          written,
          seconds,
          length / (double) ROWS / seconds,
          cpuSeconds * 1e3 * ROWS / length,
          ResidentMemory.megabytes() - ResidentMemory.committedByJvmMegabytes(),
          heap / 1e6);
    }
  }
}
