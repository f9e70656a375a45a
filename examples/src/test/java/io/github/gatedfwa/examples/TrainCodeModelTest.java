package io.github.gatedfwa.examples;

import static java.nio.charset.StandardCharsets.UTF_8;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import io.github.gatedfwa.zoo.lm.TextGenerator;
import io.github.gatedfwa.zoo.text.TextWindowSequenceRecordReader;
import io.github.gatedfwa.zoo.training.WarmupCosineSchedule;
import java.io.IOException;
import java.io.OutputStream;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.TimeUnit;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

/** The programs end to end, at a size that takes seconds. */
class TrainCodeModelTest {
  private static final int STEPS = 150;

  @TempDir static Path folder;
  private static Path sources;
  private static Path trained;
  private static String output;

  @BeforeAll
  static void train() throws IOException {
    sources = folder.resolve("sources");
    TestSources.write(sources, 120);
    trained = folder.resolve("trained.zip");
    StringWriter printed = new StringWriter();
    assertThat(run(new TrainCodeModel(), printed, training(trained))).isZero();
    output = printed.toString();
  }

  @Test
  void learnsAndReports() {
    assertThat(output)
        .contains("to train on", "new", "Bits per byte on the held-out files:", "Saved: ");
    double model = reported("this model");
    assertThat(model).isPositive();
    assertThat(model).isLessThan(reported("order-1 model"));
    assertThat(reported("order-1 model")).isLessThan(reported("order-0 model"));
    assertThat(reported("xz -9")).isPositive();
    assertThat(folder.resolve("trained.zip.png")).isNotEmptyFile();
    assertThat(folder.resolve("trained.zip.csv")).content(UTF_8).hasLineCount(STEPS + 1);
    String generated =
        output.substring(output.indexOf("from the model:"), output.indexOf("\n\nSaved:"));
    assertThat(generated).contains("class").hasSizeGreaterThan(40);
  }

  @Test
  void bitsPerByteAreThoseOfTheModelsProbabilities() throws Exception {
    ComputationGraph network = CodeModel.load(trained);
    SourceFiles files = SourceFiles.under(sources);
    double nats = 0;
    for (Path file : files.heldOut()) {
      byte[] bytes = Files.readAllBytes(file);
      INDArray input = Nd4j.create(1, 1, bytes.length);
      input.putScalar(0, 0, 0, TextWindowSequenceRecordReader.START);
      for (int t = 1; t < bytes.length; t++) {
        input.putScalar(0, 0, t, bytes[t - 1]);
      }
      INDArray probabilities = network.outputSingle(input);
      for (int t = 0; t < bytes.length; t++) {
        nats -= Math.log(probabilities.getDouble(0, t, bytes[t]));
      }
    }
    double expected = nats / Math.log(2) / SourceFiles.bytes(files.heldOut());
    assertThat(files.heldOut()).hasSizeGreaterThan(1);
    assertThat(TextTraining.bitsPerByte(network, files.heldOut()))
        .isCloseTo(expected, within(1e-5));
  }

  @Test
  @Timeout(value = 5, unit = TimeUnit.MINUTES)
  void anInterruptedRunGoesOnAsIfNothingHadHappened() throws Exception {
    Path model = folder.resolve("interrupted.zip");
    Path log = folder.resolve("interrupted.log");
    Process process =
        new ProcessBuilder(Programs.command(TrainCodeModel.class, training(model)))
            .redirectErrorStream(true)
            .redirectOutput(log.toFile())
            .start();
    try {
      awaitFirstSave(model, process);
      process.destroy();
      assertThat(process.waitFor(2, TimeUnit.MINUTES)).isTrue();
    } finally {
      process.destroyForcibly();
    }
    int step = assertSavedAndSaid(model, Files.readString(log));
    assertThat(process.exitValue()).isEqualTo(128 + 15);

    StringWriter printed = new StringWriter();
    assertThat(run(new TrainCodeModel(), printed, training(model))).isZero();
    assertThat(printed.toString()).contains("goes on after step " + step);
    assertThat(CodeModel.load(model).params()).isEqualTo(CodeModel.load(trained).params());
    assertThat(Files.readString(folder.resolve("interrupted.zip.csv")))
        .isEqualTo(Files.readString(folder.resolve("trained.zip.csv")));
  }

