package io.github.gatedfwa.benchmarks;

import io.github.gatedfwa.layers.DecoderBlock;
import io.github.gatedfwa.layers.GatedFWALayer;
import io.github.gatedfwa.nativeops.DeviceUsage;
import io.github.gatedfwa.nativeops.NativeLibrary;
import io.github.gatedfwa.samediff.GatedFwaOps;
import io.github.gatedfwa.samediff.NDGatedFwa;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import org.deeplearning4j.nn.conf.ComputationGraphConfiguration.GraphBuilder;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.conf.inputs.InputType;
import org.deeplearning4j.nn.conf.layers.RnnOutputLayer;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.nd4j.linalg.activations.Activation;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.learning.config.Sgd;
import org.nd4j.linalg.lossfunctions.LossFunctions.LossFunction;

/**
 * One JVM's part of {@link GpuReport}, for the device is chosen once per JVM: checks the ops, times
 * them and a decoder block, and writes the {@link GpuRow}s.
 *
 * <p>H = 8, D = 64, FLOAT; the block has 512 units, a feed-forward layer of 1376, NWC data and a
 * mean squared error on 16 outputs.
 */
final class GpuMeasurement {

  /** What to time: the op, forward and backward, or a block, output and training step. */
  private record Task(boolean block, long window, long length) {

    /** In units of what the time grows with. */
    double work() {
      return block ? length : (double) length * Math.min(window, length);
    }

    @Override
    public String toString() {
      return String.format(
          Locale.ROOT, "%-5s w %4d  N %6d", block ? "block" : "op", window, length);
    }
  }

  /** One run of a step. */
  private record Run(double seconds, DeviceUsage usage, String decision) {}

  private static final int HEAD_SIZE = 64;
  private static final int SIZE = AttentionOperands.HEADS * HEAD_SIZE;
  private static final int OUTPUTS = 16;

  private final String asked = System.getProperty(NativeLibrary.DEVICE_PROPERTY, "auto");
  private final String device = GatedFwaOps.device();
  private final String processor = Reports.processor();
  private final double budget;
  private final List<GpuRow> rows = new ArrayList<>();

  /** Seconds per unit of work in the last task, of the op (false) and of the block (true). */
  private final Map<Boolean, Double> rates = new HashMap<>();

  private GpuMeasurement(double budget) throws IOException {
    this.budget = budget;
  }

  /**
   * Arguments: file for the rows, seconds to measure for, and {@code quick} or {@code full}. What
   * would take longer is left out, but for the first of each kind.
   */
  public static void main(String[] args) throws IOException {
    GpuMeasurement measurement = new GpuMeasurement(Double.parseDouble(args[1]));
    System.out.println(measurement.asked + ": " + measurement.device);
    // Without a GPU the other two would time the CPU once more.
    if (measurement.asked.equals("cpu") || measurement.device.startsWith("cuda")) {
      measurement.run(args[2].equals("quick"));
    }
    Reports.write(Path.of(args[0]), GpuRow.file(measurement.rows));
  }

  private void run(boolean quick) {
    check(300, 300, 8, 64);
    check(1000, 1000, 2, 512);
    check(1, 3000, 2, 2048);
    long deadline = System.nanoTime() + (long) (budget * 1e9);
    for (Task task : quick ? quickTasks() : fullTasks()) {
      Double rate = rates.get(task.block());
      // A run to warm up, two to be timed, and making the operands.
      if (rate != null && System.nanoTime() + (long) (4e9 * rate * task.work()) > deadline) {
        System.out.printf("%-4s %s  left out: no time%n", asked, task);
        continue;
      }
      double seconds = task.block() ? block(task) : op(task);
      rates.put(task.block(), seconds / task.work());
    }
  }

  private static List<Task> quickTasks() {
    return List.of(
        new Task(false, 512, 1024),
        new Task(false, 512, 4096),
        new Task(false, 512, 16384),
        new Task(false, 2048, 65536),
        new Task(true, 512, 4096),
        new Task(true, 512, 16384));
  }

