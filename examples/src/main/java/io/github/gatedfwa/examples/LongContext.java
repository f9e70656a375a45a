package io.github.gatedfwa.examples;

import io.github.gatedfwa.zoo.io.WholeFile;
import io.github.gatedfwa.zoo.lm.GatedFwaLM;
import io.github.gatedfwa.zoo.lm.GatedFwaLM.Pretrained;
import io.github.gatedfwa.zoo.text.TextWindowSequenceRecordReader;
import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Files;
import java.nio.file.NotDirectoryException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.Callable;
import me.tongfei.progressbar.ProgressBar;
import org.bytedeco.javacpp.Pointer;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.knowm.xchart.ChartEncoder;
import org.knowm.xchart.XYChart;
import org.knowm.xchart.XYChartBuilder;
import org.knowm.xchart.style.markers.SeriesMarkers;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/**
 * How well a pretrained model reads on and on: bits per byte against the position in long files,
 * beside a model that begins anew every {@code --context} bytes, and the memory that it takes.
 *
 * <p>Each text is a stretch of a real file: first the beginnings of all long files, then what
 * follows them.
 */
@Command(
    name = "LongContext",
    mixinStandardHelpOptions = true,
    showDefaultValues = true,
    description = "Measures a pretrained model on long files, against the position in the file.")
public final class LongContext implements Callable<Integer> {
  private static final double LN2 = Math.log(2);
  private static final double KILO = 1e3;
  private static final double MEGA = 1e6;

  @Option(names = "--model", description = "one of ${COMPLETION-CANDIDATES}")
  Pretrained model = Pretrained.SMALL_JAVA;

  @Option(names = "--sources", paramLabel = "FOLDER", description = "Java files, in any depth")
  Path sources = ProjectFolder.file("examples", "target", "sources");

  @Option(
      names = "--longer-than",
      paramLabel = "BYTES",
      description = "takes longer files only; the pretrained models have learnt from none that is")
  int longerThan = 200_000;

  @Option(names = "--length", description = "bytes of a text")
  int length = 65_536;

  @Option(names = "--texts", description = "number of texts")
  int texts = 2;

  @Option(
      names = "--context",
      description = "bytes read at a time, and after which the model beside it begins anew")
  int context = 1024;

  @Option(names = "--plot", paramLabel = "FILE", description = "where the picture goes")
  Path plot = ProjectFolder.file("build", "long-context.png");

  @Spec CommandSpec spec;

  /**
   * Runs the program and ends the process with its exit code.
   *
   * @param arguments see {@code --help}
   */
  public static void main(String[] arguments) {
    System.exit(CommandLines.of(new LongContext()).execute(arguments));
  }

  /** What was found at the positions from the end of the row before up to this one's. */
  private static final class Row {
    private final int end;
    private double bits;
    private double bitsAnew;
    private long bytes;
    private long stateBytes;
    private long residentBytes;

    private Row(int end) {
      this.end = end;
    }

    private double bitsPerByte() {
      return bits / bytes;
    }

    private double bitsPerByteAnew() {
      return bitsAnew / bytes;
    }
  }

  @Override
  public Integer call() throws IOException {
    CommandLines.requireAtLeast(0, "--longer-than", longerThan);
    CommandLines.requirePositive("--length", length);
    CommandLines.requirePositive("--texts", texts);
    CommandLines.requirePositive("--context", context);
    CommandLines.requireFile("--plot", plot);
    PrintWriter out = spec.commandLine().getOut();
    List<byte[]> read = texts(out);
    ComputationGraph network = GatedFwaLM.builder().build().initPretrained(model);
    List<Row> rows = rows();
    try (ProgressBar bar = Progress.bar("Reading", 0, 2 * read.size() * length)) {
      for (byte[] text : read) {
        measure(network, text, rows, bar);
      }
    }
    print(rows, out);
    draw(rows);
    out.printf("%nSaved: %s%n", plot);
    return 0;
  }

  /** Stretches of the long files: the first of each, then the second of each, and so on. */
  private List<byte[]> texts(PrintWriter out) throws IOException {
    if (!Files.isDirectory(sources)) {
      throw new NotDirectoryException(sources + " (--sources)");
    }
    int least = Math.max(length, longerThan + 1);
    List<Path> files = new ArrayList<>();
    for (Path path : FileTree.files(sources)) {
      if (path.toString().endsWith(".java") && Files.size(path) >= least) {
        files.add(path);
      }
    }
    List<byte[]> found = new ArrayList<>();
    for (int stretch = 0; found.size() < texts; stretch++) {
      int before = found.size();
      for (Path file : files) {
        byte[] bytes = Files.readAllBytes(file);
        int from = stretch * length;
        if (from + length <= bytes.length && found.size() < texts) {
          out.printf(Locale.ROOT, "%s, bytes %,d to %,d%n", file, from, from + length);
          found.add(Arrays.copyOfRange(bytes, from, from + length));
        }
      }
      if (found.size() == before) {
        throw new IllegalArgumentException(
            "--sources %s has %d texts of %d bytes in files of %d bytes or more; --texts is %d"
                .formatted(sources, found.size(), length, least, texts));
      }
    }
    return found;
  }

