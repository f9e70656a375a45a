package io.github.gatedfwa.examples;

import static io.github.gatedfwa.examples.Programs.run;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import io.github.gatedfwa.layers.GatedFWALayer;
import java.io.IOException;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Needle and AssociativeRecall: their data, and the programs end to end in a few steps. */
class RecallTest {
  @TempDir Path folder;

  @Test
  void associativeRecallAsksForEachPairOnce() {
    Random random = new Random(1);
    for (int i = 0; i < 100; i++) {
      Recall.Example example = AssociativeRecall.example(random, 64, 16);
      int[] tokens = tokens(example);
      assertThat(tokens).hasSize(64);
      assertThat(example.questions()).hasSize(8);
      for (Recall.Question question : example.questions()) {
        int key = tokens[question.position()];
        int pair = indexOf(tokens, key);
        assertThat(pair).isLessThan(16).isEven();
        assertThat(tokens[pair + 1]).isEqualTo(question.answer()).isBetween(17, 32);
        assertThat(question.position() - (pair + 1)).isEqualTo(question.distance());
        assertThat(Arrays.stream(tokens).filter(token -> token == key)).hasSize(2);
      }
    }
  }

  private static int[] tokens(Recall.Example example) {
    return example.tokens().stream().mapToInt(Integer::intValue).toArray();
  }

  private static int indexOf(int[] tokens, int token) {
    int index = 0;
    while (tokens[index] != token) {
      index++;
    }
    return index;
  }

  @Test
  void needlesStandInTheTextAndAreAskedForAtItsEnd() {
    int[] text = new int[200];
    Arrays.fill(text, ' ');
    Random random = new Random(2);
    for (int i = 0; i < 100; i++) {
      Recall.Example example = Needle.plant(text, 5, random);
      int[] tokens = tokens(example);
      assertThat(text).containsOnly(' ');
      assertThat(Arrays.stream(tokens).filter(token -> token == ' ')).hasSize(200 - 2 * 5 * 2);
      for (Recall.Question question : example.questions()) {
        int asked = question.position();
        int needle = asked - question.distance();
        assertThat(asked).isGreaterThanOrEqualTo(190);
        assertThat(needle).isLessThan(190);
        assertThat(tokens[needle]).isEqualTo(question.answer()).isBetween(192, 223);
        assertThat(tokens[needle - 1]).isEqualTo(tokens[asked]).isBetween(128, 159);
        assertThat(tokens[asked + 1]).isEqualTo(question.answer());
      }
    }
  }

  @Test
  void associativeRecallPrintsATableAndDrawsIt() {
    Path plot = folder.resolve("recall.png");
    String printed =
        run(
            new AssociativeRecall(),
            0,
            "--lengths=16,32",
            "--steps=2",
            "--batch=32",
            "--width=8",
            "--keys=8",
            "--plot=" + plot);
    for (String name : List.of("full attention", "plain window", "GatedFWA", "GatedFWA + NSA")) {
      assertThat(printed).containsPattern(name.replace("+", "\\+") + " +\\d+\\.\\d +\\d+\\.\\d\n");
    }
    assertThat(plot).isNotEmptyFile();
  }

  @Test
  void needlePrintsATableAndDrawsIt() throws IOException {
    Path sources = folder.resolve("sources");
    TestSources.write(sources, 120);
    Path plot = folder.resolve("needle.png");
    String printed =
        run(
            new Needle(),
            0,
            "--sources=" + sources,
            "--context=60",
            "--needles=2",
            "--window=8",
            "--steps=2",
            "--batch=32",
            "--width=8",
            "--plot=" + plot);
    assertThat(printed).contains("GatedFWA: ", "GatedFWA + NSA: ", "1-14", "-60");
    assertThat(plot).isNotEmptyFile();
  }

  @Test
  void aShortTaskIsLearned() {
    try (Interruption interruption = Interruption.listen()) {
      Recall.Task task = (length, random) -> AssociativeRecall.example(random, length, 4);
      Recall.Options options = new Recall.Options(16, 16, folder.resolve("recall.png"));
      options.width = 16;
      options.steps = 400;
      options.learningRate = 1e-2;
      options.seed = 3;
      var network =
          Recall.train(
              "test",
              GatedFWALayer.builder()
                  .windowSize(16)
                  .keyShift(true)
                  .ropeBase(10000)
                  .qkNorm(true)
                  .build(),
              9,
              task,
              List.of(new Recall.Stage(16, options.steps)),
              options,
              interruption,
              (length, trained) -> {});
      List<Recall.Example> tests = Recall.examples(task, 16, 50, new Random(9));
      assertThat(Recall.accuracy(network, tests, 20)).isGreaterThan(0.8);
      List<Boolean> right = Recall.ask(network, tests, 7);
      assertThat(right).hasSize(100);
      assertThat(right.stream().filter(known -> known).count() / 100.0)
          .isCloseTo(Recall.accuracy(network, tests, 50), within(1e-9));
    }
  }

  @Test
  void wrongOptionsAreRefused() {
    assertThat(run(new AssociativeRecall(), 1, "--lengths=1000"))
        .contains("--lengths has 1000; with 32 keys it must be from 8 to 256");
    assertThat(run(new Needle(), 1, "--needles=33")).contains("--needles must be at most 32");
    assertThat(run(new Needle(), 1, "--steps=0")).contains("--steps must be at least 1, got 0");
  }
}
