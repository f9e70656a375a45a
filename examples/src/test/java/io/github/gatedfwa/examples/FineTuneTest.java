package io.github.gatedfwa.examples;

import static io.github.gatedfwa.examples.Programs.run;
import static java.nio.charset.StandardCharsets.UTF_8;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import io.github.gatedfwa.zoo.lm.GatedFwaLM.Pretrained;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;

/** The program end to end, with a real pretrained model and few steps. */
class FineTuneTest {
  private static final int STEPS = 12;
  private static final List<String> WORDS =
      List.of("der", "Fluss", "nach", "dem", "Regen", "über", "das", "Feld", "weiß", "niemand");

  @TempDir static Path folder;
  private static Path text;
  private static Path tuned;
  private static String output;

  @BeforeAll
  static void tune() throws IOException {
    text = folder.resolve("text");
    Files.createDirectories(text);
    Random random = new Random(1);
    for (int file = 0; file < 12; file++) {
      StringBuilder words = new StringBuilder();
      while (words.length() < 400) {
        words.append(WORDS.get(random.nextInt(WORDS.size()))).append(' ');
      }
      Files.writeString(text.resolve(file + ".txt"), words);
    }
    tuned = folder.resolve("tuned.zip");
    output = run(new FineTune(), 0, options(tuned));
  }

  /** Options of a small run; {@code more} replaces some of them. */
  private static String[] options(Path save, String... more) {
    Map<String, String> options = new LinkedHashMap<>();
    List<String> all =
        new ArrayList<>(
            List.of(
                "--text=" + text,
                "--save=" + save,
                "--steps=" + STEPS,
                "--batch=2",
                "--context=64",
                "--learning-rate=1e-3",
                "--warmup=2",
                "--measure-every=4"));
    all.addAll(List.of(more));
    all.forEach(option -> options.put(option.substring(0, option.indexOf('=')), option));
    return options.values().toArray(new String[0]);
  }

  private static double reported(String output, String name) {
    Matcher line = Pattern.compile("\n  " + name + " +(\\d+\\.\\d+)").matcher(output);
    assertThat(line.find()).as(output).isTrue();
    return Double.parseDouble(line.group(1));
  }

  private static Path beside(Path save, String extension) {
    return save.resolveSibling(save.getFileName() + extension);
  }

  @Test
  void theModelKnowsTheTextBetter() throws IOException {
    double before = reported(output, "before");
    double after = reported(output, "after");
    assertThat(after).isLessThan(0.95 * before);
    assertThat(output).contains("After 0 steps: ", "After 12 steps: ", "Saved: " + tuned);
    assertThat(beside(tuned, ".csv")).content(UTF_8).contains("TINY_JAVA on ").hasLineCount(2 + 4);
    try (OwnText own = OwnText.read(text, "*", 1, 1 << 16, tuned)) {
      assertThat(own.heldOut()).hasSizeBetween(1, 2);
      assertThat(
              TextTraining.bitsPerByte(CodeModel.open(Pretrained.TINY_JAVA.name()), own.heldOut()))
          .isCloseTo(before, within(6e-4));
      assertThat(TextTraining.bitsPerByte(CodeModel.open(tuned.toString()), own.heldOut()))
          .isCloseTo(after, within(6e-4));
    }
  }

  @Test
  @Timeout(value = 5, unit = TimeUnit.MINUTES)
  void anInterruptedRunGoesOnAsIfNothingHadHappened() throws Exception {
    Path save = folder.resolve("interrupted.zip");
    Path log = folder.resolve("interrupted.log");
    Process process =
        new ProcessBuilder(Programs.command(FineTune.class, options(save)))
            .redirectErrorStream(true)
            .redirectOutput(log.toFile())
            .start();
    try {
      while (process.isAlive() && !Files.readString(log).contains("After 4 steps")) {
        Thread.sleep(5);
      }
      process.destroy();
      assertThat(process.waitFor(2, TimeUnit.MINUTES)).isTrue();
    } finally {
      process.destroyForcibly();
    }
    int step = CodeModel.load(beside(save, ".checkpoint")).getIterationCount();
    assertThat(step).isBetween(4, STEPS - 1);
    assertThat(Files.readString(log))
        .contains("Interrupted after step " + step + " of " + STEPS, save + ".checkpoint");

    assertThat(run(new FineTune(), 0, options(save))).contains("goes on after step " + step);
    for (String file : List.of("", ".checkpoint")) {
      assertThat(CodeModel.load(beside(save, file)).params())
          .isEqualTo(CodeModel.load(beside(tuned, file)).params());
    }
    assertThat(beside(save, ".csv")).hasSameTextualContentAs(beside(tuned, ".csv"));
  }

  @Test
  void trainingThatDoesNotHelpEndsAndTheBestModelIsKept() throws IOException {
    Path save = folder.resolve("worse.zip");
    String[] options =
        options(save, "--learning-rate=0.1", "--warmup=0", "--measure-every=1", "--patience=2");
    String worse = run(new FineTune(), 0, options);
    assertThat(worse)
        .contains("After 2 steps: ", "no better", "Stopped early: no better for 2 looks in a row.")
        .doesNotContain("After 3 steps: ");
    assertThat(reported(worse, "after")).isEqualTo(reported(worse, "before"));
    assertThat(CodeModel.load(save).params())
        .isEqualTo(CodeModel.open(Pretrained.TINY_JAVA.name()).params());
    // It has ended, and says the same again.
    String again = run(new FineTune(), 0, options);
    assertThat(again).contains("goes on after step 2").doesNotContain("After ");
    assertThat(again.substring(again.indexOf("Stopped early")))
        .isEqualTo(worse.substring(worse.indexOf("Stopped early")));
  }

  @Test
  void mistakesAreOneLine() throws IOException {
    Path other = folder.resolve("other");
    Files.createDirectories(other);
    assertThat(run(new FineTune(), 1, options(folder.resolve("new.zip"), "--text=" + other)))
        .isEqualTo("--text " + other + " has no file that matches --files '*'\n");
    Files.writeString(other.resolve("short.txt"), "x".repeat(639));
    assertThat(run(new FineTune(), 1, options(folder.resolve("new.zip"), "--text=" + other)))
        .contains("has 639 bytes of text in 1 files; at least 640 are needed")
        .hasLineCount(1);
    Files.writeString(other.resolve("short.txt"), "x".repeat(1000));
    assertThat(run(new FineTune(), 1, options(tuned, "--text=" + other)))
        .contains("tuned.zip.csv is of another run (TINY_JAVA on ", "name another --save");
    Path mine = folder.resolve("mine.zip");
    Files.writeString(mine, "precious");
    assertThat(run(new FineTune(), 1, options(mine)))
        .endsWith(
            "--save %s would overwrite %s, and there is no %s to go on from: name another --save, or delete what is there\n"
                .formatted(mine, mine, beside(mine, ".checkpoint")));
    Files.writeString(beside(mine, ".csv"), "scores");
    assertThat(run(new FineTune(), 1, options(mine)))
        .contains("would overwrite " + mine + " and " + beside(mine, ".csv") + ", and there is no");
    assertThat(mine).hasContent("precious");
    assertThat(beside(mine, ".csv")).hasContent("scores");
    Files.writeString(folder.resolve("broken.zip.checkpoint"), "not a model");
    assertThat(run(new FineTune(), 1, options(folder.resolve("broken.zip"))))
        .contains("broken.zip.checkpoint is not a model");
    assertThat(run(new FineTune(), 1, options(folder.resolve("new.zip"), "--patience=0")))
        .contains("--patience must be at least 1, got 0");
  }
}
