package io.github.gatedfwa.examples;

import io.github.gatedfwa.layers.AttentionLayer;
import io.github.gatedfwa.layers.GatedFWALayer;
import io.github.gatedfwa.layers.NativeSparseAttentionLayer;
import io.github.gatedfwa.zoo.text.TextWindowSequenceRecordReader;
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
import org.datavec.api.writable.Writable;
import org.deeplearning4j.nn.graph.ComputationGraph;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/**
 * Needles in a haystack: pairs of a key and a value are planted in long real text, Java source, and
 * asked for at its end. Trains one model with GatedFWA alone and one with GatedFWA and native
 * sparse attention, first with short texts, then with twice as long ones for half as many steps and
 * so on, and shows for each how many values it knows against how far back they stand.
 */
@Command(
    name = "Needle",
    mixinStandardHelpOptions = true,
    showDefaultValues = true,
    description = "Finds key/value pairs in long text, far outside of the window and inside it.")
public final class Needle implements Callable<Integer> {
  /** A needle is a key and a value, bytes that the text does not have; a question is a key. */
  private static final int FIRST_KEY = 128;

  private static final int FIRST_VALUE = 192;

  /** Number of different keys, and of values. */
  private static final int SYMBOLS = 32;

  private static final int REPLACEMENT = '?';

  private static final int BYTES = 256;

  /** Bytes for each needle in the texts with which the training starts. */
  private static final int SHORTEST = 8;

  private static final int TESTS = 64;
  private static final int RANGES = 8;

  @Option(names = "--sources", paramLabel = "FOLDER", description = "Java files, in any depth")
  Path sources = ProjectFolder.file("examples", "target", "sources");

  @Option(names = "--context", description = "bytes of text, needles and questions included")
  int context = 512;

  @Option(names = "--needles", description = "pairs in a text; each is asked for once")
  int needles = 8;

  @Mixin
  Recall.Options options = new Recall.Options(32, 8, ProjectFolder.file("build", "needle.png"));

  @Spec CommandSpec spec;

  /**
   * Runs the program and ends the process with its exit code.
   *
   * @param arguments see {@code --help}
   */
  public static void main(String[] arguments) {
    System.exit(CommandLines.of(new Needle()).execute(arguments));
  }

  @Override
  public Integer call() throws IOException {
    options.check();
    CommandLines.requirePositive("--needles", needles);
    if (needles > SYMBOLS || context < SHORTEST * needles) {
      throw new IllegalArgumentException(
          "--needles must be at most %d and at most an eighth of --context (%d), got %d"
              .formatted(SYMBOLS, context, needles));
    }
    PrintWriter out = spec.commandLine().getOut();
    SourceFiles files = SourceFiles.under(sources);
    Recall.Task training = task(files.training(), options.seed);
    List<Recall.Example> tests =
        Recall.examples(
            task(files.heldOut(), options.seed + 1), context, TESTS, new Random(options.seed + 1));
    Map<String, List<Double>> accuracies = new LinkedHashMap<>();
    try (Interruption interruption = Interruption.listen()) {
      for (Map.Entry<String, AttentionLayer> kind : attention().entrySet()) {
        long started = System.nanoTime();
        ComputationGraph network =
            Recall.train(
                kind.getKey(),
                kind.getValue(),
                BYTES,
                training,
                Recall.doubling(SHORTEST * needles, context, options.steps),
                options,
                interruption,
                (length, trained) -> {});
        if (interruption.requested()) {
          return Interruption.EXIT_CODE;
        }
        List<Boolean> right = Recall.ask(network, tests, options.batch);
        accuracies.put(kind.getKey(), byDistance(tests, right));
        out.printf(
            Locale.ROOT,
            "%s: %.1f %% of %d values known (%d steps, %.0f s)%n",
            kind.getKey(),
            100.0 * right.stream().filter(known -> known).count() / right.size(),
            right.size(),
            network.getIterationCount(),
            (System.nanoTime() - started) / 1e9);
      }
    }
    Recall.print(out, ", by distance in bytes", ranges(), accuracies);
    AccuracyChart.draw(
        options.plot,
        "Needles in " + context + " bytes of Java source",
        "distance in bytes, up to",
        ends(),
        accuracies);
    out.printf("%nSaved: %s%n", options.plot);
    return 0;
  }

