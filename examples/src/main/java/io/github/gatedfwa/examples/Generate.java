package io.github.gatedfwa.examples;

import static java.nio.charset.StandardCharsets.UTF_8;

import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Path;
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
    ComputationGraph network = CodeModel.load(model);
    PrintWriter out = spec.commandLine().getOut();
    out.print(prompt);
    out.flush();
    stream(network, prompt.getBytes(UTF_8), length, temperature, topK, seed, out);
    out.println();
    return 0;
  }

  /** Prints a continuation of the prompt, each byte as it comes. */
  static void stream(
      ComputationGraph network,
      byte[] prompt,
      int length,
      double temperature,
      int topK,
      long seed,
      PrintWriter out) {
    if (length < 1) {
      throw new IllegalArgumentException("length must be at least 1, got " + length);
    }
    TextStream text = new TextStream(out);
    int[] left = {length};
    new ByteSampler(network, temperature, topK, seed)
        .generate(
            prompt,
            next -> {
              text.write(next);
              return --left[0] > 0;
            });
    text.finish();
  }
}
