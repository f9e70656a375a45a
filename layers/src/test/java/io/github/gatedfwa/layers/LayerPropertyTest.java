package io.github.gatedfwa.layers;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.Combinators;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.ShrinkingMode;
import org.deeplearning4j.nn.api.Layer;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.multilayer.MultiLayerNetwork;
import org.deeplearning4j.nn.workspace.LayerWorkspaceMgr;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.indexing.NDArrayIndex;

/**
 * Drawn layers on drawn data against {@link DenseReference}: options, sizes, formats, types, masks,
 * memory layouts; whole sequences, chunks and gradients. The number of cases of a run is the
 * configuration parameter jqwik.tries.default; a failure prints its seed.
 */
class LayerPropertyTest {
  /** How the tokens are masked. */
  enum Masking {
    NONE,
    RIGHT,
    LEFT,
    HOLES,
    /** Of one example, nothing is real. */
    WHOLE
  }

  /** How an array lies in memory. */
  enum Layout {
    C,
    F,
    PERMUTED,
    /** A part of a larger array of NaN. */
    INNER_PART,
    EVERY_OTHER;

    INDArray apply(INDArray x) {
      return switch (this) {
        case C -> x.dup('c');
        case F -> x.dup('f');
        case PERMUTED -> x.permute(2, 0, 1).dup('c').permute(1, 2, 0);
        case INNER_PART -> {
          INDArray whole =
              Nd4j.valueArrayOf(
                  new long[] {x.size(0) + 2, x.size(1) + 3, x.size(2) + 4},
                  Double.NaN,
                  x.dataType());
          yield fill(
              whole.get(
                  NDArrayIndex.interval(1, 1 + x.size(0)),
                  NDArrayIndex.interval(2, 2 + x.size(1)),
                  NDArrayIndex.interval(3, 3 + x.size(2))),
              x);
        }
        case EVERY_OTHER -> {
          INDArray whole =
              Nd4j.valueArrayOf(
                  new long[] {x.size(0), x.size(1), 2 * x.size(2)}, Double.NaN, x.dataType());
          yield fill(
              whole.get(
                  NDArrayIndex.all(),
                  NDArrayIndex.all(),
                  NDArrayIndex.interval(0, 2, 2 * x.size(2))),
              x);
        }
      };
    }

    private static INDArray fill(INDArray view, INDArray x) {
      return view.assign(x);
    }
  }

  /** A drawn layer and drawn data. */
  record Problem(
      long seed,
      DataType type,
      RNNFormat format,
      int minibatch,
      int time,
      int nIn,
      GatedFWALayer layer,
      Masking masking,
      Layout layout) {

    INDArray input() {
      return Nets.random(type, seed, minibatch, nIn, time);
    }

    /** [minibatch, time], or null. */
    INDArray mask() {
      if (masking == Masking.NONE) {
        return null;
      }
      Random random = new Random(seed);
      INDArray mask = Nd4j.ones(type, minibatch, time);
      for (int b = 0; b < minibatch; b++) {
        int length = 1 + random.nextInt(time);
        for (int t = 0; t < time; t++) {
          boolean real =
              switch (masking) {
                case NONE -> true;
                case RIGHT -> t < length;
                case LEFT -> t >= time - length;
                case HOLES -> random.nextInt(3) > 0;
                case WHOLE -> b != (int) (seed % minibatch);
              };
          mask.putScalar(b, t, real ? 1 : 0);
        }
      }
      return mask;
    }

    MultiLayerNetwork net() {
      return Nets.shaken(Nets.net(type, nIn, format, layer.clone()));
    }
  }

  @Provide
  Arbitrary<Problem> problems() {
    Arbitrary<int[]> data =
        Combinators.combine(
                Arbitraries.integers().between(1, 3),
                Arbitraries.oneOf(
                    Arbitraries.integers().between(1, 40), Arbitraries.of(63, 64, 65, 113, 129)),
                Arbitraries.integers().between(1, 7),
                Arbitraries.integers().between(1, 7))
            .as((minibatch, time, nIn, nOut) -> new int[] {minibatch, time, nIn, nOut});
    Arbitrary<int[]> heads =
        Combinators.combine(
                Arbitraries.of(1, 2, 3),
                Arbitraries.of(1, 2, 4),
                Arbitraries.of(1, 2, 3, 4, 6, 8, 9, 16, 18),
                Arbitraries.oneOf(
                    Arbitraries.integers().between(1, 20), Arbitraries.of(63, 64, 65, 1000)))
            .as((kvHeads, group, size, window) -> new int[] {kvHeads, group, size, window});
    Arbitrary<List<Boolean>> flags = Arbitraries.of(true, false).list().ofSize(7);
    return Combinators.combine(
            Arbitraries.longs().between(0, 1L << 40),
            Arbitraries.of(DataType.FLOAT, DataType.DOUBLE, DataType.DOUBLE, DataType.FLOAT16),
            Arbitraries.of(RNNFormat.values()),
            data,
            heads,
            flags,
            Arbitraries.of(Masking.values()),
            Arbitraries.of(Layout.values()))
        .as(
            (seed, type, format, d, h, on, masking, layout) ->
                new Problem(
                    seed,
                    type,
                    format,
                    d[0],
                    d[1],
                    d[2],
                    GatedFWALayer.builder()
                        .nOut(d[3])
                        .nKvHeads(h[0])
                        .nHeads(h[0] * h[1])
                        .headSize(h[2])
                        .windowSize(h[3])
                        .gated(on.get(0))
                        .learnableAmplitude(on.get(1))
                        .gateBiasInit((int) (seed % 5) - 2)
                        .ropeBase(on.get(2) && h[2] % 2 == 0 ? 2 + (int) (seed % 10_000) : 0)
                        .qkNorm(on.get(3))
                        .keyShift(on.get(4))
                        .valueShift(on.get(5))
                        .hasBias(on.get(6))
                        .dataFormat(format)
                        .build(),
                    masking,
                    layout));
  }

