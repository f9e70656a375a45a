package io.github.gatedfwa.layers.runtime;

import io.github.gatedfwa.layers.GatedFWALayer;
import io.github.gatedfwa.layers.params.GatedFWAParamInitializer;
import io.github.gatedfwa.samediff.GatedFwaOps;
import io.github.gatedfwa.samediff.NDGatedFwa;
import java.util.Map;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.gradient.DefaultGradient;
import org.deeplearning4j.nn.gradient.Gradient;
import org.deeplearning4j.nn.layers.recurrent.BaseRecurrentLayer;
import org.deeplearning4j.nn.workspace.ArrayType;
import org.deeplearning4j.nn.workspace.LayerWorkspaceMgr;
import org.nd4j.common.primitives.Pair;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.indexing.NDArrayIndex;

/**
 * Run-time layer of {@link GatedFWALayer}, where the formulas are.
 *
 * <p>One matrix product makes all projections P = X [Wq | Wk | Wv | Wg | Wbeta | WshiftK |
 * WshiftV]; the heads are turned and normalised in place in P, and the attention operation reads
 * them there. A training forward pass keeps what the backward pass needs (in the workspace of the
 * activations), so nothing is computed twice.
 */
public final class GatedFWA extends BaseRecurrentLayer<GatedFWALayer> {
  private static final long serialVersionUID = 1L;

  private static final NDGatedFwa OPS = new NDGatedFwa();

  /** Caches of rnnTimeStep and of truncated BPTT; null when nothing has been seen. */
  private transient KeyValueCache stepCache;

  private transient KeyValueCache tbpttCache;

  /** The last forward pass, for the backward pass. */
  private transient Pass pass;

  private transient Rotation rotation;

  public GatedFWA(NeuralNetConfiguration conf, DataType dataType) {
    super(conf, dataType);
  }

  /** What a forward pass leaves to the backward pass. R = minibatch · time tokens. */
  private static final class Pass {
    Tokens input; // X [R, nIn]
    Mask mask;
    INDArray projected; // P [R, projectionSize]; the heads as the operation sees them
    INDArray keys; // [minibatch, cached + time, kvHeads, headSize]; so the values
    INDArray values;
    INDArray shiftedKeys; // [R, kvHeads * headSize], null without a shift; so the values
    INDArray shiftedValues;
    HeadMath.Shift keyShift;
    HeadMath.Shift valueShift;
    INDArray queryScales; // [R, heads], null without normalisation; so the keys'
    INDArray keyScales;
    INDArray h; // [R, heads], null without a gate; so beta
    INDArray beta;
    INDArray alpha; // [minibatch, cached + time, heads], null without a gate
    INDArray opMask; // [minibatch, cached + time], null if all are real
    INDArray attended; // [minibatch, time, heads, headSize]
    INDArray lse;
    Rotation rotation;
    int cached;

    INDArray queries(GatedFWALayer c) {
      return Tokens.heads(projected, 0, input.minibatch(), c.getNHeads(), c.getHeadSize());
    }
  }

  @Override
  public INDArray activate(boolean training, LayerWorkspaceMgr workspaceMgr) {
    return forward(null, training, workspaceMgr);
  }

  @Override
  public INDArray rnnTimeStep(INDArray input, LayerWorkspaceMgr workspaceMgr) {
    setInput(input, workspaceMgr);
    stepCache = cacheFor(stepCache, input, "rnnTimeStep");
    INDArray out = forward(stepCache, false, workspaceMgr);
    stepCache.trim();
    return out;
  }

  @Override
  public INDArray rnnActivateUsingStoredState(
      INDArray input, boolean training, boolean storeLastForTBPTT, LayerWorkspaceMgr workspaceMgr) {
    if (storeLastForTBPTT && layerConf().getRnnDataFormat() == RNNFormat.NWC) {
      throw new IllegalStateException(
          describe()
              + ": truncated BPTT needs the data format NCW: DL4J cuts segments along dimension 2,"
              + " which is not time in NWC");
    }
    setInput(input, workspaceMgr);
    KeyValueCache before = cacheFor(tbpttCache, input, "rnnActivateUsingStoredState");
    KeyValueCache after = before.copy();
    INDArray out = forward(after, training, workspaceMgr);
    if (storeLastForTBPTT) {
      tbpttCache = after;
    }
    return out;
  }

