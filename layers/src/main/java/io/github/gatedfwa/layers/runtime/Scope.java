package io.github.gatedfwa.layers.runtime;

import java.util.function.Supplier;
import org.deeplearning4j.nn.workspace.ArrayType;
import org.deeplearning4j.nn.workspace.LayerWorkspaceMgr;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * The circumstances of one forward or backward pass.
 *
 * @param training whether dropout and weight noise apply
 * @param workspaces where arrays come from
 * @param memory type of what the pass keeps
 * @param scratch type of what the layer may forget when it returns
 * @param type type that the layer computes in
 * @param step arrays that the pass uses again; null for none
 */
record Scope(
    boolean training,
    LayerWorkspaceMgr workspaces,
    ArrayType memory,
    ArrayType scratch,
    DataType type,
    StepMemory step) {

  /** An array to keep, with nothing in it yet. */
  INDArray array(long... shape) {
    return array(memory, shape);
  }

  /** A token matrix to keep. */
  INDArray matrix(long rows, long columns) {
    return array(memory, rows, columns);
  }

  /** A token matrix to forget. */
  INDArray scratchMatrix(long rows, long columns) {
    return array(scratch, rows, columns);
  }

  private INDArray array(ArrayType arrayType, long... shape) {
    return step == null
        ? workspaces.createUninitialized(arrayType, type, shape, 'c')
        : step.array(type, shape);
  }

  /** Makes arrays to keep. */
  <T> T keep(Supplier<T> work) {
    return Memory.within(workspaces.notifyScopeBorrowed(memory), work);
  }

  /** Makes arrays of which only the result is kept. */
  INDArray keepResult(Supplier<INDArray> work) {
    INDArray result = Memory.within(workspaces.notifyScopeBorrowed(scratch), work);
    return result.isEmpty() ? result : workspaces.dup(memory, result, 'c');
  }
}
