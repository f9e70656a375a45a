package io.github.gatedfwa.nativeops;

import java.util.Properties;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Where nd4j-native's ops may run, from system properties.
 *
 * @param mode never a GPU, or where it pays, or always
 * @param ordinal of the GPU
 * @param tf32 whether FLOAT products may have 10-bit mantissas on the GPU
 * @param memoryLimit bytes of GPU memory in use at once; 0: all there is
 * @param cacheLimit bytes of it kept between calls; −1: a quarter of it
 */
record DeviceSettings(Mode mode, int ordinal, boolean tf32, long memoryLimit, long cacheLimit) {

  enum Mode {
    CPU,
    AUTO,
    CUDA
  }

  private static final Pattern CUDA = Pattern.compile("cuda(?::(\\d{1,4}))?");
  private static final Pattern MEGABYTES = Pattern.compile("\\d{1,9}");

  /**
   * @throws NativeLibraryException if a property has a value that is not allowed; the message names
   *     both
   */
  static DeviceSettings of(Properties properties) {
    String device = properties.getProperty(NativeLibrary.DEVICE_PROPERTY, "auto");
    Matcher cuda = CUDA.matcher(device);
    Mode mode;
    if (device.equals("auto")) {
      mode = Mode.AUTO;
    } else if (device.equals("cpu")) {
      mode = Mode.CPU;
    } else if (cuda.matches()) {
      mode = Mode.CUDA;
    } else {
      throw refused(NativeLibrary.DEVICE_PROPERTY, device, "auto, cpu, cuda or cuda:N");
    }
    int ordinal = mode == Mode.CUDA && cuda.group(1) != null ? Integer.parseInt(cuda.group(1)) : 0;
    String products = properties.getProperty(NativeLibrary.CUDA_FLOAT_PROPERTY, "strict");
    if (!products.equals("strict") && !products.equals("tf32")) {
      throw refused(NativeLibrary.CUDA_FLOAT_PROPERTY, products, "strict or tf32");
    }
    return new DeviceSettings(
        mode,
        ordinal,
        products.equals("tf32"),
        megabytes(properties, NativeLibrary.CUDA_MEMORY_PROPERTY, 1, 0),
        megabytes(properties, NativeLibrary.CUDA_CACHE_PROPERTY, 0, -1));
  }

  /**
   * Under nd4j-cuda ND4J chooses the device.
   *
   * @throws NativeLibraryException if the properties choose another
   */
  static void checkNd4jCuda(Properties properties) {
    String device = properties.getProperty(NativeLibrary.DEVICE_PROPERTY, "auto");
    if (!device.equals("auto") && !device.equals("cuda")) {
      throw refused(
          NativeLibrary.DEVICE_PROPERTY, device, "auto or cuda: nd4j-cuda chooses the device");
    }
  }

  private static long megabytes(Properties properties, String name, long least, long otherwise) {
    String value = properties.getProperty(name);
    if (value == null) {
      return otherwise;
    }
    if (!MEGABYTES.matcher(value).matches() || Long.parseLong(value) < least) {
      throw refused(name, value, "a number of megabytes, at least " + least);
    }
    return Long.parseLong(value) << 20;
  }

  private static NativeLibraryException refused(String name, String value, String allowed) {
    return new NativeLibraryException(
        "the system property " + name + " is '" + value + "'; expected " + allowed);
  }
}
