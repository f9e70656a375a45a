package io.github.gatedfwa.nativeops;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class LibraryCacheTest {

  private static final byte[] CONTENT = "a library".getBytes(StandardCharsets.UTF_8);

  @TempDir Path cache;

  @Test
  void writesOnceAndUsesItAgain() throws IOException {
    Path first = LibraryCache.file(cache, "x.so", CONTENT);
    Object identity = Files.getAttribute(first, "unix:ino");
    Path second = LibraryCache.file(cache, "x.so", CONTENT);
    assertThat(second).isEqualTo(first).hasBinaryContent(CONTENT);
    assertThat(Files.getAttribute(second, "unix:ino")).isEqualTo(identity);
  }

  @Test
  void keepsVersionsApart() throws IOException {
    Path first = LibraryCache.file(cache, "x.so", CONTENT);
    Path second = LibraryCache.file(cache, "x.so", new byte[] {1});
    assertThat(second).isNotEqualTo(first);
    assertThat(first).hasBinaryContent(CONTENT);
  }

  @Test
  void replacesWhatIsBroken() throws IOException {
    Path file = LibraryCache.file(cache, "x.so", CONTENT);
    Files.writeString(file, "a libr");
    assertThat(LibraryCache.file(cache, "x.so", CONTENT)).isEqualTo(file).hasBinaryContent(CONTENT);
    try (Stream<Path> files = Files.list(file.getParent())) {
      assertThat(files).containsExactly(file);
    }
  }

  @Test
  void usesTemporaryDirectoryWhereTheCacheCannotBeWritten() throws IOException {
    Path blocked = Files.createFile(cache.resolve("a file, no directory"));
    Path file = LibraryCache.file(blocked, "x.so", CONTENT);
    assertThat(file).doesNotHaveToString(blocked.toString()).hasBinaryContent(CONTENT);
    assertThat(file.startsWith(cache)).isFalse();
  }
}
