package io.github.gatedfwa.nativeops;

import java.io.IOException;
import java.io.InputStream;
import java.lang.reflect.Field;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.Map;
import org.bytedeco.javacpp.Loader;
import org.nd4j.linalg.api.ops.CustomOpDescriptor;
import org.nd4j.linalg.api.ops.executioner.OpExecutioner;
import org.nd4j.linalg.factory.Nd4j;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Loads the plug-in that adds the ops of GatedFWA (arXiv 2512.07782) and native sparse attention
 * (arXiv 2502.11089) to ND4J's back end: {@code gated_fwa}, {@code gated_fwa_gate}, {@code
 * nsa_compressed_attention}, {@code nsa_selected_attention}, the gradient op {@code .._bp} of each,
 * and {@code nsa_select}.
 *
 * <p>ND4J is started if it has not been. Ops that run in other threads while the plug-in registers
 * its own are at the mercy of libnd4j, whose registry has no lock for readers: load early.
 *
 * <p>System properties, read once:
 *
 * <ul>
 *   <li>{@value #INSTRUCTIONS_PROPERTY}, the CPU kernels' instruction set: {@code auto} (the
 *       default: the best that the processor has), {@code plain}, {@code avx2} or {@code avx512};
 *   <li>{@value #DEVICE_PROPERTY}, where the ops run: {@code auto} (the default: each call on the
 *       CPU or, operands copied there and back, on the first NVIDIA GPU, as a cost model that is
 *       measured here expects), {@code cpu}, or {@code cuda} and {@code cuda:N} (all calls on that
 *       GPU). It takes the CUDA library, in this artifact's jar with the classifier {@code
 *       linux-x86_64-gpu}. Without it, or a GPU that can be used, the ops run on the CPU; a line of
 *       the log says why;
 *   <li>{@value #CUDA_FLOAT_PROPERTY}, FLOAT on a GPU: {@code strict} (the default: float32's
 *       accuracy) or {@code tf32} (products with 10-bit mantissas, faster);
 *   <li>{@value #CUDA_MEMORY_PROPERTY}, the most megabytes of GPU memory in use at once (default:
 *       what there is), and {@value #CUDA_CACHE_PROPERTY}, how many of them may stay in use between
 *       calls (default: a quarter of the GPU's memory; 0: none).
 * </ul>
 *
 * <p>Under nd4j-cuda the ops work on ND4J's arrays, on the device and stream of ND4J's thread, and
 * need a GPU of compute capability 7.5 or newer and the jar with the classifier {@code
 * linux-x86_64-gpu}. {@value #DEVICE_PROPERTY} may only be {@code auto} or {@code cuda} there,
 * {@value #CUDA_FLOAT_PROPERTY} is as above, {@value #CUDA_CACHE_PROPERTY} bounds the scratch
 * memory that stays between calls, and the other properties are not looked at.
 */
public final class NativeLibrary {

  /** System property: {@code auto}, {@code plain}, {@code avx2} or {@code avx512}. */
  public static final String INSTRUCTIONS_PROPERTY = "gatedfwa.cpu.instructions";

  /** System property: {@code auto}, {@code cpu}, {@code cuda} or {@code cuda:N}. */
  public static final String DEVICE_PROPERTY = "gatedfwa.device";

  /** System property: {@code strict} or {@code tf32}. */
  public static final String CUDA_FLOAT_PROPERTY = "gatedfwa.cuda.float";

  /** System property: megabytes. */
  public static final String CUDA_MEMORY_PROPERTY = "gatedfwa.cuda.memory";

  /** System property: megabytes. */
  public static final String CUDA_CACHE_PROPERTY = "gatedfwa.cuda.cache";

  static final String SUPPORTED_ND4J = "1.0.0-M2.1";
  static final String SUPPORTED_PLATFORMS = "linux-x86_64";
  private static final String CUDA_FILE = "libgatedfwa_cuda.so";

  private static final Logger log = LoggerFactory.getLogger(NativeLibrary.class);

  /** What {@link #load()} came to: exactly one of the two is set. */
  private record Outcome(Loaded loaded, NativeLibraryException failure) {}

  private record Loaded(
      PlugIn plugIn, Map<String, CustomOpDescriptor> ops, String instructionSet, String device) {}

  private static volatile Outcome outcome;

  private NativeLibrary() {}

  /**
   * Starts ND4J if needed, loads the library and registers the ops, once: further calls return at
   * once, from any thread.
   *
   * @throws NativeLibraryException if the platform, the ND4J back end or its version is not
   *     supported, if the library cannot be loaded, or if a property has a wrong value. The reason
   *     is remembered and thrown again by each further call.
   */
  public static void load() {
    loaded();
  }

  /**
   * libnd4j's description of one of the ops: hash and numbers of arguments.
   *
   * @throws NativeLibraryException as {@link #load()} does
   * @throws IllegalArgumentException if the plug-in has no op of that name
   */
  public static CustomOpDescriptor descriptor(String opName) {
    Loaded loaded = loaded();
    CustomOpDescriptor descriptor = loaded.ops().get(opName);
    if (descriptor == null) {
      throw new IllegalArgumentException(
          "no op " + opName + "; there are " + loaded.ops().keySet());
    }
    return descriptor;
  }

  /**
   * The instruction set of the CPU kernels: {@code plain}, {@code avx2} or {@code avx512}; {@code
   * cuda} under nd4j-cuda, which has no other kernels.
   *
   * @throws NativeLibraryException as {@link #load()} does
   */
  public static String instructionSet() {
    return loaded().instructionSet();
  }

  /**
   * How many threads of the host an op may use: what ND4J is set to at the time of the call; 1
   * under nd4j-cuda.
   *
   * @throws NativeLibraryException as {@link #load()} does
   */
  public static int threads() {
    return loaded().plugIn() == PlugIn.CUDA ? 1 : NativeRuntime.threads();
  }

  /**
   * Where the ops can run: a GPU's name, such as {@code cuda:0 NVIDIA H200 (sm_90)}, or {@code cpu}
   * and, unless that was asked for, why not on a GPU. Under nd4j-cuda the GPU of the thread that
   * loaded the library; each op runs on the one of its own thread.
   *
   * @throws NativeLibraryException as {@link #load()} does
   */
  public static String device() {
    return loaded().device();
  }

  /**
   * The last attention call or choice of blocks of any thread: its shape, where it ran, and the
   * times that the cost model expected or, under nd4j-cuda, which kernel took it. Empty where there
   * is only the CPU.
   *
   * @throws NativeLibraryException as {@link #load()} does
   */
  public static String lastDecision() {
    loaded();
    return NativeRuntime.lastDecision();
  }

  /**
   * What the ops have done so far, on the CPU and on a GPU.
   *
   * @throws NativeLibraryException as {@link #load()} does
   */
  public static DeviceUsage deviceUsage() {
    loaded();
    return DeviceUsage.of(NativeRuntime.usage());
  }

  private static Loaded loaded() {
    Outcome result = outcome;
    if (result == null) {
      synchronized (NativeLibrary.class) {
        if (outcome == null) {
          outcome = attempt();
        }
        result = outcome;
      }
    }
    if (result.failure() != null) {
      // A new exception: its stack trace is this caller's, its cause the first one.
      throw new NativeLibraryException(result.failure().getMessage(), result.failure());
    }
    return result.loaded();
  }

  private static Outcome attempt() {
    try {
      return new Outcome(loadOnce(), null);
    } catch (NativeLibraryException e) {
      return new Outcome(null, e);
    } catch (RuntimeException | LinkageError e) {
      return new Outcome(
          null, new NativeLibraryException("the GatedFWA ops cannot be loaded: " + e, e));
    }
  }

  private static Loaded loadOnce() {
    String platform = Loader.getPlatform();
    checkPlatform(platform);
    DeviceSettings settings = DeviceSettings.of(System.getProperties());
    OpExecutioner executioner = startNd4j();
    PlugIn plugIn = PlugIn.of(executioner.type());
    checkVersions(plugIn.nd4jVersions(Nd4j.getBackend().getClass()));
    if (plugIn == PlugIn.CUDA) {
      DeviceSettings.checkNd4jCuda(System.getProperties());
    }
    systemLoad(plugIn.file(), plugIn.library(platform));

    String instructionSet = plugIn == PlugIn.CUDA ? "cuda" : selectInstructionSet();
    String device =
        plugIn == PlugIn.CUDA ? useNd4jDevice(settings) : openDevice(platform, settings);
    Map<String, CustomOpDescriptor> ops;
    try {
      ops = parse(NativeRuntime.registerOps());
    } catch (IllegalStateException e) {
      throw new NativeLibraryException(
          "the GatedFWA ops cannot be registered: " + e.getMessage(), e);
    }
    announce(executioner, ops);
    log.info(
        "GatedFWA ops {} registered with ND4J: {} kernels, {}{}",
        ops.keySet(),
        instructionSet,
        plugIn == PlugIn.CUDA ? "" : NativeRuntime.threads() + " threads; ",
        device);
    return new Loaded(plugIn, ops, instructionSet, device);
  }

  private static String selectInstructionSet() {
    try {
      return NativeRuntime.selectInstructionSet(System.getProperty(INSTRUCTIONS_PROPERTY, "auto"));
    } catch (IllegalArgumentException e) {
      throw new NativeLibraryException(
          "the system property " + INSTRUCTIONS_PROPERTY + " asks for " + e.getMessage(), e);
    }
  }

  private static String useNd4jDevice(DeviceSettings settings) {
    try {
      return NativeRuntime.useNd4jDevice(settings.tf32(), settings.cacheLimit());
    } catch (IllegalStateException e) {
      throw new NativeLibraryException(
          "the GatedFWA ops cannot use ND4J's device: " + e.getMessage(), e);
    }
  }

  /** The device's name; or {@code cpu} and why. */
  private static String openDevice(String platform, DeviceSettings settings) {
    if (settings.mode() == DeviceSettings.Mode.CPU) {
      return "cpu";
    }
    String reason;
    String resource = platform + PlugIn.GPU_CLASSIFIER + "/" + CUDA_FILE;
    try (InputStream in = NativeLibrary.class.getResourceAsStream(resource)) {
      reason =
          in == null
              ? "no CUDA library on the class path (native-ops, classifier "
                  + platform
                  + PlugIn.GPU_CLASSIFIER
                  + ")"
              : NativeRuntime.openDevice(
                  libraryFile(CUDA_FILE, in.readAllBytes()).toString(),
                  settings.mode() == DeviceSettings.Mode.CUDA,
                  settings.ordinal(),
                  settings.tf32(),
                  settings.memoryLimit(),
                  settings.cacheLimit());
    } catch (IOException e) {
      reason = "the CUDA library cannot be read or written to disk: " + e;
    } catch (RuntimeException e) {
      reason = "the CUDA library cannot be used: " + e;
    }
    if (reason.isEmpty()) {
      return NativeRuntime.deviceName();
    }
    if (settings.mode() == DeviceSettings.Mode.CUDA) {
      log.warn("GatedFWA runs on the CPU, not on a GPU as {} asks: {}", DEVICE_PROPERTY, reason);
    }
    return "cpu: " + reason;
  }

  private static void checkPlatform(String platform) {
    if (NativeLibrary.class.getResource(PlugIn.CPU.resource(platform)) == null) {
      throw new NativeLibraryException(
          "no native GatedFWA library for the platform "
              + platform
              + "; supported: "
              + SUPPORTED_PLATFORMS);
    }
  }

  private static OpExecutioner startNd4j() {
    try {
      return Nd4j.getExecutioner();
    } catch (RuntimeException | LinkageError e) {
      throw new NativeLibraryException(
          "ND4J cannot be started ("
              + e
              + "); the native GatedFWA ops need org.nd4j:nd4j-native:"
              + SUPPORTED_ND4J
              + ", or nd4j-cuda of that version, with its binaries for the platform",
          e);
    }
  }

  /**
   * The ABI is that of one ND4J version. Where the version cannot be told, it is left to the
   * dynamic linker, which refuses a libnd4j without the symbols that the plug-in needs.
   */
  static void checkVersions(Map<String, String> versions) {
    if (versions.isEmpty()) {
      log.warn("The version of ND4J cannot be told; the GatedFWA ops need {}", SUPPORTED_ND4J);
    }
    versions.forEach(
        (artifact, version) -> {
          if (!version.equals(SUPPORTED_ND4J)) {
            throw new NativeLibraryException(
                artifact + " is version " + version + "; supported: " + SUPPORTED_ND4J);
          }
        });
  }

  private static Path libraryFile(String name, byte[] library) throws IOException {
    return LibraryCache.file(() -> Loader.getCacheDir().toPath().resolve("gatedfwa"), name, library)
        .toAbsolutePath();
  }

  private static void systemLoad(String name, byte[] library) {
    Path file = null;
    try {
      file = libraryFile(name, library);
      System.load(file.toString());
    } catch (IOException e) {
      throw new NativeLibraryException(
          "the native GatedFWA library cannot be written to disk ("
              + e
              + "); the system property org.bytedeco.javacpp.cachedir names a directory for it",
          e);
    } catch (LinkageError e) {
      throw new NativeLibraryException(
          "the native GatedFWA library cannot be loaded from "
              + file
              + " ("
              + e.getMessage()
              + "); supported: "
              + SUPPORTED_PLATFORMS
              + " with glibc, ND4J "
              + SUPPORTED_ND4J,
          e);
    }
  }

  static Map<String, CustomOpDescriptor> parse(String list) {
    Map<String, CustomOpDescriptor> ops = new LinkedHashMap<>();
    for (String op : list.split(";", -1)) {
      if (op.isEmpty()) {
        continue;
      }
      String[] part = op.split(":", -1);
      ops.put(
          part[0],
          CustomOpDescriptor.builder()
              .hash(Long.parseLong(part[1]))
              .numInputs(Integer.parseInt(part[2]))
              .numOutputs(Integer.parseInt(part[3]))
              .allowsInplace(part[4].equals("1"))
              .numTArgs(Integer.parseInt(part[5]))
              .numIArgs(Integer.parseInt(part[6]))
              .build());
    }
    return ops;
  }

  /**
   * Adds the ops to the executioner's list, which it (and libnd4j) makes once, at first use:
   * without that {@code DynamicCustomOp.builder(name)} would not find them if the list was made
   * before. The op classes of this project do not depend on it, so failing to is no error.
   */
  private static void announce(OpExecutioner executioner, Map<String, CustomOpDescriptor> ops) {
    try {
      synchronized (executioner) {
        Map<String, CustomOpDescriptor> all = new HashMap<>(executioner.getCustomOperations());
        all.putAll(ops);
        Field list = customOpsField(executioner.getClass());
        list.setAccessible(true);
        list.set(executioner, Map.copyOf(all));
      }
    } catch (ReflectiveOperationException | RuntimeException e) {
      log.debug("DynamicCustomOp.builder may not find the GatedFWA ops", e);
    }
  }

  private static Field customOpsField(Class<?> type) throws NoSuchFieldException {
    for (Class<?> c = type; c != null; c = c.getSuperclass()) {
      for (Field field : c.getDeclaredFields()) {
        if (field.getName().equals("customOps")) {
          return field;
        }
      }
    }
    throw new NoSuchFieldException("customOps of " + type);
  }
}
