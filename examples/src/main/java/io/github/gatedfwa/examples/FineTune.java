package io.github.gatedfwa.examples;

import static io.github.gatedfwa.examples.TextTraining.step;

import io.github.gatedfwa.zoo.lm.GatedFwaLM;
import io.github.gatedfwa.zoo.lm.GatedFwaLM.Pretrained;
import io.github.gatedfwa.zoo.training.WarmupCosineSchedule;
import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.Callable;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.nd4j.linalg.learning.config.Adam;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/**
 * Continues training a pretrained model of the zoo on the user's own text, and keeps the weights
 * that were best on the part of it that is held out.
 *
 * <p>Ctrl-C saves at the end of the current step, and the same command goes on from there. DL4J's
 * EarlyStoppingGraphTrainer cannot: it knows neither the best score of the run that it continues
 * nor how long ago it was. So the scores are in a file here, {@link HeldOutScores}.
 */
@Command(
    name = "FineTune",
    mixinStandardHelpOptions = true,
    showDefaultValues = true,
    description = "Continues training a pretrained model on your own text.")
public final class FineTune implements Callable<Integer> {
  /** With less there is no text to measure with. */
  private static final int LEAST_WINDOWS = 10;

  @Option(
      names = "--text",
      paramLabel = "FOLDER",
      required = true,
      description = "your text: a folder, searched in any depth, or a file")
  Path text;

  @Option(
      names = "--files",
      paramLabel = "PATTERN",
      description = "which files of the folder, such as '*.{java,md}'; hidden ones never")
  String files = "*";

  @Option(names = "--model", description = "where to start: one of ${COMPLETION-CANDIDATES}")
  Pretrained model = Pretrained.TINY_JAVA;

  @Option(
      names = "--save",
      paramLabel = "FILE",
      description =
          "the best model. FILE.checkpoint, from which the same command goes on, and FILE.csv, the"
              + " scores, lie beside it")
  Path save = ProjectFolder.file("build", "fine-tuned.zip");

  @Option(names = "--steps", description = "training steps at most, those already done included")
  int steps = 300;

  @Option(names = "--batch", description = "windows of text in a step")
  int batch = 4;

  @Option(names = "--context", description = "bytes in a window of text")
  int context = 512;

  @Option(names = "--learning-rate", description = "the highest, after warm-up")
  double learningRate = 5e-4;

  @Option(names = "--warmup", description = "steps of warm-up")
  int warmup = 20;

  @Option(
      names = "--measure-every",
      description = "steps from one look at the held-out text, and one checkpoint, to the next")
  int measureEvery = 50;

  @Option(
      names = "--patience",
      description = "how many looks in a row without progress end the training")
  int patience = 2;

  @Option(
      names = "--most-held-out",
      paramLabel = "BYTES",
      description = "a tenth of the text is held out; this much of it is looked at, at most")
  int mostHeldOut = 1 << 15;

  @Option(names = "--seed", description = "decides which windows of the text come")
  long seed = 1;

  @Spec CommandSpec spec;

  private HeldOutScores scores;

  /**
   * Runs the program and ends the process with its exit code.
   *
   * @param arguments see {@code --help}
   */
  public static void main(String[] arguments) {
    System.exit(CommandLines.of(new FineTune()).execute(arguments));
  }

