package io.github.gatedfwa.examples;

import io.github.gatedfwa.zoo.io.WholeFile;
import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.knowm.xchart.ChartEncoder;
import org.knowm.xchart.XYChart;
import org.knowm.xchart.XYChartBuilder;

/** Accuracies of several models against a length or distance, as PNG. */
final class AccuracyChart {
  private AccuracyChart() {}

  /**
   * @param accuracies of each model, by name, one for each x
   */
  static void draw(
      Path png, String title, String xTitle, List<Integer> x, Map<String, List<Double>> accuracies)
      throws IOException {
    XYChart chart =
        new XYChartBuilder()
            .width(900)
            .height(540)
            .title(title)
            .xAxisTitle(xTitle)
            .yAxisTitle("accuracy")
            .build();
    chart.getStyler().setYAxisMin(0.0).setYAxisMax(1.0).setLegendVisible(true);
    accuracies.forEach((name, y) -> chart.addSeries(name, x, y));
    WholeFile.write(png, stream -> ChartEncoder.saveChart(chart, stream, "png"));
  }
}
