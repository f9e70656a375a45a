package io.github.gatedfwa.examples;

import static java.nio.charset.StandardCharsets.UTF_8;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import io.github.gatedfwa.zoo.lm.GatedFwaLM;
import java.io.IOException;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

class LongContextTest {
  @TempDir Path folder;

  private final StringWriter printed = new StringWriter();

  private int run(String... arguments) {
    PrintWriter out = new PrintWriter(printed, true);
    return CommandLines.of(new LongContext()).setOut(out).setErr(out).execute(arguments);
  }

  private void write(String name, int length) throws IOException {
    StringBuilder text = new StringBuilder("package test;\n\n");
    for (int i = 0; text.length() < length; i++) {
      text.append("class Type").append(i).append(" {\n  private int value = ").append(i * i);
      text.append(";\n}\n");
    }
    Files.writeString(folder.resolve(name), text.substring(0, length));
  }

  @Test
  void printsATableAndDrawsIt() throws IOException {
    write("Long.java", 3000);
    write("Longer.java", 5000);
    write("Short.java", 2000);
    Path plot = folder.resolve("plot.png");
    int code =
        run(
            "--model=TINY_JAVA",
            "--sources=" + folder,
            "--longer-than=2999",
            "--length=2000",
            "--context=500",
            "--texts=3",
            "--plot=" + plot);
    assertThat(printed.toString())
        .contains(
            "Long.java, bytes 0 to 2,000",
            "Longer.java, bytes 0 to 2,000",
            "Longer.java, bytes 2,000 to 4,000")
        .doesNotContain("Short.java");
    assertThat(code).isZero();
    assertThat(plot).isNotEmptyFile();
    Matcher row =
        Pattern.compile("(?m)^[\\d,]+ - ([\\d,]+) +([\\d.]+) +([\\d.]+) +(\\d+) +\\d+$")
            .matcher(printed.toString());
    double[][] rows =
        row.results()
            .map(
                found ->
                    new double[] {
                      Double.parseDouble(found.group(1).replace(",", "")),
                      Double.parseDouble(found.group(2)),
                      Double.parseDouble(found.group(3)),
                      Double.parseDouble(found.group(4))
                    })
            .toArray(double[][]::new);
    assertThat(rows).hasDimensions(3, 4);
    assertThat(rows[0][0]).isEqualTo(500);
    assertThat(rows[2][0]).isEqualTo(2000);
    // Both models are the same up to the context.
    assertThat(rows[0][1]).isEqualTo(rows[0][2]);
    // The text repeats itself: who knows what came before needs fewer bits.
    assertThat(rows[2][1]).isLessThan(rows[2][2]);
    // The window is full after 255 bytes.
    assertThat(rows[2][3]).isEqualTo(rows[0][3]);
  }

  @Test
  void bitsAreThoseOfAFullPass() {
    ComputationGraph network =
        GatedFwaLM.builder()
            .width(16)
            .heads(2)
            .blocks(1)
            .hiddenSize(16)
            .windowSize(8)
            .build()
            .init();
    byte[] text = "int x = 1; // é".getBytes(UTF_8);
    float[] tokens = new float[text.length];
    for (int i = 1; i < text.length; i++) {
      tokens[i] = Byte.toUnsignedInt(text[i - 1]);
    }
    INDArray p = network.outputSingle(Nd4j.createFromArray(tokens).reshape(1, 1, text.length));
    double expected = 0;
    for (int i = 0; i < text.length; i++) {
      expected -= Math.log(p.getDouble(0, i, Byte.toUnsignedInt(text[i]))) / Math.log(2);
    }
    double bits =
        LongContext.bits(network, text, 0, 5)
            + LongContext.bits(network, text, 5, 6)
            + LongContext.bits(network, text, 6, text.length);
    assertThat(bits).isCloseTo(expected, within(1e-3));
  }

  @Test
  void tooFewLongFilesAreAnError() throws IOException {
    write("Long.java", 3000);
    // A link to the folder is the folder.
    Path link = folder.resolve("link");
    Files.createSymbolicLink(link, folder);
    assertThat(run("--sources=" + link, "--longer-than=1000", "--length=2000", "--texts=2"))
        .isEqualTo(1);
    assertThat(printed.toString())
        .contains(
            "--sources "
                + link
                + " has 1 texts of 2000 bytes in files of 2000 bytes or more; --texts is 2");
    assertThat(run("--sources=" + folder.resolve("none"))).isEqualTo(1);
    assertThat(printed.toString()).contains("none (--sources)");
    assertThat(run("--context=0")).isEqualTo(1);
    assertThat(printed.toString()).contains("--context must be at least 1, got 0");
  }
}
