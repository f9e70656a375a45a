package io.github.gatedfwa.layers.runtime;

import io.github.gatedfwa.layers.WindowedAttentionLayer;
import io.github.gatedfwa.layers.params.AttentionParamInitializer;
import io.github.gatedfwa.samediff.GatedFwaOps;
import io.github.gatedfwa.samediff.NDGatedFwa;
import java.util.ArrayList;
import java.util.List;
import java.util.function.LongUnaryOperator;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.indexing.NDArrayIndex;

/**
 * Gated attention to a window (formulas: {@link io.github.gatedfwa.layers.GatedFWALayer}): token
 * shift, gate and the attention operation.
 */
final class WindowBranch {
  private static final NDGatedFwa OPS = new NDGatedFwa();

  private final Attention<? extends WindowedAttentionLayer> layer;
  private final long keyColumn;
  private final long valueColumn;

  /**
   * @param key name of the projections of keys
   * @param value name of the projections of values
   */
  WindowBranch(Attention<? extends WindowedAttentionLayer> layer, String key, String value) {
    this.layer = layer;
    keyColumn = layer.projections().column(key);
    valueColumn = layer.projections().column(value);
  }

  /** What {@link #forward} leaves to {@link #backward}. */
  static final class Result {
    private HeadMath.Shift keyShift; // null without one; so the next three
    private HeadMath.Shift valueShift;
    private INDArray shiftedKeys; // [R, kvHeads * headSize]
    private INDArray shiftedValues;
    private INDArray keyScales; // [R, kvHeads], null without normalisation
    private INDArray h; // [R, heads], null without a gate
    private INDArray beta; // the same

    // Operands and results of the attention operation, the cached tokens first.
    private INDArray keys; // [minibatch, cached + time, kvHeads, headSize]
    private INDArray values; // the same
    private INDArray alpha; // [minibatch, cached + time, heads], null without a gate
    private INDArray opMask; // [minibatch, cached + time], null if all are real
    private INDArray lse; // [minibatch, heads, time]

    INDArray attended; // [minibatch, time, heads, headSize]

    /** A copy of the decays of the last tokens, without those of cached ones. */
    INDArray decays(long time) {
      long all = alpha.size(1);
      return alpha
          .get(NDArrayIndex.all(), NDArrayIndex.interval(all - time, all), NDArrayIndex.all())
          .dup('c');
    }
  }

  /** The cache of a window: the last window - 1 tokens. */
  static Caches.Spec cache(
      String name, Attention<? extends WindowedAttentionLayer> layer, long mb) {
    WindowedAttentionLayer c = layer.layerConf();
    List<String> beside = new ArrayList<>();
    if (c.isKeyShift()) {
      beside.add(KeyValueCache.LAST_KEY);
    }
    if (c.isValueShift()) {
      beside.add(KeyValueCache.LAST_VALUE);
    }
    return new Caches.Spec(
        name,
        new KeyValueCache.Shape(
            layer.computeType(),
            mb,
            c.isGated() ? c.getNHeads() : 0,
            c.getNKvHeads(),
            c.getHeadSize(),
            c.getWindowSize() - 1),
        LongUnaryOperator.identity(),
        false,
        beside);
  }

  /**
   * Turns and normalises the keys, in place without a token shift, and attends.
   *
   * @param cache null for none
   */
  Result forward(Pass p, KeyValueCache cache, Scope scope) {
    WindowedAttentionLayer c = layer.layerConf();
    Result r = new Result();
    long minibatch = p.input.minibatch();
    long time = p.input.time();
    shift(p, r, cache, scope);
    INDArray keyRows = r.shiftedKeys == null ? p.projected : r.shiftedKeys;
    long key = r.shiftedKeys == null ? keyColumn : 0;
    INDArray valueRows = r.shiftedValues == null ? p.projected : r.shiftedValues;
    long value = r.shiftedValues == null ? valueColumn : 0;

    if (c.isQkNorm()) {
      r.keyScales = scope.matrix(p.input.count(), c.getNKvHeads());
    }
    HeadMath.rotateAndNormalise(
        keyRows, key, c.getNKvHeads(), c.getHeadSize(), time, p.rotation, r.keyScales);
    if (c.isGated()) {
      gate(p, r, scope);
    }
    if (cache == null) {
      r.keys = Tokens.heads(keyRows, key, minibatch, c.getNKvHeads(), c.getHeadSize(), null);
      r.values = Tokens.heads(valueRows, value, minibatch, c.getNKvHeads(), c.getHeadSize(), null);
      r.opMask = p.opMask;
    } else {
      cache.append(p.input, keyRows, key, valueRows, value, r.alpha, p.mask);
      r.keys = cache.keys();
      r.values = cache.values();
      r.alpha = cache.alpha();
      r.opMask = cache.mask();
    }
    r.attended = scope.array(minibatch, time, c.getNHeads(), c.getHeadSize());
    r.lse = scope.array(minibatch, c.getNHeads(), time);
    OPS.gatedFwa(
        p.queries, r.keys, r.values, r.alpha, r.opMask, c.getWindowSize(), 0, r.attended, r.lse);
    return r;
  }

