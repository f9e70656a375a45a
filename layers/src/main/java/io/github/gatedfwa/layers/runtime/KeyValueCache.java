package io.github.gatedfwa.layers.runtime;

import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

/**
 * What an attention branch remembers of the tokens before the next one: the last so many keys (as
 * the attention uses them) and values, or all of them; for a window also decays and the last
 * projections for the token shift; and the position. A cache of compressed blocks counts blocks.
 *
 * <p>Rows are appended behind the live ones in a buffer with room for about as many again; when it
 * is full, the live rows move to a new one. So a step copies its own row only, the operations read
 * the live rows as a view, and memory is O(tokens kept).
 */
final class KeyValueCache {
  /** To keep all tokens. */
  static final int ALL = Integer.MAX_VALUE;

  /** Names of the arrays in {@link #toState}. */
  static final String KEYS = "keys";

  static final String VALUES = "values";
  static final String ALPHA = "alpha";
  static final String MASK = "mask";
  static final String LAST_KEY = "lastKey";
  static final String LAST_VALUE = "lastValue";
  static final String POSITION = "position";

  /**
   * Sizes that a cache needs to know.
   *
   * @param minibatch number of examples; -1 if a state without arrays left it open
   * @param heads query heads with a gate; 0 without one
   * @param keep number of tokens to keep, for example window - 1; or {@link #ALL}
   */
  record Shape(DataType type, long minibatch, int heads, int kvHeads, int headSize, int keep) {
    int width() {
      return kvHeads * headSize;
    }

    Shape keeping(int tokens) {
      return new Shape(type, minibatch, heads, kvHeads, headSize, tokens);
    }

    Shape with(long newMinibatch) {
      return new Shape(type, newMinibatch, heads, kvHeads, headSize, keep);
    }
  }

  private Shape shape;
  private int start;
  private int end;
  private int capacity;
  private INDArray keys; // [minibatch, capacity, kvHeads * headSize]
  private INDArray values; // the same
  private INDArray alpha; // [minibatch, capacity, heads], null without a gate
  private INDArray mask; // [minibatch, capacity], null while all tokens are real
  private double[] lastKey; // [minibatch, kvHeads * headSize] before the shift, null for zeros
  private double[] lastValue;
  private long position;

  KeyValueCache(Shape shape) {
    this.shape = shape;
  }

  /** Number of examples; -1 if it is open. */
  long minibatch() {
    return shape.minibatch();
  }

  /** Settles an open number of examples. */
  void setMinibatch(long minibatch) {
    shape = shape.with(minibatch);
  }

  /** Number of tokens seen so far: the position of the next one. */
  long position() {
    return position;
  }

  /** Number of tokens that should be kept by now. */
  long expectedLength() {
    return Math.min(position, shape.keep());
  }

  /** Number of tokens kept. */
  int length() {
    return end - start;
  }

  double[] lastKey() {
    return lastKey;
  }

  double[] lastValue() {
    return lastValue;
  }

  void setLast(double[] key, double[] value) {
    lastKey = key;
    lastValue = value;
  }

  /**
   * Forgets what no later token can see, then appends.
   *
   * @param tokens the tokens' count and order
   * @param keyRows token matrix with the keys from a column on; so the values
   * @param newAlpha [minibatch, time, heads]; null without a gate
   */
  void append(
      Tokens tokens,
      INDArray keyRows,
      long keyColumn,
      INDArray valueRows,
      long valueColumn,
      INDArray newAlpha,
      Mask newMask) {
    int n = Math.toIntExact(tokens.time());
    forget();
    if (end + n > capacity) {
      move(n);
    }
    copyRows(keyRows, keyColumn, shape.width(), keys, n);
    copyRows(valueRows, valueColumn, shape.width(), values, n);
    if (alpha != null) {
      copyRows(newAlpha, 0, shape.heads(), alpha, n);
    }
    if (newMask != null && mask == null) {
      mask = create(capacity, 1).reshape(shape.minibatch(), capacity);
      mask.assign(1);
    }
    if (mask != null) {
      Elements to = Elements.write(mask);
      for (int b = 0; b < shape.minibatch(); b++) {
        for (int t = 0; t < n; t++) {
          boolean real = newMask == null || newMask.isReal(b * n + t);
          to.put((long) b * capacity + end + t, real ? 1 : 0);
        }
      }
    }
    end += n;
    position += n;
  }