  private KeyValueCache cacheFor(KeyValueCache cache, INDArray input, String caller) {
    if (cache == null) {
      return new KeyValueCache(cacheShape(input.size(0)));
    }
    if (cache.minibatch() < 0) {
      cache.setMinibatch(input.size(0));
    }
    if (cache.minibatch() != input.size(0)) {
      throw new IllegalStateException(
          "%s: %s with minibatch size %d, but the stored state is of minibatch size %d; call rnnClearPreviousState() between sequences"
              .formatted(describe(), caller, input.size(0), cache.minibatch()));
    }
    return cache;
  }

  private KeyValueCache.Shape cacheShape(long minibatch) {
    GatedFWALayer c = layerConf();
    return new KeyValueCache.Shape(
        computeType(),
        minibatch,
        c.isGated() ? c.getNHeads() : 0,
        c.getNKvHeads(),
        c.getHeadSize(),
        c.getWindowSize() - 1);
  }

  /**
   * Half types are computed in FLOAT: the matrix products would overflow and lose bits otherwise.
   */
  private DataType computeType() {
    return dataType == DataType.FLOAT16 ? DataType.FLOAT : dataType;
  }

  private String describe() {
    return "GatedFWALayer \"" + layerConf().getLayerName() + "\"";
  }

  private INDArray forward(KeyValueCache cache, boolean training, LayerWorkspaceMgr workspaces) {
    assertInputSet(false);
    applyDropOutIfNecessary(training, workspaces);
    pass = null;
    Pass done =
        attend(
            cache,
            training,
            workspaces,
            training ? ArrayType.ACTIVATIONS : ArrayType.FF_WORKING_MEM);
    if (training) {
      pass = done;
    }
    return project(done, training, workspaces);
  }

