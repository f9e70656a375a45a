package io.github.gatedfwa.layers.runtime;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * The columns of the projections P = X [W1 | W2 | ...], and behind them copies of columns that
 * several branches use: each then has its own to turn in place and to write gradients to.
 */
final class Projections {
  private record Copy(long from, long to, int width) {}

  private final Map<String, Long> columns = new HashMap<>();
  private final List<Copy> copies = new ArrayList<>();
  private final long ownWidth;
  private final long width;

  /**
   * @param weights numbers of columns of the weights, in order
   * @param copied names of copies, in order, and the weights whose columns they are copies of
   */
  Projections(Map<String, Long> weights, Map<String, String> copied) {
    long column = 0;
    for (Map.Entry<String, Long> weight : weights.entrySet()) {
      columns.put(weight.getKey(), column);
      column += weight.getValue();
    }
    ownWidth = column;
    for (Map.Entry<String, String> copy : copied.entrySet()) {
      int n = Math.toIntExact(weights.get(copy.getValue()));
      copies.add(new Copy(columns.get(copy.getValue()), column, n));
      columns.put(copy.getKey(), column);
      column += n;
    }
    width = column;
  }

  /** First column of a weight's product or of a copy; -1 if there is none. */
  long column(String name) {
    return columns.getOrDefault(name, -1L);
  }

  long width() {
    return width;
  }

  /** P, from the input and the weights side by side. */
  INDArray project(INDArray input, INDArray weights, Scope scope) {
    INDArray projected = scope.matrix(input.rows(), width);
    if (copies.isEmpty()) {
      return Matrices.product(input, weights, projected, scope.step());
    }
    INDArray own =
        Matrices.product(input, weights, scope.scratchMatrix(input.rows(), ownWidth), scope.step());
    Matrices.copyToColumns(own, projected, 0);
    return projected;
  }

  /** Fills the copies, once biases have been added. */
  void copy(INDArray projected) {
    for (Copy copy : copies) {
      Matrices.copyColumns(projected, copy.from(), projected, copy.to(), copy.width());
    }
  }

  /** The gradient of X [W1 | W2 | ...] from that of P: a copy's goes to where it came from. */
  INDArray fold(INDArray dProjected, Scope scope) {
    if (copies.isEmpty()) {
      return dProjected;
    }
    for (Copy copy : copies) {
      Matrices.addColumns(dProjected, copy.to(), dProjected, copy.from(), copy.width());
    }
    INDArray own = scope.scratchMatrix(dProjected.rows(), ownWidth);
    Matrices.copyColumns(dProjected, 0, own, 0, Math.toIntExact(ownWidth));
    return own;
  }
}
