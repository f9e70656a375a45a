package io.github.gatedfwa.examples;

import static java.nio.charset.StandardCharsets.UTF_8;
import static org.assertj.core.api.Assertions.assertThat;

import java.io.BufferedReader;
import java.io.BufferedWriter;
import java.io.IOException;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
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
  @Timeout(value = 5, unit = TimeUnit.MINUTES)
  void whatIsTypedIsCompletedAsOftenAsOneLikes() throws Exception {
    Process process =
        new ProcessBuilder(
                Programs.command(
                    CompleteCode.class,
                    "--model=TINY_JAVA",
                    "--length=30",
                    "--temperature=1",
                    "--top-p=0.7"))
            .redirectError(ProcessBuilder.Redirect.DISCARD)
            .start();
    try (BufferedReader output = process.inputReader(UTF_8);
        BufferedWriter keyboard = process.outputWriter(UTF_8)) {
      keyboard.write("package org.apa\n\n");
      keyboard.flush();
      // The answer comes while the program waits for more.
      List<String> lines = answer(output);
      assertThat(lines.get(0))
          .isEqualTo(
              "Type the start of a Java file. An empty line ends it, and the model goes on.");
      assertThat(lines.get(1)).isEqualTo("The same once more gives another text. Ctrl-D ends.");
      assertThat(lines.get(2)).startsWith("> package org.apache.");
      String twoLines = "public class A\n    extends ";
      keyboard.write(twoLines + "\n\n");
      keyboard.flush();
      String first = String.join("\n", answer(output));
      assertThat(first).startsWith("> " + twoLines).hasSizeGreaterThan(2 + twoLines.length());
      // The end of the input ends a prompt too.
      keyboard.write(twoLines);
      keyboard.flush();
      process.getOutputStream().close();
      String second = String.join("\n", answer(output));
      assertThat(second).startsWith("> " + twoLines).isNotEqualTo(first);
      assertThat(output.readLine()).isEqualTo("> ");
      assertThat(output.read()).isNegative();
      assertThat(process.waitFor(1, TimeUnit.MINUTES)).isTrue();
      assertThat(process.exitValue()).isZero();
    } finally {
      process.destroyForcibly();
    }
  }

  /** Lines up to one that tells how a text ended, which is not among them. */
  private static List<String> answer(BufferedReader output) throws IOException {
    List<String> lines = new ArrayList<>();
    for (String line = output.readLine(); line != null; line = output.readLine()) {
      if (line.matches("\\[\\d+ bytes, \\d+ a second; ended by (length|end)\\]")) {
        return lines;
      }
      lines.add(line);
    }
    throw new AssertionError("the output ended: " + lines);
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
