package io.github.gatedfwa.samediff;

import static org.assertj.core.api.Assertions.assertThat;

import io.github.gatedfwa.nativeops.JavaProcess;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

/** Which implementation the front doors choose, each in a JVM of its own. */
class FallbackTest {

  /** Attends through both front doors, twice, and reports. */
  static final class Attend {

    private Attend() {}

    public static void main(String[] args) {
      try {
        for (int i = 0; i < 2; i++) {
          INDArray ones = Nd4j.ones(DataType.FLOAT, 1, 5, 2, 8);
          NDGatedFwa attention = new NDGatedFwa();
          INDArray o = attention.gatedFwa(ones, ones, ones, null, null, 3, 0)[0];
          SameDiff sd = SameDiff.create();
          SDVariable x = sd.var("x", ones);
          INDArray graph = new SDGatedFwa(sd).gatedFwa("o", x, x, x, null, null, 3, 0)[0].eval();
          System.out.println(
              "native "
                  + GatedFwaOps.isNativeAvailable()
                  + " sums "
                  + o.sumNumber()
                  + " "
                  + graph.sumNumber()
                  + " native ops in graph "
                  + sd.getOps().values().stream()
                      .filter(op -> op.getOp() instanceof GatedFwa)
                      .count()
                  + " into given arrays "
                  + writesIntoGivenArrays(attention));
        }
      } catch (RuntimeException e) {
        System.out.println("failed: " + e.getMessage());
      }
    }

    /** And refuses those of another shape, by name. */
    private static boolean writesIntoGivenArrays(NDGatedFwa attention) {
      INDArray q = Nd4j.rand(DataType.FLOAT, 1, 5, 2, 8);
      INDArray h = Nd4j.rand(DataType.FLOAT, 1, 5, 2);
      INDArray alpha = Nd4j.valueArrayOf(h.shape(), Double.NaN, DataType.FLOAT);
      attention.gate(h, h, GatedFwaOps.DEFAULT_EPS, alpha);
      INDArray o = Nd4j.valueArrayOf(q.shape(), Double.NaN, DataType.FLOAT);
      INDArray lse = Nd4j.valueArrayOf(new long[] {1, 2, 5}, Double.NaN, DataType.FLOAT);
      attention.gatedFwa(q, q, q, alpha, null, 3, 0, o, lse);
      INDArray[] results = attention.gatedFwa(q, q, q, alpha, null, 3, 0);
      return alpha.equals(attention.gate(h, h, GatedFwaOps.DEFAULT_EPS))
          && o.equals(results[0])
          && lse.equals(results[1])
          && refuses(() -> attention.gate(h, h, GatedFwaOps.DEFAULT_EPS, lse), "alpha")
          && refuses(() -> attention.gate(h, h, GatedFwaOps.DEFAULT_EPS, null), "alpha")
          && refuses(() -> attention.gatedFwa(q, q, q, alpha, null, 3, 0, lse, lse), " o ")
          && refuses(() -> attention.gatedFwa(q, q, q, alpha, null, 3, 0, o, o), "lse");
    }

    private static boolean refuses(Runnable call, String name) {
      try {
        call.run();
        return false;
      } catch (RuntimeException e) {
        for (Throwable cause = e; cause != null; cause = cause.getCause()) {
          if (cause.getMessage().contains("gated_fwa") && cause.getMessage().contains(name)) {
            return true;
          }
        }
        return false;
      }
    }
  }

  @Test
  void nativeByDefault() {
    assertThat(JavaProcess.run(Attend.class, List.of()).output())
        .contains("native true sums 80.0 80.0 native ops in graph 1 into given arrays true")
        .doesNotContain("which is slower");
  }

  @Test
  void composedWhereSwitchedOff() {
    assertThat(JavaProcess.run(Attend.class, List.of("-Dgatedfwa.native=off")).output())
        .contains("native false sums 80.0 80.0 native ops in graph 0 into given arrays true")
        .doesNotContain("which is slower");
  }

  @Test
  void composedWithOneWarningWhereItCannotBeLoaded() {
    String output = JavaProcess.run(Attend.class, List.of("-Dgatedfwa.cuda.float=none")).output();
    assertThat(output).contains("native false sums 80.0 80.0 native ops in graph 0");
    String warning = "GatedFWA runs on ND4J's own ops, which is slower: ";
    assertThat(output)
        .contains(warning + "the system property gatedfwa.cuda.float is 'none'")
        .containsOnlyOnce(warning);
  }

  @Test
  void exceptionWhereRequiredAndNotThere() {
    assertThat(
            JavaProcess.run(
                    Attend.class,
                    List.of("-Dgatedfwa.native=required", "-Dgatedfwa.cuda.float=none"))
                .output())
        .contains("failed: the system property gatedfwa.cuda.float is 'none'");
  }

  @Test
  void unknownValueIsRefused() {
    assertThat(JavaProcess.run(Attend.class, List.of("-Dgatedfwa.native=maybe")).output())
        .contains(
            "failed: the system property gatedfwa.native is 'maybe'; expected auto, required or"
                + " off");
  }
}
