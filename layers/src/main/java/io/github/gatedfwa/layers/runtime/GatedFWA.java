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

  private transient Rotation rotation; // null until it is needed

  public GatedFWA(NeuralNetConfiguration conf, DataType dataType) {
    super(conf, dataType);
    // Here rather than in the first forward pass, when other networks may be running.
    GatedFwaOps.isNativeAvailable();
  }

  /** What a forward pass leaves to the backward pass. R = minibatch · time tokens. */
  private static final class Pass {
    Tokens input; // X [R, nIn]
    Mask mask;
    INDArray projected; // P [R, projectionSize]; the heads as the operation sees them
    Columns at; // the parts of P
    HeadMath.Shift keyShift; // null without one; so the next three
    HeadMath.Shift valueShift;
    INDArray shiftedKeys; // [R, kvHeads * headSize]
    INDArray shiftedValues;
    Rotation.Run rotation; // null for none
    INDArray queryScales; // [R, heads], null without normalisation
    INDArray keyScales; // [R, kvHeads], the same
    INDArray h; // [R, heads], null without a gate
    INDArray beta; // the same

    // Operands and results of the attention operation, the cached tokens first.
    INDArray queries; // [minibatch, time, heads, headSize]
    INDArray keys; // [minibatch, cached + time, kvHeads, headSize]
    INDArray values; // the same
    INDArray alpha; // [minibatch, cached + time, heads], null without a gate
    INDArray opMask; // [minibatch, cached + time], null if all are real
    INDArray attended; // [minibatch, time, heads, headSize]
    INDArray lse; // [minibatch, heads, time]
    int cached;

    /** The attended values as a token matrix. */
    INDArray concatenatedHeads() {
      return Memory.view(attended, 0, input.count(), attended.size(2) * attended.size(3));
    }

    /** A token matrix [R, heads] as the operations take it. */
    INDArray perHead(INDArray rows) {
      return Memory.view(rows, 0, input.minibatch(), input.time(), rows.columns());
    }

    /** This pass's own rows of a gradient: none flows to the cache. */
    INDArray ownRows(INDArray gradient, LayerWorkspaceMgr workspaces) {
      long all = gradient.size(1);
      long width = gradient.length() / (gradient.size(0) * all);
      INDArray rows = gradient;
      if (cached > 0) {
        INDArray own =
            Memory.view(gradient, 0, gradient.size(0), all, width)
                .get(NDArrayIndex.all(), NDArrayIndex.interval(cached, all), NDArrayIndex.all());
        rows = workspaces.dup(ArrayType.BP_WORKING_MEM, own, 'c');
      }
      return Memory.view(rows, 0, input.count(), width);
    }
  }

  /** First columns of the parts of P; -1 for a part that there is not. */
  private record Columns(
      long query, long key, long value, long gate, long amplitude, long keyShift, long valueShift) {
    static Columns of(GatedFWALayer c) {
      long queries = (long) c.getNHeads() * c.getHeadSize();
      long keys = (long) c.getNKvHeads() * c.getHeadSize();
      long gate = queries + 2 * keys;
      long amplitude = gate + (c.isGated() ? c.getNHeads() : 0);
      boolean hasAmplitude = c.isGated() && c.isLearnableAmplitude();
      long keyShift = amplitude + (hasAmplitude ? c.getNHeads() : 0);
      long valueShift = keyShift + (c.isKeyShift() ? c.getNKvHeads() : 0);
      return new Columns(
          0, queries, queries + keys, gate, hasAmplitude ? amplitude : -1, keyShift, valueShift);
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
    KeyValueCache cache = cacheFor(tbpttCache, input, "rnnActivateUsingStoredState").copy();
    INDArray out = forward(cache, training, workspaceMgr);
    if (storeLastForTBPTT) {
      tbpttCache = cache;
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
    ArrayType memory = training ? ArrayType.ACTIVATIONS : ArrayType.FF_WORKING_MEM;
    Pass p = attend(cache, training, workspaces, memory);
    if (training) {
      pass = p;
    }
    return projectOutput(p, training, workspaces);
  }

  /** Everything up to the output projection; what the pass keeps is in memory of the given type. */
  private Pass attend(
      KeyValueCache cache, boolean training, LayerWorkspaceMgr workspaces, ArrayType memory) {
    GatedFWALayer c = layerConf();
    Pass p = new Pass();
    p.at = Columns.of(c);
    projectInput(p, training, workspaces, memory);
    long minibatch = p.input.minibatch();
    long time = p.input.time();

    shift(p, cache, workspaces, memory);
    INDArray keyRows = p.shiftedKeys == null ? p.projected : p.shiftedKeys;
    long keyColumn = p.shiftedKeys == null ? p.at.key() : 0;
    INDArray valueRows = p.shiftedValues == null ? p.projected : p.shiftedValues;
    long valueColumn = p.shiftedValues == null ? p.at.value() : 0;

    p.rotation = rotation(cache == null ? 0 : cache.position(), time);
    if (c.isQkNorm()) {
      p.queryScales = matrix(p, c.getNHeads(), workspaces, memory);
      p.keyScales = matrix(p, c.getNKvHeads(), workspaces, memory);
    }
    HeadMath.rotateAndNormalise(
        p.projected, p.at.query(), c.getNHeads(), c.getHeadSize(), time, p.rotation, p.queryScales);
    HeadMath.rotateAndNormalise(
        keyRows, keyColumn, c.getNKvHeads(), c.getHeadSize(), time, p.rotation, p.keyScales);
    if (c.isGated()) {
      gate(p, training, workspaces, memory);
    }

    p.queries = Tokens.heads(p.projected, p.at.query(), minibatch, c.getNHeads(), c.getHeadSize());
    if (cache == null) {
      p.keys = Tokens.heads(keyRows, keyColumn, minibatch, c.getNKvHeads(), c.getHeadSize());
      p.values = Tokens.heads(valueRows, valueColumn, minibatch, c.getNKvHeads(), c.getHeadSize());
      p.opMask =
          p.mask == null ? null : p.mask.toArray(computeType(), minibatch, workspaces, memory);
    } else {
      cache.append(p.input, keyRows, keyColumn, valueRows, valueColumn, p.alpha, p.mask);
      p.keys = cache.keys();
      p.values = cache.values();
      p.alpha = cache.alpha();
      p.opMask = cache.mask();
      p.cached = (int) (p.keys.size(1) - time);
    }
    INDArray[] result =
        Memory.within(
            workspaces.notifyScopeBorrowed(memory),
            () ->
                OPS.gatedFwa(p.queries, p.keys, p.values, p.alpha, p.opMask, c.getWindowSize(), 0));
    p.attended = result[0];
    p.lse = result[1];
    return p;
  }

  private void projectInput(
      Pass p, boolean training, LayerWorkspaceMgr workspaces, ArrayType memory) {
    GatedFWALayer c = layerConf();
    p.input =
        Tokens.of(
            describe(),
            input,
            "input",
            c.getNIn(),
            c.getRnnDataFormat(),
            computeType(),
            workspaces,
            memory);
    if (p.input.format() == null) {
      throw Tokens.notASequence(describe(), input);
    }
    p.mask = Mask.of(describe(), maskArray, p.input.minibatch(), p.input.time());
    INDArray weights = projectionWeights(training, workspaces);
    p.projected = matrix(p, weights.columns(), workspaces, memory);
    Matrices.product(p.input.rows(), weights, p.projected);
    if (c.isHasBias()) {
      addBias(p.projected, p.at.query(), GatedFWAParamInitializer.QUERY_BIAS, training, workspaces);
      addBias(p.projected, p.at.key(), GatedFWAParamInitializer.KEY_BIAS, training, workspaces);
      addBias(p.projected, p.at.value(), GatedFWAParamInitializer.VALUE_BIAS, training, workspaces);
    }
  }

  private INDArray matrix(Pass p, long columns, LayerWorkspaceMgr workspaces, ArrayType memory) {
    return Memory.matrix(workspaces, memory, computeType(), p.input.count(), columns);
  }

  private void addBias(
      INDArray rows, long column, String key, boolean training, LayerWorkspaceMgr workspaces) {
    Matrices.addToColumns(
        rows, column, Matrices.vector(getParamWithNoise(key, training, workspaces)));
  }

  private void shift(Pass p, KeyValueCache cache, LayerWorkspaceMgr workspaces, ArrayType memory) {
    GatedFWALayer c = layerConf();
    long width = (long) c.getNKvHeads() * c.getHeadSize();
    if (c.isKeyShift()) {
      double[] last = cache == null ? null : cache.lastKey();
      p.keyShift = shiftOf(p, p.at.key(), p.at.keyShift(), last);
      p.shiftedKeys = matrix(p, width, workspaces, memory);
      p.keyShift.forward(p.shiftedKeys);
    }
    if (c.isValueShift()) {
      double[] last = cache == null ? null : cache.lastValue();
      p.valueShift = shiftOf(p, p.at.value(), p.at.valueShift(), last);
      p.shiftedValues = matrix(p, width, workspaces, memory);
      p.valueShift.forward(p.shiftedValues);
    }
    if (cache != null) {
      cache.setLast(
          p.keyShift == null ? null : p.keyShift.last(),
          p.valueShift == null ? null : p.valueShift.last());
    }
  }

  private HeadMath.Shift shiftOf(Pass p, long column, long logits, double[] last) {
    return new HeadMath.Shift(
        p.projected,
        column,
        logits,
        layerConf().getNKvHeads(),
        layerConf().getHeadSize(),
        p.input.time(),
        last,
        p.mask);
  }

  private Rotation.Run rotation(long start, long positions) {
    GatedFWALayer c = layerConf();
    if (c.getRopeBase() == 0) {
      return null;
    }
    if (rotation == null) {
      rotation = new Rotation(c.getRopeBase(), c.getHeadSize());
    }
    return rotation.run(start, positions);
  }

  private void gate(Pass p, boolean training, LayerWorkspaceMgr workspaces, ArrayType memory) {
    int heads = layerConf().getNHeads();
    p.h = matrix(p, heads, workspaces, memory);
    p.beta = matrix(p, heads, workspaces, memory);
    INDArray bias = getParamWithNoise(GatedFWAParamInitializer.GATE_BIAS, training, workspaces);
    HeadMath.gateInputs(
        p.projected, p.at.gate(), p.at.amplitude(), Matrices.vector(bias), p.h, p.beta);
    p.alpha =
        Memory.within(
            workspaces.notifyScopeBorrowed(memory),
            () -> OPS.gate(p.perHead(p.h), p.perHead(p.beta), GatedFwaOps.DEFAULT_EPS));
    Tokens.zeroRows(Memory.view(p.alpha, 0, p.input.count(), heads), p.mask, p.input.time(), 0);
  }

  /**
   * The decays alpha of the tokens of the last forward pass, as the attention sees them: the
   * larger, the more of what came before is forgotten when the token arrives.
   *
   * <p>They are to be had while the layer has its input: in a listener's {@code onForwardPass}, and
   * after a {@code feedForward} that does not clear inputs. After a pass in inference mode they are
   * computed anew, with the mask that is set now.
   *
   * @return [minibatch, time, heads], a copy; 0 at padded tokens
   * @throws IllegalStateException if the layer has no gate or no input
   */
  public INDArray decays() {
    if (!layerConf().isGated()) {
      throw new IllegalStateException(describe() + ": gated = false: there are no decays");
    }
    if (input == null) {
      throw new IllegalStateException(
          describe() + ": no input: decays can be read after a forward pass that keeps it");
    }
    return Memory.detached(
        () -> {
          Pass p = pass;
          if (p == null) {
            p = new Pass();
            p.at = Columns.of(layerConf());
            LayerWorkspaceMgr workspaces = LayerWorkspaceMgr.noWorkspaces();
            projectInput(p, false, workspaces, ArrayType.FF_WORKING_MEM);
            gate(p, false, workspaces, ArrayType.FF_WORKING_MEM);
          }
          return p.alpha
              .get(
                  NDArrayIndex.all(),
                  NDArrayIndex.interval(p.cached, p.alpha.size(1)),
                  NDArrayIndex.all())
              .dup('c');
        });
  }

  /** Output projection, bias and mask. */
  private INDArray projectOutput(Pass p, boolean training, LayerWorkspaceMgr workspaces) {
    GatedFWALayer c = layerConf();
    DataType type = computeType();
    ArrayType memory = type == dataType ? ArrayType.ACTIVATIONS : ArrayType.FF_WORKING_MEM;
    INDArray out = matrix(p, c.getNOut(), workspaces, memory);
    Matrices.product(p.concatenatedHeads(), outputWeights(training, workspaces), out);
    if (c.isHasBias()) {
      addBias(out, 0, GatedFWAParamInitializer.OUTPUT_BIAS, training, workspaces);
    }
    Tokens.zeroRows(out, p.mask, p.input.time(), 0);
    return p.input.with(out).toData(dataType, workspaces, ArrayType.ACTIVATIONS);
  }

  private INDArray outputWeights(boolean training, LayerWorkspaceMgr workspaces) {
    return getParamWithNoise(GatedFWAParamInitializer.OUTPUT_WEIGHT, training, workspaces)
        .castTo(computeType());
  }

  /** All weights of the input side by side: neighbours in memory, unless there is noise on them. */
  private INDArray projectionWeights(boolean training, LayerWorkspaceMgr workspaces) {
    GatedFWALayer c = layerConf();
    INDArray weights =
        c.getWeightNoise() == null
            ? Matrices.leading(
                paramsFlattened, c.getNIn(), GatedFWAParamInitializer.projectionSize(c))
            : Nd4j.hstack(
                params.keySet().stream()
                    .filter(GatedFWAParamInitializer::isProjection)
                    .map(key -> getParamWithNoise(key, training, workspaces))
                    .toArray(INDArray[]::new));
    return weights.castTo(computeType());
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
    // A layer that is frozen but passes gradients on made its forward pass in inference mode.
    Pass p = pass != null ? pass : attend(null, false, workspaces, ArrayType.BP_WORKING_MEM);
    long first = backLength > 0 ? Math.max(0, p.input.time() - backLength) : 0;

    INDArray dAttended = outputGradient(p, epsilon, first, workspaces);
    INDArray[] gradients =
        OPS.gatedFwaBp(
            p.queries,
            p.keys,
            p.values,
            p.alpha,
            p.opMask,
            p.attended,
            p.lse,
            Memory.view(dAttended, 0, p.attended.shape()),
            layerConf().getWindowSize(),
            0);
    INDArray dProjected = projectionGradient(p, gradients, workspaces);
    Tokens.zeroRows(dProjected, null, p.input.time(), first);
    INDArray dInput = inputGradient(p, dProjected, workspaces);

    weightNoiseParams.clear();
    Gradient gradient = new DefaultGradient(gradientsFlattened);
    gradientViews.forEach(gradient::setGradientFor);
    INDArray epsilonOut =
        p.input.with(dInput).toData(dataType, workspaces, ArrayType.ACTIVATION_GRAD);
    return new Pair<>(gradient, backpropDropOutIfPresent(epsilonOut));
  }

  /** Gradients of the output projection and, returned, of the concatenated heads. */
  private INDArray outputGradient(
      Pass p, INDArray epsilon, long first, LayerWorkspaceMgr workspaces) {
    GatedFWALayer c = layerConf();
    ArrayType memory = ArrayType.BP_WORKING_MEM;
    INDArray error =
        Tokens.of(
                describe(),
                epsilon,
                "gradient of the output",
                c.getNOut(),
                c.getRnnDataFormat(),
                computeType(),
                workspaces,
                memory)
            .rows();
    if (p.mask != null || first > 0) {
      error = workspaces.dup(memory, error, 'c');
      Tokens.zeroRows(error, p.mask, p.input.time(), first);
    }
    INDArray heads = p.concatenatedHeads();
    Matrices.weightGradient(
        heads, error, gradientViews.get(GatedFWAParamInitializer.OUTPUT_WEIGHT));
    if (c.isHasBias()) {
      putSums(GatedFWAParamInitializer.OUTPUT_BIAS, error, 0);
    }
    INDArray dHeads = matrix(p, heads.columns(), workspaces, memory);
    return Matrices.productWithTransposed(error, outputWeights(true, workspaces), dHeads);
  }

  /**
   * From the gradients of the attention's operands to that of P.
   *
   * @param gradients of queries, keys, values and, with a gate, alpha
   */
  private INDArray projectionGradient(Pass p, INDArray[] gradients, LayerWorkspaceMgr workspaces) {
    GatedFWALayer c = layerConf();
    int kvHeads = c.getNKvHeads();
    int size = c.getHeadSize();
    long time = p.input.time();
    INDArray dQuery = Memory.view(gradients[0], 0, p.input.count(), (long) c.getNHeads() * size);
    INDArray dKey = p.ownRows(gradients[1], workspaces);
    INDArray dValue = p.ownRows(gradients[2], workspaces);
    INDArray dProjected = matrix(p, p.projected.columns(), workspaces, ArrayType.BP_WORKING_MEM);

    HeadMath.rotateAndNormaliseBackward(
        p.projected,
        p.at.query(),
        dQuery,
        dProjected,
        p.at.query(),
        c.getNHeads(),
        size,
        time,
        p.rotation,
        p.queryScales);
    if (p.keyShift == null) {
      HeadMath.rotateAndNormaliseBackward(
          p.projected,
          p.at.key(),
          dKey,
          dProjected,
          p.at.key(),
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
      Matrices.copyToColumns(dValue, dProjected, p.at.value());
    } else {
      p.valueShift.backward(dValue, dProjected);
    }
    if (c.isGated()) {
      INDArray dAlpha = p.ownRows(gradients[3], workspaces);
      Tokens.zeroRows(dAlpha, p.mask, time, 0);
      INDArray[] gate =
          OPS.gateBp(p.perHead(p.h), p.perHead(p.beta), p.perHead(dAlpha), GatedFwaOps.DEFAULT_EPS);
      HeadMath.gateInputsBackward(
          Memory.view(gate[0], 0, dAlpha.shape()),
          Memory.view(gate[1], 0, dAlpha.shape()),
          p.beta,
          dProjected,
          p.at.gate(),
          p.at.amplitude());
    }
    return dProjected;
  }

  /** Gradients of the projections and, returned, of the input. */
  private INDArray inputGradient(Pass p, INDArray dProjected, LayerWorkspaceMgr workspaces) {
    GatedFWALayer c = layerConf();
    if (c.isGated()) {
      putSums(GatedFWAParamInitializer.GATE_BIAS, dProjected, p.at.gate());
    }
    if (c.isHasBias()) {
      putSums(GatedFWAParamInitializer.QUERY_BIAS, dProjected, p.at.query());
      putSums(GatedFWAParamInitializer.KEY_BIAS, dProjected, p.at.key());
      putSums(GatedFWAParamInitializer.VALUE_BIAS, dProjected, p.at.value());
    }
    Matrices.weightGradient(
        p.input.rows(),
        dProjected,
        Matrices.leading(gradientsFlattened, c.getNIn(), dProjected.columns()));
    ArrayType memory =
        computeType() == dataType ? ArrayType.ACTIVATION_GRAD : ArrayType.BP_WORKING_MEM;
    return Matrices.productWithTransposed(
        dProjected, projectionWeights(true, workspaces), matrix(p, c.getNIn(), workspaces, memory));
  }

  /** The gradient of a bias: sums of as many columns as it has elements. */
  private void putSums(String key, INDArray rows, long column) {
    INDArray view = gradientViews.get(key);
    Matrices.assign(view, Matrices.columnSums(rows, column, (int) view.length()));
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
