package io.github.gatedfwa.examples;

import static java.nio.charset.StandardCharsets.US_ASCII;

import io.github.gatedfwa.samediff.GatedFwaOps;
import io.github.gatedfwa.samediff.SDGatedFwa;
import io.github.gatedfwa.zoo.io.WholeFile;
import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Path;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.Callable;
import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;
import org.nd4j.autodiff.samediff.TrainingConfig;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.dataset.DataSet;
import org.nd4j.linalg.dataset.adapter.SingletonMultiDataSetIterator;
import org.nd4j.linalg.dataset.api.iterator.MultiDataSetIterator;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.learning.config.Adam;
import org.nd4j.weightinit.impl.XavierInitScheme;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** The attention op in a SameDiff graph that learns a text by heart, is saved and loaded again. */
@Command(
    name = "SameDiffExample",
    mixinStandardHelpOptions = true,
    showDefaultValues = true,
    description = "Trains, saves and loads a SameDiff graph with the gated windowed attention.")
public final class SameDiffExample implements Callable<Integer> {
  private static final String TEXT =
      "A window of recent tokens is cheap to attend to, but a plain window forgets with a hard edge"
          + " and remembers everything inside it alike. A gate lets each head decide, token by"
          + " token, how fast its memory fades: a head that needs the last comma can let go of the"
          + " rest, and a head that needs the name at the start of the line can hold on to it.";

  private static final int BYTES = 256;
  private static final int FEATURES = 32;
  private static final int HEADS = 2;
  private static final int HEAD_SIZE = FEATURES / HEADS;
  private static final int WINDOW = 16;
  private static final int REPORT_EVERY = 20;

  @Option(names = "--file", description = "where the graph is saved")
  Path file = ProjectFolder.file("build", "samediff-example.fb");

  @Option(names = "--steps", description = "training steps")
  int steps = 100;

  @Spec CommandSpec spec;

  /**
   * Runs the program and ends the process with its exit code.
   *
   * @param arguments see {@code --help}
   */
  public static void main(String[] arguments) {
    System.exit(CommandLines.of(new SameDiffExample()).execute(arguments));
  }

  @Override
  public Integer call() throws IOException {
    CommandLines.requireFile("--file", file);
    CommandLines.requirePositive("--steps", steps);
    PrintWriter out = spec.commandLine().getOut();
    byte[] text = TEXT.getBytes(US_ASCII);
    INDArray tokens = Nd4j.create(DataType.INT32, 1, text.length - 1);
    INDArray next = Nd4j.create(DataType.INT32, 1, text.length - 1);
    for (int t = 0; t < text.length - 1; t++) {
      tokens.putScalar(0, t, text[t]);
      next.putScalar(0, t, text[t + 1]);
    }

    Nd4j.getRandom().setSeed(1);
    SameDiff graph = graph(text.length - 1);
    Map<String, INDArray> arrays = Map.of("tokens", tokens, "next", next);
    MultiDataSetIterator data =
        new SingletonMultiDataSetIterator(new DataSet(tokens, next).toMultiDataSet());
    for (int step = 0; step < steps; step += REPORT_EVERY) {
      report(step, graph, arrays, out);
      graph.fit(data, Math.min(REPORT_EVERY, steps - step));
    }
    report(steps, graph, arrays, out);

    WholeFile.write(file, stream -> graph.save(stream, true));
    // A process that has not used the op yet must load it before it loads a graph that contains it.
    GatedFwaOps.load();
    SameDiff loaded = SameDiff.load(file.toFile(), true);
    INDArray before = graph.outputSingle(arrays, "logits");
    INDArray after = loaded.outputSingle(arrays, "logits");
    INDArray right = after.argMax(-1).castTo(DataType.INT32).eq(next.reshape(-1));
    boolean equal = before.equalsWithEps(after, 0);
    out.printf(
        Locale.ROOT,
        "saved as %s and loaded: %d of %d bytes predicted, outputs %s%n",
        file,
        right.castTo(DataType.INT32).sumNumber().intValue(),
        next.length(),
        equal ? "equal" : "DIFFERENT");
    return equal ? 0 : 1;
  }

  private static void report(
      int step, SameDiff graph, Map<String, INDArray> arrays, PrintWriter out) {
    double loss = graph.outputSingle(arrays, "loss").getDouble(0);
    out.printf(Locale.ROOT, "step %3d: %.4f nats per byte%n", step, loss);
  }

  /** tokens [B, N] -> logits [B·N, 256]; labels next [B, N]; one residual attention block. */
  private static SameDiff graph(int length) {
    SameDiff sd = SameDiff.create();
    SDVariable tokens = sd.placeHolder("tokens", DataType.INT32, -1, length);
    SDVariable next = sd.placeHolder("next", DataType.INT32, -1, length);

    // By one-hot rows: the gradient of ND4J 1.0.0-M2.1's gather fails on an array it has closed.
    SDVariable oneHot = sd.reshape(sd.oneHot(tokens, BYTES), -1, BYTES);
    SDVariable x = oneHot.mmul(weight(sd, "embedding", BYTES, FEATURES));
    SDVariable q = heads(sd, x.mmul(weight(sd, "W_q", FEATURES, FEATURES)), length);
    SDVariable k = heads(sd, x.mmul(weight(sd, "W_k", FEATURES, FEATURES)), length);
    SDVariable v = heads(sd, x.mmul(weight(sd, "W_v", FEATURES, FEATURES)), length);

    SDVariable bias = sd.var("b_g", Nd4j.valueArrayOf(new long[] {HEADS}, 2f));
    SDVariable h = x.mmul(weight(sd, "W_g", FEATURES, HEADS)).add(bias);
    SDVariable beta = sd.nn.elu(x.mmul(weight(sd, "W_beta", FEATURES, HEADS))).add(1);
    SDGatedFwa attention = new SDGatedFwa(sd);
    SDVariable alpha =
        attention.gate(
            sd.reshape(h, -1, length, HEADS),
            sd.reshape(beta, -1, length, HEADS),
            GatedFwaOps.DEFAULT_EPS);
    SDVariable o = attention.gatedFwa(q, k, v, alpha, null, WINDOW, 0)[0];

    SDVariable attended =
        sd.reshape(o, -1, FEATURES).mmul(weight(sd, "W_o", FEATURES, FEATURES)).add(x);
    SDVariable logits = attended.mmul("logits", weight(sd, "W_out", FEATURES, BYTES));
    sd.loss.sparseSoftmaxCrossEntropy("losses", logits, sd.reshape(next, -1));
    sd.mean("loss", sd.getVariable("losses"));
    sd.setLossVariables("loss");
    sd.setTrainingConfig(
        TrainingConfig.builder()
            .updater(new Adam(3e-2))
            .dataSetFeatureMapping("tokens")
            .dataSetLabelMapping("next")
            .build());
    return sd;
  }

  private static SDVariable weight(SameDiff sd, String name, int rows, int columns) {
    return sd.var(name, new XavierInitScheme('c', rows, columns), DataType.FLOAT, rows, columns);
  }

  private static SDVariable heads(SameDiff sd, SDVariable x, int length) {
    return sd.reshape(x, -1, length, HEADS, HEAD_SIZE);
  }
}
