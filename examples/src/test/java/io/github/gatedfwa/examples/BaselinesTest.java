package io.github.gatedfwa.examples;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class BaselinesTest {
  @TempDir Path folder;

  @Test
  void order0IsTheSmoothedFrequency() throws IOException {
    Baselines baselines = new Baselines(List.of(file("train", "aab")));
    // p(a) = 3/259, p(b) = 2/259, p(c) = 1/259
    double expected = -(log2(3 / 259.0) + log2(2 / 259.0) + log2(1 / 259.0)) / 3;
    assertThat(baselines.order0(List.of(file("held", "abc")))).isCloseTo(expected, within(1e-12));
  }

  @Test
  void order1LooksAtTheByteBefore() throws IOException {
    Baselines baselines = new Baselines(List.of(file("train", "ab"), file("more", "ac")));
    // At a file's start: 2 of 2 are a. After a: 1 of 2 is b. After b nothing is known: order 0.
    double a = 3 / 260.0;
    double b = 2 / 260.0;
    double expected = -(log2((2 + a) / 3) + log2((1 + b) / 3) + log2(b)) / 3;
    assertThat(baselines.order1(List.of(file("held", "abb")))).isCloseTo(expected, within(1e-12));
  }

  @Test
  void theProbabilitiesOfEachContextSumToOne() throws IOException {
    byte[] every = new byte[256];
    for (int i = 0; i < every.length; i++) {
      every[i] = (byte) i;
    }
    Path train = file("train", "some text to count");
    Baselines baselines = new Baselines(List.of(train));
    double sum0 = 0;
    double sum1 = 0;
    for (byte one : every) {
      Path held = folder.resolve("held");
      Files.write(held, new byte[] {one});
      sum0 += Math.pow(2, -baselines.order0(List.of(held)));
      sum1 += Math.pow(2, -baselines.order1(List.of(held)));
    }
    assertThat(sum0).isCloseTo(1, within(1e-12));
    assertThat(sum1).isCloseTo(1, within(1e-12));
  }

  @Test
  void xzFindsRepetitionAcrossFilesAndNoneInNoise() throws IOException {
    byte[] noise = new byte[20_000];
    new Random(1).nextBytes(noise);
    Path first = folder.resolve("first");
    Path second = folder.resolve("second");
    Files.copy(new ByteArrayInputStream(noise), first);
    Files.copy(new ByteArrayInputStream(noise), second);
    assertThat(Baselines.xz(List.of(first))).isBetween(8.0, 8.2);
    assertThat(Baselines.xz(List.of(first, second))).isBetween(4.0, 4.2);
  }

  private Path file(String name, String text) throws IOException {
    return Files.writeString(folder.resolve(name), text);
  }

  private static double log2(double value) {
    return Math.log(value) / Math.log(2);
  }
}
