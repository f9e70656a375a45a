package io.github.gatedfwa.samediff;

import static org.assertj.core.api.Assertions.assertThat;

import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/** ‖x − reference‖ / ‖reference‖, the measure of every tolerance. */
final class Errors {

  private Errors() {}

  /** What each type may err by against float64. */
  static double bound(DataType type) {
    return switch (type) {
      case DOUBLE -> 1e-12;
      case FLOAT -> 2e-6;
      case BFLOAT16 -> 1.5e-2;
      default -> 2e-3;
    };
  }

  /**
   * The relative error; infinities must be where the reference has them and count for nothing. 0 if
   * both are all zeros.
   */
  static double relative(INDArray x, INDArray reference) {
    return relative(x, reference, 0);
  }

  /**
   * As {@link #relative}, but a reference whose elements are smaller than {@code unit} is taken for
   * one of that size: what rounding leaves of a gradient that cancels is measured by its summands.
   */
  static double relative(INDArray x, INDArray reference, Unit unit) {
    return relative(x, reference, unit.size() * Math.sqrt((double) reference.length()));
  }

  /** The ordinary size of an element. */
  record Unit(double size) {}

  private static double relative(INDArray x, INDArray reference, double leastNorm) {
    assertThat(x.shape()).isEqualTo(reference.shape());
    double[] a = x.castTo(DataType.DOUBLE).dup('c').data().asDouble();
    double[] b = reference.castTo(DataType.DOUBLE).dup('c').data().asDouble();
    double error = 0;
    double norm = 0;
    for (int i = 0; i < b.length; i++) {
      if (Double.isInfinite(b[i])) {
        assertThat(a[i]).isEqualTo(b[i]);
        continue;
      }
      error += (a[i] - b[i]) * (a[i] - b[i]);
      norm += b[i] * b[i];
    }
    if (error == 0) {
      return 0;
    }
    return Math.sqrt(error) / Math.max(Math.sqrt(norm), leastNorm);
  }
}
