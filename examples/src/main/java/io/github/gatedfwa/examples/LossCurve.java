package io.github.gatedfwa.examples;

import static java.nio.charset.StandardCharsets.UTF_8;

import io.github.gatedfwa.zoo.io.WholeFile;
import java.awt.Color;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import org.knowm.xchart.ChartEncoder;
import org.knowm.xchart.XYChart;
import org.knowm.xchart.XYChartBuilder;
import org.knowm.xchart.XYSeries;
import org.knowm.xchart.style.markers.SeriesMarkers;

/** The training loss of every step in bits per byte, kept as CSV beside the model and drawn. */
final class LossCurve {
  private static final String HEADER = "step,bits per byte";

  private final List<Double> losses = new ArrayList<>();
  private double smoothed = Double.NaN;

  /** Half of what {@link #smoothed()} tells is from the last 14 steps. */
  private static final double KEEP = 0.95;

  void add(double loss) {
    losses.add(loss);
    smoothed = Double.isNaN(smoothed) ? loss : KEEP * smoothed + (1 - KEEP) * loss;
  }

  int steps() {
    return losses.size();
  }

  /** A running average of the loss; NaN before the first step. */
  double smoothed() {
    return smoothed;
  }

  /**
   * The curve of a model that stands at a step.
   *
   * @throws IOException if the file is missing, is not one of ours or ends before that step
   */
  static LossCurve load(Path csv, int steps) throws IOException {
    LossCurve curve = new LossCurve();
    List<String> lines = Files.readAllLines(csv, UTF_8);
    if (lines.size() <= steps || !lines.get(0).equals(HEADER)) {
      throw new IOException(
          csv + " is not the loss curve of a model at step " + steps + "; was it moved or edited?");
    }
    for (int step = 1; step <= steps; step++) {
      String line = lines.get(step);
      try {
        curve.add(Double.parseDouble(line.substring(line.indexOf(',') + 1)));
      } catch (NumberFormatException e) {
        throw new IOException(csv + ", line " + (step + 1) + ": no loss in '" + line + "'", e);
      }
    }
    return curve;
  }

  void save(Path csv) throws IOException {
    StringBuilder text = new StringBuilder(HEADER).append('\n');
    for (int step = 0; step < losses.size(); step++) {
      text.append(step + 1).append(',').append(losses.get(step)).append('\n');
    }
    WholeFile.write(csv, stream -> stream.write(text.toString().getBytes(UTF_8)));
  }

  /**
   * Draws the curve as PNG.
   *
   * @param references names and bits per byte of horizontal lines
   */
  void draw(Path png, Map<String, Double> references) throws IOException {
    XYChart chart =
        new XYChartBuilder()
            .width(900)
            .height(540)
            .title("Training loss")
            .xAxisTitle("step")
            .yAxisTitle("bits per byte")
            .build();
    chart.getStyler().setYAxisMin(0.0).setLegendVisible(true);
    List<Integer> steps = new ArrayList<>();
    List<Double> smooth = new ArrayList<>();
    LossCurve running = new LossCurve();
    for (double loss : losses) {
      running.add(loss);
      steps.add(running.steps());
      smooth.add(running.smoothed());
    }
    line(chart, "batch", steps, losses, new Color(190, 205, 225), 1);
    line(chart, "running average", steps, smooth, new Color(30, 80, 160), 2);
    Color[] colors = {
      new Color(200, 60, 40),
      new Color(90, 90, 90),
      new Color(150, 150, 150),
      new Color(60, 140, 60)
    };
    List<Integer> ends = List.of(1, Math.max(2, losses.size()));
    int next = 0;
    for (Map.Entry<String, Double> reference : references.entrySet()) {
      List<Double> level = Collections.nCopies(2, reference.getValue());
      line(chart, reference.getKey(), ends, level, colors[next++ % colors.length], 1.5f);
    }
    WholeFile.write(png, stream -> ChartEncoder.saveChart(chart, stream, "png"));
  }

  private static void line(
      XYChart chart, String name, List<Integer> x, List<Double> y, Color color, float width) {
    XYSeries series = chart.addSeries(name, x, y);
    series.setMarker(SeriesMarkers.NONE);
    series.setLineColor(color);
    series.setLineWidth(width);
  }
}
