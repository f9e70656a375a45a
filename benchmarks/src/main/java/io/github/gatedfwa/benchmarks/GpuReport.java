package io.github.gatedfwa.benchmarks;

import io.github.gatedfwa.nativeops.NativeLibrary;
import io.github.gatedfwa.samediff.GatedFwaOps;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Optional;
import java.util.SortedSet;
import java.util.TreeSet;

/**
 * The ops and a decoder block under nd4j-native on the CPU, on a GPU with all copies, and where the
 * cost model puts them: {@code GpuReport [--quick] DIRECTORY} starts a JVM for each, merges what
 * they measured and writes gpu.csv, gpu.md and, with a Java that has graphics, gpu.png.
 */
public final class GpuReport {

  private static final List<String> DEVICES = List.of("cpu", "cuda", "auto");

  /** For how long the JVM of each device measures. */
  private static final List<Integer> QUICK_SECONDS = List.of(15, 12, 8);

  private static final List<Integer> FULL_SECONDS = List.of(85, 70, 45);

  /** A chosen device is a wrong choice if the other is faster by more than this. */
  private static final double TOLERANCE = 1.1;

  record Shape(long window, long length) implements Comparable<Shape> {
    @Override
    public int compareTo(Shape other) {
      int byWindow = Long.compare(window, other.window);
      return byWindow != 0 ? byWindow : Long.compare(length, other.length);
    }
  }

  private final List<GpuRow> rows;

  /** From what the JVMs measured. */
  GpuReport(List<GpuRow> rows) {
    this.rows = rows;
  }

  public static void main(String[] args) throws IOException, InterruptedException {
    boolean quick = args.length == 2 && args[0].equals("--quick");
    if (!quick && (args.length != 1 || args[0].startsWith("-"))) {
      System.err.println("usage: GpuReport [--quick] DIRECTORY");
      System.exit(2);
    }
    Path directory = Files.createDirectories(Path.of(args[args.length - 1]));
    GpuReport report = new GpuReport(measure(quick));
    Reports.write(directory.resolve("gpu.csv"), GpuRow.file(report.rows));
    String table = report.table();
    System.out.println();
    System.out.println(table);
    Reports.write(directory.resolve("gpu.md"), table.getBytes(StandardCharsets.UTF_8));
    if (ModuleLayer.boot().findModule("java.desktop").isPresent()) {
      GpuPlot.draw(report, directory.resolve("gpu.png"));
    } else {
      System.out.println(
          "This Java has no graphics; elsewhere, GpuPlot draws gpu.png from gpu.csv.");
    }
    report.compareChecks();
  }

  private static List<GpuRow> measure(boolean quick) throws IOException, InterruptedException {
    List<GpuRow> rows = new ArrayList<>();
    for (int i = 0; i < DEVICES.size(); i++) {
      Path file = Files.createTempFile("gpu", ".csv");
      try {
        int status =
            new ProcessBuilder(
                    Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                    "-Xmx4g",
                    "-Dorg.bytedeco.javacpp.maxbytes=40g",
                    "-Dorg.bytedeco.javacpp.maxphysicalbytes=64g",
                    "-D" + NativeLibrary.DEVICE_PROPERTY + "=" + DEVICES.get(i),
                    "-D" + GatedFwaOps.NATIVE_PROPERTY + "=required",
                    "-classpath",
                    System.getProperty("java.class.path"),
                    GpuMeasurement.class.getName(),
                    file.toString(),
                    (quick ? QUICK_SECONDS : FULL_SECONDS).get(i).toString(),
                    quick ? "quick" : "full")
                .inheritIO()
                .start()
                .waitFor();
        if (status != 0) {
          throw new IllegalStateException("the JVM for " + DEVICES.get(i) + " failed: " + status);
        }
        rows.addAll(GpuRow.read(file));
      } finally {
        Files.deleteIfExists(file);
      }
    }
    return rows;
  }

  Optional<GpuRow> row(String asked, String step, Shape shape) {
    return rows.stream()
        .filter(
            row ->
                row.asked().equals(asked)
                    && row.step().equals(step)
                    && row.window() == shape.window()
                    && row.length() == shape.length())
        .findFirst();
  }

