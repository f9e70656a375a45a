package io.github.gatedfwa.samediff;

import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;
import org.nd4j.linalg.api.ndarray.INDArray;

/** What {@link GatedFwa} and {@link GatedFwaBp} share: window, scale and the optional inputs. */
abstract class AttentionOp extends NativeOp {

  AttentionOp() {}

  AttentionOp(INDArray[] inputs, INDArray[] outputs) {
    super(inputs, outputs);
  }

  AttentionOp(SameDiff sameDiff, SDVariable[] inputs) {
    super(sameDiff, inputs);
  }

  final void addArguments(long window, double scale, boolean hasAlpha, boolean hasMask) {
    // libnd4j keeps 32 bits; a window of 2^31 − 1 covers any array.
    addIArgument(Math.min(window, Integer.MAX_VALUE));
    addTArgument(scale);
    addBArgument(hasAlpha, hasMask);
  }

  /** The window w: a query sees w keys, its own included. */
  public final long window() {
    return getIArgument(0);
  }

  /** The factor of the products q·k; 0 stands for 1/√D. */
  public final double scale() {
    return numTArguments() == 0 ? 0 : getTArgument(0);
  }

  /** Whether alpha is among the inputs. */
  public final boolean hasAlpha() {
    return numBArguments() > 0 && getBArgument(0);
  }

  /** Whether the mask is among the inputs. */
  public final boolean hasMask() {
    return numBArguments() > 1 && getBArgument(1);
  }
}
