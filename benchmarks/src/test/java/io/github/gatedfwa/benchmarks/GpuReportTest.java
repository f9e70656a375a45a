package io.github.gatedfwa.benchmarks;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatCode;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class GpuReportTest {

  private static GpuRow row(
      String asked, String step, long length, double milliseconds, boolean onGpu, double check) {
    return new GpuRow(
        asked,
        asked.equals("cpu") ? "cpu" : "cuda:0 Some GPU (sm_90)",
        "Some CPU",
        16,
        step,
        512,
        length,
        milliseconds,
        onGpu ? milliseconds / 2 : 0,
        onGpu ? milliseconds / 8 : 0,
        10,
        20,
        30,
        onGpu ? 0 : 1,
        onGpu ? 1 : 0,
        check,
        asked.equals("auto") ? step + " N " + length + ": expected, as ever" : "");
  }

  private static List<GpuRow> op(String asked, long length, double milliseconds, boolean onGpu) {
    return List.of(
        row(asked, "forward", length, milliseconds, onGpu, 0),
        row(asked, "backward", length, 3 * milliseconds, onGpu, 0));
  }

  private static GpuReport report(List<List<GpuRow>> rows) {
    return new GpuReport(rows.stream().flatMap(List::stream).toList());
  }

  @Test
  void rowsSurviveTheFile(@TempDir Path directory) throws IOException {
    List<GpuRow> rows = op("auto", 4096, 4, true);
    Path file = directory.resolve("gpu.csv");
    Files.write(file, GpuRow.file(rows));
    assertThat(GpuRow.read(file)).isEqualTo(rows);
    assertThatThrownBy(() -> GpuRow.parse("a,b"))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("a,b");
  }

  @Test
  void tableComparesDevices() {
    String table =
        report(
                List.of(
                    op("cpu", 1024, 1, false),
                    op("cuda", 1024, 4, true),
                    op("auto", 1024, 1, false),
                    op("cpu", 65536, 100, false),
                    op("cuda", 65536, 10, true),
                    op("auto", 65536, 100, false),
                    List.of(
                        row("cpu", "fit", 4096, 300, false, 1),
                        row("cuda", "fit", 4096, 100, true, 1))))
            .table();
    assertThat(table)
        .contains("Some CPU, 16 processors; cuda:0 Some GPU (sm_90).")
        .contains(
            "| 512 | 1024 | 4.00 | 16.0 | 0.25 | 4.00 + 12.0 | 75 % | 20, 40, 60 | 4.00 | CPU, CPU | 1.00 |")
        .contains("| 512 | 65536 | 400.0 | 40.0 | 10.00 | 10.0 + 30.0 | 75 % |")
        .contains("| CPU, CPU | 10.00 |")
        .contains("Of the cost model's 4 decisions 2 were right")
        .contains(
            "- forward N 65536: expected, as ever; measured 10.000 ms on the device, 100.000 ms on the CPU")
        .contains("| 512 | 4096 | – | – | – | 300.0 | 100.0 | 3.00 | 50 % | 75 % | – | – |");
  }

  @Test
  void tableOfAMachineWithoutAGpu() {
    assertThat(report(List.of(op("cpu", 1024, 1, false))).table())
        .contains("16 processors; no GPU.")
        .contains("| 512 | 1024 | 4.00 | – | – | – + – | – | – | – | –, – | – |")
        .doesNotContain("decisions");
  }

  @Test
  void differentResultsAreAnError() {
    GpuRow cpu = row("cpu", "fit", 4096, 1, false, 12.5);
    assertThatCode(
            () ->
                report(List.of(List.of(cpu, row("cuda", "fit", 4096, 1, true, 12.50001))))
                    .compareChecks())
        .doesNotThrowAnyException();
    for (double other : new double[] {12.6, Double.NaN}) {
      assertThatThrownBy(
              () ->
                  report(List.of(List.of(cpu, row("auto", "fit", 4096, 1, true, other))))
                      .compareChecks())
          .isInstanceOf(IllegalStateException.class)
          .hasMessageContaining("fit of the block, w 512, N 4096")
          .hasMessageContaining("with auto");
    }
  }
}