  SortedSet<Shape> shapes(String step) {
    SortedSet<Shape> shapes = new TreeSet<>();
    for (GpuRow row : rows) {
      if (row.step().equals(step)) {
        shapes.add(new Shape(row.window(), row.length()));
      }
    }
    return shapes;
  }

  /**
   * @throws IllegalStateException if the devices did not compute the same
   */
  void compareChecks() {
    for (String step : List.of("output", "fit")) {
      for (Shape shape : shapes(step)) {
        Optional<GpuRow> cpu = row("cpu", step, shape);
        for (String asked : List.of("cuda", "auto")) {
          Optional<GpuRow> other = row(asked, step, shape);
          if (cpu.isPresent() && other.isPresent()) {
            double ratio = other.get().check() / cpu.get().check();
            if (!(Math.abs(ratio - 1) <= 1e-4)) {
              throw new IllegalStateException(
                  String.format(
                      "%s of the block, w %d, N %d: norm %s with %s, %s on the CPU",
                      step,
                      shape.window(),
                      shape.length(),
                      other.get().check(),
                      asked,
                      cpu.get().check()));
            }
          }
        }
      }
    }
  }

  /** The times, as Markdown. */
  String table() {
    StringBuilder table = new StringBuilder();
    GpuRow any = rows.get(0);
    String gpu =
        rows.stream()
            .filter(row -> row.asked().equals("cuda"))
            .map(GpuRow::device)
            .findFirst()
            .orElse("no GPU");
    table.append(
        String.format(
            Locale.ROOT,
            "%s, %d processors; %s. FLOAT, B 1, H %d, D 64, gate on; the fastest of 2 to 10 runs; GPU times with all"
                + " copies.%n%n",
            any.processor(),
            any.processors(),
            gpu,
            AttentionOperands.HEADS));
    table.append(
        "| w | N | op, forward + backward: CPU ms | GPU ms | CPU / GPU | GPU: forward + backward | of it copies"
            + " | MB up, resident, down | auto ms | auto ran on | auto / best |\n"
            + "|---|---|---|---|---|---|---|---|---|---|---|\n");
    for (Shape shape : shapes("forward")) {
      table.append(opLine(shape));
    }
    table.append(decisions());
    table.append(
        "\n| w | N | decoder block, output: CPU ms | GPU ms | CPU / GPU | fit: CPU ms | GPU ms | CPU / GPU"
            + " | fit on GPU: in attention calls | of them copies | auto fit ms | auto / best |\n"
            + "|---|---|---|---|---|---|---|---|---|---|---|---|\n");
    for (Shape shape : shapes("fit")) {
      table.append(blockLine(shape));
    }
    return table.toString();
  }

  private String opLine(Shape shape) {
    Optional<Double> cpu = sum("cpu", shape);
    Optional<Double> cuda = sum("cuda", shape);
    Optional<Double> auto = sum("auto", shape);
    Optional<GpuRow> forward = row("cuda", "forward", shape);
    Optional<GpuRow> backward = row("cuda", "backward", shape);
    return String.format(
        "| %d | %d | %s | %s | %s | %s + %s | %s | %s | %s | %s | %s |%n",
        shape.window(),
        shape.length(),
        number(cpu),
        number(cuda),
        ratio(cpu, cuda),
        number(forward.map(GpuRow::milliseconds)),
        number(backward.map(GpuRow::milliseconds)),
        copies(forward, backward),
        forward.isPresent() && backward.isPresent()
            ? String.format(
                Locale.ROOT,
                "%.0f, %.0f, %.0f",
                forward.get().uploadedMegabytes() + backward.get().uploadedMegabytes(),
                forward.get().residentMegabytes() + backward.get().residentMegabytes(),
                forward.get().downloadedMegabytes() + backward.get().downloadedMegabytes())
            : "–",
        number(auto),
        row("auto", "forward", shape).map(GpuReport::place).orElse("–")
            + ", "
            + row("auto", "backward", shape).map(GpuReport::place).orElse("–"),
        ratio(auto, best(cpu, cuda)));
  }

