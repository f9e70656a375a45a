package io.github.gatedfwa.zoo.io;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.condition.DisabledOnOs;
import org.junit.jupiter.api.condition.OS;
import org.junit.jupiter.api.io.TempDir;

class WholeFileTest {
  @TempDir Path folder;

  @Test
  void replacesAFileOnlyByAWholeOne() throws IOException {
    Path file = folder.resolve("file");
    Files.writeString(file, "old");
    assertThatThrownBy(
            () ->
                WholeFile.write(
                    file,
                    stream -> {
                      stream.write(new byte[100_000]);
                      throw new IOException("disk full");
                    }))
        .hasMessage("disk full");
    assertThat(file).hasContent("old");
    WholeFile.write(file, stream -> stream.write('n'));
    assertThat(file).hasContent("n");
    assertThat(folder).isDirectoryNotContaining("glob:**.part");
  }

  @Test
  void aWriterDoesNotTakeWhatAnotherHasWrittenByHalf() throws IOException {
    Path file = folder.resolve("file");
    WholeFile.write(
        file,
        outer -> {
          outer.write(new byte[100_000]);
          WholeFile.write(file, inner -> inner.write('n'));
          assertThat(file).hasContent("n");
          outer.write(1);
        });
    assertThat(file).hasSize(100_001);
    assertThat(folder).isDirectoryNotContaining("glob:**.part");
  }

  @Test
  @DisabledOnOs(OS.WINDOWS)
  void theFileHasThePermissionsOfAnyNewFile() throws IOException {
    Path file = folder.resolve("file");
    WholeFile.write(file, stream -> stream.write('n'));
    Path other = Files.createFile(folder.resolve("other"));
    assertThat(Files.getPosixFilePermissions(file)).isEqualTo(Files.getPosixFilePermissions(other));
  }
}
