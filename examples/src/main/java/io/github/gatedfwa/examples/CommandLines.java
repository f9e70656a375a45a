package io.github.gatedfwa.examples;

import static java.nio.charset.StandardCharsets.UTF_8;

import java.io.IOException;
import java.io.PrintWriter;
import java.util.concurrent.Callable;
import org.deeplearning4j.exception.DL4JInvalidConfigException;
import picocli.CommandLine;

/** How the example programs start: UTF-8 output, and user errors as one line. */
final class CommandLines {
  private CommandLines() {}

  /**
   * @throws IllegalArgumentException if an option is not at least 1
   */
  static void requirePositive(String option, int value) {
    if (value < 1) {
      throw new IllegalArgumentException(option + " must be at least 1, got " + value);
    }
  }

  /** Prints text at once; what would steer a terminal becomes U+FFFD. */
  static void printText(PrintWriter out, String text) {
    StringBuilder printable = new StringBuilder(text);
    for (int i = 0; i < printable.length(); i++) {
      char next = printable.charAt(i);
      if (Character.isISOControl(next) && next != '\n' && next != '\t') {
        printable.setCharAt(i, '\uFFFD');
      }
    }
    out.print(printable);
    out.flush();
  }

  static CommandLine of(Callable<Integer> program) {
    return new CommandLine(program)
        .setOut(new PrintWriter(System.out, true, UTF_8))
        .setErr(new PrintWriter(System.err, true, UTF_8))
        .setExecutionExceptionHandler(
            (exception, commandLine, parsed) -> {
              if (exception instanceof IllegalArgumentException
                  || exception instanceof DL4JInvalidConfigException
                  || exception instanceof IOException) {
                commandLine.getErr().println(exception.getMessage());
                return commandLine.getCommandSpec().exitCodeOnExecutionException();
              }
              throw exception;
            });
  }
}