  /** Relative size of half an ulp. */
  private static double unit(DataType type) {
    return switch (type) {
      case DOUBLE -> 0x1p-53;
      case FLOAT -> 0x1p-24;
      default -> 0x1p-11;
    };
  }

  /** An exact result, and how far it moves when every number is rounded differently. */
  private static final class Expected {
    /** One drawn rounding may cancel in a dot product where the layer's did not. */
    private static final int ROUNDINGS = 4;

    private final double[][][] exact;
    private final double sensitivity;

    private Expected(double[][][] exact, double sensitivity) {
      this.exact = exact;
      this.sensitivity = sensitivity;
    }

    static Expected of(Problem problem, GatedFWALayer conf, Map<String, INDArray> params) {
      DenseReference.Params given = DenseReference.Params.of(params);
      INDArray x = problem.input().castTo(DataType.DOUBLE);
      double[][][] exact = DenseReference.output(conf, t -> given, x, problem.mask());
      // In a HALF network everything between input and output is FLOAT.
      double unit = Math.min(unit(problem.type()), 0x1p-24);
      Random random = new Random(problem.seed());
      double sensitivity = 0;
      for (int draw = 0; draw < ROUNDINGS; draw++) {
        DenseReference.Params moved =
            given.map(p -> p * (1 + (random.nextDouble() * 2 - 1) * unit));
        INDArray movedInput = x.dup();
        for (long i = 0; i < x.length(); i++) {
          movedInput.putScalar(i, x.getDouble(i) * (1 + (random.nextDouble() * 2 - 1) * unit));
        }
        double[][][] other = DenseReference.output(conf, t -> moved, movedInput, problem.mask());
        sensitivity = Math.max(sensitivity, distance(exact, other));
      }
      return new Expected(exact, sensitivity);
    }

    private static double distance(double[][][] a, double[][][] b) {
      double sum = 0;
      for (int i = 0; i < a.length; i++) {
        for (int j = 0; j < a[i].length; j++) {
          for (int k = 0; k < a[i][j].length; k++) {
            sum += (a[i][j][k] - b[i][j][k]) * (a[i][j][k] - b[i][j][k]);
          }
        }
      }
      return Math.sqrt(sum);
    }

    /** The 2-norm of the error is at most a few roundings of the result, or of the input. */
    void assertClose(Problem problem, INDArray output) {
      INDArray ncw = problem.format() == RNNFormat.NWC ? output.permute(0, 2, 1) : output;
      INDArray values = ncw.castTo(DataType.DOUBLE);
      double[][][] came = new double[exact.length][exact[0].length][exact[0][0].length];
      double norm = 0;
      for (int i = 0; i < came.length; i++) {
        for (int j = 0; j < came[i].length; j++) {
          for (int k = 0; k < came[i][j].length; k++) {
            came[i][j][k] = values.getDouble(i, j, k);
            norm += exact[i][j][k] * exact[i][j][k];
          }
        }
      }
      double bound = 8 * unit(problem.type()) * Math.sqrt(norm) + 20 * sensitivity + 1e-300;
      if (problem.type() == DataType.FLOAT16) {
        bound += 0x1p-24 * Math.sqrt((double) values.length()); // results below HALF's normal range
      }
      assertThat(distance(exact, came)).as("%s", problem).isLessThanOrEqualTo(bound);
    }
  }

  private static INDArray output(MultiLayerNetwork net, Problem problem) {
    INDArray x = problem.layout().apply(formatted(problem.input(), problem.format()));
    return net.output(x, false, problem.mask(), null);
  }

  private static INDArray formatted(INDArray ncw, RNNFormat format) {
    return format == RNNFormat.NWC ? ncw.permute(0, 2, 1) : ncw;
  }

