package io.github.gatedfwa.examples;

import static java.nio.charset.StandardCharsets.UTF_8;

import io.github.gatedfwa.zoo.lm.TextGenerator;
import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.Callable;
import org.deeplearning4j.nn.graph.ComputationGraph;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** Completes the start of a Java file with a model that {@link TrainCodeModel} saved. */
@Command(
    name = "Generate",
    mixinStandardHelpOptions = true,
    showDefaultValues = true,
    description = "Completes the start of a Java file.")
public final class Generate implements Callable<Integer> {
  @Option(names = "--model", paramLabel = "FILE", description = "what TrainCodeModel saved")
  Path model = Path.of("build", "code-model.zip");

  @Option(names = "--prompt", paramLabel = "TEXT", description = "the file's first characters")
  String prompt = "";

  @Option(names = "--length", description = "bytes to generate")
  int length = 500;

  @Option(
      names = "--temperature",
      description = "0: always the likeliest byte; 1: as the model predicts")
  double temperature = 0.7;

  @Option(names = "--top-k", description = "choose among this many likeliest bytes; 0: all")
  int topK = 0;

  @Option(names = "--seed", description = "another seed, another text")
  long seed = 1;

  @Spec CommandSpec spec;

  /**
   * Runs the program and ends the process with its exit code.
   *
   * @param arguments see {@code --help}
   */
  public static void main(String[] arguments) {
    System.exit(CommandLines.of(new Generate()).execute(arguments));
  }

  @Override
  public Integer call() throws IOException {
    CommandLines.requirePositive("--length", length);
    ComputationGraph network = CodeModel.load(model);
    PrintWriter out = spec.commandLine().getOut();
    out.print(prompt);
    out.flush();
    stream(network, prompt.getBytes(UTF_8), length, temperature, topK, seed, out);
    out.println();
    return 0;
  }

  /** Prints a continuation of the prompt, each character as it comes. */
  static void stream(
      ComputationGraph network,
      byte[] prompt,
      int length,
      double temperature,
      int topK,
      long seed,
      PrintWriter out) {
    TextGenerator.builder(network)
        .maxBytes(length)
        .temperature(temperature)
        .topK(topK)
        .seed(seed)
        .build()
        .generateFromBytes(
            List.of(prompt),
            (index, piece) -> {
              CommandLines.printText(out, piece);
              return true;
            });
  }
}
