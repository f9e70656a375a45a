package io.github.gatedfwa.layers.runtime;

import java.util.Arrays;
import org.deeplearning4j.exception.DL4JInvalidInputException;
import org.deeplearning4j.nn.workspace.ArrayType;
import org.deeplearning4j.nn.workspace.LayerWorkspaceMgr;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/** Which tokens are real: a feature mask in the order of a token matrix. */
final class Mask {
  private final boolean[] real;

  private Mask(boolean[] real) {
    this.real = real;
  }

  /**
   * Reads a feature mask.
   *
   * @param layer description of the layer for messages
   * @param mask [minibatch, time], or any vector [minibatch] for feed-forward data; may be null
   * @return the mask; null if there is none or it hides nothing
   * @throws DL4JInvalidInputException if the mask does not have one element per token
   */
  static Mask of(String layer, INDArray mask, long minibatch, long time) {
    if (mask == null) {
      return null;
    }
    boolean perStep = mask.rank() == 2 && mask.size(0) == minibatch && mask.size(1) == time;
    if (!perStep && !(time == 1 && mask.length() == minibatch)) {
      throw new DL4JInvalidInputException(
          "%s: mask has shape %s; expected [%d, %d] (minibatch, time)"
              .formatted(layer, Arrays.toString(mask.shape()), minibatch, time));
    }
    float[] values = mask.castTo(DataType.FLOAT).dup('c').data().asFloat();
    boolean[] real = new boolean[values.length];
    boolean hides = false;
    for (int t = 0; t < values.length; t++) {
      real[t] = values[t] != 0;
      hides |= !real[t];
    }
    return hides ? new Mask(real) : null;
  }

  /**
   * Which blocks consist of real tokens only. Block c is the tokens from c · stride on.
   *
   * @return the blocks' mask, [minibatch, blocks]; null if it hides nothing
   */
  Mask ofBlocks(long minibatch, int blockLength, int stride) {
    int time = Math.toIntExact(real.length / minibatch);
    int blocks = time < blockLength ? 0 : (time - blockLength) / stride + 1;
    boolean[] complete = new boolean[Math.toIntExact(minibatch * blocks)];
    boolean hides = false;
    for (int i = 0; i < complete.length; i++) {
      int first = i / blocks * time + i % blocks * stride;
      complete[i] = true;
      for (int t = first; t < first + blockLength; t++) {
        complete[i] &= real[t];
      }
      hides |= !complete[i];
    }
    return hides ? new Mask(complete) : null;
  }

  boolean isReal(int token) {
    return real[token];
  }

  /** The mask as an array [minibatch, time] of ones and zeros. */
  INDArray toArray(
      DataType type, long minibatch, LayerWorkspaceMgr workspaces, ArrayType arrayType) {
    INDArray array =
        workspaces.createUninitialized(
            arrayType, type, new long[] {minibatch, real.length / minibatch}, 'c');
    Elements elements = Elements.write(array);
    for (int t = 0; t < real.length; t++) {
      elements.put(t, real[t] ? 1 : 0);
    }
    return array;
  }
}
