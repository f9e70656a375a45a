package io.github.gatedfwa.layers.runtime;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.IdentityHashMap;
import java.util.List;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

/**
 * Arrays that a layer uses again in each step of a stream: to make an ND4J array or a view takes
 * longer than to fill a row. For passes of one time step in inference mode, outside of all
 * workspaces; nothing of them may leave the layer.
 */
final class StepMemory {
  /** Rows of a step at most: what is kept must stay small. */
  private static final int MOST_ROWS = 64;

  private final List<INDArray> arrays = new ArrayList<>();
  private int next;

  /** The views of arrays that stay the same from step to step. */
  private final IdentityHashMap<INDArray, List<INDArray>> views = new IdentityHashMap<>();

  /** Whether a pass is small enough. */
  static boolean suits(long minibatch, long time) {
    return time == 1 && minibatch <= MOST_ROWS;
  }

  /**
   * Begins a step, with the arrays of the step before.
   *
   * @param memory null before the first step
   */
  static StepMemory begin(StepMemory memory) {
    StepMemory begun = memory == null ? new StepMemory() : memory;
    begun.next = 0;
    return begun;
  }

  /** The next array of the step, in 'c' order, with anything in it. */
  INDArray array(DataType type, long... shape) {
    if (next < arrays.size()
        && (arrays.get(next).dataType() != type
            || !Arrays.equals(arrays.get(next).shape(), shape))) {
      // A step of another shape.
      List<INDArray> rest = arrays.subList(next, arrays.size());
      rest.forEach(views::remove);
      rest.clear();
    }
    if (next == arrays.size()) {
      arrays.add(Memory.detached(() -> Nd4j.createUninitialized(type, shape, 'c')));
      keepViews(arrays.get(next));
    }
    return arrays.get(next++);
  }

  /** Lets {@link #view} keep the views of an array that outlives the step. */
  private void keepViews(INDArray array) {
    views.putIfAbsent(array, new ArrayList<>());
  }

  /** A view of a parameter, for all steps. */
  INDArray parameterView(INDArray parameter, long from, long[] shape, long[] strides, char order) {
    keepViews(parameter);
    return view(parameter, from, shape, strides, order);
  }

  /**
   * {@link Memory#view(INDArray, long, long[], long[], char)}, the same one in each step if it is
   * of an array of this memory.
   *
   * @param memory null for none
   */
  static INDArray view(
      StepMemory memory, INDArray array, long from, long[] shape, long[] strides, char order) {
    return memory == null
        ? Memory.view(array, from, shape, strides, order)
        : memory.view(array, from, shape, strides, order);
  }

  private INDArray view(INDArray array, long from, long[] shape, long[] strides, char order) {
    List<INDArray> known = views.get(array);
    if (known == null) {
      return Memory.view(array, from, shape, strides, order);
    }
    for (INDArray view : known) {
      if (view.offset() == array.offset() + from
          && Arrays.equals(view.shape(), shape)
          && Arrays.equals(view.stride(), strides)) {
        return view;
      }
    }
    INDArray view = Memory.detached(() -> Memory.view(array, from, shape, strides, order));
    known.add(view);
    return view;
  }
}