  @Test
  @Timeout(value = 5, unit = TimeUnit.MINUTES)
  void controlCOnATerminalSaves() throws Exception {
    Path model = folder.resolve("terminal.zip");
    Path log = folder.resolve("terminal.log");
    // script (Debian: bsdutils) gives the program a terminal, on which \3 is Ctrl-C. A build in the
    // background ignores SIGINT, and its children would too.
    Process process =
        new ProcessBuilder(
                "env",
                "--default-signal=INT",
                "script",
                "-qec",
                Programs.quoted(Programs.command(TrainCodeModel.class, training(model))),
                log.toString())
            .redirectErrorStream(true)
            .redirectOutput(ProcessBuilder.Redirect.DISCARD)
            .start();
    try (OutputStream keyboard = process.getOutputStream()) {
      awaitFirstSave(model, process);
      keyboard.write(3);
      keyboard.flush();
      assertThat(process.waitFor(2, TimeUnit.MINUTES)).isTrue();
    } finally {
      process.descendants().forEach(ProcessHandle::destroyForcibly);
      process.destroyForcibly();
    }
    assertSavedAndSaid(model, Files.readString(log));
    assertThat(process.exitValue()).isEqualTo(128 + 2);
  }

  private static void awaitFirstSave(Path model, Process process) throws InterruptedException {
    while (!Files.exists(model) && process.isAlive()) {
      Thread.sleep(5);
    }
  }

  /** Answers the step at which the run was interrupted. */
  private static int assertSavedAndSaid(Path model, String log) throws IOException {
    assertThat(log).contains("Interrupted after step", "saved as " + model);
    int step = CodeModel.load(model).getIterationCount();
    assertThat(step).isBetween(5, STEPS - 1);
    assertThat(log).contains("step " + step + " of " + STEPS);
    return step;
  }

  @Test
  void generateCompletesAPrompt() {
    String greedy = generate("--prompt", "package ", "--length", "60", "--temperature", "0");
    assertThat(greedy).startsWith("package test;\n").hasSize(8 + 60 + 1);
    assertThat(generate("--prompt", "package ", "--length", "60", "--top-k", "1"))
        .isEqualTo(greedy);
    String sampled = generate("--length", "100", "--temperature", "2", "--seed", "5");
    assertThat(generate("--length", "100", "--temperature", "2", "--seed", "5")).isEqualTo(sampled);
    assertThat(generate("--length", "100", "--temperature", "2", "--seed", "6"))
        .isNotEqualTo(sampled);
  }

  @Test
  void streamingEqualsTheFullPass() throws IOException {
    ComputationGraph network = CodeModel.load(trained);
    byte[] prompt = new byte[1500];
    for (int i = 0; i < prompt.length; i++) {
      prompt[i] = (byte) "class Type {\n".charAt(i % 13);
    }
    byte[] generated =
        TextGenerator.builder(network)
            .temperature(0)
            .maxBytes(20)
            .build()
            .generateFromBytes(List.of(prompt), (index, piece) -> true)
            .get(0)
            .bytes();
    assertThat(generated).hasSize(20);
    INDArray input = Nd4j.create(1, 1, prompt.length + 20);
    for (int t = 0; t < prompt.length; t++) {
      input.putScalar(0, 0, t + 1, prompt[t]);
    }
    for (int t = 0; t < 19; t++) {
      input.putScalar(0, 0, prompt.length + 1 + t, Byte.toUnsignedInt(generated[t]));
    }
    INDArray likeliest = network.outputSingle(input).argMax(2);
    for (int t = 0; t < 20; t++) {
      assertThat(likeliest.getInt(0, prompt.length + t))
          .isEqualTo(Byte.toUnsignedInt(generated[t]));
    }
  }

