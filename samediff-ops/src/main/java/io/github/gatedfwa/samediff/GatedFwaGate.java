package io.github.gatedfwa.samediff;

import java.util.Arrays;
import java.util.List;
import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * The gate of GatedFWA (arXiv 2512.07782), the native op {@code gated_fwa_gate}: the decay
 *
 * <pre>  alpha = softplus(−beta · h) / (beta + eps)</pre>
 *
 * of gate logits h and amplitudes beta &gt; 0, all [B, M, H] (batch, length, heads), FLOAT or
 * DOUBLE. A large h remembers; exp(−alpha) is the forget gate.
 */
public final class GatedFwaGate extends NativeOp {

  /** For {@code SameDiff.load}. */
  public GatedFwaGate() {}

  /**
   * The op on arrays; {@code Nd4j.exec} gives [alpha].
   *
   * @param eps finite, at least 0; {@link GatedFwaOps#DEFAULT_EPS} is the authors'
   * @throws IllegalArgumentException if an argument is not as described
   * @throws io.github.gatedfwa.nativeops.NativeLibraryException if there is no native library
   */
  public GatedFwaGate(INDArray h, INDArray beta, double eps) {
    this(h, beta, eps, null);
  }

  /** The op on arrays, into alpha unless that is null. See above. */
  public GatedFwaGate(INDArray h, INDArray beta, double eps, INDArray alpha) {
    super(new INDArray[] {h, beta}, alpha == null ? null : new INDArray[] {alpha});
    Arguments.gate("gated_fwa_gate", h, beta, eps);
    addTArgument(eps);
  }

  /** The op in a graph. */
  public GatedFwaGate(SameDiff sameDiff, SDVariable h, SDVariable beta, double eps) {
    super(
        sameDiff,
        new SDVariable[] {
          Arguments.present("gated_fwa_gate", "h", h),
          Arguments.present("gated_fwa_gate", "beta", beta)
        });
    Arguments.eps("gated_fwa_gate", eps);
    addTArgument(eps);
  }

  /** The summand of the divisor. */
  public double eps() {
    return numTArguments() == 0 ? GatedFwaOps.DEFAULT_EPS : getTArgument(0);
  }

  @Override
  public String opName() {
    return "gated_fwa_gate";
  }

  @Override
  public int getNumOutputs() {
    return 1;
  }

  @Override
  public List<DataType> calculateOutputDataTypes(List<DataType> dataTypes) {
    return List.of(dataTypes.get(0));
  }

  @Override
  public List<SDVariable> doDiff(List<SDVariable> gradients) {
    return Arrays.asList(
        new GatedFwaGateBp(sameDiff, arg(0), arg(1), gradients.get(0), eps()).outputVariables());
  }
}