  private void forget() {
    start = Math.max(start, end - shape.keep());
    if (start == end) {
      start = 0;
      end = 0;
    }
  }

  private void copyRows(INDArray from, long column, int width, INDArray buffer, int n) {
    Elements in = Elements.read(from);
    Elements out = Elements.write(buffer);
    long fromWidth = from.size(-1);
    double[] row = new double[width];
    for (int b = 0; b < shape.minibatch(); b++) {
      for (int t = 0; t < n; t++) {
        in.load(((long) b * n + t) * fromWidth + column, row, width);
        out.store(((long) b * capacity + end + t) * width, row, width);
      }
    }
  }

  /**
   * Moves the live rows to the front of new buffers with room for n more and as many as are kept.
   */
  private void move(int n) {
    int live = length();
    int room = Math.min(shape.keep(), Math.max(live, 16));
    INDArray[] live4 = {keys(), values(), alpha(), mask()};
    capacity = Math.addExact(Math.addExact(live, n), room);
    keys = moved(live4[0], shape.width());
    values = moved(live4[1], shape.width());
    alpha = shape.heads() == 0 ? null : moved(live4[2], shape.heads());
    mask = live4[3] == null ? null : moved(live4[3], 1).reshape(shape.minibatch(), capacity);
    start = 0;
    end = live;
  }

  private INDArray moved(INDArray live, int width) {
    INDArray buffer = create(capacity, width);
    if (live != null) {
      slice(buffer, 0, live.shape()).assign(live);
    }
    return buffer;
  }

  private INDArray create(int rows, int width) {
    return Memory.detached(
        () -> Nd4j.create(shape.type(), new long[] {shape.minibatch(), rows, width}, 'c'));
  }

  /** Gives back memory after a long chunk. */
  void trim() {
    if (capacity > 4L * shape.keep() + 64) {
      forget();
      move(0);
    }
  }

  /** Kept keys, [minibatch, length, kvHeads, headSize], a view; null if none are kept. */
  INDArray keys() {
    return keys == null || start == end
        ? null
        : slice(keys, start, shape.minibatch(), length(), shape.kvHeads(), shape.headSize());
  }

  /** Kept values, as {@link #keys}. */
  INDArray values() {
    return values == null || start == end
        ? null
        : slice(values, start, shape.minibatch(), length(), shape.kvHeads(), shape.headSize());
  }

  /** Kept decays, [minibatch, length, heads], a view; null if none are kept or there is no gate. */
  INDArray alpha() {
    return alpha == null || start == end
        ? null
        : slice(alpha, start, shape.minibatch(), length(), shape.heads());
  }

  /** Mask of the kept tokens, [minibatch, length], a view; null if all are real. */
  INDArray mask() {
    return mask == null || start == end ? null : slice(mask, start, shape.minibatch(), length());
  }

  /**
   * Rows of a buffer [minibatch, capacity, ...] from one on, in the given shape [minibatch, rows,
   * ...].
   */
  private static INDArray slice(INDArray buffer, long from, long... shape) {
    long width = buffer.rank() == 3 ? buffer.size(2) : 1;
    long[] strides = new long[shape.length];
    long stride = 1;
    for (int d = shape.length - 1; d > 0; d--) {
      strides[d] = stride;
      stride *= shape[d];
    }
    strides[0] = buffer.size(1) * width;
    return Nd4j.create(buffer.data(), shape, strides, buffer.offset() + from * width, 'c');
  }

  /** An independent cache with the same content. */
  KeyValueCache copy() {
    KeyValueCache copy = new KeyValueCache(shape);
    forget();
    copy.start = start;
    copy.end = end;
    copy.capacity = capacity;
    copy.keys = keys;
    copy.values = values;
    copy.alpha = alpha;
    copy.mask = mask;
    copy.lastKey = lastKey;
    copy.lastValue = lastValue;
    copy.position = position;
    if (keys != null) {
      copy.move(0);
    }
    return copy;
  }

  /** The content as arrays of its own, for {@code rnnGetPreviousState}. */
  Map<String, INDArray> toState() {
    forget();
    return Memory.detached(
        () -> {
          Map<String, INDArray> state = new HashMap<>();
          putCopy(state, KEYS, keys());
          putCopy(state, VALUES, values());
          putCopy(state, ALPHA, alpha());
          putCopy(state, MASK, mask());
          putVector(state, LAST_KEY, lastKey);
          putVector(state, LAST_VALUE, lastValue);
          state.put(POSITION, Nd4j.scalar(DataType.INT64, position));
          return state;
        });
  }