  /** Everything up to the output projection, with what must last in memory of the given type. */
  private Pass attend(
      KeyValueCache cache, boolean training, LayerWorkspaceMgr workspaces, ArrayType memory) {
    GatedFWALayer c = layerConf();
    int heads = c.getNHeads();
    int kvHeads = c.getNKvHeads();
    int size = c.getHeadSize();
    DataType type = computeType();
    Pass p = new Pass();
    p.input =
        Tokens.of(
            describe(), input, "input", c.getNIn(), c.getRnnDataFormat(), type, workspaces, memory);
    if (p.input.format() == null) {
      throw Tokens.notASequence(describe(), input);
    }
    long minibatch = p.input.minibatch();
    long time = p.input.time();
    int tokens = p.input.count();
    p.mask = Mask.of(describe(), maskArray, minibatch, time);

    INDArray weights = projectionWeights(training, workspaces);
    p.projected =
        Tokens.multiply(
            p.input.rows(),
            false,
            weights,
            false,
            workspaces.createUninitialized(
                memory, type, new long[] {tokens, weights.columns()}, 'c'));
    Columns at = new Columns(c);
    if (c.isHasBias()) {
      addBias(p.projected, at.query(), GatedFWAParamInitializer.QUERY_BIAS, training, workspaces);
      addBias(p.projected, at.key(), GatedFWAParamInitializer.KEY_BIAS, training, workspaces);
      addBias(p.projected, at.value(), GatedFWAParamInitializer.VALUE_BIAS, training, workspaces);
    }

    double[] lastKey = null;
    double[] lastValue = null;
    if (c.isKeyShift()) {
      p.keyShift =
          new HeadMath.Shift(
              p.projected,
              at.key(),
              at.keyShift(),
              kvHeads,
              size,
              time,
              cache == null ? null : cache.lastKey(),
              p.mask);
      lastKey = cache == null ? null : p.keyShift.last();
      p.shiftedKeys =
          workspaces.createUninitialized(
              memory, type, new long[] {tokens, (long) kvHeads * size}, 'c');
      p.keyShift.forward(p.shiftedKeys);
    }
    if (c.isValueShift()) {
      p.valueShift =
          new HeadMath.Shift(
              p.projected,
              at.value(),
              at.valueShift(),
              kvHeads,
              size,
              time,
              cache == null ? null : cache.lastValue(),
              p.mask);
      lastValue = cache == null ? null : p.valueShift.last();
      p.shiftedValues =
          workspaces.createUninitialized(
              memory, type, new long[] {tokens, (long) kvHeads * size}, 'c');
      p.valueShift.forward(p.shiftedValues);
    }
    INDArray keyRows = p.shiftedKeys == null ? p.projected : p.shiftedKeys;
    long keyColumn = p.shiftedKeys == null ? at.key() : 0;
    INDArray valueRows = p.shiftedValues == null ? p.projected : p.shiftedValues;
    long valueColumn = p.shiftedValues == null ? at.value() : 0;

    p.rotation = rotation(cache == null ? 0 : cache.position(), (int) time);
    if (c.isQkNorm()) {
      p.queryScales = workspaces.createUninitialized(memory, type, new long[] {tokens, heads}, 'c');
      p.keyScales = workspaces.createUninitialized(memory, type, new long[] {tokens, kvHeads}, 'c');
    }
    HeadMath.rotateAndNormalise(
        p.projected, at.query(), heads, size, time, p.rotation, p.queryScales);
    HeadMath.rotateAndNormalise(keyRows, keyColumn, kvHeads, size, time, p.rotation, p.keyScales);

    INDArray alphaRows = null;
    if (c.isGated()) {
      p.h = workspaces.createUninitialized(memory, type, new long[] {tokens, heads}, 'c');
      p.beta = workspaces.createUninitialized(memory, type, new long[] {tokens, heads}, 'c');
      HeadMath.gateInputs(
          p.projected,
          at.gate(),
          at.amplitude(),
          Tokens.vector(
              getParamWithNoise(GatedFWAParamInitializer.GATE_BIAS, training, workspaces)),
          p.h,
          p.beta);
      p.alpha =
          Tokens.within(
              workspaces.notifyScopeBorrowed(memory),
              () ->
                  OPS.gate(
                      Tokens.view(p.h, 0, minibatch, time, heads),
                      Tokens.view(p.beta, 0, minibatch, time, heads),
                      GatedFwaOps.DEFAULT_EPS));
      alphaRows = Tokens.view(p.alpha, 0, tokens, heads);
      Tokens.zeroRows(alphaRows, p.mask, time, 0);
    }

    if (cache == null) {
      p.keys = Tokens.heads(keyRows, keyColumn, minibatch, kvHeads, size);
      p.values = Tokens.heads(valueRows, valueColumn, minibatch, kvHeads, size);
      p.opMask = p.mask == null ? null : p.mask.toArray(type, minibatch, workspaces, memory);
    } else {
      cache.append(p.input, keyRows, keyColumn, valueRows, valueColumn, alphaRows, p.mask);
      cache.setLast(lastKey, lastValue);
      p.keys = cache.keys();
      p.values = cache.values();
      p.alpha = cache.alpha();
      p.opMask = cache.mask();
      p.cached = (int) (p.keys.size(1) - time);
    }
    INDArray[] result =
        Tokens.within(
            workspaces.notifyScopeBorrowed(memory),
            () ->
                OPS.gatedFwa(
                    p.queries(c), p.keys, p.values, p.alpha, p.opMask, c.getWindowSize(), 0));
    p.attended = result[0];
    p.lse = result[1];
    return p;
  }

  /** Output projection, bias and mask. */
  private INDArray project(Pass p, boolean training, LayerWorkspaceMgr workspaces) {
    GatedFWALayer c = layerConf();
    DataType type = computeType();
    INDArray weights =
        getParamWithNoise(GatedFWAParamInitializer.OUTPUT_WEIGHT, training, workspaces)
            .castTo(type);
    INDArray out =
        workspaces.createUninitialized(
            type == dataType ? ArrayType.ACTIVATIONS : ArrayType.FF_WORKING_MEM,
            type,
            new long[] {p.input.count(), c.getNOut()},
            'c');
    Tokens.multiply(attendedRows(p), false, weights, false, out);
    if (c.isHasBias()) {
      addBias(out, 0, GatedFWAParamInitializer.OUTPUT_BIAS, training, workspaces);
    }
    Tokens.zeroRows(out, p.mask, p.input.time(), 0);
    return p.input.with(out).toData(dataType, workspaces, ArrayType.ACTIVATIONS);
  }

