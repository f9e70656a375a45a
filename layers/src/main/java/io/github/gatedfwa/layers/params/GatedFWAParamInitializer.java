package io.github.gatedfwa.layers.params;

import io.github.gatedfwa.layers.GatedFWALayer;
import java.util.LinkedHashMap;
import java.util.Map;
import org.deeplearning4j.nn.conf.distribution.NormalDistribution;
import org.deeplearning4j.nn.conf.layers.Layer;
import org.deeplearning4j.nn.weights.IWeightInit;
import org.deeplearning4j.nn.weights.WeightInitDistribution;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * Parameters of {@link GatedFWALayer}. H, Hkv: query and key/value heads; D: head size.
 *
 * <table>
 * <caption>Names, shapes and start values</caption>
 * <tr><td>Wq, Wk, Wv</td><td>[nIn, H·D], [nIn, Hkv·D] twice</td><td>weightInit</td></tr>
 * <tr><td>Wg, Wbeta</td><td>[nIn, H]</td><td>N(0, 0.02²), 0</td></tr>
 * <tr><td>WshiftK, WshiftV</td><td>[nIn, Hkv]</td><td>N(0, 0.02²)</td></tr>
 * <tr><td>Wo</td><td>[H·D, nOut]</td><td>weightInit</td></tr>
 * <tr><td>bq, bk, bv, bo</td><td>as the weights' columns</td><td>biasInit</td></tr>
 * <tr><td>bg</td><td>[H]</td><td>gateBiasInit</td></tr>
 * </table>
 *
 * <p>Everything that multiplies the input stands side by side at the start, so that one matrix
 * product makes all projections.
 */
public final class GatedFWAParamInitializer extends LayoutParamInitializer<GatedFWALayer> {
  public static final GatedFWAParamInitializer INSTANCE = new GatedFWAParamInitializer();

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

  private static final IWeightInit SMALL =
      new WeightInitDistribution(new NormalDistribution(0, 0.02));

  private GatedFWAParamInitializer() {
    super(GatedFWALayer.class);
  }

  /** Whether a parameter is a weight that multiplies the input. */
  public static boolean isProjection(String key) {
    return key.startsWith("W") && !key.equals(OUTPUT_WEIGHT);
  }

  /** Number of columns of all weights that multiply the input together. */
  public static long projectionSize(GatedFWALayer conf) {
    return INSTANCE.layout(conf).entrySet().stream()
        .filter(e -> isProjection(e.getKey()))
        .mapToLong(e -> e.getValue()[1])
        .sum();
  }

  @Override
  Map<String, long[]> layout(GatedFWALayer conf) {
    long in = conf.getNIn();
    long heads = conf.getNHeads();
    long kvHeads = conf.getNKvHeads();
    long size = conf.getHeadSize();
    Map<String, long[]> layout = new LinkedHashMap<>();
    layout.put(QUERY_WEIGHT, new long[] {in, heads * size});
    layout.put(KEY_WEIGHT, new long[] {in, kvHeads * size});
    layout.put(VALUE_WEIGHT, new long[] {in, kvHeads * size});
    if (conf.isGated()) {
      layout.put(GATE_WEIGHT, new long[] {in, heads});
      if (conf.isLearnableAmplitude()) {
        layout.put(AMPLITUDE_WEIGHT, new long[] {in, heads});
      }
    }
    if (conf.isKeyShift()) {
      layout.put(KEY_SHIFT_WEIGHT, new long[] {in, kvHeads});
    }
    if (conf.isValueShift()) {
      layout.put(VALUE_SHIFT_WEIGHT, new long[] {in, kvHeads});
    }
    layout.put(OUTPUT_WEIGHT, new long[] {heads * size, conf.getNOut()});
    if (conf.isHasBias()) {
      layout.put(QUERY_BIAS, new long[] {heads * size});
      layout.put(KEY_BIAS, new long[] {kvHeads * size});
      layout.put(VALUE_BIAS, new long[] {kvHeads * size});
    }
    if (conf.isGated()) {
      layout.put(GATE_BIAS, new long[] {heads});
    }
    if (conf.isHasBias()) {
      layout.put(OUTPUT_BIAS, new long[] {conf.getNOut()});
    }
    return layout;
  }

  @Override
  void fill(GatedFWALayer conf, String key, long[] shape, INDArray view) {
    switch (key) {
      case QUERY_WEIGHT, KEY_WEIGHT, VALUE_WEIGHT, OUTPUT_WEIGHT ->
          draw(conf.getWeightInitFn(), shape, view);
      case GATE_WEIGHT, KEY_SHIFT_WEIGHT, VALUE_SHIFT_WEIGHT -> draw(SMALL, shape, view);
      case AMPLITUDE_WEIGHT -> view.assign(0);
      case GATE_BIAS -> view.assign(conf.getGateBiasInit());
      default -> view.assign(conf.getBiasInit());
    }
  }

  @Override
  public boolean isWeightParam(Layer layer, String key) {
    return key.startsWith("W");
  }

  @Override
  public boolean isBiasParam(Layer layer, String key) {
    return key.startsWith("b");
  }
}
