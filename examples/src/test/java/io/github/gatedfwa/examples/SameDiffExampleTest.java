package io.github.gatedfwa.examples;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Path;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class SameDiffExampleTest {
  @TempDir Path folder;

  @Test
  void learnsTheTextAndSurvivesTheFile() {
    Path file = folder.resolve("graph.fb");
    StringWriter printed = new StringWriter();
    int code =
        CommandLines.of(new SameDiffExample())
            .setOut(new PrintWriter(printed))
            .execute("--file=" + file, "--steps=60");
    String output = printed.toString();
    assertThat(code).as(output).isZero();
    assertThat(file).isNotEmptyFile();
    Matcher bytes = Pattern.compile("(\\d+) of (\\d+) bytes predicted").matcher(output);
    assertThat(bytes.find()).as(output).isTrue();
    assertThat(Integer.parseInt(bytes.group(1)))
        .isGreaterThan(Integer.parseInt(bytes.group(2)) / 2);
    assertThat(output).contains("outputs equal");
  }
}