  @Test
  void mistakesAreOneLine() throws IOException {
    assertThat(error(new Generate(), "--model", "nowhere.zip"))
        .contains("nowhere.zip", "run TrainCodeModel first")
        .hasLineCount(1);
    Path broken = folder.resolve("broken.zip");
    Files.writeString(broken, "not a model");
    for (Callable<Integer> program : List.of(new Generate(), new TrainCodeModel())) {
      String[] options =
          program instanceof Generate
              ? new String[] {"--model", broken.toString()}
              : training(broken);
      assertThat(error(program, options)).contains("broken.zip is not a model").hasLineCount(1);
      assertThat(broken).hasContent("not a model");
    }
    String model = trained.toString();
    assertThat(error(new Generate(), "--model", model, "--length", "0"))
        .contains("--length must be at least 1, got 0");
    assertThat(error(new Generate(), "--model", model, "--temperature", "-1")).contains("-1.0");
    assertThat(error(new Generate(), "--model", model, "--top-k", "-1")).contains("topK = -1");
    assertThat(error(new TrainCodeModel(), "--steps", "0"))
        .contains("--steps must be at least 1, got 0");
    assertThat(
            error(
                new TrainCodeModel(),
                "--sources=" + sources,
                "--model=" + folder.resolve("odd.zip"),
                "--width=16",
                "--heads=3"))
        .contains("nHeads")
        .hasLineCount(1);
    assertThat(error(new TrainCodeModel(), "--sources", "nowhere"))
        .isEqualTo("no such folder: nowhere (--sources)\n");
    assertThat(error(new TrainCodeModel(), "--sample=-1"))
        .contains("--sample must be at least 0, got -1");
  }

  @Test
  void aModelFromElsewhereHasNoCurveYetAndNoSampleIsNoSample() throws IOException {
    Path model = folder.resolve("imported.zip");
    CodeModel.save(
        CodeModel.create(16, 2, 2, 8, 32, 1, new WarmupCosineSchedule(1e-2, 1e-3, 5, 50)), model);
    StringWriter printed = new StringWriter();
    String[] options = training(model);
    options[2] = "--steps=1";
    options[options.length - 1] = "--sample=0";
    assertThat(run(new TrainCodeModel(), printed, options)).isZero();
    assertThat(printed.toString())
        .contains("Bits per byte on the held-out files:", "Saved: ")
        .doesNotContain("from the model:");
    assertThat(folder.resolve("imported.zip.csv")).content(UTF_8).hasLineCount(2);
  }

  private static String[] training(Path model) {
    return new String[] {
      "--sources=" + sources,
      "--model=" + model,
      "--steps=" + STEPS,
      "--save-every=5",
      "--batch=4",
      "--context=32",
      "--width=16",
      "--blocks=2",
      "--heads=2",
      "--attention-window=8",
      "--learning-rate=0.01",
      "--warmup=5",
      "--sample=60"
    };
  }

  private static double reported(String name) {
    String line = output.lines().filter(one -> one.contains(name)).findFirst().orElseThrow();
    return Double.parseDouble(line.replace(name, "").strip());
  }

  private static String generate(String... options) {
    List<String> arguments = new ArrayList<>(List.of("--model", trained.toString()));
    arguments.addAll(List.of(options));
    StringWriter printed = new StringWriter();
    assertThat(run(new Generate(), printed, arguments.toArray(new String[0]))).isZero();
    return printed.toString();
  }

  private static String error(Callable<Integer> program, String... options) {
    StringWriter printed = new StringWriter();
    int code = CommandLines.of(program).setErr(new PrintWriter(printed)).execute(options);
    assertThat(code).isEqualTo(1);
    return printed.toString();
  }

  private static int run(Callable<Integer> program, StringWriter printed, String... options) {
    return CommandLines.of(program).setOut(new PrintWriter(printed)).execute(options);
  }
}
