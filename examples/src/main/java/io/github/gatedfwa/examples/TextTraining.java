package io.github.gatedfwa.examples;

import io.github.gatedfwa.zoo.text.TextWindowSequenceRecordReader;
import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import java.util.Locale;
import me.tongfei.progressbar.ProgressBar;
import org.deeplearning4j.datasets.datavec.RecordReaderMultiDataSetIterator;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.nd4j.linalg.dataset.api.MultiDataSet;
import org.nd4j.linalg.dataset.api.iterator.MultiDataSetIterator;

/**
 * Training and measuring of byte-level language models on text files: what {@link TrainCodeModel}
 * and {@link FineTune} share.
 */
final class TextTraining {
  private static final double LN2 = Math.log(2);

  /** Files are longer than training windows; the models take any length. */
  private static final int EVALUATION_WINDOW = 4096;

  private static final int EVALUATION_BATCH = 4;

  private TextTraining() {}

  /**
   * How to train.
   *
   * @param steps in all, those already done included
   * @param batch windows of text in a step
   * @param context bytes in a window
   * @param learningRate the highest; for messages, since the network has its schedule
   * @param seed decides the windows
   */
  record Plan(int steps, int batch, int context, double learningRate, long seed) {}

  /** What happens after each step. */
  interface AfterStep {
    /** Takes the network and answers whether to go on. */
    boolean goOn(ComputationGraph network) throws IOException;
  }

  /** Steps that a network has been trained for. */
  static int step(ComputationGraph network) {
    return network.getIterationCount();
  }

  /**
   * Trains up to the plan's steps, to an interruption or until {@code afterStep} wants no more, on
   * random windows of the files, from where a run of as many steps would have come to.
   *
   * @param curve takes the loss of each step
   */
  static void fit(
      ComputationGraph network,
      List<Path> files,
      Plan plan,
      LossCurve curve,
      Interruption interruption,
      AfterStep afterStep)
      throws IOException {
    MultiDataSetIterator data = trainingData(files, plan, step(network));
    try (ProgressBar bar = Progress.bar("Training", step(network), plan.steps())) {
      long started = System.nanoTime();
      long bytes = 0;
      boolean goOn = true;
      while (goOn && step(network) < plan.steps() && !interruption.requested()) {
        if (!data.hasNext()) {
          data.reset();
        }
        MultiDataSet windows = data.next();
        network.fit(windows);
        double loss = network.score() / plan.context() / LN2;
        if (!Double.isFinite(loss)) {
          throw new IllegalArgumentException(
              "the loss became "
                  + loss
                  + " at step "
                  + step(network)
                  + "; try a lower --learning-rate than "
                  + plan.learningRate());
        }
        curve.add(loss);
        bytes += windows.getLabels(0).length();
        bar.setExtraMessage(
            String.format(
                Locale.ROOT,
                "%.2f bits/byte, %.1f kB/s",
                curve.smoothed(),
                bytes * 1e6 / (System.nanoTime() - started)));
        bar.stepTo(step(network));
        goOn = afterStep.goOn(network);
      }
    }
  }

  private static MultiDataSetIterator trainingData(List<Path> files, Plan plan, int stepsDone)
      throws IOException {
    TextWindowSequenceRecordReader reader =
        TextWindowSequenceRecordReader.random(plan.context(), plan.seed());
    reader.initialize(SourceFiles.split(files));
    int batch = plan.batch();
    long batchesPerEpoch = (reader.windowsPerEpoch() + batch - 1) / batch;
    reader.skip(
        stepsDone / batchesPerEpoch * reader.windowsPerEpoch()
            + stepsDone % batchesPerEpoch * batch);
    return iterator(reader, batch);
  }

  private static MultiDataSetIterator iterator(TextWindowSequenceRecordReader reader, int batch) {
    MultiDataSetIterator windows =
        new RecordReaderMultiDataSetIterator.Builder(batch)
            .addSequenceReader("text", reader)
            .addInput("text", 0, 0)
            .addOutput("text", 1, 1)
            .build();
    // DataVec gives NCW.
    windows.setPreProcessor(set -> set.setLabels(0, set.getLabels(0).permute(0, 2, 1)));
    return windows;
  }

  /** Bits per byte of the model on files. */
  static double bitsPerByte(ComputationGraph network, List<Path> files) throws IOException {
    TextWindowSequenceRecordReader reader =
        TextWindowSequenceRecordReader.sequential(EVALUATION_WINDOW);
    reader.initialize(SourceFiles.split(files));
    MultiDataSetIterator windows = iterator(reader, EVALUATION_BATCH);
    double nats = 0;
    while (windows.hasNext()) {
      MultiDataSet batch = windows.next();
      // A score is the sum over a window's bytes, averaged over the windows of the batch.
      nats += network.score(batch) * batch.getFeatures(0).size(0);
    }
    return nats / LN2 / SourceFiles.bytes(files);
  }
}