  /** What matters most first, what takes longest last. */
  private static Set<Task> fullTasks() {
    Set<Task> tasks = new LinkedHashSet<>();
    tasks.add(new Task(false, 2048, 65536));
    tasks.add(new Task(false, 512, 16384));
    for (long length = 1024; length <= 65536; length *= 4) {
      tasks.add(new Task(false, 512, length));
      tasks.add(new Task(false, 2048, length));
    }
    tasks.add(new Task(false, 512, 262144));
    tasks.add(new Task(false, 2048, 262144));
    for (long length = 1024; length <= 65536; length *= 4) {
      tasks.add(new Task(true, 512, length));
    }
    tasks.add(new Task(true, 2048, 16384));
    tasks.add(new Task(true, 2048, 65536));
    tasks.add(new Task(true, 512, 262144));
    return tasks;
  }

  /**
   * All results of a FLOAT call against the same function composed of ND4J's own ops in DOUBLE.
   *
   * @throws IllegalStateException if a relative error exceeds 2e-6; 4e-6 for dalpha, whose terms
   *     cancel where few queries add to it
   */
  private static void check(long queries, long keys, long kvHeads, long window) {
    long heads = AttentionOperands.HEADS;
    Nd4j.getRandom().setSeed(3);
    INDArray[] operands = {
      Nd4j.randn(DataType.FLOAT, 1, queries, heads, HEAD_SIZE),
      Nd4j.randn(DataType.FLOAT, 1, keys, kvHeads, HEAD_SIZE),
      Nd4j.randn(DataType.FLOAT, 1, keys, kvHeads, HEAD_SIZE),
      Nd4j.rand(DataType.FLOAT, 1, keys, heads).muli(0.1),
      Nd4j.randn(DataType.FLOAT, 1, queries, heads, HEAD_SIZE)
    };
    List<INDArray> actual = attend(operands, window);
    INDArray[] exactOperands =
        Arrays.stream(operands).map(x -> x.castTo(DataType.DOUBLE)).toArray(INDArray[]::new);
    String before = System.setProperty(GatedFwaOps.NATIVE_PROPERTY, "off");
    List<INDArray> exact = attend(exactOperands, window);
    if (before == null) {
      System.clearProperty(GatedFwaOps.NATIVE_PROPERTY);
    } else {
      System.setProperty(GatedFwaOps.NATIVE_PROPERTY, before);
    }
    String[] names = {"o", "lse", "dq", "dk", "dv", "dalpha"};
    for (int i = 0; i < names.length; i++) {
      INDArray difference = actual.get(i).castTo(DataType.DOUBLE).sub(exact.get(i));
      double error =
          difference.norm2Number().doubleValue() / exact.get(i).norm2Number().doubleValue();
      if (!(error <= (names[i].equals("dalpha") ? 4e-6 : 2e-6))) {
        throw new IllegalStateException(
            String.format(
                "%s of %d queries, %d keys is wrong: relative error %.2g",
                names[i], queries, keys, error));
      }
    }
  }

  private static List<INDArray> attend(INDArray[] x, long window) {
    NDGatedFwa ops = new NDGatedFwa();
    INDArray[] forward = ops.gatedFwa(x[0], x[1], x[2], x[3], null, window, 0);
    List<INDArray> results = new ArrayList<>(Arrays.asList(forward));
    results.addAll(
        Arrays.asList(
            ops.gatedFwaBp(x[0], x[1], x[2], x[3], null, forward[0], forward[1], x[4], window, 0)));
    return results;
  }

  /** Returns the seconds of a run. */
  private double op(Task task) {
    try (AttentionOperands x = new AttentionOperands(task.length(), HEAD_SIZE, task.window())) {
      x.check();
      List<Run> runs = fastest(x::forward, x::backward);
      add(task, "forward", runs.get(0), 0);
      add(task, "backward", runs.get(1), 0);
      return runs.get(0).seconds() + runs.get(1).seconds();
    }
  }

