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
 */
record Scope(
    boolean training,
    LayerWorkspaceMgr workspaces,
    ArrayType memory,
    ArrayType scratch,
    DataType type) {

  /** A token matrix to keep. */
  INDArray matrix(long rows, long columns) {
    return Memory.matrix(workspaces, memory, type, rows, columns);
  }

  /** A token matrix to forget. */
  INDArray scratchMatrix(long rows, long columns) {
    return Memory.matrix(workspaces, scratch, type, rows, columns);
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
