package io.github.gatedfwa.examples;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.stream.Collectors;
import org.deeplearning4j.config.DL4JSystemProperties;

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
    String resources = System.getProperty(DL4JSystemProperties.DL4J_RESOURCES_DIR_PROPERTY);
    if (resources != null) { // the build's, instead of the user's
      command.add("-D" + DL4JSystemProperties.DL4J_RESOURCES_DIR_PROPERTY + "=" + resources);
    }
    command.addAll(List.of("-cp", System.getProperty("java.class.path"), program.getName()));
    command.addAll(List.of(arguments));
    return command;
  }

  /** A command as one line for a shell. */
  static String quoted(List<String> command) {
    return command.stream()
        .map(word -> "'" + word.replace("'", "'\\''") + "'")
        .collect(Collectors.joining(" "));
  }
}
