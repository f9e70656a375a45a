package io.github.gatedfwa.layers.runtime;

import io.github.gatedfwa.layers.GatedFWALayer;
import io.github.gatedfwa.layers.params.AttentionParamInitializer;
import java.util.List;
import java.util.Map;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/** Run-time layer of {@link GatedFWALayer}, where the formulas are. */
public final class GatedFWA extends WindowedAttention<GatedFWALayer> {
  private static final long serialVersionUID = 1L;

  public GatedFWA(NeuralNetConfiguration conf, DataType dataType) {
    super(conf, dataType);
  }

  @Override
  Projections newProjections() {
    return new Projections(layerConf().initializer().projections(layerConf()), Map.of());
  }

  @Override
  List<Caches.Spec> cacheSpecs(long minibatch) {
    return List.of(WindowBranch.cache("", this, minibatch));
  }

  @Override
  WindowBranch newWindow() {
    return new WindowBranch(
        this, AttentionParamInitializer.KEY_WEIGHT, AttentionParamInitializer.VALUE_WEIGHT);
  }

  @Override
  void attend(Pass p, Caches caches, Scope scope) {
    p.window = window().forward(p, caches == null ? null : caches.get(""), scope);
    p.attended = p.window.attended;
  }

  @Override
  INDArray attendBackward(Pass p, INDArray dAttended, INDArray dProjected, Scope scope) {
    return window().backward(p, p.window, dAttended, dProjected, scope);
  }
}
