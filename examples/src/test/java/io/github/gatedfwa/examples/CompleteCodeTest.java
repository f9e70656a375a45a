package io.github.gatedfwa.examples;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.PrintWriter;
import java.io.StringWriter;
import org.junit.jupiter.api.Test;
import picocli.CommandLine;

class CompleteCodeTest {
  private final StringWriter printed = new StringWriter();
  private final StringWriter errors = new StringWriter();

  private int run(String... arguments) {
    CommandLine program = CommandLines.of(new CompleteCode());
    return program
        .setOut(new PrintWriter(printed))
        .setErr(new PrintWriter(errors))
        .execute(arguments);
  }

  @Test
  void goesOnWithJava() {
    int code =
        run(
            "--model",
            "TINY_JAVA",
            "--temperature",
            "0",
            "--length",
            "40",
            "--prompt",
            "package org.apa");
    assertThat(code).isZero();
    assertThat(printed.toString())
        .startsWith("package org.apache.")
        .contains("[40 bytes, ")
        .contains("ended by length]");
  }

  @Test
  void aWrongOptionIsOneLine() {
    assertThat(run("--model", "TINY_JAVA", "--top-p", "2", "--prompt", "x")).isNotZero();
    assertThat(errors.toString().strip())
        .isEqualTo("TextGenerator: topP = 2.0: must be above 0 and at most 1 (all)");
  }

  @Test
  void controlCharactersDoNotReachTheTerminal() {
    CommandLines.printText(new PrintWriter(printed), "\u001b[m\t\n\r\0\u007f\u009bé");
    assertThat(printed).hasToString("\uFFFD[m\t\n\uFFFD\uFFFD\uFFFD\uFFFDé");
  }
}
