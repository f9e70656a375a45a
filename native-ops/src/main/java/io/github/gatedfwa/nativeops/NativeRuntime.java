package io.github.gatedfwa.nativeops;

/** The native methods of {@code libgatedfwa_cpu}; {@link NativeLibrary} loads it first. */
final class NativeRuntime {

  private NativeRuntime() {}

  /**
   * Registers the ops with libnd4j.
   *
   * @return of each op {@code name:hash:inputs:outputs:inplace:tArguments:iArguments;}, as libnd4j
   *     lists its own; −2 stands for any number
   * @throws IllegalStateException if libnd4j already has an op of one of the names
   */
  static native String registerOps();

  /**
   * Chooses the kernels' instruction set.
   *
   * @param requested {@code auto}, {@code plain}, {@code avx2} or {@code avx512}
   * @return the name of the set now in use
   * @throws IllegalArgumentException if the name is another, or the processor lacks the set
   */
  static native String selectInstructionSet(String requested);

  /** How many threads an op may use: ND4J's setting at the time of the call. */
  static native int threads();
}
