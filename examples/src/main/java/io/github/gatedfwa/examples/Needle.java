package io.github.gatedfwa.examples;

import static java.nio.charset.StandardCharsets.ISO_8859_1;

import io.github.gatedfwa.layers.AttentionLayer;
import io.github.gatedfwa.layers.GatedFWALayer;
import io.github.gatedfwa.layers.NativeSparseAttentionLayer;
import io.github.gatedfwa.layers.WindowedAttentionLayer;
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
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/**
 * Needles in a haystack: pairs of a key and a value are planted in long real text, Java source, and
 * asked for at its end. Trains one model with GatedFWA alone and one with GatedFWA and native
 * sparse attention, and shows for each how many values it knows against how far back they stand.
 */
@Command(
    name = "Needle",
    mixinStandardHelpOptions = true,
    showDefaultValues = true,
    description = "Finds key/value pairs in long text, far outside of the window and inside it.")
public final class Needle implements Callable<Integer> {
  /** A needle is this byte, a key and a value; a question is the same byte and a key. */
  private static final int MARK = 1;

  private static final byte[] KEYS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ".getBytes(ISO_8859_1);
  private static final byte[] VALUES = "0123456789".getBytes(ISO_8859_1);

  private static final int BYTES = 256;
  private static final int TESTS = 64;
  private static final int RANGES = 8;
  private static final int INTERRUPTED = 130;

  @Option(names = "--sources", paramLabel = "FOLDER", description = "Java files, in any depth")
  Path sources = Path.of("examples", "target", "sources");

  @Option(names = "--context", description = "bytes of text, needles and questions included")
  int context = 1024;

  @Option(names = "--needles", description = "pairs in a text; each is asked for once")
  int needles = 8;

  @Option(names = "--window", description = "bytes in the window")
  int window = 64;

  @Option(names = "--width", description = "features of a byte inside the model")
  int width = 64;

  @Option(names = "--heads", description = "attention heads")
  int heads = 2;

  @Option(names = "--blocks", description = "decoder blocks")
  int blocks = 2;

  @Option(names = "--steps", description = "training steps at most; a model that knows ends sooner")
  int steps = 800;

  @Option(names = "--batch", description = "texts in a step")
  int batch = 4;

  @Option(names = "--learning-rate", description = "the highest, after warm-up")
  double learningRate = 3e-3;

  @Option(names = "--seed", description = "of weights and data")
  long seed = 1;

  @Option(names = "--plot", paramLabel = "FILE", description = "accuracy against distance, as PNG")
  Path plot = Path.of("build", "needle.png");

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
    CommandLines.requirePositive("--steps", steps);
    CommandLines.requirePositive("--batch", batch);
    CommandLines.requirePositive("--needles", needles);
    if (needles > KEYS.length || context < 12 * needles) {
      throw new IllegalArgumentException(
          "--needles must be at most %d and at most a twelfth of --context (%d), got %d"
              .formatted(KEYS.length, context, needles));
    }
    PrintWriter out = spec.commandLine().getOut();
    SourceFiles files = SourceFiles.under(sources);
    Recall.Task training = task(files.training(), seed);
    List<Recall.Example> tests =
        Recall.examples(task(files.heldOut(), seed + 1), TESTS, new Random(seed + 1));
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
                new Recall.Plan(width, blocks, steps, batch, learningRate, 0.99),
                seed,
                interruption);
        if (interruption.requested()) {
          return INTERRUPTED;
        }
        List<Boolean> right = Recall.ask(network, tests, batch);
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
    print(accuracies, out);
    AccuracyChart.draw(
        plot,
        "Needles in " + context + " bytes of Java source",
        "distance in bytes, up to",
        ends(),
        accuracies);
    out.printf("%nSaved: %s%n", plot);
    return 0;
  }

  /** The kinds of attention to compare, by name. */
  private Map<String, AttentionLayer> attention() {
    Map<String, AttentionLayer> kinds = new LinkedHashMap<>();
    kinds.put("GatedFWA", common(GatedFWALayer.builder()).build());
    kinds.put(
        "GatedFWA + NSA",
        common(NativeSparseAttentionLayer.builder())
            .blockLength(8)
            .stride(4)
            .selectionBlock(16)
            .topN(8)
            .build());
    return kinds;
  }

  private <T extends WindowedAttentionLayer.Builder<T>> T common(T builder) {
    return builder
        .nHeads(heads)
        .windowSize(window)
        .ropeBase(10000)
        .qkNorm(true)
        .keyShift(true)
        .valueShift(true);
  }

  /** Random windows of the files' text with needles and questions. */
  private Recall.Task task(List<Path> files, long order) throws IOException {
    TextWindowSequenceRecordReader reader = TextWindowSequenceRecordReader.random(context, order);
    reader.initialize(SourceFiles.split(files));
    return random -> {
      if (!reader.hasNext()) {
        reader.reset();
      }
      List<List<Writable>> steps = reader.sequenceRecord();
      int[] text = new int[context];
      for (int t = 0; t < context; t++) {
        text[t] = steps.get(t).get(0).toInt();
      }
      return plant(text, needles, random);
    };
  }

  /**
   * Overwrites places of a text with needles and its end with the questions, each followed by its
   * answer as in training.
   */
  static Recall.Example plant(int[] text, int needles, Random random) {
    int questionsStart = text.length - 3 * needles;
    List<Integer> places = new ArrayList<>(IntStream.range(0, questionsStart / 3).boxed().toList());
    Collections.shuffle(places, random);
    List<Integer> keys = new ArrayList<>(IntStream.range(0, KEYS.length).boxed().toList());
    Collections.shuffle(keys, random);
    int[] tokens = Arrays.copyOf(text, text.length);
    List<Recall.Question> questions = new ArrayList<>();
    for (int i = 0; i < needles; i++) {
      int value = VALUES[random.nextInt(VALUES.length)];
      for (int start : new int[] {3 * places.get(i), questionsStart + 3 * i}) {
        tokens[start] = MARK;
        tokens[start + 1] = KEYS[keys.get(i)];
        tokens[start + 2] = value;
      }
      int asked = questionsStart + 3 * i + 1;
      questions.add(new Recall.Question(asked, value, asked - (3 * places.get(i) + 2)));
    }
    return new Recall.Example(tokens, questions);
  }

  /** The largest distance of each range; the first is what blocks of windows can reach. */
  private List<Integer> ends() {
    int reach = Math.min(context - RANGES, blocks * (window - 1));
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

  private void print(Map<String, List<Double>> accuracies, PrintWriter out) {
    out.printf("%nValues known, in percent, by distance in bytes:%n%n%-16s", "");
    int from = 1;
    for (int end : ends()) {
      out.printf("%10s", from + "-" + end);
      from = end + 1;
    }
    out.println();
    accuracies.forEach(
        (name, row) -> {
          out.printf("%-16s", name);
          row.forEach(accuracy -> out.printf(Locale.ROOT, "%10.1f", 100 * accuracy));
          out.println();
        });
  }
}
