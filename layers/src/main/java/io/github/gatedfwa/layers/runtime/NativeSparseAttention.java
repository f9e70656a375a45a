package io.github.gatedfwa.layers.runtime;

import static io.github.gatedfwa.layers.params.NativeSparseAttentionParamInitializer.BRANCH_WEIGHT;
import static io.github.gatedfwa.layers.params.NativeSparseAttentionParamInitializer.COMPRESSION_KEY_WEIGHT;
import static io.github.gatedfwa.layers.params.NativeSparseAttentionParamInitializer.COMPRESSION_VALUE_WEIGHT;
import static io.github.gatedfwa.layers.params.NativeSparseAttentionParamInitializer.SELECTION_KEY_WEIGHT;
import static io.github.gatedfwa.layers.params.NativeSparseAttentionParamInitializer.SELECTION_VALUE_WEIGHT;
import static io.github.gatedfwa.layers.params.NativeSparseAttentionParamInitializer.WINDOW_KEY_WEIGHT;
import static io.github.gatedfwa.layers.params.NativeSparseAttentionParamInitializer.WINDOW_VALUE_WEIGHT;

import io.github.gatedfwa.layers.NativeSparseAttentionLayer;
import io.github.gatedfwa.layers.params.NativeSparseAttentionParamInitializer;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/** Run-time layer of {@link NativeSparseAttentionLayer}, where the formulas are. */
public final class NativeSparseAttention extends WindowedAttention<NativeSparseAttentionLayer> {
  private static final long serialVersionUID = 1L;

  /** Name of the window's cache. */
  private static final String WINDOW = "window";

  private transient CompressionBranch compression; // null until it is needed
  private transient SelectionBranch selection; // the same

  public NativeSparseAttention(NeuralNetConfiguration conf, DataType dataType) {
    super(conf, dataType);
  }

  @Override
  Projections newProjections() {
    NativeSparseAttentionLayer c = layerConf();
    Map<String, String> copies = new LinkedHashMap<>();
    // Compression reads shared keys and values where they are; selection and window turn keys.
    for (String own :
        List.of(
            SELECTION_KEY_WEIGHT, SELECTION_VALUE_WEIGHT, WINDOW_KEY_WEIGHT, WINDOW_VALUE_WEIGHT)) {
      String shared = weightOf(own);
      if (!shared.equals(own)) {
        copies.put(own, shared);
      }
    }
    return new Projections(c.initializer().projections(c), copies);
  }

  private String weightOf(String own) {
    return NativeSparseAttentionParamInitializer.weightOf(layerConf().getSharing(), own);
  }

  @Override
  List<Caches.Spec> cacheSpecs(long minibatch) {
    NativeSparseAttentionLayer c = layerConf();
    List<Caches.Spec> specs = new ArrayList<>();
    specs.add(WindowBranch.cache(WINDOW, this, minibatch));
    specs.add(SelectionBranch.cache(this, minibatch));
    specs.addAll(CompressionBranch.caches(this, c.getBlockLength(), c.getStride(), minibatch));
    return specs;
  }

  @Override
  WindowBranch newWindow() {
    return new WindowBranch(this, WINDOW_KEY_WEIGHT, WINDOW_VALUE_WEIGHT);
  }

  private void makeBranches() {
    if (selection == null) {
      NativeSparseAttentionLayer c = layerConf();
      compression =
          new CompressionBranch(
              this,
              weightOf(COMPRESSION_KEY_WEIGHT),
              weightOf(COMPRESSION_VALUE_WEIGHT),
              c.getBlockLength(),
              c.getStride(),
              c.initializer().compressionMlp(c));
      selection =
          new SelectionBranch(
              this,
              SELECTION_KEY_WEIGHT,
              SELECTION_VALUE_WEIGHT,
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
    p.window = window().forward(p, caches == null ? null : caches.get(WINDOW), scope);
    INDArray mixed =
        scope.matrix(p.input.count(), (long) layerConf().getNHeads() * layerConf().getHeadSize());
    HeadMath.mix(
        p.projected,
        projections().column(BRANCH_WEIGHT),
        layerConf().getNHeads(),
        branches(p),
        mixed);
    p.attended = Memory.view(mixed, 0, p.window.attended.shape());
  }

  /** Results of the branches as token matrices, in the order of their gates. */
  private static INDArray[] branches(Pass p) {
    return new INDArray[] {
      p.rows(p.compression.attended), p.rows(p.selection.attended), p.rows(p.window.attended)
    };
  }

  @Override
  INDArray attendBackward(Pass p, INDArray dAttended, INDArray dProjected, Scope scope) {
    INDArray[] branches = branches(p);
    INDArray[] gradients = new INDArray[branches.length];
    for (int i = 0; i < branches.length; i++) {
      gradients[i] = scope.matrix(branches[i].rows(), branches[i].columns());
    }
    HeadMath.mixBackward(
        p.projected,
        projections().column(BRANCH_WEIGHT),
        layerConf().getNHeads(),
        branches,
        p.rows(dAttended),
        gradients,
        dProjected);
    long[] shape = dAttended.shape();
    INDArray dQueries =
        compression.backward(
            p, p.compression, Memory.view(gradients[0], 0, shape), dProjected, scope);
    dQueries.addi(
        selection.backward(p, p.selection, Memory.view(gradients[1], 0, shape), dProjected, scope));
    dQueries.addi(
        window().backward(p, p.window, Memory.view(gradients[2], 0, shape), dProjected, scope));
    return dQueries;
  }
}
