package io.github.gatedfwa.benchmarks;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Locale;
import java.util.stream.Stream;

/**
 * A line of gpu.csv: the fastest run of a step in one JVM. Step forward and backward are the op's,
 * output and fit a decoder block's. Text has neither quotes nor line ends.
 *
 * @param asked the system property gatedfwa.device
 * @param device what the ops could run on
 * @param processor model of the CPU
 * @param processors that the JVM may use
 * @param window tokens
 * @param length tokens
 * @param milliseconds of the step
 * @param attentionMilliseconds of them, in calls on the GPU, copies included
 * @param kernelMilliseconds of those, kernels ran
 * @param uploadedMegabytes copied to the GPU
 * @param residentMegabytes found there unchanged
 * @param downloadedMegabytes copied from it
 * @param cpuCalls attention calls that ran on the CPU
 * @param gpuCalls calls that ran on the GPU
 * @param check a number that has to be the same on every device, but for rounding; 0 if there is
 *     none
 * @param decision on the step's last attention call; empty where there is only the CPU
 */
record GpuRow(
    String asked,
    String device,
    String processor,
    int processors,
    String step,
    long window,
    long length,
    double milliseconds,
    double attentionMilliseconds,
    double kernelMilliseconds,
    double uploadedMegabytes,
    double residentMegabytes,
    double downloadedMegabytes,
    long cpuCalls,
    long gpuCalls,
    double check,
    String decision) {

  static final String HEADER =
      "asked,device,processor,processors,step,window,length,milliseconds,attention_milliseconds,"
          + "kernel_milliseconds,uploaded_megabytes,resident_megabytes,downloaded_megabytes,"
          + "cpu_calls,gpu_calls,check,decision";

  String toCsv() {
    return String.format(
        Locale.ROOT,
        "\"%s\",\"%s\",\"%s\",%d,\"%s\",%d,%d,%.4f,%.4f,%.4f,%.3f,%.3f,%.3f,%d,%d,%s,\"%s\"",
        asked,
        device,
        processor,
        processors,
        step,
        window,
        length,
        milliseconds,
        attentionMilliseconds,
        kernelMilliseconds,
        uploadedMegabytes,
        residentMegabytes,
        downloadedMegabytes,
        cpuCalls,
        gpuCalls,
        check,
        decision);
  }

  /**
   * @throws IllegalArgumentException if the line is not one of {@link #toCsv()}
   */
  static GpuRow parse(String line) {
    // At commas with an even number of quotes after them.
    String[] field = line.split(",(?=(?:[^\"]*\"[^\"]*\")*[^\"]*$)", -1);
    if (field.length != 17) {
      throw new IllegalArgumentException("not a line of " + HEADER + ": " + line);
    }
    return new GpuRow(
        text(field[0]),
        text(field[1]),
        text(field[2]),
        Integer.parseInt(field[3]),
        text(field[4]),
        Long.parseLong(field[5]),
        Long.parseLong(field[6]),
        Double.parseDouble(field[7]),
        Double.parseDouble(field[8]),
        Double.parseDouble(field[9]),
        Double.parseDouble(field[10]),
        Double.parseDouble(field[11]),
        Double.parseDouble(field[12]),
        Long.parseLong(field[13]),
        Long.parseLong(field[14]),
        Double.parseDouble(field[15]),
        text(field[16]));
  }

  private static String text(String quoted) {
    return quoted.substring(1, quoted.length() - 1);
  }

  static byte[] file(List<GpuRow> rows) {
    StringBuilder file = new StringBuilder(HEADER).append('\n');
    rows.forEach(row -> file.append(row.toCsv()).append('\n'));
    return file.toString().getBytes(StandardCharsets.UTF_8);
  }

  static List<GpuRow> read(Path file) throws IOException {
    try (Stream<String> lines = Files.lines(file)) {
      return lines.skip(1).map(GpuRow::parse).toList();
    }
  }

  boolean isOnGpu() {
    return gpuCalls > 0;
  }
}
