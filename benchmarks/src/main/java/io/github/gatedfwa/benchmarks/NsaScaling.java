package io.github.gatedfwa.benchmarks;

import com.sun.management.OperatingSystemMXBean;
import io.github.gatedfwa.samediff.GatedFwa;
import io.github.gatedfwa.samediff.GatedFwaBp;
import io.github.gatedfwa.samediff.NDNsa;
import io.github.gatedfwa.samediff.NsaCompressedAttention;
import io.github.gatedfwa.samediff.NsaCompressedAttentionBp;
import io.github.gatedfwa.samediff.NsaConfig;
import io.github.gatedfwa.samediff.NsaSelect;
import io.github.gatedfwa.samediff.NsaSelectedAttention;
import io.github.gatedfwa.samediff.NsaSelectedAttentionBp;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

/**
 * How processor time and memory of the three branches of native sparse attention grow with the
 * length: FLOAT, B = 1, H = 8, Hkv = 2, D = 64, the paper's sizes; a fresh process for each length.
 * Processor time, summed over threads, is what a machine that others use too still tells; the least
 * of several samples counts. Results are checked before they are timed. Linux only: it reads /proc.
 */
public final class NsaScaling {

  private static final int HEADS = 8;
  private static final int KV_HEADS = 2;
  private static final int SIZE = 64;
  private static final NsaConfig CONFIG = NsaConfig.PAPER;

  private NsaScaling() {}

  public static void main(String[] args) throws IOException, InterruptedException {
    if (args.length == 1) {
      measure(Integer.parseInt(args[0]));
      return;
    }
    System.out.println(
        "| N | compressed, forward / backward | select | selected | window | memory added, MB:"
            + " compressed | select | selected | window |\n|---|---|---|---|---|---|---|---|---|");
    for (int length = 1024; length <= 65536; length *= 2) {
      ResidentMemory.inFreshProcess(NsaScaling.class, List.of("-Xmx1g"), Integer.toString(length));
    }
  }

  private static void measure(int length) throws IOException {
    check();
    Branches warm = new Branches(300, CONFIG);
    warm.all().forEach(Runnable::run);
    Branches x = new Branches(length, CONFIG);
    double[] memory = new double[4];
    for (int branch = 0; branch < 4; branch++) {
      ResidentMemory.resetPeak();
      double before = ResidentMemory.peakMegabytes();
      x.of(branch).forEach(Runnable::run);
      memory[branch] = ResidentMemory.peakMegabytes() - before;
    }
    List<String> times = new ArrayList<>();
    for (int branch = 0; branch < 4; branch++) {
      List<String> ofBranch = new ArrayList<>();
      for (Runnable op : x.of(branch)) {
        ofBranch.add(String.format(Locale.ROOT, "%.1f", processorMilliseconds(op)));
      }
      times.add(String.join(" / ", ofBranch));
    }
    System.out.printf(
        Locale.ROOT,
        "| %d | %s | %s | %s | %s | %.1f | %.1f | %.1f | %.1f |%n",
        length,
        times.get(0),
        times.get(1),
        times.get(2),
        times.get(3),
        memory[0],
        memory[1],
        memory[2],
        memory[3]);
  }

