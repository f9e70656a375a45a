package io.github.gatedfwa.layers.runtime;

import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.LongUnaryOperator;
import org.nd4j.linalg.api.ndarray.INDArray;

/** All that an attention layer remembers of the tokens before the next one: its named caches. */
final class Caches {
  /**
   * One cache of a layer.
   *
   * @param name what it is of; "" in a layer with one cache
   * @param entries number of entries that it has had after so many tokens
   * @param complete whether it must hold all that it can; a window may begin empty at any position
   * @param beside names of the arrays that a state must have beside keys, if it has any
   */
  record Spec(
      String name,
      KeyValueCache.Shape shape,
      LongUnaryOperator entries,
      boolean complete,
      List<String> beside) {
    private String prefix() {
      return name.isEmpty() ? "" : name + ".";
    }
  }

  private final Map<String, KeyValueCache> caches = new LinkedHashMap<>();

  private Caches() {}

  /** Empty caches. The first one counts tokens. */
  static Caches empty(List<Spec> specs) {
    Caches empty = new Caches();
    specs.forEach(spec -> empty.caches.put(spec.name(), new KeyValueCache(spec.shape())));
    return empty;
  }

  KeyValueCache get(String name) {
    return caches.get(name);
  }

  private KeyValueCache first() {
    return caches.values().iterator().next();
  }

  /** Number of tokens seen so far: the position of the next one. */
  long position() {
    return first().position();
  }

  /** Number of examples; -1 if it is open. */
  long minibatch() {
    return first().minibatch();
  }

  /** Settles an open number of examples. */
  void setMinibatch(long minibatch) {
    caches.values().forEach(cache -> cache.setMinibatch(minibatch));
  }

  /** Gives back memory after a long chunk. */
  void trim() {
    caches.values().forEach(KeyValueCache::trim);
  }

  /** Independent caches with the same content. */
  Caches copy() {
    Caches copy = new Caches();
    caches.forEach((name, cache) -> copy.caches.put(name, cache.copy()));
    return copy;
  }

  /** The content as arrays of its own, for {@code rnnGetPreviousState}. */
  Map<String, INDArray> toState() {
    Map<String, INDArray> state = new HashMap<>();
    caches.forEach(
        (name, cache) -> {
          String prefix = name.isEmpty() ? "" : name + ".";
          cache.toState().forEach((key, array) -> state.put(prefix + key, array));
        });
    return state;
  }

  /**
   * Reads a state.
   *
   * @param specs what the layer expects, for any minibatch: the state's own is used
   * @return the caches; null if the state is empty
   * @throws IllegalArgumentException if the state is not one of such a layer
   */
  static Caches fromState(String layer, List<Spec> specs, Map<String, INDArray> state) {
    if (state == null) {
      throw new IllegalArgumentException(
          layer + ": RNN state is null; expected a map of arrays, an empty one for none");
    }
    if (state.isEmpty()) {
      return null;
    }
    Caches read = new Caches();
    long minibatch = -1;
    for (Spec spec : specs) {
      KeyValueCache cache = KeyValueCache.fromState(layer, spec.prefix(), spec.shape(), state);
      read.caches.put(spec.name(), cache);
      minibatch = Math.max(minibatch, cache.minibatch());
      long expected = spec.entries().applyAsLong(read.position());
      if (cache.position() != expected) {
        throw new IllegalArgumentException(
            "%s: RNN state \"%s%s\" is %d; expected %d after %d tokens"
                .formatted(
                    layer,
                    spec.prefix(),
                    KeyValueCache.POSITION,
                    cache.position(),
                    expected,
                    read.position()));
      }
      if (spec.complete() && cache.length() != cache.expectedLength()) {
        throw new IllegalArgumentException(
            "%s: RNN state \"%s%s\" has %d entries; expected %d"
                .formatted(
                    layer,
                    spec.prefix(),
                    KeyValueCache.KEYS,
                    cache.length(),
                    cache.expectedLength()));
      }
      if (cache.length() > 0) {
        spec.beside()
            .forEach(name -> KeyValueCache.checkPresent(layer, spec.prefix() + name, state));
      }
    }
    for (KeyValueCache cache : read.caches.values()) {
      if (cache.minibatch() >= 0 && cache.minibatch() != minibatch) {
        throw new IllegalArgumentException(
            "%s: RNN state has arrays of minibatch sizes %s; they must be equal"
                .formatted(
                    layer,
                    Arrays.toString(
                        read.caches.values().stream()
                            .mapToLong(KeyValueCache::minibatch)
                            .toArray())));
      }
    }
    read.setMinibatch(minibatch);
    return read;
  }
}
