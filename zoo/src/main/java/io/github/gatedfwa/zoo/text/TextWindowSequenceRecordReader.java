package io.github.gatedfwa.zoo.text;

import java.io.DataInputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.net.URI;
import java.nio.ByteBuffer;
import java.nio.channels.SeekableByteChannel;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.SplittableRandom;
import org.datavec.api.conf.Configuration;
import org.datavec.api.records.Record;
import org.datavec.api.records.SequenceRecord;
import org.datavec.api.records.metadata.RecordMetaData;
import org.datavec.api.records.metadata.RecordMetaDataInterval;
import org.datavec.api.records.reader.BaseRecordReader;
import org.datavec.api.records.reader.SequenceRecordReader;
import org.datavec.api.split.InputSplit;
import org.datavec.api.writable.IntWritable;
import org.datavec.api.writable.Writable;

/**
 * Cuts windows from text files for a byte-level language model.
 *
 * <p>A token is a byte, 0 to 255. A sequence is a window of one file; each of its time steps holds
 * two {@link IntWritable}s: the input, and as label the byte that follows it. The byte before a
 * file's first is {@link #START}, so a window at offset {@code o} has the inputs {@code file[o-1],
 * ..., file[o+T-2]} and the labels {@code file[o], ..., file[o+T-1]}, and a model learns to begin a
 * file as well as to continue one.
 *
 * <ul>
 *   <li>{@link #sequential}: for evaluation. Every byte of every file is a label exactly once, file
 *       after file; only the last window of a file may be shorter than {@code T}. {@link #reset()}
 *       starts again.
 *   <li>{@link #random}: for training. Each window is {@code T} long and drawn uniformly from all
 *       places where one fits. Window {@code n} depends on the seed and {@code n} alone, so {@link
 *       #skip(long)} finds the place of an interrupted run again. An epoch is as many windows as
 *       would cover the text once; {@link #reset()} goes on to the next epoch with new windows.
 * </ul>
 *
 * <p>Files are taken in the order of their URIs, whatever order the split lists them in. Nothing of
 * a file but the window asked for is in memory, and no file stays open.
 */