  private static GatedFWALayer conf(MultiLayerNetwork net) {
    return (GatedFWALayer) net.getLayer(0).conf().getLayer();
  }

  @Property(shrinking = ShrinkingMode.OFF)
  void wholeSequences(@ForAll("problems") Problem problem) {
    MultiLayerNetwork net = problem.net();
    INDArray output = output(net, problem);
    assertThat(output.dataType()).isEqualTo(problem.type());
    Expected.of(problem, conf(net), net.getLayer(0).paramTable()).assertClose(problem, output);
  }

  @Property(shrinking = ShrinkingMode.OFF)
  void chunks(@ForAll("problems") Problem problem) {
    MultiLayerNetwork net = problem.net();
    INDArray x = problem.input();
    INDArray mask = problem.mask();
    Random random = new Random(problem.seed());
    int largest = 1 + random.nextInt(problem.time());
    List<INDArray> parts = new ArrayList<>();
    for (int at = 0; at < problem.time(); ) {
      int to = Math.min(problem.time(), at + 1 + random.nextInt(largest));
      if (mask != null) {
        net.setLayerMaskArrays(
            mask.get(NDArrayIndex.all(), NDArrayIndex.interval(at, to)).dup(), null);
      }
      INDArray chunk = Nets.steps(x, RNNFormat.NCW, at, to);
      parts.add(net.rnnTimeStep(problem.layout().apply(formatted(chunk, problem.format()))));
      at = to;
    }
    INDArray output =
        Nd4j.concat(problem.format() == RNNFormat.NCW ? 2 : 1, parts.toArray(INDArray[]::new));
    Expected.of(problem, conf(net), net.getLayer(0).paramTable()).assertClose(problem, output);
  }

  /**
   * The derivative of sum(output ∘ weights) along a drawn direction, from the layer's gradients and
   * from differences of the reference.
   */
  @Property(shrinking = ShrinkingMode.OFF)
  void gradients(@ForAll("problems") Problem drawn) {
    Problem problem =
        new Problem(
            drawn.seed(),
            DataType.DOUBLE,
            drawn.format(),
            drawn.minibatch(),
            Math.min(drawn.time(), 40),
            drawn.nIn(),
            drawn.layer(),
            drawn.masking(),
            drawn.layout());
    MultiLayerNetwork net = problem.net();
    net.initGradientsView();
    INDArray x = problem.input();
    INDArray mask = problem.mask();
    GatedFWALayer conf = conf(net);
    INDArray weights =
        Nets.random(
            DataType.DOUBLE,
            problem.seed() + 1,
            problem.minibatch(),
            conf.getNOut(),
            problem.time());
    INDArray dx = Nets.random(DataType.DOUBLE, problem.seed() + 2, x.shape());
    INDArray dParams = Nets.random(DataType.DOUBLE, problem.seed() + 3, net.params().shape());

    Layer layer = net.getLayer(0);
    LayerWorkspaceMgr workspaces = LayerWorkspaceMgr.noWorkspaces();
    layer.setMaskArray(mask);
    layer.setInput(problem.layout().apply(formatted(x, problem.format())), workspaces);
    layer.activate(true, workspaces);
    INDArray epsilon = problem.layout().apply(formatted(weights, problem.format()));
    INDArray toInput = layer.backpropGradient(epsilon, workspaces).getSecond();
    double analytic =
        formatted(toInput, problem.format()).mul(dx).sumNumber().doubleValue()
            + net.getFlattenedGradients()
                .reshape(-1)
                .mul(dParams.reshape(-1))
                .sumNumber()
                .doubleValue();

    double[] numeric = new double[2];
    INDArray params = net.params().dup();
    double size = 0;
    for (int i = 0; i < 2; i++) {
      double step = i == 0 ? 2e-6 : 1e-6;
      double[] sums = new double[2];
      for (int side = 0; side < 2; side++) {
        double signed = side == 0 ? step : -step;
        net.setParams(params.add(dParams.mul(signed)));
        double[][][] y =
            DenseReference.output(conf, net.getLayer(0).paramTable(), x.add(dx.mul(signed)), mask);
        for (int b = 0; b < y.length; b++) {
          for (int o = 0; o < y[b].length; o++) {
            for (int t = 0; t < y[b][o].length; t++) {
              double term = y[b][o][t] * weights.getDouble(b, o, t);
              sums[side] += term;
              size += Math.abs(term);
            }
          }
        }
      }
      numeric[i] = (sums[0] - sums[1]) / (2 * step);
    }
    // Rounding of the sums; what a smaller step changes; and relative.
    double bound =
        1e-15 * size / 1e-6 + 4 * Math.abs(numeric[0] - numeric[1]) + 1e-7 * Math.abs(analytic);
    assertThat(Math.abs(analytic - numeric[1])).as("%s", problem).isLessThanOrEqualTo(bound + 1e-9);
  }
}