  @Override
  public Integer call() throws IOException {
    CommandLines.requireFile("--save", save);
    CommandLines.requirePositive("--steps", steps);
    CommandLines.requirePositive("--batch", batch);
    CommandLines.requirePositive("--context", context);
    CommandLines.requirePositive("--measure-every", measureEvery);
    CommandLines.requirePositive("--patience", patience);
    CommandLines.requirePositive("--most-held-out", mostHeldOut);
    PrintWriter out = spec.commandLine().getOut();
    try (Interruption interruption = Interruption.listen();
        OwnText own =
            OwnText.read(text, files, (long) LEAST_WINDOWS * context, mostHeldOut, save)) {
      out.printf("%s: %s%n", text, own.description());
      ComputationGraph network = start(model + " on " + own.description(), out);
      if (step(network) == 0) {
        measure(network, own, out);
      }
      if (goesOn(network)) {
        TextTraining.fit(
            network,
            own.training(),
            new TextTraining.Plan(steps, batch, context, learningRate, seed),
            new LossCurve(),
            interruption,
            trained -> {
              if (step(trained) % measureEvery == 0 || step(trained) == steps) {
                measure(trained, own, out);
              }
              return goesOn(trained);
            });
      }
      if (goesOn(network)) {
        CodeModel.save(network, checkpoint());
        out.printf(
            "%nInterrupted after step %d of %d; saved as %s. The same command goes on from"
                + " there.%n",
            step(network), steps, checkpoint());
        return Interruption.EXIT_CODE;
      }
      report(network, out);
      return 0;
    }
  }

  private Path checkpoint() {
    return beside(".checkpoint");
  }

  private Path beside(String extension) {
    return save.resolveSibling(save.getFileName() + extension);
  }

  /** The pretrained model or the one of the checkpoint, with its scores. */
  private ComputationGraph start(String run, PrintWriter out) throws IOException {
    WarmupCosineSchedule schedule =
        new WarmupCosineSchedule(learningRate, learningRate / 10, Math.min(warmup, steps), steps);
    scores = new HeldOutScores(run);
    if (Files.exists(checkpoint())) {
      ComputationGraph network = CodeModel.load(checkpoint());
      network.setLearningRate(schedule);
      if (step(network) > 0) {
        scores = HeldOutScores.load(beside(".csv"), run, step(network));
        out.printf("%s: goes on after step %d%n", checkpoint(), step(network));
      }
      return network;
    }
    List<Path> others = Stream.of(save, beside(".csv")).filter(Files::exists).toList();
    if (!others.isEmpty()) {
      throw new IllegalArgumentException(
          "--save %s would overwrite %s, and there is no %s to go on from: name another --save, or delete what is there"
              .formatted(
                  save,
                  others.stream().map(Path::toString).collect(Collectors.joining(" and ")),
                  checkpoint()));
    }
    return GatedFwaLM.builder()
        .context(context)
        .updater(Adam.builder().learningRateSchedule(schedule).beta1(0.9).beta2(0.95).build())
        .build()
        .initPretrained(model);
  }

  /**
   * Looks at the held-out text and saves. The checkpoint comes last: whoever finds it finds the
   * scores and the best model of all its steps.
   */
  private void measure(ComputationGraph network, OwnText own, PrintWriter out) throws IOException {
    int step = step(network);
    double bitsPerByte = TextTraining.bitsPerByte(network, own.heldOut());
    scores.add(step, bitsPerByte);
    boolean best = scores.best().getKey() == step;
    if (best) {
      CodeModel.saveForUse(network, save);
    }
    scores.save(beside(".csv"));
    CodeModel.save(network, checkpoint());
    if (step > 0) {
      out.println(); // behind the progress bar
    }
    out.printf(
        Locale.ROOT,
        "After %d steps: %.3f bits per byte on the held-out text%s%n",
        step,
        bitsPerByte,
        best ? "" : ", no better");
    out.flush();
  }

  private boolean goesOn(ComputationGraph network) {
    return step(network) < steps && scores.sinceBest() < patience;
  }

  private void report(ComputationGraph network, PrintWriter out) {
    if (step(network) < steps) {
      out.printf("%nStopped early: no better for %d looks in a row.%n", scores.sinceBest());
    }
    out.printf(
        Locale.ROOT,
        "%nBits per byte on the held-out text:%n  before  %6.3f%n  after   %6.3f (step %d)%n",
        scores.before(),
        scores.best().getValue(),
        scores.best().getKey());
    out.printf("%nSaved: %s. Try it: examples/run CompleteCode --model %s%n", save, save);
  }
}