  private static INDArray attendedRows(Pass p) {
    return Tokens.view(p.attended, 0, p.input.count(), p.attended.size(2) * p.attended.size(3));
  }

  private void addBias(
      INDArray rows, long column, String key, boolean training, LayerWorkspaceMgr workspaces) {
    Tokens.addToColumns(rows, column, Tokens.vector(getParamWithNoise(key, training, workspaces)));
  }

  private Rotation rotation(long start, int positions) {
    GatedFWALayer c = layerConf();
    if (c.getRopeBase() == 0) {
      return null;
    }
    if (rotation == null || !rotation.covers(start, positions)) {
      rotation = new Rotation(c.getRopeBase(), start, positions, c.getHeadSize());
    }
    return rotation;
  }

  /**
   * All weights that multiply the input, side by side: neighbours in memory unless noise is on
   * them.
   */
  private INDArray projectionWeights(boolean training, LayerWorkspaceMgr workspaces) {
    GatedFWALayer c = layerConf();
    long columns = GatedFWAParamInitializer.projectionSize(c);
    INDArray weights;
    if (c.getWeightNoise() == null) {
      weights = inputPart(paramsFlattened, c.getNIn(), columns);
    } else {
      weights = Nd4j.createUninitialized(dataType, new long[] {c.getNIn(), columns}, 'f');
      long column = 0;
      for (Map.Entry<String, INDArray> param : params.entrySet()) {
        if (column < columns) {
          INDArray noisy = getParamWithNoise(param.getKey(), training, workspaces);
          weights
              .get(NDArrayIndex.all(), NDArrayIndex.interval(column, column + noisy.columns()))
              .assign(noisy);
          column += noisy.columns();
        }
      }
    }
    return weights.castTo(computeType());
  }

  private static INDArray inputPart(INDArray flattened, long rows, long columns) {
    return flattened
        .reshape(flattened.length())
        .get(NDArrayIndex.interval(0, rows * columns))
        .reshape('f', rows, columns);
  }

  @Override
  public Pair<Gradient, INDArray> backpropGradient(
      INDArray epsilon, LayerWorkspaceMgr workspaceMgr) {
    return backward(epsilon, -1, workspaceMgr);
  }

  @Override
  public Pair<Gradient, INDArray> tbpttBackpropGradient(
      INDArray epsilon, int tbpttBackLength, LayerWorkspaceMgr workspaceMgr) {
    return backward(epsilon, tbpttBackLength, workspaceMgr);
  }

