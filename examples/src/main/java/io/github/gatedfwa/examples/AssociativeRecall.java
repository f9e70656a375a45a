package io.github.gatedfwa.examples;

import io.github.gatedfwa.layers.AttentionLayer;
import io.github.gatedfwa.layers.GatedFWALayer;
import io.github.gatedfwa.layers.NativeSparseAttentionLayer;
import io.github.gatedfwa.layers.WindowedAttentionLayer;
import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.Callable;
import java.util.stream.IntStream;
import org.deeplearning4j.nn.graph.ComputationGraph;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/**
 * Multi-query associative recall (MQAR, arXiv 2312.04927), the task of figure 8 in arXiv
 * 2512.07782: pairs of a key and a value come first; later each key comes once more, and its value
 * is asked for. Trains a model with each kind of attention for each length and prints how many
 * values it knows.
 */
@Command(
    name = "AssociativeRecall",
    mixinStandardHelpOptions = true,
    showDefaultValues = true,
    description =
        "Multi-query associative recall by full attention, plain window, GatedFWA and GatedFWA with"
            + " native sparse attention.")
public final class AssociativeRecall implements Callable<Integer> {
  private static final int BLANK = 0;

  /** One pair for so many tokens. */
  private static final int TOKENS_PER_PAIR = 8;

  private static final int TESTS = 128;
  private static final int INTERRUPTED = 130;

  @Option(names = "--lengths", split = ",", description = "tokens in a sequence")
  List<Integer> lengths = List.of(64, 128, 256);

  @Option(names = "--window", description = "tokens in the window")
  int window = 32;

  @Option(names = "--keys", description = "different keys, and as many values")
  int keys = 64;

  @Option(names = "--width", description = "features of a token inside the model")
  int width = 64;

  @Option(names = "--heads", description = "attention heads")
  int heads = 2;

  @Option(names = "--blocks", description = "decoder blocks")
  int blocks = 2;

  @Option(names = "--steps", description = "training steps at most; a model that knows ends sooner")
  int steps = 1000;

  @Option(names = "--batch", description = "sequences in a step")
  int batch = 16;

  @Option(names = "--learning-rate", description = "the highest, after warm-up")
  double learningRate = 3e-3;

  @Option(names = "--seed", description = "of weights and data")
  long seed = 1;

  @Option(names = "--plot", paramLabel = "FILE", description = "accuracy against length, as PNG")
  Path plot = Path.of("build", "associative-recall.png");

  @Spec CommandSpec spec;

  /**
   * Runs the program and ends the process with its exit code.
   *
   * @param arguments see {@code --help}
   */
  public static void main(String[] arguments) {
    System.exit(CommandLines.of(new AssociativeRecall()).execute(arguments));
  }

  @Override
  public Integer call() throws IOException {
    CommandLines.requirePositive("--steps", steps);
    CommandLines.requirePositive("--batch", batch);
    for (int length : lengths) {
      if (length < TOKENS_PER_PAIR || length / TOKENS_PER_PAIR > keys) {
        throw new IllegalArgumentException(
            "--lengths has %d; with %d keys it must be from %d to %d"
                .formatted(length, keys, TOKENS_PER_PAIR, TOKENS_PER_PAIR * keys));
      }
    }
    PrintWriter out = spec.commandLine().getOut();
    Map<String, List<Double>> table = new LinkedHashMap<>();
    try (Interruption interruption = Interruption.listen()) {
      for (int length : lengths) {
        for (Map.Entry<String, AttentionLayer> kind : attention(length).entrySet()) {
          long started = System.nanoTime();
          double accuracy = accuracy(kind.getKey(), kind.getValue(), length, interruption, out);
          if (interruption.requested()) {
            return INTERRUPTED;
          }
          out.printf(
              Locale.ROOT,
              "%-16s N = %4d: %5.1f %% (%.0f s)%n",
              kind.getKey(),
              length,
              100 * accuracy,
              (System.nanoTime() - started) / 1e9);
          table.computeIfAbsent(kind.getKey(), name -> new ArrayList<>()).add(accuracy);
        }
      }
    }
    print(table, out);
    AccuracyChart.draw(plot, "Multi-query associative recall", "N", lengths, table);
    out.printf("%nSaved: %s%n", plot);
    return 0;
  }

  /** The kinds of attention to compare, by name. */
  private Map<String, AttentionLayer> attention(int length) {
    Map<String, AttentionLayer> kinds = new LinkedHashMap<>();
    kinds.put(
        "full attention", common(GatedFWALayer.builder()).gated(false).windowSize(length).build());
    kinds.put(
        "plain window", common(GatedFWALayer.builder()).gated(false).windowSize(window).build());
    kinds.put("GatedFWA", common(GatedFWALayer.builder()).windowSize(window).build());
    kinds.put(
        "GatedFWA + NSA",
        common(NativeSparseAttentionLayer.builder())
            .windowSize(window)
            .blockLength(4)
            .stride(2)
            .selectionBlock(8)
            .topN(6)
            .build());
    return kinds;
  }

  private <T extends WindowedAttentionLayer.Builder<T>> T common(T builder) {
    return builder.nHeads(heads).ropeBase(10000).qkNorm(true).keyShift(true).valueShift(true);
  }

  private double accuracy(
      String name,
      AttentionLayer attention,
      int length,
      Interruption interruption,
      PrintWriter out) {
    out.flush();
    Recall.Task task = random -> example(random, length, keys);
    ComputationGraph network =
        Recall.train(
            "%s, N = %d".formatted(name, length),
            attention,
            1 + 2 * keys,
            task,
            new Recall.Plan(width, blocks, steps, batch, learningRate, 0.99),
            seed,
            interruption);
    List<Recall.Example> tests = Recall.examples(task, TESTS, new Random(-seed));
    return Recall.accuracy(network, tests, batch);
  }

  /**
   * One sequence: length/8 pairs at the start, then blanks, with each key once at a random place.
   *
   * @param keys number of different keys: tokens 1 to keys; the values follow them
   */
  static Recall.Example example(Random random, int length, int keys) {
    int pairs = length / TOKENS_PER_PAIR;
    List<Integer> some = new ArrayList<>(IntStream.rangeClosed(1, keys).boxed().toList());
    Collections.shuffle(some, random);
    List<Integer> places = new ArrayList<>(IntStream.range(2 * pairs, length).boxed().toList());
    Collections.shuffle(places, random);
    int[] tokens = new int[length];
    Arrays.fill(tokens, BLANK);
    List<Recall.Question> questions = new ArrayList<>();
    for (int i = 0; i < pairs; i++) {
      int value = 1 + keys + random.nextInt(keys);
      tokens[2 * i] = some.get(i);
      tokens[2 * i + 1] = value;
      int place = places.get(i);
      tokens[place] = some.get(i);
      questions.add(new Recall.Question(place, value, place - (2 * i + 1)));
    }
    return new Recall.Example(tokens, questions);
  }

  private void print(Map<String, List<Double>> table, PrintWriter out) {
    out.printf("%nValues known, in percent; windows of %d tokens:%n%n%-16s", window, "");
    lengths.forEach(length -> out.printf("%9s", "N = " + length));
    out.println();
    table.forEach(
        (name, row) -> {
          out.printf("%-16s", name);
          row.forEach(accuracy -> out.printf(Locale.ROOT, "%9.1f", 100 * accuracy));
          out.println();
        });
  }
}