  /** Ends at each doubling of the context, and at the length. */
  private List<Row> rows() {
    List<Row> rows = new ArrayList<>();
    for (long end = context; end < length; end *= 2) {
      rows.add(new Row((int) end));
    }
    rows.add(new Row(length));
    return rows;
  }

  /** Adds what is found with one text: first reading on and on, then beginning anew. */
  private void measure(ComputationGraph network, byte[] text, List<Row> rows, ProgressBar bar) {
    for (boolean anew : new boolean[] {false, true}) {
      network.rnnClearPreviousState();
      int at = 0;
      for (Row row : rows) {
        while (at < row.end) {
          if (anew) {
            network.rnnClearPreviousState();
          }
          int to = Math.min(row.end, at + context);
          double bits = bits(network, text, at, to);
          if (anew) {
            row.bitsAnew += bits;
          } else {
            row.bits += bits;
            row.bytes += to - at;
          }
          bar.stepBy(to - at);
          at = to;
        }
        if (!anew) {
          row.stateBytes = Math.max(row.stateBytes, stateBytes(network));
          row.residentBytes = Math.max(row.residentBytes, Pointer.physicalBytes());
        }
      }
    }
    network.rnnClearPreviousState();
  }

  /**
   * Reads on, and tells the information in the bytes at [from, to): -Σ log2 p.
   *
   * @param network it has read what comes before, up to the byte at from - 2, or nothing
   */
  static double bits(ComputationGraph network, byte[] text, int from, int to) {
    float[] tokens = new float[to - from];
    for (int i = 0; i < tokens.length; i++) {
      int before = from + i - 1;
      tokens[i] =
          before < 0 ? TextWindowSequenceRecordReader.START : Byte.toUnsignedInt(text[before]);
    }
    INDArray input = Nd4j.createFromArray(tokens).reshape(1, 1, tokens.length);
    INDArray probabilities = network.rnnTimeStep(input)[0]; // [1, time, 256]
    double nats = 0;
    for (int i = 0; i < tokens.length; i++) {
      nats -= Math.log(probabilities.getDouble(0, i, Byte.toUnsignedInt(text[from + i])));
    }
    return nats / LN2;
  }

  /** Size of what the network remembers between two steps. */
  private static long stateBytes(ComputationGraph network) {
    return network.rnnGetPreviousStates().values().stream()
        .flatMap(state -> state.values().stream())
        .mapToLong(array -> array.length() * array.dataType().width())
        .sum();
  }

  private void print(List<Row> rows, PrintWriter out) {
    out.printf(
        Locale.ROOT,
        "%nBits per byte of %d texts:%n%n%-18s%12s%24s%12s%15s%n",
        texts,
        "position",
        "reads on",
        "anew every " + context,
        "state, kB",
        "resident, MB");
    int from = 0;
    for (Row row : rows) {
      out.printf(
          Locale.ROOT,
          "%-18s%12.3f%24.3f%12.0f%15.0f%n",
          "%,d - %,d".formatted(from, row.end),
          row.bitsPerByte(),
          row.bitsPerByteAnew(),
          row.stateBytes / KILO,
          row.residentBytes / MEGA);
      from = row.end;
    }
    out.printf(
        Locale.ROOT,
        "%-18s%12.3f%24.3f%n",
        "all",
        rows.stream().mapToDouble(row -> row.bits).sum() / length / texts,
        rows.stream().mapToDouble(row -> row.bitsAnew).sum() / length / texts);
  }

  private void draw(List<Row> rows) throws IOException {
    XYChart chart =
        new XYChartBuilder()
            .width(900)
            .height(540)
            .title(model + " on long files")
            .xAxisTitle("position in the text, up to")
            .yAxisTitle("bits per byte")
            .build();
    chart.getStyler().setYAxisMin(0.0).setXAxisLogarithmic(true).setLegendVisible(true);
    List<Integer> ends = rows.stream().map(row -> row.end).toList();
    chart
        .addSeries("reads on", ends, rows.stream().map(Row::bitsPerByte).toList())
        .setMarker(SeriesMarkers.CIRCLE);
    chart
        .addSeries("anew every " + context, ends, rows.stream().map(Row::bitsPerByteAnew).toList())
        .setMarker(SeriesMarkers.DIAMOND);
    WholeFile.write(plot, stream -> ChartEncoder.saveChart(chart, stream, "png"));
  }
}
