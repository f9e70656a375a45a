package io.github.gatedfwa.layers.runtime;

import io.github.gatedfwa.layers.AttentionLayer;
import io.github.gatedfwa.layers.params.AttentionParamInitializer;
import io.github.gatedfwa.samediff.GatedFwaOps;
import java.util.List;
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

/**
 * Run-time layer of an {@link AttentionLayer}: formats, masks, dropout, types, projections, caches
 * around what its branches do.
 *
 * <p>One matrix product makes all projections P = X [Wq | Wk | ...]; the heads are turned and
 * normalised in place in P, and the operations read them there. A training forward pass keeps what
 * the backward pass needs (in the workspace of the activations), so nothing is computed twice.
 *
 * @param <C> the configuration
 */
abstract class Attention<C extends AttentionLayer> extends BaseRecurrentLayer<C> {
  private static final long serialVersionUID = 1L;

  /** Caches of rnnTimeStep and of truncated BPTT; null when nothing has been seen. */
  private transient Caches stepCaches;

  private transient Caches tbpttCaches;

  /** The last forward pass, for the backward pass. */
  private transient Pass pass;

  private transient StepMemory stepMemory; // null until it is needed; so the next two
  private transient Projections projections;
  private transient Rotation rotation;

  Attention(NeuralNetConfiguration conf, DataType dataType) {
    super(conf, dataType);
    // Here rather than in the first forward pass, when other networks may be running.
    GatedFwaOps.isNativeAvailable();
  }

  /** Where the parts of P are. */
  abstract Projections newProjections();

  /**
   * The caches.
   *
   * @param minibatch number of examples; -1 for any
   */
  abstract List<Caches.Spec> cacheSpecs(long minibatch);

  /**
   * Attention of the queries, which are ready: sets {@code p.attended} and the branches' results.
   *
   * @param caches null for none
   */
  abstract void attend(Pass p, Caches caches, Scope scope);

  /**
   * Backward of {@link #attend}: writes the gradient of P except that of the queries.
   *
   * @param dAttended [minibatch, time, heads, headSize]
   * @return gradient of the queries, the same shape
   */
  abstract INDArray attendBackward(Pass p, INDArray dAttended, INDArray dProjected, Scope scope);

  final Projections projections() {
    if (projections == null) {
      projections = newProjections();
    }
    return projections;
  }

  @Override
  public final INDArray activate(boolean training, LayerWorkspaceMgr workspaceMgr) {
    return forward(null, scope(training, workspaceMgr));
  }

  @Override
  public final INDArray rnnTimeStep(INDArray input, LayerWorkspaceMgr workspaceMgr) {
    setInput(input, workspaceMgr);
    Caches caches = cachesFor(stepCaches, input, "rnnTimeStep");
    INDArray out = forward(caches, scope(false, workspaceMgr, stepMemory(input)));
    caches.trim();
    stepCaches = caches; // a first step that is refused begins nothing
    return out;
  }

  /** The memory of steps like this one, from its beginning; null if it is none. */
  private StepMemory stepMemory(INDArray input) {
    int timeDimension = layerConf().getRnnDataFormat() == RNNFormat.NWC ? 1 : 2;
    if (input.rank() != 3 || !StepMemory.suits(input.size(0), input.size(timeDimension))) {
      return null;
    }
    stepMemory = StepMemory.begin(stepMemory);
    return stepMemory;
  }

  @Override
  public final INDArray rnnActivateUsingStoredState(
      INDArray input, boolean training, boolean storeLastForTBPTT, LayerWorkspaceMgr workspaceMgr) {
    if (storeLastForTBPTT && layerConf().getRnnDataFormat() == RNNFormat.NWC) {
      throw new IllegalStateException(
          describe()
              + ": truncated BPTT needs the data format NCW: DL4J cuts segments along dimension 2,"
              + " which is not time in NWC");
    }
    setInput(input, workspaceMgr);
    Caches caches = cachesFor(tbpttCaches, input, "rnnActivateUsingStoredState").copy();
    INDArray out = forward(caches, scope(training, workspaceMgr));
    if (storeLastForTBPTT) {
      tbpttCaches = caches;
    }
    return out;
  }