  /**
   * @param backLength number of last steps that the gradient reaches; all if not positive
   */
  private Pair<Gradient, INDArray> backward(
      INDArray epsilon, int backLength, LayerWorkspaceMgr workspaces) {
    assertInputSet(true);
    GatedFWALayer c = layerConf();
    int heads = c.getNHeads();
    int kvHeads = c.getNKvHeads();
    int size = c.getHeadSize();
    DataType type = computeType();
    // A layer that is frozen but passes gradients on made its forward pass in inference mode.
    Pass p = pass != null ? pass : attend(null, false, workspaces, ArrayType.BP_WORKING_MEM);
    long time = p.input.time();
    long minibatch = p.input.minibatch();
    int tokens = p.input.count();
    long first = backLength > 0 ? Math.max(0, time - backLength) : 0;

    Tokens error =
        Tokens.of(
            describe(),
            epsilon,
            "gradient of the output",
            c.getNOut(),
            c.getRnnDataFormat(),
            type,
            workspaces,
            ArrayType.BP_WORKING_MEM);
    if (p.mask != null || first > 0) {
      error = error.with(workspaces.dup(ArrayType.BP_WORKING_MEM, error.rows(), 'c'));
      Tokens.zeroRows(error.rows(), p.mask, time, first);
    }

    // Output projection.
    Tokens.multiplyInto(
        attendedRows(p),
        true,
        error.rows(),
        false,
        gradientViews.get(GatedFWAParamInitializer.OUTPUT_WEIGHT));
    if (c.isHasBias()) {
      Tokens.assign(
          gradientViews.get(GatedFWAParamInitializer.OUTPUT_BIAS),
          Tokens.columnSums(error.rows(), 0, (int) c.getNOut()));
    }
    INDArray outputWeights =
        getParamWithNoise(GatedFWAParamInitializer.OUTPUT_WEIGHT, true, workspaces).castTo(type);
    INDArray dAttended =
        Tokens.multiply(
            error.rows(),
            false,
            outputWeights,
            true,
            workspaces.createUninitialized(
                ArrayType.BP_WORKING_MEM, type, new long[] {tokens, (long) heads * size}, 'c'));

    // Attention.
    INDArray[] gradients =
        OPS.gatedFwaBp(
            p.queries(c),
            p.keys,
            p.values,
            p.alpha,
            p.opMask,
            p.attended,
            p.lse,
            Tokens.view(dAttended, 0, minibatch, time, heads, size),
            c.getWindowSize(),
            0);
    INDArray dQuery = Tokens.view(gradients[0], 0, tokens, (long) heads * size);
    INDArray dKey = newRows(gradients[1], p, workspaces);
    INDArray dValue = newRows(gradients[2], p, workspaces);

    // Everything that the projections went through.
    Columns at = new Columns(c);
    INDArray dProjected =
        workspaces.createUninitialized(
            ArrayType.BP_WORKING_MEM, type, new long[] {tokens, p.projected.columns()}, 'c');
    HeadMath.rotateAndNormaliseBackward(
        p.projected,
        at.query(),
        dQuery,
        dProjected,
        at.query(),
        heads,
        size,
        time,
        p.rotation,
        p.queryScales);
    if (p.keyShift == null) {
      HeadMath.rotateAndNormaliseBackward(
          p.projected,
          at.key(),
          dKey,
          dProjected,
          at.key(),
          kvHeads,
          size,
          time,
          p.rotation,
          p.keyScales);
    } else {
      HeadMath.rotateAndNormaliseBackward(
          p.shiftedKeys, 0, dKey, dKey, 0, kvHeads, size, time, p.rotation, p.keyScales);
      p.keyShift.backward(dKey, dProjected);
    }
    if (p.valueShift == null) {
      HeadMath.rotateAndNormaliseBackward(
          dValue, 0, dValue, dProjected, at.value(), kvHeads, size, time, null, null);
    } else {
      p.valueShift.backward(dValue, dProjected);
    }
    if (c.isGated()) {
      INDArray dAlpha = newRows(gradients[3], p, workspaces);
      Tokens.zeroRows(dAlpha, p.mask, time, 0);
      INDArray[] gate =
          OPS.gateBp(
              Tokens.view(p.h, 0, minibatch, time, heads),
              Tokens.view(p.beta, 0, minibatch, time, heads),
              Tokens.view(dAlpha, 0, minibatch, time, heads),
              GatedFwaOps.DEFAULT_EPS);
      HeadMath.gateInputsBackward(
          Tokens.view(gate[0], 0, tokens, heads),
          Tokens.view(gate[1], 0, tokens, heads),
          p.beta,
          dProjected,
          at.gate(),
          at.amplitude());
    }
    Tokens.zeroRows(dProjected, null, time, first);

    // Projections of the input.
    if (c.isGated()) {
      putSums(GatedFWAParamInitializer.GATE_BIAS, dProjected, at.gate(), heads);
    }
    if (c.isHasBias()) {
      putSums(GatedFWAParamInitializer.QUERY_BIAS, dProjected, at.query(), heads * size);
      putSums(GatedFWAParamInitializer.KEY_BIAS, dProjected, at.key(), kvHeads * size);
      putSums(GatedFWAParamInitializer.VALUE_BIAS, dProjected, at.value(), kvHeads * size);
    }
    Tokens.multiplyInto(
        p.input.rows(),
        true,
        dProjected,
        false,
        inputPart(gradientsFlattened, c.getNIn(), dProjected.columns()));
    INDArray dInput =
        Tokens.multiply(
            dProjected,
            false,
            projectionWeights(true, workspaces),
            true,
            workspaces.createUninitialized(
                type == dataType ? ArrayType.ACTIVATION_GRAD : ArrayType.BP_WORKING_MEM,
                type,
                new long[] {tokens, c.getNIn()},
                'c'));

    weightNoiseParams.clear();
    Gradient gradient = new DefaultGradient(gradientsFlattened);
    gradientViews.forEach(gradient::setGradientFor);
    INDArray epsilonOut =
        p.input.with(dInput).toData(dataType, workspaces, ArrayType.ACTIVATION_GRAD);
    return new Pair<>(gradient, backpropDropOutIfPresent(epsilonOut));
  }