  private String blockLine(Shape shape) {
    Optional<Double> cpuOutput = row("cpu", "output", shape).map(GpuRow::milliseconds);
    Optional<Double> cudaOutput = row("cuda", "output", shape).map(GpuRow::milliseconds);
    Optional<Double> cpuFit = row("cpu", "fit", shape).map(GpuRow::milliseconds);
    Optional<GpuRow> cuda = row("cuda", "fit", shape);
    Optional<Double> cudaFit = cuda.map(GpuRow::milliseconds);
    Optional<Double> autoFit = row("auto", "fit", shape).map(GpuRow::milliseconds);
    return String.format(
        "| %d | %d | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |%n",
        shape.window(),
        shape.length(),
        number(cpuOutput),
        number(cudaOutput),
        ratio(cpuOutput, cudaOutput),
        number(cpuFit),
        number(cudaFit),
        ratio(cpuFit, cudaFit),
        cuda.map(row -> percent(row.attentionMilliseconds() / row.milliseconds())).orElse("–"),
        copies(cuda),
        number(autoFit),
        ratio(autoFit, best(cpuFit, cudaFit)));
  }

  /** How the cost model decided, against what was measured. */
  private String decisions() {
    int right = 0;
    List<String> wrong = new ArrayList<>();
    for (String step : List.of("forward", "backward")) {
      for (Shape shape : shapes(step)) {
        Optional<GpuRow> auto = row("auto", step, shape);
        Optional<GpuRow> cpu = row("cpu", step, shape);
        Optional<GpuRow> cuda = row("cuda", step, shape);
        if (auto.isEmpty() || cpu.isEmpty() || cuda.isEmpty()) {
          continue;
        }
        double cpuTime = cpu.get().milliseconds();
        double gpuTime = cuda.get().milliseconds();
        boolean onGpu = auto.get().isOnGpu();
        if ((onGpu ? gpuTime / cpuTime : cpuTime / gpuTime) <= TOLERANCE) {
          right++;
        } else {
          wrong.add(
              String.format(
                  Locale.ROOT,
                  "- %s; measured %.3f ms on the device, %.3f ms on the CPU%n",
                  auto.get().decision(),
                  gpuTime,
                  cpuTime));
        }
      }
    }
    if (right + wrong.size() == 0) {
      return "";
    }
    return String.format(
            "%nOf the cost model's %d decisions %d were right, the other device being at most %.0f %% faster.%s%n",
            right + wrong.size(),
            right,
            100 * (TOLERANCE - 1),
            wrong.isEmpty() ? "" : " The others:\n")
        + String.join("", wrong);
  }

  private static String place(GpuRow row) {
    return row.isOnGpu() ? "GPU" : "CPU";
  }

  /** Of the op, forward and backward. */
  Optional<Double> sum(String asked, Shape shape) {
    return row(asked, "forward", shape)
        .flatMap(
            forward ->
                row(asked, "backward", shape)
                    .map(backward -> forward.milliseconds() + backward.milliseconds()));
  }

  private static Optional<Double> best(Optional<Double> a, Optional<Double> b) {
    return a.flatMap(x -> b.map(y -> Math.min(x, y)));
  }

  private static String number(Optional<Double> milliseconds) {
    return milliseconds
        .map(x -> String.format(Locale.ROOT, x < 10 ? "%.2f" : "%.1f", x))
        .orElse("–");
  }

  private static String ratio(Optional<Double> a, Optional<Double> b) {
    return a.flatMap(x -> b.map(y -> String.format(Locale.ROOT, "%.2f", x / y))).orElse("–");
  }

  private static String percent(double share) {
    return String.format(Locale.ROOT, "%.0f %%", 100 * share);
  }

  /** The share of the calls' time on the GPU in which no kernel ran. */
  @SafeVarargs
  private static String copies(Optional<GpuRow>... parts) {
    double all = 0;
    double kernels = 0;
    for (Optional<GpuRow> part : parts) {
      all += part.map(GpuRow::attentionMilliseconds).orElse(0.0);
      kernels += part.map(GpuRow::kernelMilliseconds).orElse(0.0);
    }
    return all > 0 ? percent(1 - kernels / all) : "–";
  }
}