  private Caches cachesFor(Caches caches, INDArray input, String caller) {
    if (caches == null) {
      return Caches.empty(cacheSpecs(input.size(0)));
    }
    if (caches.minibatch() < 0) {
      caches.setMinibatch(input.size(0));
    }
    if (caches.minibatch() != input.size(0)) {
      throw new IllegalStateException(
          "%s: %s with minibatch size %d, but the stored state is of minibatch size %d; call rnnClearPreviousState() between sequences"
              .formatted(describe(), caller, input.size(0), caches.minibatch()));
    }
    return caches;
  }

  /**
   * Half types are computed in FLOAT: the matrix products would overflow and lose bits otherwise.
   */
  final DataType computeType() {
    return dataType == DataType.FLOAT16 ? DataType.FLOAT : dataType;
  }

  final String describe() {
    return Tokens.describe(layerConf());
  }

  /** A parameter, with noise if there is any. */
  final INDArray param(String key, Scope scope) {
    return getParamWithNoise(key, scope.training(), scope.workspaces());
  }

  /** Where the gradient of a parameter goes. */
  final INDArray gradientView(String key) {
    return gradientViews.get(key);
  }

  /** What the last forward pass left to the backward pass; null after one in inference mode. */
  final Pass lastTrainingPass() {
    return pass;
  }

  /** The circumstances of a forward pass. */
  final Scope scope(boolean training, LayerWorkspaceMgr workspaces) {
    return scope(training, workspaces, null);
  }

  private Scope scope(boolean training, LayerWorkspaceMgr workspaces, StepMemory step) {
    return new Scope(
        training,
        workspaces,
        training ? ArrayType.ACTIVATIONS : ArrayType.FF_WORKING_MEM,
        ArrayType.FF_WORKING_MEM,
        computeType(),
        step);
  }

  private Scope backwardScope(boolean training, LayerWorkspaceMgr workspaces) {
    return new Scope(
        training,
        workspaces,
        ArrayType.BP_WORKING_MEM,
        ArrayType.BP_WORKING_MEM,
        computeType(),
        null);
  }

  private INDArray forward(Caches caches, Scope scope) {
    assertInputSet(false);
    applyDropOutIfNecessary(scope.training(), scope.workspaces());
    pass = null;
    Pass p = attend(caches, scope);
    if (scope.training()) {
      pass = p;
    }
    return projectOutput(p, scope);
  }

  /** Everything up to the output projection. */
  private Pass attend(Caches caches, Scope scope) {
    C c = layerConf();
    Pass p = new Pass(scope.step());
    projectInput(p, scope);
    long minibatch = p.input.minibatch();
    long time = p.input.time();
    p.rotation = rotation(caches == null ? 0 : caches.position(), time, 1);
    if (c.isQkNorm()) {
      p.queryScales = scope.matrix(p.input.count(), c.getNHeads());
    }
    HeadMath.rotateAndNormalise(
        p.projected, 0, c.getNHeads(), c.getHeadSize(), time, p.rotation, p.queryScales);
    p.queries =
        Tokens.heads(p.projected, 0, minibatch, c.getNHeads(), c.getHeadSize(), scope.step());
    if (caches == null && p.mask != null) {
      p.opMask = p.mask.toArray(scope.type(), minibatch, scope.workspaces(), scope.memory());
    }
    attend(p, caches, scope);
    return p;
  }

  /** The input with zeros at padding, its mask and P, the heads neither turned nor normalised. */
  final void projectInput(Pass p, Scope scope) {
    C c = layerConf();
    p.input =
        Tokens.of(
            describe(),
            input,
            "input",
            c.getNIn(),
            c.getRnnDataFormat(),
            scope.type(),
            scope.workspaces(),
            scope.memory());
    if (p.input.format() == null) {
      throw Tokens.notASequence(describe(), input);
    }
    p.mask = Mask.of(describe(), maskArray, p.input.minibatch(), p.input.time());
    p.input = p.input.hiding(p.mask, 0, scope.workspaces(), scope.memory());
    p.projected = projections().project(p.input.rows(), projectionWeights(scope), scope);
    if (c.isHasBias()) {
      for (String weight : projectionKeys()) {
        String bias = AttentionParamInitializer.biasOf(weight);
        // The gate's is added where its inputs are made.
        if (params.containsKey(bias) && !bias.equals(AttentionParamInitializer.GATE_BIAS)) {
          addBias(p.projected, projections().column(weight), bias, scope);
        }
      }
    }
    projections().copy(p.projected);
  }

