package io.github.gatedfwa.layers.params;

import io.github.gatedfwa.layers.SwiGLULayer;
import java.util.LinkedHashMap;
import java.util.Map;
import org.deeplearning4j.nn.conf.layers.Layer;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * Parameters of {@link SwiGLULayer}: W1 and W3 [nIn, hiddenSize] side by side, W2 [hiddenSize,
 * nOut], all by weightInit, and the biases b1, b3 [hiddenSize], b2 [nOut], by biasInit.
 */
public final class SwiGLUParamInitializer extends LayoutParamInitializer<SwiGLULayer> {
  public static final SwiGLUParamInitializer INSTANCE = new SwiGLUParamInitializer();

  public static final String GATE_WEIGHT = "W1";
  public static final String UP_WEIGHT = "W3";
  public static final String DOWN_WEIGHT = "W2";
  public static final String GATE_BIAS = "b1";
  public static final String UP_BIAS = "b3";
  public static final String DOWN_BIAS = "b2";

  private SwiGLUParamInitializer() {
    super(SwiGLULayer.class);
  }

  @Override
  Map<String, long[]> layout(SwiGLULayer conf) {
    conf.validateOptions();
    long in = conf.getNIn();
    long hidden = conf.getHiddenSize();
    Map<String, long[]> layout = new LinkedHashMap<>();
    layout.put(GATE_WEIGHT, new long[] {in, hidden});
    layout.put(UP_WEIGHT, new long[] {in, hidden});
    layout.put(DOWN_WEIGHT, new long[] {hidden, conf.getNOut()});
    if (conf.isHasBias()) {
      layout.put(GATE_BIAS, new long[] {hidden});
      layout.put(UP_BIAS, new long[] {hidden});
      layout.put(DOWN_BIAS, new long[] {conf.getNOut()});
    }
    return layout;
  }

  @Override
  void fill(SwiGLULayer conf, String key, long[] shape, INDArray view) {
    if (shape.length == 2) {
      draw(conf.getWeightInitFn(), shape, view);
    } else {
      view.assign(conf.getBiasInit());
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
