package io.github.gatedfwa.examples;

import static java.nio.charset.StandardCharsets.UTF_8;
import static org.assertj.core.api.Assertions.assertThat;

import java.io.BufferedReader;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.concurrent.TimeUnit;
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
  void aPageIsServedUntilTheProgramIsInterrupted() throws Exception {
    Process process =
        new ProcessBuilder(Programs.command(CompleteCode.class, "--model=TINY_JAVA", "--ui=0"))
            .redirectErrorStream(true)
            .start();
    try (BufferedReader output = process.inputReader(UTF_8)) {
      String line = output.readLine();
      while (line != null && !line.startsWith("Open ")) {
        line = output.readLine();
      }
      assertThat(line).endsWith(" in a browser on this machine. Ctrl-C ends.");
      HttpResponse<String> page =
          HttpClient.newHttpClient()
              .send(
                  HttpRequest.newBuilder(URI.create(line.split(" ", -1)[1])).build(),
                  HttpResponse.BodyHandlers.ofString());
      assertThat(page.statusCode()).isEqualTo(200);
    } finally {
      process.destroy();
    }
    assertThat(process.waitFor(1, TimeUnit.MINUTES)).isTrue();
    assertThat(process.exitValue()).isEqualTo(128 + 15);
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