public final class TextWindowSequenceRecordReader extends BaseRecordReader
    implements SequenceRecordReader {
  private static final long serialVersionUID = 1L;

  /** The input in front of a file's first byte; text does not contain it. */
  public static final int START = 0;

  private final int windowLength;
  private final boolean random;
  private final long seed;

  private Configuration configuration = new Configuration();
  private URI[] files;
  private long[] sizes;

  /** How many windows come before each file, and, as the last entry, how many there are. */
  private long[] firstWindow;

  private long windowsPerEpoch;
  private long next;
  private long end;

  private TextWindowSequenceRecordReader(int windowLength, boolean random, long seed) {
    if (windowLength < 1) {
      throw new IllegalArgumentException(
          "TextWindowSequenceRecordReader: windowLength must be at least 1, got " + windowLength);
    }
    this.windowLength = windowLength;
    this.random = random;
    this.seed = seed;
  }

  /**
   * A reader that goes through the text once, in order and without overlap.
   *
   * @param windowLength time steps of a window, at least 1
   * @throws IllegalArgumentException if windowLength is less than 1
   */
  public static TextWindowSequenceRecordReader sequential(int windowLength) {
    return new TextWindowSequenceRecordReader(windowLength, false, 0);
  }

  /**
   * A reader that draws windows at random.
   *
   * @param windowLength time steps of a window, at least 1; shorter files are never drawn from
   * @param seed decides the windows and their order
   * @throws IllegalArgumentException if windowLength is less than 1
   */
  public static TextWindowSequenceRecordReader random(int windowLength, long seed) {
    return new TextWindowSequenceRecordReader(windowLength, true, seed);
  }

  /**
   * Takes the files of a split and stands before the first window.
   *
   * @throws IllegalArgumentException if a location is not a local file, or if there is no window to
   *     read: no file, only empty ones, or for {@link #random} none of windowLength bytes
   * @throws IOException if a file is missing or its size cannot be read
   */
  @Override
  public void initialize(InputSplit split) throws IOException {
    // The split itself is not kept (as super.initialize would): it cannot be serialized.
    URI[] locations = split.locations().clone();
    Arrays.sort(locations);
    long[] lengths = new long[locations.length];
    long[] before = new long[locations.length + 1];
    long windows = 0;
    long longest = 0;
    for (int i = 0; i < locations.length; i++) {
      lengths[i] = size(locations[i]);
      longest = Math.max(longest, lengths[i]);
      windows += windowsIn(lengths[i]);
      before[i + 1] = before[i] + placesIn(lengths[i]);
    }
    if (before[locations.length] == 0) {
      throw new IllegalArgumentException(
          "TextWindowSequenceRecordReader: no window of "
              + (random ? windowLength + " bytes" : "at least 1 byte")
              + " in the split's "
              + locations.length
              + " files, the longest of which has "
              + longest
              + " bytes");
    }
    files = locations;
    sizes = lengths;
    firstWindow = before;
    windowsPerEpoch = windows;
    next = 0;
    end = windows;
  }

  @Override
  public void initialize(Configuration conf, InputSplit split) throws IOException {
    setConf(conf);
    initialize(split);
  }

  /** The windows of an epoch. */
  public long windowsPerEpoch() {
    requireInitialized();
    return windowsPerEpoch;
  }

  /**
   * Passes over windows as if they had been read, across epochs where the windows are random.
   *
   * @param windows how many, at least 0; a sequential reader stops at its end
   * @throws IllegalArgumentException if windows is negative
   */
  public void skip(long windows) {
    requireInitialized();
    if (windows < 0) {
      throw new IllegalArgumentException(
          "TextWindowSequenceRecordReader: windows to skip must not be negative, got " + windows);
    }
    if (random) {
      next += windows;
      end = (next / windowsPerEpoch + 1) * windowsPerEpoch;
    } else {
      next = Math.min(end, next + windows);
    }
  }

  @Override
  public boolean hasNext() {
    requireInitialized();
    return next < end;
  }

  @Override
  public SequenceRecord nextSequence() {
    if (!hasNext()) {
      throw new NoSuchElementException(
          "TextWindowSequenceRecordReader: the epoch's "
              + windowsPerEpoch
              + " windows have been read; reset() starts the next one");
    }
    RecordMetaDataInterval place = random ? drawn(next) : inOrder(next);
    SequenceRecord record = read(place);
    next++;
    invokeListeners(record);
    return record;
  }

  @Override
  public List<List<Writable>> sequenceRecord() {
    return nextSequence().getSequenceRecord();
  }

  /**
   * The window at which a stream stands, as if a file began there: its first input is {@link
   * #START}. Neither the reader's state nor the stream's end is touched.
   *
   * @param uri where the stream comes from; for messages only
   * @throws EOFException if the stream is at its end
   */
  @Override
  public List<List<Writable>> sequenceRecord(URI uri, DataInputStream stream) throws IOException {
    byte[] labels = stream.readNBytes(windowLength);
    if (labels.length == 0) {
      throw new EOFException(
          "TextWindowSequenceRecordReader: the stream of " + uri + " is at its end");
    }
    return steps(START, ByteBuffer.wrap(labels));
  }

  @Override
  public SequenceRecord loadSequenceFromMetaData(RecordMetaData metaData) throws IOException {
    if (!(metaData instanceof RecordMetaDataInterval interval)) {
      throw new IllegalArgumentException(
          "TextWindowSequenceRecordReader: metadata must be a RecordMetaDataInterval as"
              + " nextSequence() gives it, got "
              + (metaData == null ? "null" : metaData.getClass().getName()));
    }
    long length = interval.getTo() - interval.getFrom();
    if (interval.getFrom() < 0 || length < 1 || length > windowLength) {
      throw new IllegalArgumentException(
          "TextWindowSequenceRecordReader: metadata names the bytes ["
              + interval.getFrom()
              + ", "
              + interval.getTo()
              + "); a window has 1 to "
              + windowLength
              + " bytes from offset 0 on");
    }
    try {
      return read(interval);
    } catch (UncheckedIOException e) {
      throw e.getCause();
    }
  }

  @Override
  public List<SequenceRecord> loadSequenceFromMetaData(List<RecordMetaData> metaData)
      throws IOException {
    List<SequenceRecord> records = new ArrayList<>(metaData.size());
    for (RecordMetaData one : metaData) {
      records.add(loadSequenceFromMetaData(one));
    }
    return records;
  }

  @Override
  public void reset() {
    requireInitialized();
    if (random) {
      end = next + windowsPerEpoch;
    } else {
      next = 0;
    }
  }

  @Override
  public boolean resetSupported() {
    return true;
  }

  /** Always null: a byte needs no name. */
  @Override
  public List<String> getLabels() {
    return null;
  }

  @Override
  public void setConf(Configuration conf) {
    configuration = conf;
  }

  @Override
  public Configuration getConf() {
    return configuration;
  }

  /** Does nothing: no file is open between two windows. */
  @Override
  public void close() {}

  /**
   * Not supported.
   *
   * @throws UnsupportedOperationException always: windows are sequences
   */
  @Override
  public List<Writable> next() {
    throw sequencesOnly();
  }

  /**
   * Not supported.
   *
   * @throws UnsupportedOperationException always: windows are sequences
   */
  @Override
  public List<Writable> record(URI uri, DataInputStream stream) {
    throw sequencesOnly();
  }

  /**
   * Not supported.
   *
   * @throws UnsupportedOperationException always: windows are sequences
   */
  @Override
  public Record nextRecord() {
    throw sequencesOnly();
  }

  /**
   * Not supported.
   *
   * @throws UnsupportedOperationException always: windows are sequences
   */
  @Override
  public Record loadFromMetaData(RecordMetaData metaData) {
    throw sequencesOnly();
  }

  /**
   * Not supported.
   *
   * @throws UnsupportedOperationException always: windows are sequences
   */
  @Override
  public List<Record> loadFromMetaData(List<RecordMetaData> metaData) {
    throw sequencesOnly();
  }

  private static UnsupportedOperationException sequencesOnly() {
    return new UnsupportedOperationException(
        "TextWindowSequenceRecordReader reads sequences: use nextSequence(), sequenceRecord() or"
            + " loadSequenceFromMetaData()");
  }

  private void requireInitialized() {
    if (files == null) {
      throw new IllegalStateException(
          "TextWindowSequenceRecordReader: initialize(InputSplit) must come first");
    }
  }

  private long windowsIn(long size) {
    return (size + windowLength - 1) / windowLength;
  }

  /** The offsets at which a window of a file of this size may start. */
  private long placesIn(long size) {
    return random ? Math.max(0, size - windowLength + 1) : windowsIn(size);
  }

  private RecordMetaDataInterval inOrder(long window) {
    int file = fileOf(window);
    long from = (window - firstWindow[file]) * windowLength;
    return interval(file, from, Math.min(sizes[file], from + windowLength));
  }

  private RecordMetaDataInterval drawn(long window) {
    // The seed goes through the generator once, so that seeds 1 and 2 are not one window apart.
    long base = new SplittableRandom(seed).nextLong();
    long place = new SplittableRandom(base + window).nextLong(firstWindow[files.length]);
    int file = fileOf(place);
    long from = place - firstWindow[file];
    return interval(file, from, from + windowLength);
  }

  /** The file whose places include this one; empty files share their start with the next file. */
  private int fileOf(long place) {
    int low = 0;
    int high = files.length - 1;
    while (low < high) {
      int middle = (low + high) >>> 1;
      if (firstWindow[middle + 1] <= place) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  private RecordMetaDataInterval interval(int file, long from, long to) {
    return new RecordMetaDataInterval(from, to, files[file], TextWindowSequenceRecordReader.class);
  }

  private static SequenceRecord read(RecordMetaDataInterval place) {
    long from = place.getFrom();
    int before = from == 0 ? 0 : 1;
    ByteBuffer bytes = ByteBuffer.allocate((int) (place.getTo() - from) + before);
    try (SeekableByteChannel channel = Files.newByteChannel(path(place.getURI()))) {
      channel.position(from - before);
      while (bytes.hasRemaining()) {
        if (channel.read(bytes) < 0) {
          throw new EOFException(
              "TextWindowSequenceRecordReader: "
                  + place.getURI()
                  + " has "
                  + channel.size()
                  + " bytes; the window asked for ends at "
                  + place.getTo());
        }
      }
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
    bytes.flip();
    int first = before == 0 ? START : Byte.toUnsignedInt(bytes.get());
    return new org.datavec.api.records.impl.SequenceRecord(steps(first, bytes), place);
  }

  private static List<List<Writable>> steps(int first, ByteBuffer labels) {
    List<List<Writable>> steps = new ArrayList<>(labels.remaining());
    int input = first;
    while (labels.hasRemaining()) {
      int label = Byte.toUnsignedInt(labels.get());
      steps.add(Arrays.asList(new IntWritable(input), new IntWritable(label)));
      input = label;
    }
    return steps;
  }

  private static long size(URI uri) throws IOException {
    Path path = path(uri);
    if (!Files.isRegularFile(path)) {
      throw new NoSuchFileException(
          path.toString(), null, "TextWindowSequenceRecordReader: not a file");
    }
    return Files.size(path);
  }

  private static Path path(URI uri) {
    if (!"file".equals(uri.getScheme())) {
      throw new IllegalArgumentException(
          "TextWindowSequenceRecordReader: the split's locations must be file: URIs, got " + uri);
    }
    return Path.of(uri);
  }
}
