package io.github.gatedfwa.examples;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.stream.Stream;

/** The files under a folder. */
final class FileTree {
  private FileTree() {}

  /**
   * All regular files under a root, in any depth, in the order of their paths.
   *
   * @param root a folder, a file or a link to one of them; links to folders below it are not
   *     followed
   * @return paths that begin with the root as it was given; of a file, the root itself
   * @throws IOException if there is no root or something under it cannot be read
   */
  static List<Path> files(Path root) throws IOException {
    Path real = root.toRealPath(); // Files.walk does not follow the root itself
    try (Stream<Path> paths = Files.walk(real)) {
      return paths
          .filter(Files::isRegularFile)
          .map(path -> root.resolve(real.relativize(path)))
          .sorted()
          .toList();
    } catch (UncheckedIOException e) {
      throw e.getCause();
    }
  }
}
