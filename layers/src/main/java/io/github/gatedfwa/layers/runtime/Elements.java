package io.github.gatedfwa.layers.runtime;

import org.bytedeco.javacpp.indexer.DoubleIndexer;
import org.bytedeco.javacpp.indexer.FloatIndexer;
import org.nd4j.linalg.api.concurrency.AffinityManager.Location;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

/**
 * The elements of a FLOAT or DOUBLE array for plain Java, counted in memory from the array's first
 * one. The work per token between the matrix products is a few operations on short rows: one pass
 * over memory here, many passes and calls as ND4J operations.
 */
abstract sealed class Elements {
  private Elements() {}

  /** Elements of an array that is read. */
  static Elements read(INDArray array) {
    Nd4j.getAffinityManager().ensureLocation(array, Location.HOST);
    // The indexer of a view starts at the view.
    return switch (array.dataType()) {
      case FLOAT -> new Floats((FloatIndexer) array.data().indexer());
      case DOUBLE -> new Doubles((DoubleIndexer) array.data().indexer());
      default -> throw new IllegalArgumentException("not FLOAT or DOUBLE: " + array.dataType());
    };
  }

  /** Elements of an array that is written, and perhaps read. */
  static Elements write(INDArray array) {
    Elements elements = read(array);
    Nd4j.getAffinityManager().tagLocation(array, Location.HOST);
    return elements;
  }

  abstract double get(long index);

  abstract void put(long index, double value);

  /** Reads the n neighbours from index on. */
  abstract void load(long index, double[] to, int n);

  /** Writes the n neighbours from index on. */
  abstract void store(long index, double[] from, int n);

  private static final class Floats extends Elements {
    private final FloatIndexer memory;

    Floats(FloatIndexer memory) {
      this.memory = memory;
    }

    @Override
    double get(long index) {
      return memory.get(index);
    }

    @Override
    void put(long index, double value) {
      memory.put(index, (float) value);
    }

    @Override
    void load(long index, double[] to, int n) {
      for (int i = 0; i < n; i++) {
        to[i] = memory.get(index + i);
      }
    }

    @Override
    void store(long index, double[] from, int n) {
      for (int i = 0; i < n; i++) {
        memory.put(index + i, (float) from[i]);
      }
    }
  }

  private static final class Doubles extends Elements {
    private final DoubleIndexer memory;

    Doubles(DoubleIndexer memory) {
      this.memory = memory;
    }

    @Override
    double get(long index) {
      return memory.get(index);
    }

    @Override
    void put(long index, double value) {
      memory.put(index, value);
    }

    @Override
    void load(long index, double[] to, int n) {
      for (int i = 0; i < n; i++) {
        to[i] = memory.get(index + i);
      }
    }

    @Override
    void store(long index, double[] from, int n) {
      for (int i = 0; i < n; i++) {
        memory.put(index + i, from[i]);
      }
    }
  }
}
