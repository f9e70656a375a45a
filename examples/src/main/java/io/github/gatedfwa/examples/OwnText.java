package io.github.gatedfwa.examples;

import java.io.BufferedInputStream;
import java.io.BufferedOutputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.file.AccessDeniedException;
import java.nio.file.FileSystems;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.PathMatcher;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.regex.PatternSyntaxException;

/**
 * Text files of any kind, split into what a model learns from and what is held out, as copies in a
 * temporary folder that {@link #close()} deletes.
 *
 * <p>Files are held out whole, in an order that depends on their paths alone, until that is a tenth
 * of the text. A file that is more than half of the text is never held out; where the others are
 * too little, the end of the largest file is held out instead, which is how a single file is split.
 *
 * <p>What is learned from is one file, with a byte 0 in front of each part, as the pretrained
 * models know it: so files that are shorter than a training window count too, and the models still
 * know how a text begins and ends. Files with a byte 0 in them are no text and are left out, and so
 * are hidden ones.
 */
final class OwnText implements AutoCloseable {
  /** One byte in so many is held out. */
  private static final int ONE_IN = 10;

  private static final int SEPARATOR = 0;

  private final Path copies;
  private final Path training;
  private final List<Path> heldOut = new ArrayList<>();
  private String description;

  private OwnText() throws IOException {
    copies = Files.createTempDirectory("own-text");
    training = copies.resolve("training");
  }

  /**
   * Finds, splits and copies text.
   *
   * @param root a folder, searched in any depth, or a file
   * @param pattern what file names have to match (a glob), or paths below the folder where it has a
   *     slash
   * @param least bytes of text that there must be
   * @param mostHeldOut bytes of the held-out text that are used at most
   * @param save what a training writes is no text: this file, and those beside it that have its
   *     name and an extension, are left out
   * @throws IOException if something cannot be read
   * @throws IllegalArgumentException if there is not enough text
   */
  static OwnText read(Path root, String pattern, long least, long mostHeldOut, Path save)
      throws IOException {
    if (!Files.exists(root)) {
      throw new NoSuchFileException(root.toString(), null, "no such folder or file (--text)");
    }
    List<Path> found = find(root, pattern, save);
    if (found.isEmpty()) {
      throw new IllegalArgumentException(
          "--text %s has no file that matches --files '%s'".formatted(root, pattern));
    }
    Map<Path, Long> texts = new LinkedHashMap<>();
    for (Path file : found) {
      long size = textSize(file);
      if (size > 0) {
        texts.put(file, size);
      }
    }
    int others = found.size() - texts.size();
    if (texts.isEmpty()) {
      throw new IllegalArgumentException(
          "--text %s has no text: of %d files that match --files '%s' all are empty or hold bytes 0"
              .formatted(root, found.size(), pattern));
    }
    long total = texts.values().stream().mapToLong(Long::longValue).sum();
    if (total < least) {
      throw new IllegalArgumentException(
          String.format(
              Locale.ROOT,
              "--text %s has %,d bytes of text in %d files; at least %,d are needed",
              root,
              total,
              texts.size(),
              least));
    }
    OwnText own = new OwnText();
    try {
      own.split(root, texts, total, mostHeldOut);
    } catch (IOException | RuntimeException e) {
      own.close();
      throw e;
    }
    if (others > 0) {
      own.description += "; " + others + " files are empty or no text";
    }
    return own;
  }

  private static List<Path> find(Path root, String pattern, Path save) throws IOException {
    PathMatcher matcher;
    try {
      matcher = FileSystems.getDefault().getPathMatcher("glob:" + pattern);
    } catch (PatternSyntaxException e) {
      throw new IllegalArgumentException(
          "--files '%s' is not a pattern: %s".formatted(pattern, e.getDescription()), e);
    }
    boolean ofPaths = pattern.contains("/");
    List<Path> found = new ArrayList<>();
    for (Path path : FileTree.files(root)) {
      Path relative = root.relativize(path);
      boolean wanted =
          path.equals(root)
              || (isVisible(relative)
                  && matcher.matches(ofPaths ? relative : relative.getFileName()));
      if (wanted && !belongsTo(save, path)) {
        found.add(path);
      }
    }
    return found;
  }

  /** Whether a file is the saved one, or lies beside it and is named after it. */
  private static boolean belongsTo(Path save, Path file) throws IOException {
    String name = file.getFileName().toString();
    String saved = save.getFileName().toString();
    Path folder = save.toAbsolutePath().getParent();
    return (name.equals(saved) || name.startsWith(saved + "."))
        && Files.isDirectory(folder)
        && Files.isSameFile(folder, file.toAbsolutePath().getParent());
  }

