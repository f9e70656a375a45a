package io.github.gatedfwa.nativeops;

import org.slf4j.LoggerFactory;

/** The native methods of the plug-ins; {@link NativeLibrary} loads one of them first. */
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

  /** The last attention call or choice of blocks, where it ran and why; empty without a GPU. */
  static native String lastDecision();

  /** In the order of {@link DeviceUsage}'s components. */
  static native double[] usage();

  // Of the plug-in for nd4j-cuda only.

  /**
   * Checks the device of ND4J's thread.
   *
   * @param scratchLimit bytes of scratch memory that stay between calls, negative for a quarter of
   *     a device's memory
   * @return the device's name
   * @throws IllegalStateException if it cannot run the ops
   */
  static native String useNd4jDevice(boolean tf32, long scratchLimit);

  // Of the plug-in for nd4j-native only.

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

  /**
   * Opens a GPU through the CUDA library at {@code path}. From then on it takes every call that it
   * can ({@code always}), or those that a cost model, measured here, expects it to be faster at.
   *
   * @param memoryLimit bytes of device memory in use at once, 0 for all of it
   * @param cacheLimit bytes of it that stay between calls, negative for a quarter of it
   * @return an empty text, or why everything stays on the CPU
   */
  static native String openDevice(
      String path, boolean always, int ordinal, boolean tf32, long memoryLimit, long cacheLimit);

  /** {@code cpu}, or the GPU's name. */
  static native String deviceName();

  /** Called by the plug-in. */
  @SuppressWarnings("UnusedMethod")
  private static void warn(String line) {
    LoggerFactory.getLogger(NativeLibrary.class).warn("GatedFWA: {}", line);
  }
}