  private void shift(Pass p, Result r, KeyValueCache cache, Scope scope) {
    WindowedAttentionLayer c = layer.layerConf();
    long width = (long) c.getNKvHeads() * c.getHeadSize();
    if (c.isKeyShift()) {
      double[] last = cache == null ? null : cache.lastKey();
      r.keyShift = shiftOf(p, keyColumn, AttentionParamInitializer.KEY_SHIFT_WEIGHT, last);
      r.shiftedKeys = scope.matrix(p.input.count(), width);
      r.keyShift.forward(r.shiftedKeys);
    }
    if (c.isValueShift()) {
      double[] last = cache == null ? null : cache.lastValue();
      r.valueShift = shiftOf(p, valueColumn, AttentionParamInitializer.VALUE_SHIFT_WEIGHT, last);
      r.shiftedValues = scope.matrix(p.input.count(), width);
      r.valueShift.forward(r.shiftedValues);
    }
    if (cache != null) {
      cache.setLast(
          r.keyShift == null ? null : r.keyShift.last(),
          r.valueShift == null ? null : r.valueShift.last());
    }
  }

  private HeadMath.Shift shiftOf(Pass p, long column, String logits, double[] last) {
    WindowedAttentionLayer c = layer.layerConf();
    return new HeadMath.Shift(
        p.projected,
        column,
        layer.projections().column(logits),
        c.getNKvHeads(),
        c.getHeadSize(),
        p.input.time(),
        last,
        p.mask);
  }

  /** The decays alone, [minibatch, time, heads], when the input has been projected. */
  INDArray decays(Pass p, Scope scope) {
    Result r = new Result();
    gate(p, r, scope);
    return r.alpha;
  }

  private void gate(Pass p, Result r, Scope scope) {
    int heads = layer.layerConf().getNHeads();
    r.h = scope.matrix(p.input.count(), heads);
    r.beta = scope.matrix(p.input.count(), heads);
    INDArray bias = layer.param(AttentionParamInitializer.GATE_BIAS, scope);
    HeadMath.gateInputs(
        p.projected,
        layer.projections().column(AttentionParamInitializer.GATE_WEIGHT),
        layer.projections().column(AttentionParamInitializer.AMPLITUDE_WEIGHT),
        Matrices.vector(bias),
        r.h,
        r.beta);
    INDArray alpha = scope.matrix(p.input.count(), heads);
    r.alpha = p.perHead(alpha);
    OPS.gate(p.perHead(r.h), p.perHead(r.beta), GatedFwaOps.DEFAULT_EPS, r.alpha);
    Tokens.zeroRows(alpha, p.mask, p.input.time(), 0);
  }

  /**
   * Writes the gradient of the branch's columns of P.
   *
   * @return gradient of the queries, [minibatch, time, heads, headSize]
   */
  INDArray backward(Pass p, Result r, INDArray dAttended, INDArray dProjected, Scope scope) {
    WindowedAttentionLayer c = layer.layerConf();
    int kvHeads = c.getNKvHeads();
    int size = c.getHeadSize();
    long time = p.input.time();
    INDArray[] gradients =
        OPS.gatedFwaBp(
            p.queries,
            r.keys,
            r.values,
            r.alpha,
            r.opMask,
            r.attended,
            r.lse,
            dAttended,
            c.getWindowSize(),
            0);
    INDArray dKey = p.ownRows(gradients[1], scope);
    INDArray dValue = p.ownRows(gradients[2], scope);
    if (r.keyShift == null) {
      HeadMath.rotateAndNormaliseBackward(
          p.projected,
          keyColumn,
          dKey,
          dProjected,
          keyColumn,
          kvHeads,
          size,
          time,
          p.rotation,
          r.keyScales);
    } else {
      HeadMath.rotateAndNormaliseBackward(
          r.shiftedKeys, 0, dKey, dKey, 0, kvHeads, size, time, p.rotation, r.keyScales);
      r.keyShift.backward(dKey, dProjected);
    }
    if (r.valueShift == null) {
      Matrices.copyToColumns(dValue, dProjected, valueColumn);
    } else {
      r.valueShift.backward(dValue, dProjected);
    }
    if (c.isGated()) {
      INDArray dAlpha = p.ownRows(gradients[3], scope);
      Tokens.zeroRows(dAlpha, p.mask, time, 0);
      INDArray[] gate =
          OPS.gateBp(p.perHead(r.h), p.perHead(r.beta), p.perHead(dAlpha), GatedFwaOps.DEFAULT_EPS);
      HeadMath.gateInputsBackward(
          Memory.view(gate[0], 0, dAlpha.shape()),
          Memory.view(gate[1], 0, dAlpha.shape()),
          r.beta,
          dProjected,
          layer.projections().column(AttentionParamInitializer.GATE_WEIGHT),
          layer.projections().column(AttentionParamInitializer.AMPLITUDE_WEIGHT));
    }
    return gradients[0];
  }
}
