package io.github.gatedfwa.examples;

import io.github.gatedfwa.zoo.text.TextWindowSequenceRecordReader;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.tukaani.xz.LZMA2Options;
import org.tukaani.xz.XZOutputStream;

/**
 * What a language model has to beat: byte statistics of the training files, and xz.
 *
 * <p>All results are bits per byte of the held-out files, file starts included.
 */
final class Baselines {
  private static final int BYTES = 256;

  private final long[] counts = new long[BYTES];
  private final long[][] pairs = new long[BYTES][BYTES];
  private final long[] contexts = new long[BYTES];
  private long total;

  Baselines(List<Path> training) throws IOException {
    for (Path file : training) {
      int before = TextWindowSequenceRecordReader.START;
      for (byte one : Files.readAllBytes(file)) {
        int next = Byte.toUnsignedInt(one);
        counts[next]++;
        pairs[before][next]++;
        contexts[before]++;
        total++;
        before = next;
      }
    }
  }

  /** Each byte by its frequency, with add-one smoothing. */
  double order0(List<Path> heldOut) throws IOException {
    return bits(heldOut, (before, next) -> probability(next));
  }

  /** Each byte by its frequency after the byte before it, smoothed towards order 0. */
  double order1(List<Path> heldOut) throws IOException {
    return bits(
        heldOut,
        (before, next) -> (pairs[before][next] + probability(next)) / (contexts[before] + 1));
  }

  /** {@code xz -9} on the held-out files, one after the other in one stream. */
  static double xz(List<Path> heldOut) throws IOException {
    CountingStream compressed = new CountingStream();
    long bytes = 0;
    try (XZOutputStream xz = new XZOutputStream(compressed, new LZMA2Options(9))) {
      for (Path file : heldOut) {
        bytes += Files.copy(file, xz);
      }
    }
    return compressed.count * 8.0 / bytes;
  }

  private double probability(int next) {
    return (counts[next] + 1.0) / (total + BYTES);
  }

  private interface Model {
    double probability(int before, int next);
  }

  private static double bits(List<Path> heldOut, Model model) throws IOException {
    double nats = 0;
    long bytes = 0;
    for (Path file : heldOut) {
      int before = TextWindowSequenceRecordReader.START;
      for (byte one : Files.readAllBytes(file)) {
        int next = Byte.toUnsignedInt(one);
        nats -= Math.log(model.probability(before, next));
        bytes++;
        before = next;
      }
    }
    return nats / Math.log(2) / bytes;
  }

  private static final class CountingStream extends OutputStream {
    private long count;

    @Override
    public void write(int one) {
      count++;
    }

    @Override
    public void write(byte[] bytes, int offset, int length) {
      count += length;
    }
  }
}
