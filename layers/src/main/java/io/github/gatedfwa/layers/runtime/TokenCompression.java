package io.github.gatedfwa.layers.runtime;

import io.github.gatedfwa.layers.TokenCompressionLayer;
import io.github.gatedfwa.layers.params.AttentionParamInitializer;
import java.util.List;
import java.util.Map;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/** Run-time layer of {@link TokenCompressionLayer}, where the formulas are. */
public final class TokenCompression extends Attention<TokenCompressionLayer> {
  private static final long serialVersionUID = 1L;

  private transient CompressionBranch branch; // null until it is needed

  public TokenCompression(NeuralNetConfiguration conf, DataType dataType) {
    super(conf, dataType);
  }

  @Override
  Projections newProjections() {
    return new Projections(layerConf().initializer().projections(layerConf()), Map.of());
  }

  @Override
  List<Caches.Spec> cacheSpecs(long minibatch) {
    return CompressionBranch.caches(
        this, layerConf().getBlockLength(), layerConf().getStride(), minibatch);
  }

  private CompressionBranch branch() {
    if (branch == null) {
      TokenCompressionLayer c = layerConf();
      branch =
          new CompressionBranch(
              this,
              AttentionParamInitializer.KEY_WEIGHT,
              AttentionParamInitializer.VALUE_WEIGHT,
              c.getBlockLength(),
              c.getStride(),
              c.initializer().compressionMlp(c));
    }
    return branch;
  }

  @Override
  void attend(Pass p, Caches caches, Scope scope) {
    p.compression = branch().forward(p, caches, scope);
    p.attended = p.compression.attended;
  }

  @Override
  INDArray attendBackward(Pass p, INDArray dAttended, INDArray dProjected, Scope scope) {
    return branch().backward(p, p.compression, dAttended, dProjected, scope);
  }
}
