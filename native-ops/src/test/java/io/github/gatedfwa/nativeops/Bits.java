package io.github.gatedfwa.nativeops;

import java.nio.ByteBuffer;
import java.util.Arrays;
import java.util.List;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * Type, shape and bits of an array, whatever its layout in memory, for assertions that nothing
 * changed at all: {@link INDArray#equals} allows a difference of 1e-5.
 */
public record Bits(DataType type, List<Long> shape, ByteBuffer elements) {

  /** The bits of one array. */
  public static Bits of(INDArray x) {
    byte[] elements = x.isEmpty() ? new byte[0] : x.dup('c').data().asBytes();
    return new Bits(
        x.dataType(), Arrays.stream(x.shape()).boxed().toList(), ByteBuffer.wrap(elements));
  }

  /** The bits of each array. */
  public static List<Bits> of(List<INDArray> arrays) {
    return arrays.stream().map(Bits::of).toList();
  }
}
