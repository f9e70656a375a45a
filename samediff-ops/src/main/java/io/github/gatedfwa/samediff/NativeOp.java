package io.github.gatedfwa.samediff;

import io.github.gatedfwa.nativeops.NativeLibrary;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.api.ops.CustomOpDescriptor;
import org.nd4j.linalg.api.ops.DynamicCustomOp;

/**
 * An op of the plug-in. It knows its hash from the plug-in, not from ND4J's list of ops, which may
 * have been made before; its attributes are its integer, floating-point and boolean arguments,
 * which is all that is saved of it.
 */
abstract class NativeOp extends DynamicCustomOp {

  /** For {@code SameDiff.load}, which adds the arguments. */
  NativeOp() {}

  NativeOp(INDArray[] inputs, INDArray[] outputs) {
    super(null, present(inputs), outputs);
    if (outputs != null && Arrays.asList(outputs).contains(null)) {
      throw new IllegalArgumentException(
          opName() + ": one of the outputs is null; expected " + outputs.length + " arrays");
    }
    GatedFwaOps.load();
  }

  NativeOp(SameDiff sameDiff, SDVariable[] inputs) {
    super(
        null, sameDiff, Arrays.stream(inputs).filter(Objects::nonNull).toArray(SDVariable[]::new));
    GatedFwaOps.load();
  }

  /** All but the optional inputs that are absent. */
  private static INDArray[] present(INDArray[] inputs) {
    return Arrays.stream(inputs).filter(Objects::nonNull).toArray(INDArray[]::new);
  }

  @Override
  public abstract String opName();

  @Override
  public long opHash() {
    return getDescriptor().getHash();
  }

  @Override
  public CustomOpDescriptor getDescriptor() {
    return NativeLibrary.descriptor(opName());
  }

  @Override
  public abstract int getNumOutputs();

  @Override
  public abstract List<DataType> calculateOutputDataTypes(List<DataType> dataTypes);

  /** None: the arguments are the attributes. */
  @Override
  public Map<String, Object> propertiesForFunction() {
    return Map.of();
  }

  /** Nothing to set: the arguments are the attributes. */
  @Override
  public void setPropertiesForFunction(Map<String, Object> properties) {}

  /** The type of alpha and lse beside a q of the given type. */
  static DataType accumulatorType(DataType type) {
    return type == DataType.DOUBLE ? DataType.DOUBLE : DataType.FLOAT;
  }
}
