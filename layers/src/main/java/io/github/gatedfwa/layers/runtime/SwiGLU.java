package io.github.gatedfwa.layers.runtime;

import io.github.gatedfwa.layers.SwiGLULayer;
import io.github.gatedfwa.layers.params.SwiGLUParamInitializer;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.deeplearning4j.nn.workspace.ArrayType;
import org.deeplearning4j.nn.workspace.LayerWorkspaceMgr;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.indexing.NDArrayIndex;

/**
 * Run-time layer of {@link SwiGLULayer}, where the formula is. W1 and W3 lie side by side and make
 * one matrix product U = x [W1 | W3]; a training forward pass keeps U and the hidden layer.
 */
public final class SwiGLU extends TokenWise<SwiGLULayer> {
  private static final long serialVersionUID = 1L;

  private transient INDArray gates; // U [tokens, 2 * hiddenSize]
  private transient INDArray hidden; // silu(x W1) * (x W3) [tokens, hiddenSize]

  public SwiGLU(NeuralNetConfiguration conf, DataType dataType) {
    super(conf, dataType);
  }

  @Override
  void forward(INDArray in, INDArray out, boolean training, LayerWorkspaceMgr workspaces) {
    hide(in, training, workspaces, training ? ArrayType.ACTIVATIONS : ArrayType.FF_WORKING_MEM);
    Tokens.multiply(hidden, false, downWeights(training, workspaces), false, out);
    if (layerConf().isHasBias()) {
      addBias(out, 0, SwiGLUParamInitializer.DOWN_BIAS, training, workspaces);
    }
    if (!training) {
      forget();
    }
  }

  /** Computes {@link #gates} and {@link #hidden} in memory of the given type. */
  private void hide(INDArray in, boolean training, LayerWorkspaceMgr workspaces, ArrayType memory) {
    long tokens = in.rows();
    int size = layerConf().getHiddenSize();
    gates =
        workspaces.createUninitialized(memory, computeType(), new long[] {tokens, 2L * size}, 'c');
    hidden = workspaces.createUninitialized(memory, computeType(), new long[] {tokens, size}, 'c');
    Tokens.multiply(in, false, upWeights(training, workspaces), false, gates);
    if (layerConf().isHasBias()) {
      addBias(gates, 0, SwiGLUParamInitializer.GATE_BIAS, training, workspaces);
      addBias(gates, size, SwiGLUParamInitializer.UP_BIAS, training, workspaces);
    }
    Elements u = Elements.read(gates);
    Elements s = Elements.write(hidden);
    Tokens.forEach(
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
  void backward(INDArray in, INDArray gradient, INDArray out, LayerWorkspaceMgr workspaces) {
    if (hidden == null) {
      // A layer that is frozen but passes gradients on made its forward pass in inference mode.
      hide(in, false, workspaces, ArrayType.BP_WORKING_MEM);
    }
    long tokens = in.rows();
    int size = layerConf().getHiddenSize();
    Tokens.multiplyInto(
        hidden, true, gradient, false, gradientViews.get(SwiGLUParamInitializer.DOWN_WEIGHT));
    INDArray dHidden =
        workspaces.createUninitialized(
            ArrayType.BP_WORKING_MEM, computeType(), new long[] {tokens, size}, 'c');
    Tokens.multiply(gradient, false, downWeights(true, workspaces), true, dHidden);
    INDArray dGates =
        workspaces.createUninitialized(
            ArrayType.BP_WORKING_MEM, computeType(), new long[] {tokens, 2L * size}, 'c');
    Elements u = Elements.read(gates);
    Elements ds = Elements.read(dHidden);
    Elements du = Elements.write(dGates);
    Tokens.forEach(
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
    Tokens.multiplyInto(in, true, dGates, false, upPart(gradientsFlattened));
    if (layerConf().isHasBias()) {
      putSums(SwiGLUParamInitializer.GATE_BIAS, dGates, 0, size);
      putSums(SwiGLUParamInitializer.UP_BIAS, dGates, size, size);
      putSums(SwiGLUParamInitializer.DOWN_BIAS, gradient, 0, (int) layerConf().getNOut());
    }
    Tokens.multiply(dGates, false, upWeights(true, workspaces), true, out);
  }

  private void addBias(
      INDArray rows, long column, String key, boolean training, LayerWorkspaceMgr workspaces) {
    Tokens.addToColumns(rows, column, Tokens.vector(getParamWithNoise(key, training, workspaces)));
  }

  private void putSums(String key, INDArray rows, long column, int n) {
    Tokens.assign(gradientViews.get(key), Tokens.columnSums(rows, column, n));
  }

  private INDArray downWeights(boolean training, LayerWorkspaceMgr workspaces) {
    return getParamWithNoise(SwiGLUParamInitializer.DOWN_WEIGHT, training, workspaces)
        .castTo(computeType());
  }

  private INDArray upWeights(boolean training, LayerWorkspaceMgr workspaces) {
    INDArray weights =
        layerConf().getWeightNoise() == null
            ? upPart(paramsFlattened)
            : Nd4j.hstack(
                getParamWithNoise(SwiGLUParamInitializer.GATE_WEIGHT, training, workspaces),
                getParamWithNoise(SwiGLUParamInitializer.UP_WEIGHT, training, workspaces));
    return weights.castTo(computeType());
  }

  private INDArray upPart(INDArray flattened) {
    long rows = layerConf().getNIn();
    long columns = 2L * layerConf().getHiddenSize();
    return flattened
        .reshape(flattened.length())
        .get(NDArrayIndex.interval(0, rows * columns))
        .reshape('f', rows, columns);
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
