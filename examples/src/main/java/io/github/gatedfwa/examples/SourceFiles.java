package io.github.gatedfwa.examples;

import static java.nio.charset.StandardCharsets.UTF_8;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.NotDirectoryException;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;
import org.datavec.api.split.CollectionInputSplit;

/**
 * The Java files under a folder, split into training and held-out.
 *
 * <p>A file's side depends on its path alone, so that every run, and every model that continues
 * another, holds out the same files.
 *
 * @param training what a model may learn from
 * @param heldOut about one file in {@value #ONE_IN}, which it never sees
 */
record SourceFiles(List<Path> training, List<Path> heldOut) {
  private static final int ONE_IN = 20;

  /**
   * @throws NotDirectoryException if root is not a folder
   * @throws IllegalArgumentException if it holds too few Java files for both sides
   */
  static SourceFiles under(Path root) throws IOException {
    if (!Files.isDirectory(root)) {
      throw new NotDirectoryException(root + " (--sources)");
    }
    Map<Boolean, List<Path>> sides =
        FileTree.files(root).stream()
            .filter(path -> path.toString().endsWith(".java"))
            .collect(Collectors.partitioningBy(path -> isHeldOut(root.relativize(path))));
    if (sides.get(false).isEmpty() || sides.get(true).isEmpty()) {
      throw new IllegalArgumentException(
          "--sources "
              + root
              + " has "
              + sides.get(false).size()
              + " Java files to train on and "
              + sides.get(true).size()
              + " to hold out; both are needed");
    }
    return new SourceFiles(sides.get(false), sides.get(true));
  }

  private static boolean isHeldOut(Path relative) {
    return Long.remainderUnsigned(hash(relative), ONE_IN) == 0;
  }

  /** A number that depends on a path alone, the same on every platform. */
  static long hash(Path relative) {
    StringBuilder name = new StringBuilder();
    relative.forEach(part -> name.append('/').append(part));
    try {
      byte[] hash = MessageDigest.getInstance("SHA-256").digest(name.toString().getBytes(UTF_8));
      return ByteBuffer.wrap(hash).getLong();
    } catch (NoSuchAlgorithmException e) {
      throw new AssertionError("every Java platform has SHA-256", e);
    }
  }

  static CollectionInputSplit split(List<Path> files) {
    return new CollectionInputSplit(files.stream().map(Path::toUri).toList());
  }

  static long bytes(List<Path> files) throws IOException {
    long sum = 0;
    for (Path file : files) {
      sum += Files.size(file);
    }
    return sum;
  }
}
