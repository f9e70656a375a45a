package io.github.gatedfwa.benchmarks;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.TreeMap;
import org.knowm.xchart.ChartEncoder;
import org.knowm.xchart.XYChart;
import org.knowm.xchart.XYChartBuilder;
import org.openjdk.jmh.results.RunResult;
import org.openjdk.jmh.runner.Runner;
import org.openjdk.jmh.runner.RunnerException;
import org.openjdk.jmh.runner.options.Options;
import org.openjdk.jmh.runner.options.OptionsBuilder;
import org.openjdk.jmh.runner.options.TimeValue;

/**
 * Runs all benchmarks and writes them as a table, cpu.md, and a picture, cpu.png, into the
 * directory given as the only argument. Further arguments limit the lengths: {@code CpuReport out
 * 512 4096}.
 */
public final class CpuReport {

  private record Key(String benchmark, long headSize, long window, long length)
      implements Comparable<Key> {
    @Override
    public int compareTo(Key other) {
      return Comparator.comparing(Key::benchmark)
          .thenComparing(Key::headSize)
          .thenComparing(Key::window)
          .thenComparing(Key::length)
          .compare(this, other);
    }
  }

  private static final long[] LENGTHS = {512, 4096, 16384, 65536};

  /** Beyond, the dense peer needs tens of gigabytes. */
  private static final long[] DENSE_LENGTHS = {512, 4096};

  private final Map<Key, Double> milliseconds = new TreeMap<>();

  private CpuReport() {}

  public static void main(String[] args) throws RunnerException, IOException {
    Path directory = Files.createDirectories(Path.of(args[0]));
    CpuReport report = new CpuReport();
    report.run();
    String table = report.table();
    System.out.println(table);
    Reports.write(directory.resolve("cpu.md"), table.getBytes(StandardCharsets.UTF_8));
    report.plot(directory.resolve("cpu.png"));
  }

  private void run() throws RunnerException {
    for (long headSize : new long[] {64, 128}) {
      for (long length : DENSE_LENGTHS) {
        run("DotProductAttentionBenchmark", headSize, 0, length);
      }
      for (long window : new long[] {128, 512}) {
        for (long length : LENGTHS) {
          // Side by side: a machine that others use too has not the same speed a minute later.
          run("(GatedFwa|Sgemm)Benchmark", headSize, window, length);
        }
      }
    }
  }

  private void run(String benchmark, long headSize, long window, long length)
      throws RunnerException {
    Options options =
        new OptionsBuilder()
            .include("\\." + benchmark + "\\.")
            .param("headSize", Long.toString(headSize))
            .param("window", Long.toString(window))
            .param("length", Long.toString(length))
            .forks(1)
            .warmupIterations(1)
            .warmupTime(TimeValue.milliseconds(500))
            .measurementIterations(4)
            .measurementTime(TimeValue.milliseconds(500))
            .jvmArgsAppend(
                "-Xmx2g",
                "-Dorg.bytedeco.javacpp.maxbytes=12g",
                "-Dorg.bytedeco.javacpp.maxphysicalbytes=16g")
            .build();
    for (RunResult result : new Runner(options).run()) {
      String name = result.getParams().getBenchmark();
      milliseconds.put(
          new Key(
              name.substring(name.lastIndexOf('.', name.lastIndexOf('.') - 1) + 1),
              headSize,
              window,
              length),
          // The fastest iteration: what else the machine does only ever adds time.
          result.getPrimaryResult().getStatistics().getMin());
    }
  }

  private Optional<Double> time(String benchmark, long headSize, long window, long length) {
    return Optional.ofNullable(milliseconds.get(new Key(benchmark, headSize, window, length)));
  }

  private String table() throws IOException {
    StringBuilder table = new StringBuilder();
    table.append(
        String.format(
            Locale.ROOT,
            "%s, %d processors. FLOAT, B = 1, H = %d, gate on. Sgemm is ND4J's, %d³, result in 'f' order, run beside each row.%n%n",
            Reports.processor(),
            Runtime.getRuntime().availableProcessors(),
            AttentionOperands.HEADS,
            SgemmBenchmark.SIZE));
    table.append(
        "| D | w | N | sgemm GFLOP/s | forward ms | executed GFLOP/s | of sgemm | backward ms | forward + backward, of sgemm"
            + " | dense forward / ours | dense backward / ours |\n|---|---|---|---|---|---|---|---|---|---|---|\n");
    for (Key key : milliseconds.keySet()) {
      if (!key.benchmark().equals("GatedFwaBenchmark.forward")) {
        continue;
      }
      double forward = milliseconds.get(key);
      double backward =
          time("GatedFwaBenchmark.backward", key.headSize(), key.window(), key.length())
              .orElseThrow();
      double sgemm =
          2.0
              * Math.pow(SgemmBenchmark.SIZE, 3)
              / time("SgemmBenchmark.sgemm", key.headSize(), key.window(), key.length())
                  .orElseThrow()
              / 1e6;
      double forwardFlops = executedFlops(key, false);
      double bothFlops = forwardFlops + executedFlops(key, true);
      table.append(
          String.format(
              Locale.ROOT,
              "| %d | %d | %d | %.0f | %.2f | %.0f | %.0f %% | %.2f | %.0f %% | %s | %s |%n",
              key.headSize(),
              key.window(),
              key.length(),
              sgemm,
              forward,
              forwardFlops / forward / 1e6,
              100 * forwardFlops / forward / 1e6 / sgemm,
              backward,
              100 * bothFlops / (forward + backward) / 1e6 / sgemm,
              ratio("DotProductAttentionBenchmark.forward", key, forward),
              ratio("DotProductAttentionBenchmark.backward", key, backward)));
    }
    return table.toString();
  }

  private static double executedFlops(Key key, boolean backward) {
    return AttentionOperands.executedFlops(key.length(), key.headSize(), key.window(), backward);
  }

  private String ratio(String peer, Key key, double ours) {
    return time(peer, key.headSize(), 0, key.length())
        .map(dense -> String.format(Locale.ROOT, "%.1f", dense / ours))
        .orElse("–");
  }

  private void plot(Path file) throws IOException {
    XYChart chart =
        new XYChartBuilder()
            .width(1000)
            .height(650)
            .title("Forward, FLOAT, H = 8, D = 64")
            .xAxisTitle("tokens")
            .yAxisTitle("milliseconds")
            .build();
    chart.getStyler().setXAxisLogarithmic(true);
    chart.getStyler().setYAxisLogarithmic(true);
    addSeries(chart, "GatedFWA, window 128", "GatedFwaBenchmark.forward", 128);
    addSeries(chart, "GatedFWA, window 512", "GatedFwaBenchmark.forward", 512);
    addSeries(
        chart, "ND4J dot_product_attention (dense)", "DotProductAttentionBenchmark.forward", 0);
    ByteArrayOutputStream image = new ByteArrayOutputStream();
    ChartEncoder.saveChart(chart, image, "png");
    Reports.write(file, image.toByteArray());
  }

  private void addSeries(XYChart chart, String name, String benchmark, long window) {
    List<Double> x = new ArrayList<>();
    List<Double> y = new ArrayList<>();
    milliseconds.forEach(
        (key, time) -> {
          if (key.benchmark().equals(benchmark) && key.headSize() == 64 && key.window() == window) {
            x.add((double) key.length());
            y.add(time);
          }
        });
    if (!x.isEmpty()) {
      chart.addSeries(name, x, y);
    }
  }
}
