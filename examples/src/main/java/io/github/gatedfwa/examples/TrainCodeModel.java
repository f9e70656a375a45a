package io.github.gatedfwa.examples;

import static io.github.gatedfwa.examples.TextTraining.step;

import io.github.gatedfwa.zoo.lm.TextGenerator;
import io.github.gatedfwa.zoo.training.WarmupCosineSchedule;
import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.Callable;
import org.deeplearning4j.nn.graph.ComputationGraph;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/**
 * Trains a byte-level language model on Java source, measures it on files that it never saw, and
 * lets it write.
 *
 * <p>Ctrl-C saves the model at the end of the current step. A run that finds the file goes on from
 * there: weights, updater, step, learning rate and order of the data.
 */
@Command(
    name = "TrainCodeModel",
    mixinStandardHelpOptions = true,
    showDefaultValues = true,
    description = "Trains a byte-level language model on Java source, or goes on training one.")
public final class TrainCodeModel implements Callable<Integer> {

  /** Steps between two reports to the training UI. */
  private static final int UI_FREQUENCY = 10;

  @Option(names = "--sources", paramLabel = "FOLDER", description = "Java files, in any depth")
  Path sources = ProjectFolder.file("examples", "target", "sources");

  @Option(
      names = "--model",
      paramLabel = "FILE",
      description =
          "the model; one that exists goes on training and keeps its own shape. The loss goes to"
              + " FILE.csv and FILE.png")
  Path model = ProjectFolder.file("build", "code-model.zip");

  @Option(names = "--steps", description = "training steps in all, those already done included")
  int steps = 1500;

  @Option(names = "--batch", description = "windows of text in a step")
  int batch = 4;

  @Option(names = "--context", description = "bytes in a window of text")
  int context = 256;

  @Option(names = "--width", description = "features of a byte inside the model")
  int width = 128;

  @Option(names = "--blocks", description = "decoder blocks")
  int blocks = 4;

  @Option(names = "--heads", description = "attention heads")
  int heads = 4;

  @Option(names = "--attention-window", description = "bytes that a query sees in each block")
  int attentionWindow = 128;

  @Option(names = "--learning-rate", description = "the highest, after warm-up")
  double learningRate = 3e-3;

  @Option(names = "--warmup", description = "steps of warm-up")
  int warmup = 100;

  @Option(names = "--seed", description = "of weights, data order and sampling")
  long seed = 1;

  @Option(names = "--save-every", description = "steps between two saves")
  int saveEvery = 200;

  @Option(names = "--sample", description = "bytes to generate at the end; 0: none")
  int sample = 300;

  @Option(
      names = "--ui",
      paramLabel = "PORT",
      description = "shows training in a browser on this machine; 9000 is DL4J's usual port")
  Integer uiPort;

  @Spec CommandSpec spec;

  /**
   * Runs the program and ends the process with its exit code.
   *
   * @param arguments see {@code --help}
   */
  public static void main(String[] arguments) {
    System.exit(CommandLines.of(new TrainCodeModel()).execute(arguments));
  }

  @Override
  public Integer call() throws IOException {
    CommandLines.requireFile("--model", model);
    CommandLines.requirePositive("--steps", steps);
    CommandLines.requirePositive("--batch", batch);
    CommandLines.requirePositive("--context", context);
    CommandLines.requirePositive("--width", width);
    CommandLines.requirePositive("--blocks", blocks);
    CommandLines.requirePositive("--heads", heads);
    CommandLines.requirePositive("--attention-window", attentionWindow);
    CommandLines.requirePositive("--save-every", saveEvery);
    CommandLines.requireAtLeast(0, "--sample", sample);
    PrintWriter out = spec.commandLine().getOut();
    SourceFiles files = SourceFiles.under(sources);
    out.printf(
        Locale.ROOT,
        "%s: %d files (%.1f MB) to train on, %d files (%.0f kB) held out%n",
        sources,
        files.training().size(),
        SourceFiles.bytes(files.training()) / 1e6,
        files.heldOut().size(),
        SourceFiles.bytes(files.heldOut()) / 1e3);

    WarmupCosineSchedule schedule =
        new WarmupCosineSchedule(learningRate, learningRate / 10, Math.min(warmup, steps), steps);
    ComputationGraph network;
    LossCurve curve;
    if (Files.exists(model)) {
      network = CodeModel.load(model);
      network.setLearningRate(schedule);
      curve = step(network) == 0 ? new LossCurve() : LossCurve.load(beside(".csv"), step(network));
    } else {
      network = CodeModel.create(width, blocks, heads, attentionWindow, context, seed, schedule);
      curve = new LossCurve();
    }
    out.printf(
        Locale.ROOT,
        "%s: %,d parameters, %s%n",
        model,
        network.numParams(),
        step(network) == 0 ? "new" : "goes on after step " + step(network));

    if (step(network) < steps && !train(network, curve, files, out)) {
      return Interruption.EXIT_CODE;
    }
    out.printf("%nReading the held-out files...%n");
    measure(network, curve, files, out);
    if (sample > 0) {
      out.printf("%n%d bytes from the model:%n%n", sample);
      Generate.stream(
          TextGenerator.builder(network).maxBytes(sample).temperature(0.7).seed(seed), "", out);
      out.println();
    }
    out.printf("%nSaved: %s, %s, %s%n", model, beside(".csv"), beside(".png"));
    return 0;
  }

  private Path beside(String extension) {
    return model.resolveSibling(model.getFileName() + extension);
  }

  /** Trains up to {@link #steps}, saves, and answers whether it came to its end. */
  private boolean train(
      ComputationGraph network, LossCurve curve, SourceFiles files, PrintWriter out)
      throws IOException {
    try (Interruption interruption = Interruption.listen();
        TrainingUi ui = uiPort == null ? null : TrainingUi.start(uiPort)) {
      if (ui != null) {
        out.printf("Training UI: %s%n", ui.address());
        network.addListeners(ui.listener(UI_FREQUENCY));
      }
      TextTraining.fit(
          network,
          files.training(),
          new TextTraining.Plan(steps, batch, context, learningRate, seed),
          curve,
          interruption,
          trained -> {
            if (step(trained) % saveEvery == 0) {
              save(trained, curve);
            }
            return true;
          });
      save(network, curve);
      if (step(network) < steps) {
        out.printf(
            Locale.ROOT,
            "%nInterrupted after step %d of %d; saved as %s. The same command goes on from"
                + " there.%n",
            step(network),
            steps,
            model);
        return false;
      }
      return true;
    }
  }

  /** The curve first: whoever finds a model finds the losses of all its steps. */
  private void save(ComputationGraph network, LossCurve curve) throws IOException {
    curve.save(beside(".csv"));
    CodeModel.save(network, model);
  }

  private void measure(
      ComputationGraph network, LossCurve curve, SourceFiles files, PrintWriter out)
      throws IOException {
    Baselines baselines = new Baselines(files.training());
    Map<String, Double> results = new LinkedHashMap<>();
    results.put("this model", TextTraining.bitsPerByte(network, files.heldOut()));
    results.put("order-1 model", baselines.order1(files.heldOut()));
    results.put("order-0 model", baselines.order0(files.heldOut()));
    results.put("xz -9", Baselines.xz(files.heldOut()));
    out.println("Bits per byte on the held-out files:");
    results.forEach((name, bits) -> out.printf(Locale.ROOT, "  %-14s %6.3f%n", name, bits));
    curve.draw(beside(".png"), results);
  }
}
