package io.github.gatedfwa.examples;

import static java.nio.charset.StandardCharsets.UTF_8;

import io.github.gatedfwa.zoo.lm.TextGenerator;
import io.github.gatedfwa.zoo.lm.TextGenerator.Completion;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintWriter;
import java.util.Locale;
import java.util.concurrent.Callable;
import org.deeplearning4j.nn.graph.ComputationGraph;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/**
 * Completes Java code with a pretrained model of the zoo, or one that was trained here, in the
 * terminal or on a web page.
 */
@Command(
    name = "CompleteCode",
    mixinStandardHelpOptions = true,
    showDefaultValues = true,
    description = {
      "Completes Java code with a pretrained model.",
      "Without --prompt it reads the start of a file from the terminal, up to an empty line, as"
          + " often as you like; each time the seed is one higher.",
      "With --ui it serves a web page instead, which shows the gates too."
    })
public final class CompleteCode implements Callable<Integer> {
  private static final double NANOS = 1e9;

  @Option(names = "--model", paramLabel = CodeModel.NAME_OR_FILE, description = CodeModel.WHICH)
  String model = "SMALL_JAVA";

  @Option(names = "--prompt", paramLabel = "TEXT", description = "the file's first characters")
  String prompt;

  @Mixin Sampling sampling = new Sampling(0.6);

  @Option(
      names = "--top-p",
      description = "choose among the likeliest bytes of this probability together; 1: all")
  double topP = 0.95;

  @Option(names = "--repetition-penalty", description = "above 1: less repetition")
  double repetitionPenalty = 1;

  @Option(names = "--stop", paramLabel = "TEXT", description = "ends the text; may be repeated")
  String[] stops = {};

  @Option(
      names = "--ui",
      paramLabel = "PORT",
      description = "serves a web page on this port, for browsers on this machine; 0: any port")
  Integer uiPort;

  @Spec CommandSpec spec;

  /**
   * Runs the program and ends the process with its exit code.
   *
   * @param arguments see {@code --help}
   */
  public static void main(String[] arguments) {
    System.exit(CommandLines.of(new CompleteCode()).execute(arguments));
  }

  @Override
  public Integer call() throws IOException {
    ComputationGraph network = CodeModel.open(model);
    generator(network).build(); // what is wrong with the options is told before anything is typed
    PrintWriter out = spec.commandLine().getOut();
    if (uiPort != null) {
      serve(network, out);
    } else if (prompt != null) {
      complete(generator(network), prompt, out);
    } else {
      completeWhatIsTyped(network, out);
    }
    return 0;
  }

  private TextGenerator.Builder generator(ComputationGraph network) {
    return sampling.generator(network).topP(topP).repetitionPenalty(repetitionPenalty).stop(stops);
  }

  private void completeWhatIsTyped(ComputationGraph network, PrintWriter out) throws IOException {
    out.println("Type the start of a Java file. An empty line ends it, and the model goes on.");
    out.println("The same once more gives another text. Ctrl-D ends.");
    // The terminal is nobody's to close.
    BufferedReader in = new BufferedReader(new InputStreamReader(System.in, UTF_8));
    long seed = sampling.seed;
    for (String typed = readPrompt(in, out); typed != null; typed = readPrompt(in, out)) {
      complete(generator(network).seed(seed), typed, out);
      seed++;
    }
    out.println(); // so that the shell's prompt starts a line
  }

  private void serve(ComputationGraph network, PrintWriter out) throws IOException {
    try (Interruption interruption = Interruption.listen();
        CompletionServer server =
            CompletionServer.start(
                network,
                new CompletionServer.Defaults(
                    model,
                    prompt == null ? "public class " : prompt,
                    sampling.temperature,
                    sampling.length,
                    sampling.seed),
                () -> generator(network),
                uiPort,
                CompletionServer.PATIENCE)) {
      out.printf("Open %s in a browser on this machine. Ctrl-C ends.%n", server.address());
      interruption.await();
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
  }

  /** Lines up to an empty one, the last without its end; null where there are no more. */
  private static String readPrompt(BufferedReader in, PrintWriter out) throws IOException {
    out.print("> ");
    out.flush();
    StringBuilder typed = null;
    for (String line = in.readLine(); line != null; line = in.readLine()) {
      if (line.isEmpty()) {
        return typed == null ? "" : typed.toString();
      }
      typed = typed == null ? new StringBuilder(line) : typed.append('\n').append(line);
    }
    return typed == null ? null : typed.toString();
  }

  private static void complete(TextGenerator.Builder generator, String prompt, PrintWriter out) {
    out.print(prompt);
    out.flush();
    long started = System.nanoTime();
    Completion completion = Generate.stream(generator, prompt, out);
    double seconds = (System.nanoTime() - started) / NANOS;
    out.printf(
        Locale.ROOT,
        "%n[%d bytes, %.0f a second; ended by %s]%n",
        completion.bytes().length,
        completion.bytes().length / seconds,
        completion.reason().name().toLowerCase(Locale.ROOT));
  }
}