  private static boolean isVisible(Path relative) {
    for (Path part : relative) {
      if (part.toString().startsWith(".")) {
        return false;
      }
    }
    return true;
  }

  /** How many bytes a file has; 0 if it is not text. */
  private static long textSize(Path file) throws IOException {
    long size = 0;
    try (InputStream in = new BufferedInputStream(Files.newInputStream(file))) {
      for (int next = in.read(); next >= 0; next = in.read()) {
        if (next == SEPARATOR) {
          return 0;
        }
        size++;
      }
    } catch (IOException e) {
      throw unreadable(file, e);
    }
    return size;
  }

  private static IOException unreadable(Path file, IOException e) {
    String reason = e instanceof AccessDeniedException ? "access denied" : e.getMessage();
    return new IOException("cannot read %s (--text): %s".formatted(file, reason), e);
  }

  private void split(Path root, Map<Path, Long> texts, long total, long mostHeldOut)
      throws IOException {
    long wanted = Math.min(total / ONE_IN, mostHeldOut);
    List<Path> byHash = new ArrayList<>(texts.keySet());
    byHash.sort(
        Comparator.comparingLong((Path file) -> SourceFiles.hash(root.relativize(file)))
            .thenComparing(Comparator.naturalOrder()));
    // Where in a file the held-out part starts.
    Map<Path, Long> starts = new LinkedHashMap<>();
    long held = 0;
    for (Path file : byHash) {
      long size = texts.get(file);
      if (held < wanted && size <= total / 2) {
        starts.put(file, 0L);
        held += size;
      }
    }
    boolean byFile = held >= wanted;
    if (!byFile) {
      Path largest = Collections.max(texts.entrySet(), Map.Entry.comparingByValue()).getKey();
      starts.clear();
      starts.put(largest, texts.get(largest) - wanted);
    }

    int trainingFiles = 0;
    long trainingBytes = 0;
    try (OutputStream out = new BufferedOutputStream(Files.newOutputStream(training))) {
      for (Map.Entry<Path, Long> file : texts.entrySet()) {
        long size = starts.getOrDefault(file.getKey(), file.getValue());
        if (size > 0) {
          if (trainingFiles > 0) {
            out.write(SEPARATOR);
          }
          copy(file.getKey(), 0, size, out);
          trainingFiles++;
          trainingBytes += size;
        }
      }
    }
    long left = mostHeldOut;
    for (Map.Entry<Path, Long> file : starts.entrySet()) {
      long size = Math.min(left, texts.get(file.getKey()) - file.getValue());
      if (size > 0) {
        Path copy = copies.resolve("held-out-" + heldOut.size());
        heldOut.add(copy);
        try (OutputStream out = new BufferedOutputStream(Files.newOutputStream(copy))) {
          copy(file.getKey(), file.getValue(), size, out);
        }
        left -= size;
      }
    }
    description =
        String.format(
            Locale.ROOT,
            "%d files (%,d bytes) to train on, %s (%,d bytes measured) held out",
            trainingFiles,
            trainingBytes,
            byFile
                ? starts.size() + " files"
                : "the end of " + starts.keySet().iterator().next().getFileName(),
            mostHeldOut - left);
  }

  private static void copy(Path file, long from, long size, OutputStream out) throws IOException {
    try (InputStream in = Files.newInputStream(file)) {
      in.skipNBytes(from);
      byte[] buffer = new byte[1 << 16];
      for (long left = size; left > 0; ) {
        int read = in.read(buffer, 0, (int) Math.min(left, buffer.length));
        if (read < 0) {
          throw new EOFException("it became shorter meanwhile");
        }
        out.write(buffer, 0, read);
        left -= read;
      }
    } catch (IOException e) {
      throw unreadable(file, e);
    }
  }

  /** What a model learns from: a file. */
  List<Path> training() {
    return List.of(training);
  }

  /** What it never sees: files. */
  List<Path> heldOut() {
    return List.copyOf(heldOut);
  }

  /** How much there is of each, in one line. */
  String description() {
    return description;
  }

  @Override
  public void close() throws IOException {
    Files.deleteIfExists(training);
    for (Path copy : heldOut) {
      Files.deleteIfExists(copy);
    }
    Files.delete(copies);
  }
}
