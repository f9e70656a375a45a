package io.github.gatedfwa.examples;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;

/** Runs the example programs as a user would. */
final class Programs {
  private Programs() {}

  /** What a program prints, errors too, when it ends with this code. */
  static String run(Callable<Integer> program, int exitCode, String... arguments) {
    StringWriter printed = new StringWriter();
    PrintWriter out = new PrintWriter(printed, true);
    assertThat(CommandLines.of(program).setOut(out).setErr(out).execute(arguments))
        .as(printed::toString)
        .isEqualTo(exitCode);
    return printed.toString();
  }

  /** The command that runs a program in a process of its own. */
  static List<String> command(Class<?> program, String... arguments) {
    List<String> command = new ArrayList<>();
    command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
    command.addAll(List.of("-cp", System.getProperty("java.class.path"), program.getName()));
    command.addAll(List.of(arguments));
    return command;
  }
}
