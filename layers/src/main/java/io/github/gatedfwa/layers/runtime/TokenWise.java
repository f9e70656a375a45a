package io.github.gatedfwa.layers.runtime;

import io.github.gatedfwa.layers.TokenWiseLayer;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.deeplearning4j.nn.gradient.DefaultGradient;
import org.deeplearning4j.nn.gradient.Gradient;
import org.deeplearning4j.nn.layers.BaseLayer;
import org.deeplearning4j.nn.workspace.ArrayType;
import org.deeplearning4j.nn.workspace.LayerWorkspaceMgr;
import org.nd4j.common.primitives.Pair;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * Run-time layer of a {@link TokenWiseLayer}: formats, masks, dropout and types around a function
 * of token matrices.
 *
 * @param <C> the configuration
 */
abstract class TokenWise<C extends TokenWiseLayer> extends BaseLayer<C> {
  private static final long serialVersionUID = 1L;

  /** Whether there was a forward pass of this input in training, with dropout and weight noise. */
  private transient boolean trained;

  TokenWise(NeuralNetConfiguration conf, DataType dataType) {
    super(conf, dataType);
  }

  /**
   * @param in [tokens, nIn]
   * @param out [tokens, nOut] to write
   */
  abstract void forward(INDArray in, INDArray out, boolean training, LayerWorkspaceMgr workspaces);

  /**
   * Also writes the parameters' gradients into {@link #gradientViews}.
   *
   * @param in [tokens, nIn]
   * @param gradient [tokens, nOut]
   * @param out gradient of in, [tokens, nIn], to write
   * @param training whether the forward pass was one of training; it is not in a layer that is
   *     frozen but passes gradients on
   */
  abstract void backward(
      INDArray in, INDArray gradient, INDArray out, boolean training, LayerWorkspaceMgr workspaces);

  /** Half types are computed in FLOAT. */
  final DataType computeType() {
    return dataType == DataType.FLOAT16 ? DataType.FLOAT : dataType;
  }

  private String describe() {
    return Tokens.describe(layerConf());
  }

  /** Input or gradient as tokens, with zeros at padding. */
  private Tokens tokens(
      INDArray array, String what, long size, LayerWorkspaceMgr workspaces, ArrayType memory) {
    Tokens tokens =
        Tokens.of(
            describe(),
            array,
            what,
            size,
            layerConf().getRnnDataFormat(),
            computeType(),
            workspaces,
            memory);
    return tokens.hiding(mask(tokens), 0, workspaces, memory);
  }

  @Override
  public INDArray activate(boolean training, LayerWorkspaceMgr workspaceMgr) {
    assertInputSet(false);
    applyDropOutIfNecessary(training, workspaceMgr);
    trained = training;
    DataType type = computeType();
    Tokens in =
        tokens(input, "input", layerConf().getNIn(), workspaceMgr, ArrayType.FF_WORKING_MEM);
    INDArray out =
        Memory.matrix(
            workspaceMgr,
            type == dataType ? ArrayType.ACTIVATIONS : ArrayType.FF_WORKING_MEM,
            type,
            in.count(),
            layerConf().getNOut());
    forward(in.rows(), out, training, workspaceMgr);
    Tokens.zeroRows(out, mask(in), in.time(), 0);
    return in.with(out).toData(dataType, workspaceMgr, ArrayType.ACTIVATIONS);
  }

  private Mask mask(Tokens in) {
    return Mask.of(describe(), maskArray, in.minibatch(), in.time());
  }

  @Override
  public Pair<Gradient, INDArray> backpropGradient(
      INDArray epsilon, LayerWorkspaceMgr workspaceMgr) {
    assertInputSet(true);
    DataType type = computeType();
    Tokens in =
        tokens(input, "input", layerConf().getNIn(), workspaceMgr, ArrayType.BP_WORKING_MEM);
    Tokens error =
        tokens(
            epsilon,
            "gradient of the output",
            layerConf().getNOut(),
            workspaceMgr,
            ArrayType.BP_WORKING_MEM);
    INDArray out =
        Memory.matrix(
            workspaceMgr,
            type == dataType ? ArrayType.ACTIVATION_GRAD : ArrayType.BP_WORKING_MEM,
            type,
            in.count(),
            layerConf().getNIn());
    backward(in.rows(), error.rows(), out, trained, workspaceMgr);
    weightNoiseParams.clear();
    Gradient gradient = new DefaultGradient(gradientsFlattened);
    gradientViews.forEach(gradient::setGradientFor);
    INDArray epsilonOut = in.with(out).toData(dataType, workspaceMgr, ArrayType.ACTIVATION_GRAD);
    return new Pair<>(gradient, trained ? backpropDropOutIfPresent(epsilonOut) : epsilonOut);
  }

  @Override
  public void setInput(INDArray input, LayerWorkspaceMgr workspaceMgr) {
    super.setInput(input, workspaceMgr);
    trained = false;
  }

  @Override
  public boolean isPretrainLayer() {
    return false;
  }
}
