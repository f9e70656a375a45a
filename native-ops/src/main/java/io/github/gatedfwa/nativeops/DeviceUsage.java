package io.github.gatedfwa.nativeops;

/**
 * What the ops have done on the CPU and on a GPU since the library was loaded; the measurement at
 * its start included. Under nd4j-cuda only {@code deviceCalls} counts, each call when its kernels
 * are enqueued: ND4J moves the arrays, and a call returns before the GPU is done.
 *
 * @param cpuCalls attention calls, forward or backward, and choices of blocks that ran on the CPU;
 *     counted where there is a native library
 * @param deviceCalls calls that ran on the GPU
 * @param seconds that the GPU's calls took, copies included
 * @param kernelSeconds of them, kernels ran; the rest is copies that nothing overlapped
 * @param uploadedBytes copied to the GPU
 * @param residentBytes found on the GPU unchanged, left by an earlier call
 * @param downloadedBytes copied from the GPU
 */
public record DeviceUsage(
    long cpuCalls,
    long deviceCalls,
    double seconds,
    double kernelSeconds,
    double uploadedBytes,
    double residentBytes,
    double downloadedBytes) {

  static DeviceUsage of(double[] values) {
    return new DeviceUsage(
        (long) values[0], (long) values[1], values[2], values[3], values[4], values[5], values[6]);
  }

  /** What happened after {@code earlier} was taken. */
  public DeviceUsage since(DeviceUsage earlier) {
    return new DeviceUsage(
        cpuCalls - earlier.cpuCalls,
        deviceCalls - earlier.deviceCalls,
        seconds - earlier.seconds,
        kernelSeconds - earlier.kernelSeconds,
        uploadedBytes - earlier.uploadedBytes,
        residentBytes - earlier.residentBytes,
        downloadedBytes - earlier.downloadedBytes);
  }
}
