package io.github.gatedfwa.examples;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.EOFException;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.AccessDeniedException;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.NoSuchFileException;
import java.nio.file.NotDirectoryException;
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
}