  private List<String> projectionKeys() {
    return params.keySet().stream().filter(AttentionParamInitializer::isProjection).toList();
  }

  private void addBias(INDArray rows, long column, String key, Scope scope) {
    Matrices.addToColumns(rows, column, Matrices.vector(param(key, scope)));
  }

  /**
   * The rotary embedding of the positions start, start + stride, ...; null if there is none.
   *
   * @param positions how many
   */
  final Rotation.Run rotation(long start, long positions, int stride) {
    C c = layerConf();
    if (c.getRopeBase() == 0) {
      return null;
    }
    if (rotation == null) {
      rotation = new Rotation(c.getRopeBase(), c.getHeadSize());
    }
    return rotation.run(start, positions, stride);
  }

  /** Output projection, bias and mask. */
  private INDArray projectOutput(Pass p, Scope scope) {
    C c = layerConf();
    ArrayType memory = scope.type() == dataType ? ArrayType.ACTIVATIONS : ArrayType.FF_WORKING_MEM;
    INDArray out =
        Memory.matrix(scope.workspaces(), memory, scope.type(), p.input.count(), c.getNOut());
    Matrices.product(p.concatenatedHeads(), outputWeights(scope), out, scope.step());
    if (c.isHasBias()) {
      addBias(out, 0, AttentionParamInitializer.OUTPUT_BIAS, scope);
    }
    Tokens.zeroRows(out, p.mask, p.input.time(), 0);
    return p.input.with(out).toData(dataType, scope.workspaces(), ArrayType.ACTIVATIONS);
  }

  private INDArray outputWeights(Scope scope) {
    return param(AttentionParamInitializer.OUTPUT_WEIGHT, scope).castTo(scope.type());
  }

  /** All weights of the input side by side: neighbours in memory, unless there is noise on them. */
  private INDArray projectionWeights(Scope scope) {
    C c = layerConf();
    INDArray weights =
        c.getWeightNoise() == null
            ? Matrices.leading(
                paramsFlattened, c.getNIn(), c.initializer().projectionSize(c), scope.step())
            : Nd4j.hstack(
                projectionKeys().stream().map(key -> param(key, scope)).toArray(INDArray[]::new));
    return weights.castTo(scope.type());
  }

  @Override
  public final Pair<Gradient, INDArray> backpropGradient(
      INDArray epsilon, LayerWorkspaceMgr workspaceMgr) {
    return backward(epsilon, -1, workspaceMgr);
  }

  @Override
  public final Pair<Gradient, INDArray> tbpttBackpropGradient(
      INDArray epsilon, int tbpttBackLength, LayerWorkspaceMgr workspaceMgr) {
    return backward(epsilon, tbpttBackLength, workspaceMgr);
  }

  /**
   * @param backLength number of last steps that the gradient reaches; all if not positive
   */
  private Pair<Gradient, INDArray> backward(
      INDArray epsilon, int backLength, LayerWorkspaceMgr workspaces) {
    assertInputSet(true);
    // A layer that is frozen but passes gradients on made its forward pass in inference mode,
    // without dropout and weight noise.
    boolean training = pass != null;
    Scope scope = backwardScope(training, workspaces);
    Pass p = training ? pass : attend(null, scope);
    C c = layerConf();
    long first = backLength > 0 ? Math.max(0, p.input.time() - backLength) : 0;

    INDArray dAttended = outputGradient(p, epsilon, first, scope);
    INDArray dProjected = scope.matrix(p.input.count(), projections().width());
    INDArray dQueries =
        attendBackward(p, Memory.view(dAttended, 0, p.attended.shape()), dProjected, scope);
    HeadMath.rotateAndNormaliseBackward(
        p.projected,
        0,
        p.rows(dQueries),
        dProjected,
        0,
        c.getNHeads(),
        c.getHeadSize(),
        p.input.time(),
        p.rotation,
        p.queryScales);
    INDArray dOwn = projections().fold(dProjected, scope);
    Tokens.zeroRows(dOwn, null, p.input.time(), first);
    INDArray dInput = inputGradient(p, dOwn, scope);

    weightNoiseParams.clear();
    Gradient gradient = new DefaultGradient(gradientsFlattened);
    gradientViews.forEach(gradient::setGradientFor);
    INDArray epsilonOut =
        p.input.with(dInput).toData(dataType, workspaces, ArrayType.ACTIVATION_GRAD);
    return new Pair<>(gradient, training ? backpropDropOutIfPresent(epsilonOut) : epsilonOut);
  }

