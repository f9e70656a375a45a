package io.github.gatedfwa.layers.runtime;

import org.deeplearning4j.nn.workspace.LayerWorkspaceMgr;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.indexing.NDArrayIndex;

/** What a forward pass leaves to the backward pass. R = minibatch · time tokens. */
final class Pass {
  private final StepMemory step; // null for none
  Tokens input; // X [R, nIn]
  Mask mask;
  INDArray projected; // P [R, width]; the heads as the operations see them
  Rotation.Run rotation; // null for none
  INDArray queryScales; // [R, heads], null without normalisation
  INDArray queries; // [minibatch, time, heads, headSize]
  INDArray opMask; // [minibatch, time] for the operations, null if all are real
  INDArray attended; // [minibatch, time, heads, headSize]

  // Results of the branches that the layer has.
  CompressionBranch.Result compression;
  SelectionBranch.Result selection;
  WindowBranch.Result window;

  /**
   * @param step null for none
   */
  Pass(StepMemory step) {
    this.step = step;
  }

  /** The attended values as a token matrix. */
  INDArray concatenatedHeads() {
    return rows(attended);
  }

  /** An array [minibatch, time, heads, size] in 'c' order as a token matrix. */
  INDArray rows(INDArray perHead) {
    return view(perHead, input.count(), perHead.size(2) * perHead.size(3));
  }

  /** A token matrix [R, heads] as the operations take it. */
  INDArray perHead(INDArray rows) {
    return view(rows, input.minibatch(), input.time(), rows.columns());
  }

  private INDArray view(INDArray array, long... shape) {
    return StepMemory.view(step, array, 0, shape, Nd4j.getStrides(shape, 'c'), 'c');
  }

  /**
   * The last rows of a gradient [minibatch, rows, ...], as a token matrix: none flows to a cache.
   *
   * @param own number of rows per example
   */
  static INDArray lastRows(INDArray gradient, long own, Scope scope) {
    long minibatch = gradient.size(0);
    long all = gradient.size(1);
    long width = gradient.length() / (minibatch * all);
    INDArray rows = gradient;
    if (own < all) {
      INDArray last =
          Memory.view(gradient, 0, minibatch, all, width)
              .get(NDArrayIndex.all(), NDArrayIndex.interval(all - own, all), NDArrayIndex.all());
      LayerWorkspaceMgr workspaces = scope.workspaces();
      rows = workspaces.dup(scope.scratch(), last, 'c');
    }
    return Memory.view(rows, 0, minibatch * own, width);
  }

  /** This pass's own rows of a gradient. */
  INDArray ownRows(INDArray gradient, Scope scope) {
    return lastRows(gradient, input.time(), scope);
  }
}
