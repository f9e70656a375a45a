package io.github.gatedfwa.layers.runtime;

import io.github.gatedfwa.layers.SwiGLULayer;
import io.github.gatedfwa.layers.params.SwiGLUParamInitializer;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.deeplearning4j.nn.workspace.ArrayType;
import org.deeplearning4j.nn.workspace.LayerWorkspaceMgr;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

/**
 * Run-time layer of {@link SwiGLULayer}, where the formula is. W1 and W3 lie side by side and make
 * one matrix product U = x [W1 | W3]; a training forward pass keeps U and the hidden layer.
 */
public final class SwiGLU extends TokenWise<SwiGLULayer> {
  private static final long serialVersionUID = 1L;

  private transient StepMemory stepMemory; // null until it is needed
  private transient INDArray gates; // U [tokens, 2 * hiddenSize]
  private transient INDArray hidden; // silu(x W1) * (x W3) [tokens, hiddenSize]

  public SwiGLU(NeuralNetConfiguration conf, DataType dataType) {
    super(conf, dataType);
  }

  @Override
  void forward(INDArray in, INDArray out, boolean training, LayerWorkspaceMgr workspaces) {
    StepMemory step = training ? null : stepMemory(in.rows());
    hide(
        in,
        training,
        workspaces,
        training ? ArrayType.ACTIVATIONS : ArrayType.FF_WORKING_MEM,
        step);
    Matrices.product(hidden, downWeights(training, workspaces), out, step);
    if (layerConf().isHasBias()) {
      addBias(out, 0, SwiGLUParamInitializer.DOWN_BIAS, training, workspaces);
    }
    if (!training) {
      forget();
    }
  }

  /** The memory of passes over as few tokens as this one, from its beginning; null if too many. */
  private StepMemory stepMemory(long tokens) {
    if (!StepMemory.suits(tokens, 1)) {
      return null;
    }
    stepMemory = StepMemory.begin(stepMemory);
    return stepMemory;
  }

  /**
   * Computes {@link #gates} and {@link #hidden} in memory of the given type.
   *
   * @param step null for none
   */
  private void hide(
      INDArray in,
      boolean training,
      LayerWorkspaceMgr workspaces,
      ArrayType memory,
      StepMemory step) {
    long tokens = in.rows();
    int size = layerConf().getHiddenSize();
    Scope scope = new Scope(training, workspaces, memory, memory, computeType(), step);
    gates = scope.matrix(tokens, 2L * size);
    hidden = scope.matrix(tokens, size);
    Matrices.product(in, upWeights(training, workspaces, step), gates, step);
    if (layerConf().isHasBias()) {
      addBias(gates, 0, SwiGLUParamInitializer.GATE_BIAS, training, workspaces);
      addBias(gates, size, SwiGLUParamInitializer.UP_BIAS, training, workspaces);
    }
    Elements u = Elements.read(gates);
    Elements s = Elements.write(hidden);
    Parallel.forEach(
        (int) tokens,
        size,
        (from, to) -> {
          double[] a = new double[size];
          double[] b = new double[size];
          for (int t = from; t < to; t++) {
            u.load(2L * t * size, a, size);
            u.load((2L * t + 1) * size, b, size);
            for (int i = 0; i < size; i++) {
              a[i] = a[i] * HeadMath.sigmoid(a[i]) * b[i];
            }
            s.store((long) t * size, a, size);
          }
        });
  }

  @Override
  void backward(
      INDArray in,
      INDArray gradient,
      INDArray out,
      boolean training,
      LayerWorkspaceMgr workspaces) {
    if (!training) {
      hide(in, false, workspaces, ArrayType.BP_WORKING_MEM, null);
    }
    long tokens = in.rows();
    int size = layerConf().getHiddenSize();
    Matrices.weightGradient(
        hidden, gradient, gradientViews.get(SwiGLUParamInitializer.DOWN_WEIGHT));
    INDArray dHidden =
        Memory.matrix(workspaces, ArrayType.BP_WORKING_MEM, computeType(), tokens, size);
    Matrices.productWithTransposed(gradient, downWeights(training, workspaces), dHidden);
    INDArray dGates =
        Memory.matrix(workspaces, ArrayType.BP_WORKING_MEM, computeType(), tokens, 2L * size);
    Elements u = Elements.read(gates);
    Elements ds = Elements.read(dHidden);
    Elements du = Elements.write(dGates);
    Parallel.forEach(
        (int) tokens,
        size,
        (from, to) -> {
          double[] a = new double[size];
          double[] b = new double[size];
          double[] d = new double[size];
          for (int t = from; t < to; t++) {
            u.load(2L * t * size, a, size);
            u.load((2L * t + 1) * size, b, size);
            ds.load((long) t * size, d, size);
            for (int i = 0; i < size; i++) {
              double sigmoid = HeadMath.sigmoid(a[i]);
              double silu = a[i] * sigmoid;
              a[i] = d[i] * b[i] * (sigmoid + silu * (1 - sigmoid));
              b[i] = d[i] * silu;
            }
            du.store(2L * t * size, a, size);
            du.store((2L * t + 1) * size, b, size);
          }
        });
    Matrices.weightGradient(
        in, dGates, Matrices.leading(gradientsFlattened, in.columns(), 2L * size, null));
    if (layerConf().isHasBias()) {
      putSums(SwiGLUParamInitializer.GATE_BIAS, dGates, 0, size);
      putSums(SwiGLUParamInitializer.UP_BIAS, dGates, size, size);
      putSums(SwiGLUParamInitializer.DOWN_BIAS, gradient, 0, (int) layerConf().getNOut());
    }
    Matrices.productWithTransposed(dGates, upWeights(training, workspaces, null), out);
  }

  private void addBias(
      INDArray rows, long column, String key, boolean training, LayerWorkspaceMgr workspaces) {
    Matrices.addToColumns(
        rows, column, Matrices.vector(getParamWithNoise(key, training, workspaces)));
  }

  private void putSums(String key, INDArray rows, long column, int n) {
    Matrices.assign(gradientViews.get(key), Matrices.columnSums(rows, column, n));
  }

  private INDArray downWeights(boolean training, LayerWorkspaceMgr workspaces) {
    return getParamWithNoise(SwiGLUParamInitializer.DOWN_WEIGHT, training, workspaces)
        .castTo(computeType());
  }

  private INDArray upWeights(boolean training, LayerWorkspaceMgr workspaces, StepMemory step) {
    INDArray weights =
        layerConf().getWeightNoise() == null
            ? Matrices.leading(
                paramsFlattened, layerConf().getNIn(), 2L * layerConf().getHiddenSize(), step)
            : Nd4j.hstack(
                getParamWithNoise(SwiGLUParamInitializer.GATE_WEIGHT, training, workspaces),
                getParamWithNoise(SwiGLUParamInitializer.UP_WEIGHT, training, workspaces));
    return weights.castTo(computeType());
  }

  private void forget() {
    gates = null;
    hidden = null;
  }

  @Override
  public boolean hasBias() {
    return layerConf().isHasBias();
  }

  @Override
  public void setInput(INDArray input, LayerWorkspaceMgr workspaceMgr) {
    super.setInput(input, workspaceMgr);
    forget();
  }

  @Override
  public void clear() {
    super.clear();
    forget();
  }
}