  /** Gradients of the output projection and, returned, of the concatenated heads. */
  private INDArray outputGradient(Pass p, INDArray epsilon, long first, Scope scope) {
    C c = layerConf();
    INDArray error =
        Tokens.of(
                describe(),
                epsilon,
                "gradient of the output",
                c.getNOut(),
                c.getRnnDataFormat(),
                scope.type(),
                scope.workspaces(),
                scope.memory())
            .hiding(p.mask, first, scope.workspaces(), scope.memory())
            .rows();
    INDArray heads = p.concatenatedHeads();
    Matrices.weightGradient(heads, error, gradientView(AttentionParamInitializer.OUTPUT_WEIGHT));
    if (c.isHasBias()) {
      putSums(AttentionParamInitializer.OUTPUT_BIAS, error, 0);
    }
    INDArray dHeads = scope.matrix(p.input.count(), heads.columns());
    return Matrices.productWithTransposed(error, outputWeights(scope), dHeads);
  }

  /** Gradients of the projections and, returned, of the input. */
  private INDArray inputGradient(Pass p, INDArray dProjected, Scope scope) {
    C c = layerConf();
    for (String weight : projectionKeys()) {
      String bias = AttentionParamInitializer.biasOf(weight);
      if (params.containsKey(bias)) {
        putSums(bias, dProjected, projections().column(weight));
      }
    }
    Matrices.weightGradient(
        p.input.rows(),
        dProjected,
        Matrices.leading(gradientsFlattened, c.getNIn(), dProjected.columns(), null));
    ArrayType memory =
        scope.type() == dataType ? ArrayType.ACTIVATION_GRAD : ArrayType.BP_WORKING_MEM;
    INDArray dInput =
        Memory.matrix(scope.workspaces(), memory, scope.type(), p.input.count(), c.getNIn());
    return Matrices.productWithTransposed(dProjected, projectionWeights(scope), dInput);
  }

  /** The gradient of a bias: sums of as many columns as it has elements. */
  private void putSums(String key, INDArray rows, long column) {
    INDArray view = gradientView(key);
    Matrices.assign(view, Matrices.columnSums(rows, column, (int) view.length()));
  }

  @Override
  public final boolean isPretrainLayer() {
    return false;
  }

  @Override
  public final Type type() {
    return Type.RECURRENT;
  }

  @Override
  public final boolean hasBias() {
    return layerConf().isHasBias();
  }

  @Override
  public final void setInput(INDArray input, LayerWorkspaceMgr workspaceMgr) {
    super.setInput(input, workspaceMgr);
    pass = null;
  }

  @Override
  public final void clear() {
    super.clear();
    pass = null;
  }

  /**
   * {@inheritDoc} The arrays are copies, those that the layer needs: keys and values [minibatch,
   * kept tokens, kvHeads, headSize], alpha [minibatch, kept tokens, heads], mask [minibatch, kept
   * tokens], lastKey and lastValue [minibatch, kvHeads, headSize] and position (a scalar). A layer
   * with several caches puts their names before these: {@code window.keys}.
   */
  @Override
  public final Map<String, INDArray> rnnGetPreviousState() {
    return stepCaches == null ? Map.of() : stepCaches.toState();
  }

  /**
   * {@inheritDoc}
   *
   * @throws IllegalArgumentException if the arrays are not those of such a layer's state
   */
  @Override
  public final void rnnSetPreviousState(Map<String, INDArray> stateMap) {
    stepCaches = Caches.fromState(describe(), cacheSpecs(-1), stateMap);
  }

  @Override
  public final Map<String, INDArray> rnnGetTBPTTState() {
    return tbpttCaches == null ? Map.of() : tbpttCaches.toState();
  }

  @Override
  public final void rnnSetTBPTTState(Map<String, INDArray> state) {
    tbpttCaches = Caches.fromState(describe(), cacheSpecs(-1), state);
  }

  @Override
  public final void rnnClearPreviousState() {
    stepCaches = null;
    stepMemory = null;
    tbpttCaches = null;
  }
}
