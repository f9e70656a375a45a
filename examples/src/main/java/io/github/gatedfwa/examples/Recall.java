package io.github.gatedfwa.examples;

import io.github.gatedfwa.layers.AttentionLayer;
import io.github.gatedfwa.layers.WindowedAttentionLayer;
import io.github.gatedfwa.zoo.training.WarmupCosineSchedule;
import java.io.PrintWriter;
import java.nio.file.Path;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Deque;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Random;
import java.util.function.BiConsumer;
import me.tongfei.progressbar.ProgressBar;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.dataset.MultiDataSet;
import org.nd4j.linalg.factory.Nd4j;
import picocli.CommandLine.Option;

/**
 * Training and measuring of models that must answer questions about what stands before: what {@link
 * Needle} and {@link AssociativeRecall} share. The loss is that of the answers only.
 */
final class Recall {
  private Recall() {}

  /**
   * A question and its answer in a sequence.
   *
   * @param position of the token after which the answer is asked for
   * @param answer the token that should come
   * @param distance from the position back to where the answer stands
   */
  record Question(int position, int answer, int distance) {}

  /** A sequence of tokens with questions. */
  record Example(List<Integer> tokens, List<Question> questions) {
    Example(int[] tokens, List<Question> questions) {
      this(Arrays.stream(tokens).boxed().toList(), questions);
    }
  }

  /** Makes examples; those of one length have the same number of questions. */
  interface Task {
    Example next(int length, Random random);
  }

  /** The options of both programs: a model's shape, its training, and the picture. */
  static final class Options {
    @Option(names = "--window", description = "tokens in the window")
    int window;

    @Option(names = "--width", description = "features of a token inside the model")
    int width = 128;

    @Option(names = "--heads", description = "attention heads")
    int heads = 2;

    @Option(names = "--blocks", description = "decoder blocks")
    int blocks = 2;

    @Option(
        names = "--steps",
        description =
            "training steps at most with the shortest sequences; a model that knows goes on sooner")
    int steps = 300;

    @Option(names = "--batch", description = "sequences in a step")
    int batch;

    @Option(names = "--learning-rate", description = "the highest, after warm-up")
    double learningRate = 3e-3;

    @Option(names = "--seed", description = "of weights and data")
    long seed = 1;

    @Option(names = "--plot", paramLabel = "FILE", description = "the accuracies, as PNG")
    Path plot;

    Options(int window, int batch, Path plot) {
      this.window = window;
      this.batch = batch;
      this.plot = plot;
    }

    /**
     * @throws IllegalArgumentException if one is out of its range
     */
    void check() {
      CommandLines.requirePositive("--window", window);
      CommandLines.requirePositive("--width", width);
      CommandLines.requirePositive("--heads", heads);
      CommandLines.requirePositive("--blocks", blocks);
      CommandLines.requirePositive("--steps", steps);
      CommandLines.requirePositive("--batch", batch);
      CommandLines.requireFile("--plot", plot);
    }

    /** Sets what all kinds of attention have in common. */
    <T extends WindowedAttentionLayer.Builder<T>> T common(T attention) {
      return attention
          .nHeads(heads)
          .windowSize(window)
          .ropeBase(10000)
          .qkNorm(true)
          .keyShift(true)
          .valueShift(true);
    }
  }

  /** Examples of one length, and for how many steps at most they are trained with. */
  record Stage(int length, int steps) {}

  /** Probability of the right answers, over so many steps, that ends a stage. */
  private static final double ENOUGH = 0.95;

  private static final int LOOK_AT = 20;

  /**
   * Trains a model of blocks with this attention; new weights, new examples in every step.
   *
   * @param stages one after the other: what is found in short examples is a start for longer ones
   * @param afterStage takes each stage's length and the model that has been trained with it
   */
  static ComputationGraph train(
      String name,
      AttentionLayer attention,
      int vocabulary,
      Task task,
      List<Stage> stages,
      Options options,
      Interruption interruption,
      BiConsumer<Integer, ComputationGraph> afterStage) {
    Random random = new Random(options.seed);
    int steps = stages.stream().mapToInt(Stage::steps).sum();
    WarmupCosineSchedule schedule =
        new WarmupCosineSchedule(
            options.learningRate, options.learningRate / 10, Math.min(50, steps), steps);
    ComputationGraph network =
        CodeModel.network(
            vocabulary,
            options.width,
            options.blocks,
            attention,
            task.next(stages.get(0).length(), random).questions().size(),
            options.seed,
            schedule);
    for (Stage stage : stages) {
      try (ProgressBar bar =
          Progress.bar("%s, N = %d".formatted(name, stage.length()), 0, stage.steps())) {
        Deque<Double> last = new ArrayDeque<>();
        for (int step = 0;
            step < stage.steps() && !known(last) && !interruption.requested();
            step++) {
          List<Example> examples = examples(task, stage.length(), options.batch, random);
          network.fit(data(examples));
          double loss = network.score() / examples.get(0).questions().size();
          if (!Double.isFinite(loss)) {
            throw new IllegalArgumentException(
                "the loss became " + loss + "; try a lower --learning-rate");
          }
          last.addLast(loss);
          if (last.size() > LOOK_AT) {
            last.removeFirst();
          }
          bar.setExtraMessage(String.format(Locale.ROOT, "loss %.3f", loss));
          bar.step();
        }
      }
      if (interruption.requested()) {
        break;
      }
      afterStage.accept(stage.length(), network);
    }
    return network;
  }

