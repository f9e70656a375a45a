package io.github.gatedfwa.layers.params;

import io.github.gatedfwa.layers.GatedFWALayer;
import java.util.Map;

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
 */
public final class GatedFWAParamInitializer extends AttentionParamInitializer<GatedFWALayer> {
  public static final GatedFWAParamInitializer INSTANCE = new GatedFWAParamInitializer();

  private GatedFWAParamInitializer() {
    super(GatedFWALayer.class);
  }

  @Override
  public Map<String, Long> projections(GatedFWALayer conf) {
    Map<String, Long> projections = heads(conf, KEY_WEIGHT, VALUE_WEIGHT);
    addWindow(projections, conf);
    return projections;
  }
}
