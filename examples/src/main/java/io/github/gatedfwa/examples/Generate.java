package io.github.gatedfwa.examples;

import io.github.gatedfwa.zoo.lm.TextGenerator;
import io.github.gatedfwa.zoo.lm.TextGenerator.Completion;
import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Path;
import java.util.concurrent.Callable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
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
  Path model = ProjectFolder.file("build", "code-model.zip");

  @Option(names = "--prompt", paramLabel = "TEXT", description = "the file's first characters")
  String prompt = "";

  @Mixin Sampling sampling = new Sampling(0.7);

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
    TextGenerator.Builder generator = sampling.generator(CodeModel.load(model));
    PrintWriter out = spec.commandLine().getOut();
    out.print(prompt);
    out.flush();
    stream(generator, prompt, out);
    out.println();
    return 0;
  }

  /** Prints a continuation of the prompt, each character as it comes, and answers it. */
  static Completion stream(TextGenerator.Builder generator, String prompt, PrintWriter out) {
    return generator
        .build()
        .generate(
            prompt,
            piece -> {
              CommandLines.printText(out, piece);
              return true;
            });
  }
}