  private void putSums(String key, INDArray rows, long column, int n) {
    Tokens.assign(gradientViews.get(key), Tokens.columnSums(rows, column, n));
  }

  /** The rows of this pass's own tokens: no gradient flows to those of the cache. */
  private static INDArray newRows(INDArray gradient, Pass p, LayerWorkspaceMgr workspaces) {
    long width = gradient.length() / (gradient.size(0) * gradient.size(1));
    if (p.cached == 0) {
      return Tokens.view(gradient, 0, p.input.count(), width);
    }
    INDArray all = Tokens.view(gradient, 0, gradient.size(0), gradient.size(1), width);
    INDArray own =
        all.get(
            NDArrayIndex.all(),
            NDArrayIndex.interval(p.cached, gradient.size(1)),
            NDArrayIndex.all());
    return Tokens.view(
        workspaces.dup(ArrayType.BP_WORKING_MEM, own, 'c'), 0, p.input.count(), width);
  }

  /** First columns of the parts of P; -1 for parts that there are not. */
  private record Columns(
      long query, long key, long value, long gate, long amplitude, long keyShift, long valueShift) {
    Columns(GatedFWALayer c) {
      this(
          c,
          (long) c.getNHeads() * c.getHeadSize(),
          (long) c.getNKvHeads() * c.getHeadSize(),
          c.isGated() ? c.getNHeads() : 0,
          c.isGated() && c.isLearnableAmplitude() ? c.getNHeads() : 0);
    }

    private Columns(GatedFWALayer c, long queries, long keys, long gates, long amplitudes) {
      this(
          0,
          queries,
          queries + keys,
          queries + 2 * keys,
          amplitudes == 0 ? -1 : queries + 2 * keys + gates,
          queries + 2 * keys + gates + amplitudes,
          queries + 2 * keys + gates + amplitudes + (c.isKeyShift() ? c.getNKvHeads() : 0));
    }
  }

  @Override
  public boolean isPretrainLayer() {
    return false;
  }

  @Override
  public Type type() {
    return Type.RECURRENT;
  }

  @Override
  public boolean hasBias() {
    return layerConf().isHasBias();
  }

  @Override
  public void setInput(INDArray input, LayerWorkspaceMgr workspaceMgr) {
    super.setInput(input, workspaceMgr);
    pass = null;
  }

  @Override
  public void clear() {
    super.clear();
    pass = null;
  }

  /**
   * {@inheritDoc} The arrays are copies: keys and values [minibatch, kept tokens, kvHeads,
   * headSize], alpha [minibatch, kept tokens, heads], mask [minibatch, kept tokens], lastKey and
   * lastValue [minibatch, kvHeads, headSize] and position (a scalar); those that the layer needs.
   */
  @Override
  public Map<String, INDArray> rnnGetPreviousState() {
    return stepCache == null ? Map.of() : stepCache.toState();
  }

  /**
   * {@inheritDoc}
   *
   * @throws IllegalArgumentException if the arrays are not those of such a layer's state
   */
  @Override
  public void rnnSetPreviousState(Map<String, INDArray> stateMap) {
    stepCache = KeyValueCache.fromState(describe(), cacheShape(-1), stateMap);
  }

  @Override
  public Map<String, INDArray> rnnGetTBPTTState() {
    return tbpttCache == null ? Map.of() : tbpttCache.toState();
  }

  @Override
  public void rnnSetTBPTTState(Map<String, INDArray> state) {
    tbpttCache = KeyValueCache.fromState(describe(), cacheShape(-1), state);
  }

  @Override
  public void rnnClearPreviousState() {
    stepCache = null;
    tbpttCache = null;
  }
}
