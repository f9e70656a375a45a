package io.github.gatedfwa.examples;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.EOFException;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.AccessDeniedException;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.NoSuchFileException;
import java.nio.file.NotDirectoryException;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.stream.Stream;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import picocli.CommandLine.Command;

class CommandLinesTest {
  static Stream<Arguments> errors() {
    return Stream.of(
        Arguments.of(new NoSuchFileException("a.zip"), "no such file: a.zip"),
        Arguments.of(new NoSuchFileException("a.zip", null, "run X first"), "a.zip: run X first"),
        Arguments.of(new AccessDeniedException("a.zip"), "access denied: a.zip"),
        Arguments.of(new NotDirectoryException("a"), "no such folder: a"),
        Arguments.of(new FileAlreadyExistsException("a"), "FileAlreadyExistsException: a"),
        Arguments.of(new EOFException(), "EOFException"),
        Arguments.of(new IOException("broken"), "broken"),
        Arguments.of(new UncheckedIOException(new AccessDeniedException("a")), "access denied: a"));
  }

  @Command
  private record Failing(Exception error) implements Callable<Integer> {
    @Override
    public Integer call() throws Exception {
      throw error;
    }
  }

  @ParameterizedTest
  @MethodSource("errors")
  void anErrorIsOneLineThatSaysSomething(Exception error, String line) {
    assertThat(Programs.run(new Failing(error), 1)).isEqualTo(line + System.lineSeparator());
  }

  static Stream<Arguments> countsFromOne() {
    return Stream.of(
            Map.entry(
                TrainCodeModel.class,
                "steps batch context width blocks heads attention-window save-every"),
            Map.entry(FineTune.class, "steps batch context measure-every patience most-held-out"),
            Map.entry(Needle.class, "window width heads blocks steps batch needles"),
            Map.entry(AssociativeRecall.class, "window width heads blocks steps batch keys"),
            Map.entry(SameDiffExample.class, "steps"),
            Map.entry(LongContext.class, "length texts context"),
            Map.entry(GateMap.class, "length"))
        .flatMap(
            entry ->
                Stream.of(entry.getValue().split(" "))
                    .map(option -> Arguments.of(entry.getKey(), "--" + option)));
  }

  @ParameterizedTest
  @MethodSource("countsFromOne")
  void aCountMustBeAtLeastOne(Class<Callable<Integer>> program, String option) throws Exception {
    for (int count : new int[] {0, -5}) {
      assertThat(error(program, option + "=" + count))
          .isEqualTo(option + " must be at least 1, got " + count + System.lineSeparator());
    }
  }

  static Stream<Arguments> filesToWrite() {
    return Stream.of(
        Arguments.of(TrainCodeModel.class, "--model"),
        Arguments.of(FineTune.class, "--save"),
        Arguments.of(Needle.class, "--plot"),
        Arguments.of(AssociativeRecall.class, "--plot"),
        Arguments.of(SameDiffExample.class, "--file"),
        Arguments.of(LongContext.class, "--plot"),
        Arguments.of(GateMap.class, "--image"));
  }

  @ParameterizedTest
  @MethodSource("filesToWrite")
  void aFolderIsNoFileToWrite(Class<Callable<Integer>> program, String option) throws Exception {
    for (String folder : List.of("/", ".", "")) {
      assertThat(error(program, option + "=" + folder))
          .isEqualTo(
              option + " must be a file, got the folder '" + folder + "'" + System.lineSeparator());
    }
  }

  private static String error(Class<Callable<Integer>> program, String option) throws Exception {
    List<String> arguments = new ArrayList<>(List.of(option));
    if (program.equals(FineTune.class) || program.equals(GateMap.class)) {
      arguments.add("--text=nowhere"); // they insist on one
    }
    return Programs.run(
        program.getConstructor().newInstance(), 1, arguments.toArray(new String[0]));
  }
}
