package io.github.gatedfwa.layers.runtime;

import java.util.Arrays;
import org.deeplearning4j.exception.DL4JInvalidInputException;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.conf.layers.Layer;
import org.deeplearning4j.nn.workspace.ArrayType;
import org.deeplearning4j.nn.workspace.LayerWorkspaceMgr;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * A matrix with one row per token, [minibatch · time, size] in 'c' order, and where it came from:
 * this is the layout that the layers compute in, whatever the format of their data. Token t of
 * example b is row b · time + t.
 *
 * @param rows the matrix
 * @param minibatch number of examples
 * @param time number of tokens per example; 1 for feed-forward data
 * @param format format of the data, null for feed-forward data [minibatch, size]
 */
record Tokens(INDArray rows, long minibatch, long time, RNNFormat format) {
  /**
   * Input or gradient of a layer as tokens, without a copy where memory already lies so.
   *
   * @param layer description of the layer for messages
   * @param array [minibatch, size, time], [minibatch, time, size] or [minibatch, size]
   * @param what name of the array for messages
   * @param size what size must be
   * @throws DL4JInvalidInputException if the array has another rank or size
   */
  static Tokens of(
      String layer,
      INDArray array,
      String what,
      long size,
      RNNFormat format,
      DataType type,
      LayerWorkspaceMgr workspaces,
      ArrayType arrayType) {
    boolean sequence = array.rank() == 3;
    INDArray tokens = sequence && format == RNNFormat.NCW ? array.permute(0, 2, 1) : array;
    if ((!sequence && array.rank() != 2) || tokens.size(-1) != size) {
      throw new DL4JInvalidInputException(
          "%s: %s has shape %s; expected %s with size %d"
              .formatted(
                  layer,
                  what,
                  Arrays.toString(array.shape()),
                  format == RNNFormat.NWC ? "[minibatch, time, size]" : "[minibatch, size, time]",
                  size));
    }
    long minibatch = tokens.size(0);
    long time = sequence ? tokens.size(1) : 1;
    if (minibatch * time == 0) {
      throw new DL4JInvalidInputException(
          "%s: %s is empty: shape %s".formatted(layer, what, Arrays.toString(array.shape())));
    }
    if (tokens.dataType() != type || !rowsFollow(tokens)) {
      INDArray copy = workspaces.createUninitialized(arrayType, type, tokens.shape(), 'c');
      tokens = copy.assign(tokens);
    }
    return new Tokens(
        Memory.view(tokens, 0, minibatch * time, size), minibatch, time, sequence ? format : null);
  }

  /** Type and name of a layer for messages. Made in every pass: no format string. */
  static String describe(Layer layer) {
    return layer.getClass().getSimpleName() + " \"" + layer.getLayerName() + "\"";
  }

  /** The error for data that must be a sequence and is not. */
  static DL4JInvalidInputException notASequence(String layer, INDArray array) {
    return new DL4JInvalidInputException(
        "%s: input has shape %s; expected rank 3".formatted(layer, Arrays.toString(array.shape())));
  }

  /** Whether memory holds the array in 'c' order without gaps, whatever its order is said to be. */
  private static boolean rowsFollow(INDArray array) {
    long expected = 1;
    for (int d = array.rank() - 1; d >= 0; d--) {
      if (array.size(d) > 1 && array.stride(d) != expected) {
        return false;
      }
      expected *= array.size(d);
    }
    return true;
  }

  /** These tokens with another matrix. */
  Tokens with(INDArray matrix) {
    return new Tokens(matrix, minibatch, time, format);
  }

  /**
   * These tokens with zeros where the mask hides them and before step {@code first}: a copy, unless
   * nothing is hidden. A product with what stands there would not be 0 if it is NaN or infinite.
   */
  Tokens hiding(Mask mask, long first, LayerWorkspaceMgr workspaces, ArrayType arrayType) {
    if (mask == null && first == 0) {
      return this;
    }
    INDArray copy = workspaces.dup(arrayType, rows, 'c');
    zeroRows(copy, mask, time, first);
    return with(copy);
  }

  /** The matrix in the format that it came from, as a view. */
  INDArray toData() {
    if (format == null) {
      return rows;
    }
    INDArray sequence = Memory.view(rows, 0, minibatch, time, rows.columns());
    return format == RNNFormat.NCW ? sequence.permute(0, 2, 1) : sequence;
  }

  /** The matrix in the network's type and the format that it came from, in the given workspace. */
  INDArray toData(DataType type, LayerWorkspaceMgr workspaces, ArrayType arrayType) {
    if (rows.dataType() == type) {
      return toData();
    }
    INDArray converted = workspaces.createUninitialized(arrayType, type, rows.shape(), 'c');
    return with(converted.assign(rows)).toData();
  }

  int count() {
    return Math.toIntExact(minibatch * time);
  }

  /**
   * Heads in the columns of a token matrix as [minibatch, time, heads, size], a view.
   *
   * @param column first column
   * @param step null for none
   */
  static INDArray heads(
      INDArray rows, long column, long minibatch, long heads, long size, StepMemory step) {
    long time = rows.rows() / minibatch;
    long width = rows.columns();
    long[] shape = {minibatch, time, heads, size};
    long[] strides = {time * width, width, size, 1};
    return StepMemory.view(step, rows, column, shape, strides, 'c');
  }

  /** Sets whole rows to zero where the mask does, and all before step {@code first}. */
  static void zeroRows(INDArray rows, Mask mask, long time, long first) {
    if (mask == null && first == 0) {
      return;
    }
    Elements x = Elements.write(rows);
    int width = rows.columns();
    double[] zeros = new double[width];
    for (int t = 0; t < rows.rows(); t++) {
      if (t % time < first || (mask != null && !mask.isReal(t))) {
        x.store((long) t * width, zeros, width);
      }
    }
  }
}
