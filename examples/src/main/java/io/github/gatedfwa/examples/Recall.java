package io.github.gatedfwa.examples;

import io.github.gatedfwa.layers.AttentionLayer;
import io.github.gatedfwa.zoo.training.WarmupCosineSchedule;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.Random;
import me.tongfei.progressbar.ProgressBar;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.dataset.MultiDataSet;
import org.nd4j.linalg.factory.Nd4j;

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

  /** Makes examples of one length, all with the same number of questions. */
  interface Task {
    Example next(Random random);
  }

  /**
   * How to train.
   *
   * @param steps at most
   * @param batch examples in a step
   * @param enough accuracy of {@value #LOOK_AT} steps in a row that ends the training
   */
  record Plan(int width, int blocks, int steps, int batch, double learningRate, double enough) {}

  private static final int LOOK_AT = 20;

  /** Trains a model of blocks with this attention; new weights, new examples in every step. */
  static ComputationGraph train(
      String name,
      AttentionLayer attention,
      int vocabulary,
      Task task,
      Plan plan,
      long seed,
      Interruption interruption) {
    Random random = new Random(seed);
    List<Example> examples = examples(task, plan.batch(), random);
    WarmupCosineSchedule schedule =
        new WarmupCosineSchedule(
            plan.learningRate(),
            plan.learningRate() / 10,
            Math.min(50, plan.steps()),
            plan.steps());
    ComputationGraph network =
        CodeModel.network(
            vocabulary,
            plan.width(),
            plan.blocks(),
            attention,
            examples.get(0).questions().size(),
            seed,
            schedule);
    int good = 0;
    try (ProgressBar bar = Progress.bar(name, 0, plan.steps())) {
      for (int step = 0;
          step < plan.steps() && good < LOOK_AT && !interruption.requested();
          step++) {
        network.fit(data(examples));
        double loss = network.score() / examples.get(0).questions().size();
        if (!Double.isFinite(loss)) {
          throw new IllegalArgumentException(
              "the loss became " + loss + "; try a lower --learning-rate");
        }
        // exp(-loss) is the geometric mean of the answers' probabilities.
        good = Math.exp(-loss) >= plan.enough() ? good + 1 : 0;
        bar.setExtraMessage(String.format(Locale.ROOT, "loss %.3f", loss));
        bar.step();
        examples = examples(task, plan.batch(), random);
      }
    }
    return network;
  }

  static List<Example> examples(Task task, int count, Random random) {
    List<Example> examples = new ArrayList<>();
    for (int i = 0; i < count; i++) {
      examples.add(task.next(random));
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
}
