package io.github.gatedfwa.examples;

import static java.nio.charset.StandardCharsets.UTF_8;

import java.io.IOException;
import java.io.PrintWriter;
import java.io.UncheckedIOException;
import java.nio.file.AccessDeniedException;
import java.nio.file.FileSystemException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.NotDirectoryException;
import java.nio.file.Path;
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
    requireAtLeast(1, option, value);
  }

  /**
   * @throws IllegalArgumentException if an option is less than it may be
   */
  static void requireAtLeast(int least, String option, int value) {
    if (value < least) {
      throw new IllegalArgumentException(option + " must be at least " + least + ", got " + value);
    }
  }

  /**
   * @throws IllegalArgumentException if nothing can be saved at the path of an option
   */
  static void requireFile(String option, Path path) {
    Path name = path.getFileName();
    if (name == null || name.toString().isEmpty() || Files.isDirectory(path)) {
      throw new IllegalArgumentException(option + " must be a file, got the folder '" + path + "'");
    }
  }

  /** What went wrong, in one line: the messages of many exceptions are a path or nothing. */
  static String message(Throwable exception) {
    if (exception instanceof UncheckedIOException unchecked) {
      return message(unchecked.getCause());
    }
    String message = exception.getMessage();
    if (message == null) {
      return exception.getClass().getSimpleName();
    }
    if (exception instanceof FileSystemException system && system.getReason() == null) {
      String what = exception.getClass().getSimpleName();
      if (exception instanceof NoSuchFileException) {
        what = "no such file";
      } else if (exception instanceof AccessDeniedException) {
        what = "access denied";
      } else if (exception instanceof NotDirectoryException) {
        what = "no such folder";
      }
      return what + ": " + message;
    }
    return message;
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
                  || exception instanceof IOException
                  || exception instanceof UncheckedIOException) {
                commandLine.getErr().println(message(exception));
                return commandLine.getCommandSpec().exitCodeOnExecutionException();
              }
              throw exception;
            });
  }
}
