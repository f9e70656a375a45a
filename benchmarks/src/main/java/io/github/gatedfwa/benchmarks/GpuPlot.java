package io.github.gatedfwa.benchmarks;

import io.github.gatedfwa.benchmarks.GpuReport.Shape;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.function.Function;
import org.knowm.xchart.ChartEncoder;
import org.knowm.xchart.XYChart;
import org.knowm.xchart.XYChartBuilder;

/** Time against length: {@code GpuPlot DIRECTORY} draws gpu.png from the gpu.csv there. */
public final class GpuPlot {

  private GpuPlot() {}

  public static void main(String[] args) throws IOException {
    Path directory = Path.of(args[0]);
    draw(new GpuReport(GpuRow.read(directory.resolve("gpu.csv"))), directory.resolve("gpu.png"));
  }

  static void draw(GpuReport report, Path file) throws IOException {
    XYChart chart =
        new XYChartBuilder()
            .width(1000)
            .height(700)
            .title("nd4j-native, FLOAT, H = 8, D = 64: CPU kernels, and GPU with all copies")
            .xAxisTitle("tokens")
            .yAxisTitle("milliseconds")
            .build();
    chart.getStyler().setXAxisLogarithmic(true);
    chart.getStyler().setYAxisLogarithmic(true);
    for (String asked : List.of("cpu", "cuda")) {
      String device = asked.equals("cpu") ? "CPU" : "GPU";
      for (long window : new long[] {512, 2048}) {
        add(
            chart,
            "op, forward + backward, w " + window + ", " + device,
            of(report, "forward", window),
            shape -> report.sum(asked, shape));
      }
      add(
          chart,
          "decoder block, fit, w 512, " + device,
          of(report, "fit", 512),
          shape -> report.row(asked, "fit", shape).map(GpuRow::milliseconds));
    }
    ByteArrayOutputStream image = new ByteArrayOutputStream();
    ChartEncoder.saveChart(chart, image, "png");
    Reports.write(file, image.toByteArray());
  }

  private static List<Shape> of(GpuReport report, String step, long window) {
    return report.shapes(step).stream().filter(shape -> shape.window() == window).toList();
  }

  private static void add(
      XYChart chart,
      String name,
      List<Shape> shapes,
      Function<Shape, Optional<Double>> milliseconds) {
    List<Double> x = new ArrayList<>();
    List<Double> y = new ArrayList<>();
    for (Shape shape : shapes) {
      Optional<Double> time = milliseconds.apply(shape);
      if (time.isPresent()) {
        x.add((double) shape.length());
        y.add(time.get());
      }
    }
    if (!x.isEmpty()) {
      chart.addSeries(name, x, y);
    }
  }
}
