package io.github.gatedfwa.zoo.text;

import static java.nio.charset.StandardCharsets.ISO_8859_1;
import static java.nio.charset.StandardCharsets.US_ASCII;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.EOFException;
import java.io.File;
import java.io.IOException;
import java.io.ObjectInputStream;
import java.io.ObjectOutputStream;
import java.net.URI;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.NoSuchElementException;
import java.util.stream.Stream;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.constraints.IntRange;
import net.jqwik.api.constraints.Size;
import org.datavec.api.records.SequenceRecord;
import org.datavec.api.records.listener.impl.LogRecordListener;
import org.datavec.api.records.metadata.RecordMetaData;
import org.datavec.api.records.metadata.RecordMetaDataInterval;
import org.datavec.api.records.metadata.RecordMetaDataURI;
import org.datavec.api.split.CollectionInputSplit;
import org.datavec.api.split.FileSplit;
import org.datavec.api.split.InputSplit;
import org.datavec.api.writable.Writable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class TextWindowSequenceRecordReaderTest {
  @TempDir Path folder;

  @Test
  void sequentialWindowsFollowEachOtherWithNextByteLabels() throws Exception {
    write("a.txt", "abcdefg");
    write("b.txt", "xyz");
    TextWindowSequenceRecordReader reader = TextWindowSequenceRecordReader.sequential(3);
    reader.initialize(new FileSplit(folder.toFile()));

    assertThat(reader.windowsPerEpoch()).isEqualTo(4);
    assertThat(inputs(reader.sequenceRecord())).isEqualTo("\0ab");
    List<List<Writable>> second = reader.sequenceRecord();
    assertThat(inputs(second)).isEqualTo("cde");
    assertThat(labels(second)).isEqualTo("def");
    List<List<Writable>> last = reader.sequenceRecord();
    assertThat(inputs(last)).isEqualTo("f");
    assertThat(labels(last)).isEqualTo("g");
    assertThat(labels(reader.sequenceRecord())).isEqualTo("xyz");
    assertThat(reader.hasNext()).isFalse();
    assertThatThrownBy(reader::nextSequence)
        .isInstanceOf(NoSuchElementException.class)
        .hasMessageContaining("4 windows");

    reader.reset();
    assertThat(labels(reader.sequenceRecord())).isEqualTo("abc");
  }

  @Property(tries = 60)
  void sequentialLabelsAreTheFilesByteForByte(
      @ForAll @Size(min = 1, max = 5) List<byte[]> contents,
      @ForAll @IntRange(min = 1, max = 9) int windowLength)
      throws Exception {
    Path files = Files.createTempDirectory("windows");
    try {
      int total = 0;
      ByteArrayOutputStream expected = new ByteArrayOutputStream();
      for (int i = 0; i < contents.size(); i++) {
        Files.write(files.resolve("file" + i), contents.get(i));
        expected.write(contents.get(i));
        total += contents.get(i).length;
      }
      TextWindowSequenceRecordReader reader =
          TextWindowSequenceRecordReader.sequential(windowLength);
      if (total == 0) {
        assertThatThrownBy(() -> reader.initialize(new FileSplit(files.toFile())))
            .isInstanceOf(IllegalArgumentException.class);
        return;
      }
      reader.initialize(new FileSplit(files.toFile()));
      ByteArrayOutputStream read = new ByteArrayOutputStream();
      while (reader.hasNext()) {
        for (List<Writable> step : reader.sequenceRecord()) {
          read.write(step.get(1).toInt());
        }
      }
      assertThat(read.toByteArray()).isEqualTo(expected.toByteArray());
    } finally {
      delete(files);
    }
  }

  @Property(tries = 60)
  void randomWindowsAreFullAndLieInsideOneFile(
      @ForAll @IntRange(min = 1, max = 6) int windowLength, @ForAll long seed) throws Exception {
    Path files = Files.createTempDirectory("windows");
    try {
      Map<URI, String> texts = new HashMap<>();
      for (String text : List.of("abcdefgh", "ABCD", "", "0123456789", "xy")) {
        Path file = files.resolve("file" + texts.size());
        Files.writeString(file, text);
        texts.put(file.toUri(), text);
      }
      TextWindowSequenceRecordReader reader =
          TextWindowSequenceRecordReader.random(windowLength, seed);
      reader.initialize(new FileSplit(files.toFile()));
      for (int n = 0; reader.hasNext(); n++) {
        SequenceRecord record = reader.nextSequence();
        RecordMetaDataInterval place = (RecordMetaDataInterval) record.getMetaData();
        String padded = "\0" + texts.get(place.getURI());
        int from = (int) place.getFrom();
        assertThat(place.getTo() - from).isEqualTo(windowLength);
        assertThat(inputs(record.getSequenceRecord()))
            .isEqualTo(padded.substring(from, from + windowLength));
        assertThat(labels(record.getSequenceRecord()))
            .isEqualTo(padded.substring(from + 1, from + 1 + windowLength));
        assertThat(n).isLessThan((int) reader.windowsPerEpoch());
      }
    } finally {
      delete(files);
    }
  }

  @Test
  void everyPlaceIsDrawn() throws Exception {
    write("a.txt", "abcdef");
    write("b.txt", "uvwxyz");
    TextWindowSequenceRecordReader reader = TextWindowSequenceRecordReader.random(3, 7);
    reader.initialize(new FileSplit(folder.toFile()));
    Map<String, Integer> counts = new HashMap<>();
    for (int i = 0; i < 800; i++) {
      if (!reader.hasNext()) {
        reader.reset();
      }
      counts.merge(labels(reader.sequenceRecord()), 1, Integer::sum);
    }
    assertThat(counts).hasSize(8);
    assertThat(counts.values()).allSatisfy(count -> assertThat(count).isBetween(60, 140));
  }

  @Test
  void randomWindowsDependOnTheSeedAndGoOnAfterReset() throws Exception {
    write("a.txt", "the quick brown fox jumps over the lazy dog");
    List<String> first = epochs(TextWindowSequenceRecordReader.random(8, 1), 2);
    assertThat(epochs(TextWindowSequenceRecordReader.random(8, 1), 2)).isEqualTo(first);
    List<String> other = epochs(TextWindowSequenceRecordReader.random(8, 2), 2);
    assertThat(other).isNotEqualTo(first);
    assertThat(other.subList(0, 9)).isNotEqualTo(first.subList(1, 10));
    assertThat(first.subList(0, 6)).isNotEqualTo(first.subList(6, 12));
  }

  @Test
  void skipEqualsReading() throws Exception {
    write("a.txt", "the quick brown fox jumps over the lazy dog");
    List<String> all = epochs(TextWindowSequenceRecordReader.random(8, 1), 4);
    for (int skipped = 0; skipped < 20; skipped++) {
      TextWindowSequenceRecordReader reader = TextWindowSequenceRecordReader.random(8, 1);
      reader.initialize(new FileSplit(folder.toFile()));
      reader.skip(skipped);
      assertThat(labels(reader.sequenceRecord())).isEqualTo(all.get(skipped));
    }

    TextWindowSequenceRecordReader inOrder = TextWindowSequenceRecordReader.sequential(8);
    inOrder.initialize(new FileSplit(folder.toFile()));
    inOrder.skip(2);
    assertThat(labels(inOrder.sequenceRecord())).isEqualTo("fox jump");
    inOrder.skip(100);
    assertThat(inOrder.hasNext()).isFalse();
  }

  @Test
  void metaDataLeadsBackToTheWindow() throws Exception {
    write("a.txt", "abcdefghij");
    TextWindowSequenceRecordReader reader = TextWindowSequenceRecordReader.sequential(4);
    reader.initialize(new FileSplit(folder.toFile()));
    List<RecordMetaData> places = new ArrayList<>();
    List<SequenceRecord> records = new ArrayList<>();
    while (reader.hasNext()) {
      SequenceRecord record = reader.nextSequence();
      records.add(record);
      places.add(record.getMetaData());
    }
    assertThat(reader.loadSequenceFromMetaData(places)).isEqualTo(records);
    assertThat(places.get(1).getReaderClass()).isEqualTo(TextWindowSequenceRecordReader.class);

    URI file = folder.resolve("a.txt").toUri();
    assertThatThrownBy(() -> reader.loadSequenceFromMetaData(new RecordMetaDataURI(file)))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("RecordMetaDataURI");
    assertThatThrownBy(
            () -> reader.loadSequenceFromMetaData(new RecordMetaDataInterval(0, 5, file)))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("[0, 5)");
    assertThatThrownBy(
            () -> reader.loadSequenceFromMetaData(new RecordMetaDataInterval(8, 12, file)))
        .isInstanceOf(EOFException.class)
        .hasMessageContaining("10 bytes");
  }

  @Test
  void readsWindowsFromAStream() throws Exception {
    TextWindowSequenceRecordReader reader = TextWindowSequenceRecordReader.sequential(3);
    URI uri = URI.create("memory:text");
    try (DataInputStream stream =
        new DataInputStream(new ByteArrayInputStream("abcd\u00ff".getBytes(ISO_8859_1)))) {
      assertThat(inputs(reader.sequenceRecord(uri, stream))).isEqualTo("\0ab");
      assertThat(labels(reader.sequenceRecord(uri, stream))).isEqualTo("d\u00ff");
      assertThatThrownBy(() -> reader.sequenceRecord(uri, stream))
          .isInstanceOf(EOFException.class)
          .hasMessageContaining("memory:text");
    }
  }

  @Test
  void survivesSerialization() throws Exception {
    write("a.txt", "abcdefghij");
    TextWindowSequenceRecordReader reader = TextWindowSequenceRecordReader.random(4, 3);
    reader.initialize(new FileSplit(folder.toFile()));
    reader.sequenceRecord();
    ByteArrayOutputStream bytes = new ByteArrayOutputStream();
    try (ObjectOutputStream out = new ObjectOutputStream(bytes)) {
      out.writeObject(reader);
    }
    try (ObjectInputStream in =
        new ObjectInputStream(new ByteArrayInputStream(bytes.toByteArray()))) {
      TextWindowSequenceRecordReader copy = (TextWindowSequenceRecordReader) in.readObject();
      assertThat(copy.sequenceRecord()).isEqualTo(reader.sequenceRecord());
    }
  }

  @Test
  void listenersHearOfEveryWindow() throws Exception {
    write("a.txt", "abcdef");
    TextWindowSequenceRecordReader reader = TextWindowSequenceRecordReader.sequential(3);
    reader.initialize(new FileSplit(folder.toFile()));
    List<Object> heard = new ArrayList<>();
    reader.setListeners(
        new LogRecordListener() {
          @Override
          public void recordRead(
              org.datavec.api.records.reader.RecordReader source, Object record) {
            heard.add(record);
          }
        });
    assertThat(heard).isEmpty();
    SequenceRecord first = reader.nextSequence();
    assertThat(heard).containsExactly(first);
  }

  @Test
  void badInputIsNamed() throws Exception {
    assertThatThrownBy(() -> TextWindowSequenceRecordReader.sequential(0))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("windowLength must be at least 1, got 0");
    assertThatThrownBy(() -> TextWindowSequenceRecordReader.random(4, 1).hasNext())
        .isInstanceOf(IllegalStateException.class)
        .hasMessageContaining("initialize");
    write("short.txt", "abc");
    InputSplit split = new FileSplit(folder.toFile());
    assertThatThrownBy(() -> TextWindowSequenceRecordReader.random(4, 1).initialize(split))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("no window of 4 bytes in the split's 1 files")
        .hasMessageContaining("3 bytes");
    assertThatThrownBy(
            () ->
                TextWindowSequenceRecordReader.random(4, 1)
                    .initialize(
                        new CollectionInputSplit(List.of(URI.create("http://localhost/a.txt")))))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("http://localhost/a.txt");
    File missing = folder.resolve("missing.txt").toFile();
    assertThatThrownBy(
            () ->
                TextWindowSequenceRecordReader.sequential(4)
                    .initialize(new CollectionInputSplit(List.of(missing.toURI()))))
        .isInstanceOf(NoSuchFileException.class)
        .hasMessageContaining("missing.txt");
    TextWindowSequenceRecordReader reader = TextWindowSequenceRecordReader.sequential(2);
    reader.initialize(split);
    assertThatThrownBy(() -> reader.skip(-1))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("-1");
    assertThatThrownBy(reader::next)
        .isInstanceOf(UnsupportedOperationException.class)
        .hasMessageContaining("nextSequence()");
  }

  private List<String> epochs(TextWindowSequenceRecordReader reader, int epochs)
      throws IOException {
    reader.initialize(new FileSplit(folder.toFile()));
    List<String> windows = new ArrayList<>();
    for (int epoch = 0; epoch < epochs; epoch++) {
      while (reader.hasNext()) {
        windows.add(labels(reader.sequenceRecord()));
      }
      reader.reset();
    }
    return windows;
  }

  private void write(String name, String text) throws IOException {
    Files.writeString(folder.resolve(name), text, US_ASCII);
  }

  private static String inputs(List<List<Writable>> steps) {
    return column(steps, 0);
  }

  private static String labels(List<List<Writable>> steps) {
    return column(steps, 1);
  }

  private static String column(List<List<Writable>> steps, int column) {
    StringBuilder text = new StringBuilder();
    for (List<Writable> step : steps) {
      assertThat(step).hasSize(2);
      text.append((char) step.get(column).toInt());
    }
    return text.toString();
  }

  private static void delete(Path folder) throws IOException {
    try (Stream<Path> paths = Files.walk(folder)) {
      for (Path path : paths.sorted(Comparator.reverseOrder()).toList()) {
        Files.delete(path);
      }
    }
  }
}
