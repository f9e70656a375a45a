package io.github.gatedfwa.nativeops;

import static org.assertj.core.api.Assertions.assertThat;

import io.github.gatedfwa.nativeops.LibraryCache.Place;
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
    Path first = LibraryCache.file(() -> cache, "x.so", CONTENT);
    Object identity = Files.getAttribute(first, "unix:ino");
    Path second = LibraryCache.file(() -> cache, "x.so", CONTENT);
    assertThat(second).isEqualTo(first).hasBinaryContent(CONTENT);
    assertThat(Files.getAttribute(second, "unix:ino")).isEqualTo(identity);
  }

  @Test
  void keepsVersionsApart() throws IOException {
    Path first = LibraryCache.file(() -> cache, "x.so", CONTENT);
    Path second = LibraryCache.file(() -> cache, "x.so", new byte[] {1});
    assertThat(second).isNotEqualTo(first);
    assertThat(first).hasBinaryContent(CONTENT);
  }

  @Test
  void replacesWhatIsBroken() throws IOException {
    Path file = LibraryCache.file(() -> cache, "x.so", CONTENT);
    Files.writeString(file, "a libr");
    assertThat(LibraryCache.file(() -> cache, "x.so", CONTENT))
        .isEqualTo(file)
        .hasBinaryContent(CONTENT);
    try (Stream<Path> files = Files.list(file.getParent())) {
      assertThat(files).containsExactly(file);
    }
  }

  @Test
  void usesTemporaryDirectoryWhereTheCacheCannotBeWritten() throws IOException {
    Path blocked = Files.createFile(cache.resolve("a file, no directory"));
    Path file = LibraryCache.file(() -> blocked, "x.so", CONTENT);
    assertThat(file).doesNotHaveToString(blocked.toString()).hasBinaryContent(CONTENT);
    assertThat(file.startsWith(cache)).isFalse();
  }

  @Test
  void usesTemporaryDirectoryWhereTheCacheCannotBeMadeOrRead() throws IOException {
    Place none =
        () -> {
          throw new IOException("read-only file system");
        };
    assertThat(LibraryCache.file(none, "x.so", CONTENT)).hasBinaryContent(CONTENT);

    Path unreadable = LibraryCache.file(() -> cache, "x.so", CONTENT);
    Files.delete(unreadable);
    Files.createSymbolicLink(unreadable, unreadable); // root may read any ordinary file
    assertThat(LibraryCache.file(() -> cache, "x.so", CONTENT)).hasBinaryContent(CONTENT);
  }

  /** Users can share a cache: what one has written the others can read, as their umask says. */
  @Test
  void isReadableAsAnyNewFile() throws IOException {
    Path file = LibraryCache.file(() -> cache, "x.so", CONTENT);
    Path ordinary = Files.createFile(cache.resolve("ordinary"));
    assertThat(Files.getPosixFilePermissions(file))
        .isEqualTo(Files.getPosixFilePermissions(ordinary));
  }
}