  private static void putCopy(Map<String, INDArray> state, String name, INDArray array) {
    if (array != null) {
      state.put(name, array.dup('c'));
    }
  }

  private void putVector(Map<String, INDArray> state, String name, double[] vector) {
    if (vector != null) {
      state.put(
          name,
          Nd4j.createFromArray(vector)
              .castTo(shape.type())
              .reshape(shape.minibatch(), shape.kvHeads(), shape.headSize()));
    }
  }

  /**
   * Reads a state.
   *
   * @param prefix of the names of this cache's arrays
   * @param shape what the layer expects, for any minibatch: the state's own is used
   * @throws IllegalArgumentException if the state is not one of such a layer
   */
  static KeyValueCache fromState(
      String layer, String prefix, Shape shape, Map<String, INDArray> state) {
    checkPresent(layer, prefix + POSITION, state);
    long minibatch =
        state.entrySet().stream()
            .filter(entry -> entry.getKey().startsWith(prefix) && entry.getValue().rank() > 1)
            .mapToLong(entry -> entry.getValue().size(0))
            .findFirst()
            .orElse(-1);
    KeyValueCache cache = new KeyValueCache(shape.with(minibatch));
    cache.position = state.get(prefix + POSITION).getLong(0);
    if (cache.position < 0) {
      throw new IllegalArgumentException(
          "%s: RNN state \"%s%s\" is %d; expected 0 or more"
              .formatted(layer, prefix, POSITION, cache.position));
    }
    String keysName = prefix + KEYS;
    long length = state.containsKey(keysName) ? state.get(keysName).size(1) : 0;
    long[] keyShape = {minibatch, length, shape.kvHeads(), shape.headSize()};
    long[] lastShape = {minibatch, shape.kvHeads(), shape.headSize()};
    if (length > 0) {
      cache.capacity = Math.toIntExact(length);
      cache.end = cache.capacity;
      cache.keys = cache.imported(layer, state, keysName, shape.width(), keyShape);
      cache.values = cache.imported(layer, state, prefix + VALUES, shape.width(), keyShape);
      if (shape.heads() > 0) {
        cache.alpha =
            cache.imported(
                layer, state, prefix + ALPHA, shape.heads(), minibatch, length, shape.heads());
      }
      if (state.containsKey(prefix + MASK)) {
        cache.mask =
            cache
                .imported(layer, state, prefix + MASK, 1, minibatch, length)
                .reshape(minibatch, length);
      }
    }
    cache.lastKey = importedVector(layer, state, prefix + LAST_KEY, lastShape);
    cache.lastValue = importedVector(layer, state, prefix + LAST_VALUE, lastShape);
    return cache;
  }

  private INDArray imported(
      String layer, Map<String, INDArray> state, String name, int width, long... expected) {
    checkShape(layer, state.get(name), name, expected);
    INDArray buffer = create(capacity, width);
    slice(buffer, 0, expected).assign(state.get(name));
    return buffer;
  }

  private static double[] importedVector(
      String layer, Map<String, INDArray> state, String name, long[] expected) {
    if (!state.containsKey(name)) {
      return null;
    }
    checkShape(layer, state.get(name), name, expected);
    return state.get(name).castTo(DataType.DOUBLE).dup('c').reshape(-1).toDoubleVector();
  }

  /** Throws if a state does not have the array. */
  static void checkPresent(String layer, String name, Map<String, INDArray> state) {
    if (state.get(name) == null) {
      throw new IllegalArgumentException(
          "%s: RNN state has arrays %s; \"%s\" is missing".formatted(layer, state.keySet(), name));
    }
  }

  private static void checkShape(String layer, INDArray array, String name, long[] expected) {
    if (array == null || !Arrays.equals(array.shape(), expected)) {
      throw new IllegalArgumentException(
          "%s: RNN state \"%s\" is %s; expected an array of shape %s"
              .formatted(
                  layer,
                  name,
                  array == null ? "missing" : Arrays.toString(array.shape()),
                  Arrays.toString(expected)));
    }
  }
}