  /**
   * The system counts in hundredths of a second, so a sample is as many runs as take half of one.
   */
  private static double processorMilliseconds(Runnable op) {
    OperatingSystemMXBean system =
        (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
    double least = Double.POSITIVE_INFINITY;
    int runs = 1;
    for (int sample = 0; sample < 3; ) {
      long start = system.getProcessCpuTime();
      for (int run = 0; run < runs; run++) {
        op.run();
      }
      double time = (system.getProcessCpuTime() - start) / 1e6;
      if (time < 500) {
        runs *= 2;
      } else {
        least = Math.min(least, time / runs);
        sample += time < 4000 ? 1 : 3;
      }
    }
    return least;
  }

  /**
   * All blocks selected, and blocks of one token, are what gated_fwa computes with a window of N.
   */
  private static void check() {
    int length = 500;
    Branches x = new Branches(length, new NsaConfig(32, 16, 64, 8, length));
    x.all().forEach(Runnable::run);
    INDArray[] tokens = new NDNsa().compressedAttention(x.q, x.k, x.v, null, 1, 1, length, 0);
    require("compressed attention", tokens[0], x.window[0]);
    require("selected attention", x.selected[0], x.window[0]);
    for (int i = 2; i < 5; i++) {
      require("gradient of selected attention", x.selected[i], x.window[i]);
    }
  }

  private static void require(String what, INDArray result, INDArray expected) {
    double error = result.distance2(expected) / expected.norm2Number().doubleValue();
    if (!(error < 1e-5)) {
      throw new IllegalStateException(what + " is wrong: relative error " + error);
    }
  }

  /** Operands and results of the branches; results are made once. */
  private static final class Branches {

    final INDArray q;
    final INDArray k;
    final INDArray v;
    final INDArray[] compressed;
    final INDArray[] selected;
    final INDArray[] window;
    private final INDArray dO;
    private final INDArray kCmp;
    private final INDArray vCmp;
    private final INDArray indices;
    private final int length;
    private final NsaConfig config;

    Branches(int length, NsaConfig config) {
      this.length = length;
      this.config = config;
      Nd4j.getRandom().setSeed(1);
      q = Nd4j.randn(DataType.FLOAT, 1, length, HEADS, SIZE);
      k = Nd4j.randn(DataType.FLOAT, 1, length, KV_HEADS, SIZE);
      v = Nd4j.randn(DataType.FLOAT, 1, length, KV_HEADS, SIZE);
      dO = Nd4j.randn(DataType.FLOAT, 1, length, HEADS, SIZE);
      kCmp = new NDNsa().compressMean(k, config.blockLength(), config.stride());
      vCmp = new NDNsa().compressMean(v, config.blockLength(), config.stride());
      indices =
          Nd4j.ones(DataType.INT32, 1, length, KV_HEADS, config.topN()); // resident from the start
      compressed = results(kCmp);
      selected = results(k);
      window = results(k);
    }

    /** o, lse, dq, dk, dv, resident. */
    private INDArray[] results(INDArray keys) {
      INDArray[] results = {
        q.like(), Nd4j.create(DataType.FLOAT, 1, HEADS, length), q.like(), keys.like(), keys.like()
      };
      for (INDArray result : results) {
        result.assign(1);
      }
      return results;
    }

    private static INDArray[] gradients(INDArray[] results) {
      return Arrays.copyOfRange(results, 2, 5);
    }

    List<Runnable> all() {
      List<Runnable> all = new ArrayList<>();
      for (int branch = 0; branch < 4; branch++) {
        all.addAll(of(branch));
      }
      return all;
    }

    /** Forward and backward; the choice has forward only. */
    List<Runnable> of(int branch) {
      long l = config.blockLength();
      long d = config.stride();
      long selection = config.selectionBlock();
      return switch (branch) {
        case 0 ->
            List.of(
                () ->
                    Nd4j.exec(
                        new NsaCompressedAttention(
                            q, kCmp, vCmp, null, l, d, length, 0, compressed[0], compressed[1])),
                () ->
                    Nd4j.exec(
                        new NsaCompressedAttentionBp(
                            q,
                            kCmp,
                            vCmp,
                            null,
                            compressed[0],
                            compressed[1],
                            dO,
                            l,
                            d,
                            length,
                            0,
                            gradients(compressed))));
        case 1 ->
            List.of(
                () ->
                    Nd4j.exec(
                        new NsaSelect(
                            q,
                            kCmp,
                            compressed[1],
                            null,
                            l,
                            d,
                            selection,
                            config.topN(),
                            length,
                            0,
                            indices)));
        case 2 ->
            List.of(
                () ->
                    Nd4j.exec(
                        new NsaSelectedAttention(
                            q, k, v, indices, null, selection, 0, selected[0], selected[1])),
                () ->
                    Nd4j.exec(
                        new NsaSelectedAttentionBp(
                            q,
                            k,
                            v,
                            indices,
                            null,
                            selected[0],
                            selected[1],
                            dO,
                            selection,
                            0,
                            gradients(selected))));
        default ->
            List.of(
                () ->
                    Nd4j.exec(
                        new GatedFwa(
                            q, k, v, null, null, config.window(), 0, window[0], window[1])),
                () ->
                    Nd4j.exec(
                        new GatedFwaBp(
                            q,
                            k,
                            v,
                            null,
                            null,
                            window[0],
                            window[1],
                            dO,
                            config.window(),
                            0,
                            gradients(window))));
      };
    }
  }
}