  private static boolean known(Deque<Double> losses) {
    // exp(-loss) is the geometric mean of the answers' probabilities.
    return losses.size() == LOOK_AT
        && losses.stream().mapToDouble(loss -> loss).average().orElseThrow() <= -Math.log(ENOUGH);
  }

  /** Lengths that double from one on and end with the last; each has as many tokens in all. */
  static List<Stage> doubling(int first, int last, int firstSteps) {
    List<Stage> stages = new ArrayList<>();
    for (int length = first; length < last; length *= 2) {
      stages.add(new Stage(length, Math.max(1, firstSteps * first / length)));
    }
    stages.add(new Stage(last, Math.max(1, firstSteps * first / last)));
    return stages;
  }

  static List<Example> examples(Task task, int length, int count, Random random) {
    List<Example> examples = new ArrayList<>();
    for (int i = 0; i < count; i++) {
      examples.add(task.next(length, random));
    }
    return examples;
  }

  /** Features [minibatch, 1, time], labels [minibatch, time, 1], mask [minibatch, time]. */
  private static MultiDataSet data(List<Example> examples) {
    int time = examples.get(0).tokens().size();
    INDArray labels = Nd4j.zeros(DataType.FLOAT, examples.size(), time, 1);
    INDArray mask = Nd4j.zeros(DataType.FLOAT, examples.size(), time);
    for (int b = 0; b < examples.size(); b++) {
      for (Question question : examples.get(b).questions()) {
        labels.putScalar(b, question.position(), 0, question.answer());
        mask.putScalar(b, question.position(), 1);
      }
    }
    return new MultiDataSet(
        new INDArray[] {features(examples)}, new INDArray[] {labels}, null, new INDArray[] {mask});
  }

  private static INDArray features(List<Example> examples) {
    int time = examples.get(0).tokens().size();
    float[] tokens = new float[examples.size() * time];
    for (int b = 0; b < examples.size(); b++) {
      for (int t = 0; t < time; t++) {
        tokens[b * time + t] = examples.get(b).tokens().get(t);
      }
    }
    return Nd4j.createFromArray(tokens).reshape(examples.size(), 1, time);
  }

  /** Asks a model all questions; answers true for each one that it knew, in order. */
  static List<Boolean> ask(ComputationGraph network, List<Example> examples, int batch) {
    List<Boolean> right = new ArrayList<>();
    for (int from = 0; from < examples.size(); from += batch) {
      List<Example> part = examples.subList(from, Math.min(examples.size(), from + batch));
      INDArray best = network.outputSingle(features(part)).argMax(2);
      for (int b = 0; b < part.size(); b++) {
        for (Question question : part.get(b).questions()) {
          right.add(best.getInt(b, question.position()) == question.answer());
        }
      }
    }
    return right;
  }

  /** Share of questions that a model knows. */
  static double accuracy(ComputationGraph network, List<Example> examples, int batch) {
    List<Boolean> right = ask(network, examples, batch);
    return (double) right.stream().filter(known -> known).count() / right.size();
  }

  /**
   * Prints the accuracies of several models in percent.
   *
   * @param table accuracies by the model's name, one for each column
   */
  static void print(
      PrintWriter out, String title, List<String> columns, Map<String, List<Double>> table) {
    out.printf("%nValues known, in percent%s:%n%n%-16s", title, "");
    columns.forEach(column -> out.printf("%10s", column));
    out.println();
    table.forEach(
        (name, row) -> {
          out.printf("%-16s", name);
          row.forEach(accuracy -> out.printf(Locale.ROOT, "%10.1f", 100 * accuracy));
          out.println();
        });
  }
}
