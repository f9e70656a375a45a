package io.github.gatedfwa.layers.params;

import io.github.gatedfwa.layers.AttentionLayer;
import io.github.gatedfwa.layers.WindowedAttentionLayer;
import java.util.LinkedHashMap;
import java.util.Map;
import org.deeplearning4j.nn.conf.distribution.NormalDistribution;
import org.deeplearning4j.nn.conf.layers.Layer;
import org.deeplearning4j.nn.weights.IWeightInit;
import org.deeplearning4j.nn.weights.WeightInitDistribution;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * Parameters of an {@link AttentionLayer}. Everything that multiplies the input stands side by side
 * at the start, so that one matrix product makes all projections; then come Wo, the weights of
 * compression if there are any, and the biases.
 *
 * @param <C> the layer's configuration
 */
public abstract class AttentionParamInitializer<C extends AttentionLayer>
    extends LayoutParamInitializer<C> {
  public static final String QUERY_WEIGHT = "Wq";
  public static final String KEY_WEIGHT = "Wk";
  public static final String VALUE_WEIGHT = "Wv";
  public static final String GATE_WEIGHT = "Wg";
  public static final String AMPLITUDE_WEIGHT = "Wbeta";
  public static final String KEY_SHIFT_WEIGHT = "WshiftK";
  public static final String VALUE_SHIFT_WEIGHT = "WshiftV";
  public static final String OUTPUT_WEIGHT = "Wo";
  public static final String QUERY_BIAS = "bq";
  public static final String KEY_BIAS = "bk";
  public static final String VALUE_BIAS = "bv";
  public static final String GATE_BIAS = "bg";
  public static final String OUTPUT_BIAS = "bo";

  static final IWeightInit SMALL = new WeightInitDistribution(new NormalDistribution(0, 0.02));

  private final Class<C> type;

  AttentionParamInitializer(Class<C> type) {
    super(type);
    this.type = type;
  }

  /** Whether a parameter is a weight that multiplies the input. */
  public static boolean isProjection(String key) {
    return key.startsWith("W") && !key.equals(OUTPUT_WEIGHT) && !CompressionMlp.isParam(key);
  }

  /** Name of the bias of a projection; there need not be one. */
  public static String biasOf(String weight) {
    return "b" + weight.substring(1);
  }

  /** Number of columns of all weights that multiply the input together. */
  public final long projectionSize(AttentionLayer conf) {
    return projections(type.cast(conf)).values().stream().mapToLong(Long::longValue).sum();
  }

  /** The weights that multiply the input, in order, and their numbers of columns. */
  public abstract Map<String, Long> projections(C conf);

  /** The MLPs of compression; null if there are none. */
  CompressionMlp compressionMlp(C conf) {
    return null;
  }

  /** Queries, and keys and values under the given names. */
  static Map<String, Long> heads(AttentionLayer conf, String... keysAndValues) {
    Map<String, Long> projections = new LinkedHashMap<>();
    projections.put(QUERY_WEIGHT, (long) conf.getNHeads() * conf.getHeadSize());
    for (String weight : keysAndValues) {
      projections.put(weight, (long) conf.getNKvHeads() * conf.getHeadSize());
    }
    return projections;
  }

  /** Adds what gate and token shift need. */
  static void addWindow(Map<String, Long> projections, WindowedAttentionLayer conf) {
    if (conf.isGated()) {
      projections.put(GATE_WEIGHT, (long) conf.getNHeads());
      if (conf.isLearnableAmplitude()) {
        projections.put(AMPLITUDE_WEIGHT, (long) conf.getNHeads());
      }
    }
    if (conf.isKeyShift()) {
      projections.put(KEY_SHIFT_WEIGHT, (long) conf.getNKvHeads());
    }
    if (conf.isValueShift()) {
      projections.put(VALUE_SHIFT_WEIGHT, (long) conf.getNKvHeads());
    }
  }

  @Override
  final Map<String, long[]> layout(C conf) {
    conf.validateOptions();
    Map<String, long[]> layout = new LinkedHashMap<>();
    Map<String, Long> projections = projections(conf);
    projections.forEach((key, width) -> layout.put(key, new long[] {conf.getNIn(), width}));
    layout.put(
        OUTPUT_WEIGHT, new long[] {(long) conf.getNHeads() * conf.getHeadSize(), conf.getNOut()});
    CompressionMlp mlp = compressionMlp(conf);
    if (mlp != null) {
      mlp.addTo(layout);
    }
    projections.forEach(
        (key, width) -> {
          boolean hasBias =
              switch (key) {
                case GATE_WEIGHT -> true;
                case AMPLITUDE_WEIGHT, KEY_SHIFT_WEIGHT, VALUE_SHIFT_WEIGHT -> false;
                default -> conf.isHasBias();
              };
          if (hasBias) {
            layout.put(biasOf(key), new long[] {width});
          }
        });
    if (conf.isHasBias()) {
      layout.put(OUTPUT_BIAS, new long[] {conf.getNOut()});
    }
    return layout;
  }

  @Override
  void fill(C conf, String key, long[] shape, INDArray view) {
    switch (key) {
      case GATE_WEIGHT,
          KEY_SHIFT_WEIGHT,
          VALUE_SHIFT_WEIGHT,
          NativeSparseAttentionParamInitializer.BRANCH_WEIGHT ->
          draw(SMALL, shape, view);
      case AMPLITUDE_WEIGHT -> view.assign(0);
      case GATE_BIAS -> view.assign(((WindowedAttentionLayer) conf).getGateBiasInit());
      default -> {
        if (CompressionMlp.isParam(key)) {
          compressionMlp(conf).fill(conf, key, shape, view);
        } else if (isWeightParam(conf, key)) {
          draw(conf.getWeightInitFn(), shape, view);
        } else {
          view.assign(conf.getBiasInit());
        }
      }
    }
  }

  @Override
  public final boolean isWeightParam(Layer layer, String key) {
    return key.startsWith("W");
  }

  @Override
  public final boolean isBiasParam(Layer layer, String key) {
    return key.startsWith("b");
  }
}
