package io.github.gatedfwa.layers.runtime;

import java.util.function.Supplier;
import org.deeplearning4j.nn.workspace.ArrayType;
import org.deeplearning4j.nn.workspace.LayerWorkspaceMgr;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.memory.MemoryWorkspace;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

/** Views of memory and where it comes from. */
final class Memory {
  private Memory() {}

  /** A contiguous 'c' order view of an array's memory from an element on. */
  static INDArray view(INDArray array, long from, long... shape) {
    return view(array, from, shape, Nd4j.getStrides(shape, 'c'), 'c');
  }

  /** A view of an array's memory from an element on. */
  static INDArray view(INDArray array, long from, long[] shape, long[] strides, char order) {
    return Nd4j.create(array.data(), shape, strides, array.offset() + from, order);
  }

  /** A matrix in 'c' order with nothing in it yet. */
  static INDArray matrix(
      LayerWorkspaceMgr workspaces, ArrayType arrayType, DataType type, long rows, long columns) {
    return workspaces.createUninitialized(arrayType, type, new long[] {rows, columns}, 'c');
  }

  /** Makes arrays outside of all workspaces. */
  static <T> T detached(Supplier<T> work) {
    return within(Nd4j.getMemoryManager().scopeOutOfWorkspaces(), work);
  }

  /** Makes arrays in a workspace, and leaves it. */
  static <T> T within(MemoryWorkspace workspace, Supplier<T> work) {
    try (workspace) {
      return work.get();
    }
  }
}
