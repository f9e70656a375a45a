package io.github.gatedfwa.samediff;

import java.util.List;
import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * The gradients of {@link GatedFwaGate}, the native op {@code gated_fwa_gate_bp}: of h, beta and
 * dalpha, all [B, M, H], FLOAT or DOUBLE, it makes dh and dbeta of the same shape.
 */
public final class GatedFwaGateBp extends NativeOp {

  /** For {@code SameDiff.load}. */
  public GatedFwaGateBp() {}

  /**
   * The op on arrays; {@code Nd4j.exec} gives [dh, dbeta].
   *
   * @throws IllegalArgumentException if an argument is not as described
   * @throws io.github.gatedfwa.nativeops.NativeLibraryException if there is no native library
   */
  public GatedFwaGateBp(INDArray h, INDArray beta, INDArray dalpha, double eps) {
    this(h, beta, dalpha, eps, null);
  }

  /** The op on arrays, into {@code outputs} (dh, dbeta) unless that is null. See above. */
  public GatedFwaGateBp(
      INDArray h, INDArray beta, INDArray dalpha, double eps, INDArray[] outputs) {
    super(new INDArray[] {h, beta, dalpha}, outputs);
    Arguments.gateGradient("gated_fwa_gate_bp", h, beta, dalpha, eps);
    addTArgument(eps);
  }

  /** The op in a graph; {@link #outputVariables()} are dh and dbeta. */
  public GatedFwaGateBp(
      SameDiff sameDiff, SDVariable h, SDVariable beta, SDVariable dalpha, double eps) {
    super(
        sameDiff,
        new SDVariable[] {
          Arguments.present("gated_fwa_gate_bp", "h", h),
          Arguments.present("gated_fwa_gate_bp", "beta", beta),
          Arguments.present("gated_fwa_gate_bp", "dalpha", dalpha)
        });
    Arguments.eps("gated_fwa_gate_bp", eps);
    addTArgument(eps);
  }

  @Override
  public String opName() {
    return "gated_fwa_gate_bp";
  }

  @Override
  public int getNumOutputs() {
    return 2;
  }

  @Override
  public List<DataType> calculateOutputDataTypes(List<DataType> dataTypes) {
    return List.of(dataTypes.get(0), dataTypes.get(0));
  }

  @Override
  public List<SDVariable> doDiff(List<SDVariable> gradients) {
    throw new UnsupportedOperationException(
        "gated_fwa_gate_bp: second derivatives are not supported");
  }
}
