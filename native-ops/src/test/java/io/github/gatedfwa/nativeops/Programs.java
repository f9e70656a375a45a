package io.github.gatedfwa.nativeops;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.api.ops.DynamicCustomOp;
import org.nd4j.linalg.factory.Nd4j;

/** The main programs of the JVMs that {@link NativeLibraryTest} starts. */
final class Programs {

  private Programs() {}

  /** Loads and says how it went and where the ops run, twice. */
  static final class Load {

    private Load() {}

    public static void main(String[] args) {
      for (int i = 0; i < 2; i++) {
        try {
          NativeLibrary.load();
          System.out.println("loaded " + NativeLibrary.instructionSet());
          System.out.println("device " + NativeLibrary.device());
        } catch (NativeLibraryException e) {
          System.out.println("failed: " + e.getMessage());
          for (Throwable cause = e.getCause(); cause != null; cause = cause.getCause()) {
            System.out.println("cause: " + cause.getClass().getSimpleName());
          }
        }
      }
    }
  }

  /** 16 threads load at once, before ND4J has started, and run the op. */
  static final class Race {

    private Race() {}

    public static void main(String[] args) throws Exception {
      int threads = 16;
      CyclicBarrier barrier = new CyclicBarrier(threads);
      Callable<Double> task =
          () -> {
            barrier.await();
            NativeLibrary.load();
            return attend();
          };
      ExecutorService pool = Executors.newFixedThreadPool(threads);
      List<Future<Double>> results = new ArrayList<>();
      for (int i = 0; i < threads; i++) {
        results.add(pool.submit(task));
      }
      int agree = 0;
      for (Future<Double> result : results) {
        agree += result.get().equals(results.get(0).get()) ? 1 : 0;
      }
      pool.shutdown();
      System.out.println(agree + " threads agree");
    }
  }

  /** ND4J lists its ops before the plug-in is loaded. */
  static final class Late {

    private Late() {}

    public static void main(String[] args) {
      boolean before = Nd4j.getExecutioner().getCustomOperations().containsKey("gated_fwa");
      NativeLibrary.load();
      System.out.println("before: " + before + ", after: " + (attend() > 0));
    }
  }

  private static double attend() {
    INDArray ones = Nd4j.ones(DataType.FLOAT, 1, 5, 2, 8);
    INDArray o =
        Nd4j.exec(
            DynamicCustomOp.builder("gated_fwa")
                .addInputs(ones, ones, ones)
                .addIntegerArguments(3)
                .build())[0];
    return o.sumNumber().doubleValue();
  }
}