  /** Returns the seconds of both steps. */
  private double block(Task task) {
    ComputationGraph network = network(task);
    Nd4j.getRandom().setSeed(5);
    try (INDArray x = Nd4j.randn(DataType.FLOAT, 1, task.length(), SIZE);
        INDArray labels = Nd4j.randn(DataType.FLOAT, 1, task.length(), OUTPUTS)) {
      INDArray[] inputs = {x};
      INDArray[] targets = {labels};
      double output = network.outputSingle(x).norm2Number().doubleValue();
      network.fit(inputs, targets);
      double gradient = network.getFlattenedGradients().norm2Number().doubleValue();
      Run outputRun = fastest(() -> network.outputSingle(x)).get(0);
      add(task, "output", outputRun, output);
      Run fitRun = fastest(() -> network.fit(inputs, targets)).get(0);
      add(task, "fit", fitRun, gradient);
      return outputRun.seconds() + fitRun.seconds();
    } finally {
      Nd4j.getWorkspaceManager().destroyAllWorkspacesForCurrentThread();
    }
  }

  private static ComputationGraph network(Task task) {
    GraphBuilder graph =
        new NeuralNetConfiguration.Builder()
            .seed(7)
            .dataType(DataType.FLOAT)
            .updater(new Sgd(0.01 / task.length())) // the loss is a sum over tokens
            .graphBuilder()
            .addInputs("x")
            .setInputTypes(InputType.recurrent(SIZE, RNNFormat.NWC));
    String block =
        DecoderBlock.builder()
            .nModel(SIZE)
            .attention(
                GatedFWALayer.builder()
                    .nHeads(AttentionOperands.HEADS)
                    .windowSize((int) task.window())
                    .build())
            .build()
            .addTo(graph, "block", "x");
    graph.addLayer(
        "y",
        new RnnOutputLayer.Builder(LossFunction.MSE)
            .nOut(OUTPUTS)
            .activation(Activation.IDENTITY)
            .build(),
        block);
    ComputationGraph network = new ComputationGraph(graph.setOutputs("y").build());
    network.init();
    return network;
  }

  /** The fastest of two to ten runs of the steps one after the other. */
  private static List<Run> fastest(Runnable... steps) {
    List<Run> best = List.of();
    double least = Double.POSITIVE_INFINITY;
    long start = System.nanoTime();
    for (int i = 0; i < 2 || (i < 10 && System.nanoTime() - start < 800_000_000L); i++) {
      List<Run> runs = Arrays.stream(steps).map(GpuMeasurement::time).toList();
      double seconds = runs.stream().mapToDouble(Run::seconds).sum();
      if (seconds < least) {
        least = seconds;
        best = runs;
      }
    }
    return best;
  }

  private static Run time(Runnable step) {
    DeviceUsage before = GatedFwaOps.deviceUsage();
    long start = System.nanoTime();
    step.run();
    double seconds = (System.nanoTime() - start) * 1e-9;
    return new Run(seconds, GatedFwaOps.deviceUsage().since(before), GatedFwaOps.lastDecision());
  }

  private void add(Task task, String step, Run run, double check) {
    DeviceUsage usage = run.usage();
    rows.add(
        new GpuRow(
            asked,
            device,
            processor,
            Runtime.getRuntime().availableProcessors(),
            step,
            task.window(),
            task.length(),
            1e3 * run.seconds(),
            1e3 * usage.seconds(),
            1e3 * usage.kernelSeconds(),
            1e-6 * usage.uploadedBytes(),
            1e-6 * usage.residentBytes(),
            1e-6 * usage.downloadedBytes(),
            usage.cpuCalls(),
            usage.deviceCalls(),
            check,
            run.decision()));
    System.out.printf(
        Locale.ROOT, "%-4s %s  %-8s %10.3f ms%n", asked, task, step, 1e3 * run.seconds());
  }
}
