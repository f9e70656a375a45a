package io.github.gatedfwa.samediff;

import io.github.gatedfwa.nativeops.DeviceUsage;
import io.github.gatedfwa.nativeops.NativeLibrary;
import io.github.gatedfwa.nativeops.NativeLibraryException;
import org.nd4j.imports.converters.ImportClassMapping;
import org.nd4j.linalg.api.ops.DynamicCustomOp;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The native ops, GatedFWA (arXiv 2512.07782) and NSA (arXiv 2502.11089), as a whole: loading them,
 * and whether they are there.
 *
 * <p>The system property {@value #NATIVE_PROPERTY} says which implementation {@link NDGatedFwa},
 * {@link SDGatedFwa}, {@link NDNsa} and {@link SDNsa} use: {@code auto} (the default: the native
 * ops where they can be loaded, else, with one warning, the same function composed of ND4J's own
 * ops, which is slower), {@code required} (the native ops or an exception) or {@code off} (never
 * the native ops).
 */
public final class GatedFwaOps {

  /** The gate's eps where none is given: the one the authors train with. */
  public static final double DEFAULT_EPS = 1e-3;

  /** System property: {@code auto}, {@code required} or {@code off}. */
  public static final String NATIVE_PROPERTY = "gatedfwa.native";

  private static final Logger log = LoggerFactory.getLogger(GatedFwaOps.class);

  private static boolean warned;

  private GatedFwaOps() {}

  /**
   * Starts ND4J if needed and registers the native ops {@code gated_fwa}, {@code gated_fwa_gate},
   * {@code nsa_compressed_attention}, {@code nsa_selected_attention}, the gradient op {@code .._bp}
   * of each, and {@code nsa_select}, once; from any thread. The op classes and front doors of this
   * package do so themselves. Call it before {@code SameDiff.load} of a graph that holds the ops,
   * so that ND4J knows their classes, and early rather than late: libnd4j's registry has no lock
   * for ops that run meanwhile.
   *
   * <p>{@code DynamicCustomOp.builder("gated_fwa")} works after this call if it came before ND4J
   * listed its ops for the first time; if it came later, the list is amended, which may fail under
   * back ends other than 1.0.0-M2.1's. The op classes work in either case.
   *
   * @throws NativeLibraryException if the platform, the ND4J back end or its version is not
   *     supported, or if the library cannot be loaded: the message says which, and what is
   *     supported
   */
  public static void load() {
    NativeLibrary.load();
    OpClasses.register();
  }

  /**
   * Whether {@link NDGatedFwa}, {@link SDGatedFwa}, {@link NDNsa} and {@link SDNsa} use the native
   * ops. Loads them if that has not been tried; if they cannot be loaded, logs why, once.
   *
   * @throws NativeLibraryException if they cannot be loaded and {@value #NATIVE_PROPERTY} is {@code
   *     required}
   * @throws IllegalArgumentException if {@value #NATIVE_PROPERTY} has an unknown value
   */
  public static boolean isNativeAvailable() {
    String property = System.getProperty(NATIVE_PROPERTY, "auto");
    return switch (property) {
      case "off" -> false;
      case "required" -> {
        load();
        yield true;
      }
      case "auto" -> canLoad();
      default ->
          throw new IllegalArgumentException(
              "the system property "
                  + NATIVE_PROPERTY
                  + " is '"
                  + property
                  + "'; expected auto, required or off");
    };
  }

  /**
   * Where the native ops can run: a GPU's name, such as {@code cuda:0 NVIDIA H200 (sm_90)}, or
   * {@code cpu} and, unless that was asked for, why not on a GPU. {@link NativeLibrary} lists the
   * system properties that choose.
   *
   * @throws NativeLibraryException as {@link #load()} does
   */
  public static String device() {
    load();
    return NativeLibrary.device();
  }

  /**
   * The last attention call or choice of blocks of any thread: its shape, where it ran, and the
   * times that the cost model expected on the GPU and on the CPU or, under nd4j-cuda, which kernel
   * took it. Empty where there is only the CPU.
   *
   * @throws NativeLibraryException as {@link #load()} does
   */
  public static String lastDecision() {
    load();
    return NativeLibrary.lastDecision();
  }

  /**
   * What the native ops have done so far on the CPU and on a GPU: calls, time, bytes copied; under
   * nd4j-cuda calls only.
   *
   * @throws NativeLibraryException as {@link #load()} does
   */
  public static DeviceUsage deviceUsage() {
    load();
    return NativeLibrary.deviceUsage();
  }

  private static boolean canLoad() {
    try {
      load();
      return true;
    } catch (NativeLibraryException e) {
      warnOnce(e);
      return false;
    }
  }

  private static synchronized void warnOnce(NativeLibraryException reason) {
    if (!warned) {
      warned = true;
      log.warn("GatedFWA runs on ND4J's own ops, which is slower: {}", reason.getMessage());
    }
  }

  /** {@code SameDiff.load} finds op classes by op name in a map of ND4J's. */
  private static final class OpClasses {

    static {
      for (DynamicCustomOp op :
          new DynamicCustomOp[] {
            new GatedFwa(),
            new GatedFwaBp(),
            new GatedFwaGate(),
            new GatedFwaGateBp(),
            new NsaCompressedAttention(),
            new NsaCompressedAttentionBp(),
            new NsaSelect(),
            new NsaSelectedAttention(),
            new NsaSelectedAttentionBp()
          }) {
        ImportClassMapping.getOpNameMapping().put(op.opName(), op);
      }
    }

    private OpClasses() {}

    /** Once: this class is initialised by the first call. */
    static void register() {}
  }
}
