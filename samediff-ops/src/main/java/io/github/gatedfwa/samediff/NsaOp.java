package io.github.gatedfwa.samediff;

import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.api.ops.impl.shape.ZerosLike;

/** What the ops of native sparse attention share: scale and the optional mask. */
abstract class NsaOp extends NativeOp {

  NsaOp() {}

  NsaOp(INDArray[] inputs, INDArray[] outputs) {
    super(inputs, outputs);
  }

  NsaOp(SameDiff sameDiff, SDVariable[] inputs) {
    super(sameDiff, inputs);
  }

  final void addArguments(double scale, boolean hasMask, long... integers) {
    addIArgument(integers);
    addTArgument(scale);
    addBArgument(hasMask);
  }

  /** The factor of the products q·k; 0 stands for 1/√D. */
  public final double scale() {
    return numTArguments() == 0 ? 0 : getTArgument(0);
  }

  /** Whether the mask is among the inputs. */
  public final boolean hasMask() {
    return numBArguments() > 0 && getBArgument(0);
  }

  /** Refuses a gradient that arrives at lse, an op's second output. */
  final void requireNoGradientOfLse(SDVariable lseGradient) {
    if (lseGradient != null
        && !(sameDiff.getVariableOutputOp(lseGradient.name()) instanceof ZerosLike)) {
      throw new UnsupportedOperationException(
          opName()
              + ": the loss depends on lse ("
              + outputVariables()[1].name()
              + "); gradients are supported through o only");
    }
  }
}
