package io.github.gatedfwa.layers.params;

import io.github.gatedfwa.layers.RMSNormLayer;
import java.util.Map;
import org.deeplearning4j.nn.conf.layers.Layer;
import org.deeplearning4j.nn.params.DefaultParamInitializer;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * The gain "g" [nIn] of {@link RMSNormLayer}, which starts at gainInit. It is neither a weight nor
 * a bias: constraints of weights are along the dimensions of a matrix.
 */
public final class RMSNormParamInitializer extends LayoutParamInitializer<RMSNormLayer> {
  public static final RMSNormParamInitializer INSTANCE = new RMSNormParamInitializer();

  public static final String GAIN = DefaultParamInitializer.GAIN_KEY;

  private RMSNormParamInitializer() {
    super(RMSNormLayer.class);
  }

  @Override
  Map<String, long[]> layout(RMSNormLayer conf) {
    conf.validateOptions();
    return Map.of(GAIN, new long[] {conf.getNIn()});
  }

  @Override
  void fill(RMSNormLayer conf, String key, long[] shape, INDArray view) {
    view.assign(conf.getGainInit());
  }

  @Override
  public boolean isWeightParam(Layer layer, String key) {
    return false;
  }

  @Override
  public boolean isBiasParam(Layer layer, String key) {
    return false;
  }
}
