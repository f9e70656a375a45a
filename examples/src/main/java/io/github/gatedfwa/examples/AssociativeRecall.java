package io.github.gatedfwa.examples;

import io.github.gatedfwa.layers.AttentionLayer;
import io.github.gatedfwa.layers.GatedFWALayer;
import io.github.gatedfwa.layers.NativeSparseAttentionLayer;
import java.io.IOException;
import java.io.PrintWriter;
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
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/**
 * Multi-query associative recall (MQAR, arXiv 2312.04927), the task of figure 8 in arXiv
 * 2512.07782: pairs of a key and a value come first; later each key comes once more, and its value
 * is asked for. Trains a model with each kind of attention, on longer and longer sequences, and
 * prints how many values it knows at each length.
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

  @Option(
      names = "--lengths",
      split = ",",
      description = "tokens in a sequence, one length after the other")
  List<Integer> lengths = List.of(32, 64, 128);

  @Option(names = "--keys", description = "different keys, and as many values")
  int keys = 32;

  @Mixin
  Recall.Options options =
      new Recall.Options(16, 16, ProjectFolder.file("build", "associative-recall.png"));

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
    options.check();
    CommandLines.requirePositive("--keys", keys);
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
      for (Map.Entry<String, AttentionLayer> kind : attention().entrySet()) {
        table.put(kind.getKey(), accuracies(kind.getKey(), kind.getValue(), interruption, out));
        if (interruption.requested()) {
          return Interruption.EXIT_CODE;
        }
      }
    }
    Recall.print(
        out,
        "; windows of %d tokens".formatted(options.window),
        lengths.stream().map(length -> "N = " + length).toList(),
        table);
    AccuracyChart.draw(options.plot, "Multi-query associative recall", "N", lengths, table);
    out.printf("%nSaved: %s%n", options.plot);
    return 0;
  }

  /** The kinds of attention to compare, by name. */
  private Map<String, AttentionLayer> attention() {
    Map<String, AttentionLayer> kinds = new LinkedHashMap<>();
    kinds.put(
        "full attention",
        options
            .common(GatedFWALayer.builder())
            .gated(false)
            .windowSize(Collections.max(lengths))
            .build());
    kinds.put("plain window", options.common(GatedFWALayer.builder()).gated(false).build());
    kinds.put("GatedFWA", options.common(GatedFWALayer.builder()).build());
    kinds.put(
        "GatedFWA + NSA",
        options
            .common(NativeSparseAttentionLayer.builder())
            .blockLength(4)
            .stride(2)
            .selectionBlock(8)
            .topN(6)
            .build());
    return kinds;
  }

  /** Of a model that is trained with one length after the other, at each of them. */
  private List<Double> accuracies(
      String name, AttentionLayer attention, Interruption interruption, PrintWriter out) {
    List<Double> accuracies = new ArrayList<>();
    Recall.Task task = (length, random) -> example(random, length, keys);
    long started = System.nanoTime();
    Recall.train(
        name,
        attention,
        1 + 2 * keys,
        task,
        lengths.stream().map(length -> new Recall.Stage(length, options.steps)).toList(),
        options,
        interruption,
        (length, network) -> {
          List<Recall.Example> tests =
              Recall.examples(task, length, TESTS, new Random(-options.seed));
          double accuracy = Recall.accuracy(network, tests, options.batch);
          accuracies.add(accuracy);
          out.printf(
              Locale.ROOT,
              "%-16s N = %4d: %5.1f %% after %d steps, %.0f s%n",
              name,
              length,
              100 * accuracy,
              network.getIterationCount(),
              (System.nanoTime() - started) / 1e9);
          out.flush();
        });
    return accuracies;
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
}
