package io.github.gatedfwa.nativeops;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.UUID;

/**
 * Files on disk for libraries that travel in a jar. A file's directory is named after its content,
 * so versions live side by side and a file that is there is never changed under a running JVM.
 */
final class LibraryCache {

  private LibraryCache() {}

  /** A directory, which may have to be made. */
  @FunctionalInterface
  interface Place {
    Path get() throws IOException;
  }

  /**
   * The file that holds {@code content}: the one in {@code cache} if it is whole, else written
   * there, else (a directory that cannot be made, read or written) in a temporary directory of this
   * JVM.
   *
   * @throws IOException if it can be written to neither
   */
  static Path file(Place cache, String name, byte[] content) throws IOException {
    try {
      Path file = cache.get().resolve(digest(content)).resolve(name);
      if (!holds(file, content)) {
        write(file, content);
      }
      return file;
    } catch (IOException inCache) {
      try {
        Path directory = Files.createTempDirectory("gatedfwa");
        Path temporary = directory.resolve(name);
        directory.toFile().deleteOnExit();
        temporary.toFile().deleteOnExit();
        Files.write(temporary, content);
        return temporary;
      } catch (IOException elsewhere) {
        elsewhere.addSuppressed(inCache);
        throw elsewhere;
      }
    }
  }

  /**
   * Beside the file first, then renamed: other JVMs see all of it or nothing. Whoever the umask
   * lets may read it: users can share a cache.
   */
  private static void write(Path file, byte[] content) throws IOException {
    Files.createDirectories(file.getParent());
    Path part = file.resolveSibling(file.getFileName() + "." + UUID.randomUUID() + ".part");
    try {
      Files.write(part, content, StandardOpenOption.CREATE_NEW);
      Files.move(part, file, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
    } finally {
      Files.deleteIfExists(part);
    }
  }

  private static boolean holds(Path file, byte[] content) throws IOException {
    return Files.isRegularFile(file)
        && Files.size(file) == content.length
        && Arrays.equals(Files.readAllBytes(file), content);
  }

  private static String digest(byte[] content) {
    try {
      byte[] digest = MessageDigest.getInstance("SHA-256").digest(content);
      return HexFormat.of().formatHex(digest, 0, 16);
    } catch (NoSuchAlgorithmException e) {
      throw new IllegalStateException("every Java platform has SHA-256", e);
    }
  }
}