  /** The kinds of attention to compare, by name. */
  private Map<String, AttentionLayer> attention() {
    Map<String, AttentionLayer> kinds = new LinkedHashMap<>();
    kinds.put("GatedFWA", options.common(GatedFWALayer.builder()).build());
    kinds.put(
        "GatedFWA + NSA",
        options
            .common(NativeSparseAttentionLayer.builder())
            .blockLength(8)
            .stride(4)
            .selectionBlock(16)
            .topN(8)
            .build());
    return kinds;
  }

  /** Random parts of the files' text with needles and questions. */
  private Recall.Task task(List<Path> files, long order) throws IOException {
    TextWindowSequenceRecordReader reader = TextWindowSequenceRecordReader.random(context, order);
    reader.initialize(SourceFiles.split(files));
    return (length, random) -> {
      if (!reader.hasNext()) {
        reader.reset();
      }
      List<List<Writable>> steps = reader.sequenceRecord();
      int[] text = new int[length];
      for (int t = 0; t < length; t++) {
        text[t] = steps.get(t).get(0).toInt();
      }
      return plant(text, needles, random);
    };
  }

  /**
   * Overwrites places of a text with needles and its end with the questions, each followed by its
   * answer as in training; what is not ASCII becomes a question mark.
   */
  static Recall.Example plant(int[] text, int needles, Random random) {
    int[] tokens = Arrays.stream(text).map(x -> x < FIRST_KEY ? x : REPLACEMENT).toArray();
    int questionsStart = text.length - 2 * needles;
    List<Integer> places = new ArrayList<>(IntStream.range(0, questionsStart / 2).boxed().toList());
    Collections.shuffle(places, random);
    List<Integer> keys = new ArrayList<>(IntStream.range(0, SYMBOLS).boxed().toList());
    Collections.shuffle(keys, random);
    List<Recall.Question> questions = new ArrayList<>();
    for (int i = 0; i < needles; i++) {
      int needle = 2 * places.get(i);
      int asked = questionsStart + 2 * i;
      int value = FIRST_VALUE + random.nextInt(SYMBOLS);
      for (int start : new int[] {needle, asked}) {
        tokens[start] = FIRST_KEY + keys.get(i);
        tokens[start + 1] = value;
      }
      questions.add(new Recall.Question(asked, value, asked - (needle + 1)));
    }
    return new Recall.Example(tokens, questions);
  }

  /** The largest distance of each range; the first is what blocks of windows can reach. */
  private List<Integer> ends() {
    int reach = Math.min(context - RANGES, options.blocks * (options.window - 1));
    return IntStream.range(0, RANGES)
        .mapToObj(i -> reach + (context - reach) * i / (RANGES - 1))
        .toList();
  }

  /** Accuracy in each range of distances; NaN where nothing was asked. */
  private List<Double> byDistance(List<Recall.Example> tests, List<Boolean> right) {
    List<Integer> ends = ends();
    int[] asked = new int[RANGES];
    int[] known = new int[RANGES];
    int next = 0;
    for (Recall.Example test : tests) {
      for (Recall.Question question : test.questions()) {
        int range = 0;
        while (question.distance() > ends.get(range)) {
          range++;
        }
        asked[range]++;
        known[range] += right.get(next++) ? 1 : 0;
      }
    }
    return IntStream.range(0, RANGES).mapToObj(i -> (double) known[i] / asked[i]).toList();
  }

  /** Names of the ranges. */
  private List<String> ranges() {
    List<String> names = new ArrayList<>();
    int from = 1;
    for (int end : ends()) {
      names.add(from + "-" + end);
      from = end + 1;
    }
    return names;
  }
}
