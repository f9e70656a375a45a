package io.github.gatedfwa.layers.runtime;

import io.github.gatedfwa.layers.TokenSelectionLayer;
import io.github.gatedfwa.layers.params.AttentionParamInitializer;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * Run-time layer of {@link TokenSelectionLayer}, where the formulas are. Compression stands first,
 * because it needs the keys before they turn, and has no backward pass.
 */
public final class TokenSelection extends Attention<TokenSelectionLayer> {
  private static final long serialVersionUID = 1L;

  private transient CompressionBranch compression; // null until it is needed
  private transient SelectionBranch selection; // the same

  public TokenSelection(NeuralNetConfiguration conf, DataType dataType) {
    super(conf, dataType);
  }

  @Override
  Projections newProjections() {
    return new Projections(layerConf().initializer().projections(layerConf()), Map.of());
  }

  @Override
  List<Caches.Spec> cacheSpecs(long minibatch) {
    List<Caches.Spec> specs = new ArrayList<>();
    specs.add(SelectionBranch.cache(this, minibatch));
    specs.addAll(
        CompressionBranch.caches(
            this, layerConf().getBlockLength(), layerConf().getStride(), minibatch));
    return specs;
  }

  private void makeBranches() {
    if (selection == null) {
      TokenSelectionLayer c = layerConf();
      String key = AttentionParamInitializer.KEY_WEIGHT;
      String value = AttentionParamInitializer.VALUE_WEIGHT;
      compression =
          new CompressionBranch(this, key, value, c.getBlockLength(), c.getStride(), null);
      selection =
          new SelectionBranch(
              this,
              key,
              value,
              c.getBlockLength(),
              c.getStride(),
              c.getSelectionBlock(),
              c.getTopN());
    }
  }

  @Override
  void attend(Pass p, Caches caches, Scope scope) {
    makeBranches();
    p.compression = compression.forward(p, caches, scope);
    KeyValueCache all = caches == null ? null : caches.get(SelectionBranch.ALL);
    p.selection = selection.forward(p, p.compression, all, scope);
    p.attended = p.selection.attended;
  }

  @Override
  INDArray attendBackward(Pass p, INDArray dAttended, INDArray dProjected, Scope scope) {
    return selection.backward(p, p.selection, dAttended, dProjected, scope);
  }
}
