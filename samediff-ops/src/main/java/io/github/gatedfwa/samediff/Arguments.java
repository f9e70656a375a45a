package io.github.gatedfwa.samediff;

import java.util.Arrays;
import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * The checks that both implementations start with, in the words of the native op's own. Each throws
 * an {@link IllegalArgumentException} that names op, argument, what came and what is allowed.
 */
final class Arguments {

  static final int MAX_HEAD_SIZE = 256;

  private Arguments() {}

  static void window(String op, long window) {
    if (window < 1) {
      throw wrong(op, "argument 'window' is " + window + "; it must be at least 1");
    }
  }

  static void scale(String op, double scale) {
    if (!Double.isFinite(scale)) {
      throw wrong(op, "argument 'scale' is " + scale + "; it must be finite (0 means 1/sqrt(D))");
    }
  }

  static void eps(String op, double eps) {
    if (!Double.isFinite(eps) || eps < 0) {
      throw wrong(op, "argument 'eps' is " + eps + "; it must be finite and at least 0");
    }
  }

  static void attention(
      String op,
      INDArray q,
      INDArray k,
      INDArray v,
      INDArray alpha,
      INDArray mask,
      long window,
      double scale) {
    window(op, window);
    scale(op, scale);
    present(op, "q", q);
    present(op, "k", k);
    present(op, "v", v);
    queries(op, q);
    DataType type = q.dataType();
    long batch = q.size(0);
    long heads = q.size(2);
    type(op, "k", k, type);
    shape(op, "k", k, is(batch), atLeast(q.size(1)), divisorOf(heads), is(q.size(3)));
    long keyLength = k.size(1);
    type(op, "v", v, type);
    shape(op, "v", v, is(batch), is(keyLength), is(k.size(2)), upTo(MAX_HEAD_SIZE));
    if (alpha != null) {
      type(op, "alpha", alpha, NativeOp.accumulatorType(type));
      shape(op, "alpha", alpha, is(batch), is(keyLength), is(heads));
    }
    mask(op, mask, type, batch, keyLength);
  }

  /** q [B, N, H, D]. */
  static void queries(String op, INDArray q) {
    DataType type = q.dataType();
    if (type != DataType.FLOAT
        && type != DataType.DOUBLE
        && type != DataType.FLOAT16
        && type != DataType.BFLOAT16) {
      throw wrong(op, "q is " + type + "; expected FLOAT, DOUBLE, HALF or BFLOAT16");
    }
    shape(op, "q", q, any(), any(), atLeast(1), upTo(MAX_HEAD_SIZE));
  }

  /** mask [batch, count] of q's type or BOOL, or null. */
  static void mask(String op, INDArray mask, DataType type, long batch, long count) {
    if (mask != null) {
      if (mask.dataType() != type && mask.dataType() != DataType.BOOL) {
        throw wrong(op, "mask is " + mask.dataType() + "; expected " + type + " or BOOL");
      }
      shape(op, "mask", mask, is(batch), is(count));
    }
  }

  static void attentionGradient(
      String op,
      INDArray q,
      INDArray k,
      INDArray v,
      INDArray alpha,
      INDArray mask,
      INDArray o,
      INDArray lse,
      INDArray dO,
      long window,
      double scale) {
    attention(op, q, k, v, alpha, mask, window, scale);
    results(op, q, v, o, lse, dO);
  }

  /** o and dO [B, N, H, Dv], lse [B, H, N]. */
  static void results(String op, INDArray q, INDArray v, INDArray o, INDArray lse, INDArray dO) {
    present(op, "o", o);
    present(op, "dO", dO);
    type(op, "o", o, q.dataType());
    shape(op, "o", o, is(q.size(0)), is(q.size(1)), is(q.size(2)), is(v.size(3)));
    lse(op, q, lse);
    type(op, "dO", dO, q.dataType());
    shape(op, "dO", dO, is(q.size(0)), is(q.size(1)), is(q.size(2)), is(v.size(3)));
  }

  static void lse(String op, INDArray q, INDArray lse) {
    present(op, "lse", lse);
    type(op, "lse", lse, NativeOp.accumulatorType(q.dataType()));
    shape(op, "lse", lse, is(q.size(0)), is(q.size(2)), is(q.size(1)));
  }

  static void gate(String op, INDArray h, INDArray beta, double eps) {
    eps(op, eps);
    present(op, "h", h);
    present(op, "beta", beta);
    if (h.dataType() != DataType.FLOAT && h.dataType() != DataType.DOUBLE) {
      throw wrong(op, "h is " + h.dataType() + "; expected FLOAT or DOUBLE");
    }
    shape(op, "h", h, any(), any(), atLeast(1));
    type(op, "beta", beta, h.dataType());
    shape(op, "beta", beta, is(h.size(0)), is(h.size(1)), is(h.size(2)));
  }

  static void gateGradient(String op, INDArray h, INDArray beta, INDArray dalpha, double eps) {
    gate(op, h, beta, eps);
    present(op, "dalpha", dalpha);
    type(op, "dalpha", dalpha, h.dataType());
    shape(op, "dalpha", dalpha, is(h.size(0)), is(h.size(1)), is(h.size(2)));
  }

  static void present(String op, String name, INDArray array) {
    if (array == null) {
      throw wrong(op, name + " is null; expected an array");
    }
  }

  /** The variable itself, unless it is null. */
  static SDVariable present(String op, String name, SDVariable variable) {
    if (variable == null) {
      throw wrong(op, name + " is null; expected a variable");
    }
    return variable;
  }

  static void type(String op, String name, INDArray array, DataType expected) {
    if (array.dataType() != expected) {
      throw wrong(op, name + " is " + array.dataType() + "; expected " + expected);
    }
  }

  static void shape(String op, String name, INDArray array, Dimension... expected) {
    boolean right = array.rank() == expected.length;
    for (int i = 0; right && i < expected.length; i++) {
      right = expected[i].allows(array.size(i));
    }
    if (!right) {
      throw wrong(
          op,
          name
              + " has shape "
              + Arrays.toString(array.shape())
              + "; expected "
              + Arrays.toString(expected));
    }
  }

  /** An output that the caller brought: of the type and shape of what is written to it. */
  static void sameAs(String op, String name, INDArray output, INDArray expected) {
    present(op, name, output);
    type(op, name, output, expected.dataType());
    shape(
        op,
        name,
        output,
        Arrays.stream(expected.shape()).mapToObj(Arguments::is).toArray(Dimension[]::new));
  }

  static IllegalArgumentException wrong(String op, String message) {
    return new IllegalArgumentException(op + ": " + message);
  }

  /** What a dimension may be. */
  record Dimension(Rule rule, long value) {

    enum Rule {
      EXACTLY,
      AT_LEAST,
      UP_TO,
      DIVISOR_OF
    }

    boolean allows(long size) {
      return switch (rule) {
        case EXACTLY -> size == value;
        case AT_LEAST -> size >= value;
        case UP_TO -> size >= 1 && size <= value;
        case DIVISOR_OF -> size >= 1 && value % size == 0;
      };
    }

    @Override
    public String toString() {
      return switch (rule) {
        case EXACTLY -> Long.toString(value);
        case AT_LEAST -> ">=" + value;
        case UP_TO -> "1.." + value;
        case DIVISOR_OF -> "a divisor of " + value;
      };
    }
  }

  static Dimension is(long size) {
    return new Dimension(Dimension.Rule.EXACTLY, size);
  }

  static Dimension atLeast(long size) {
    return new Dimension(Dimension.Rule.AT_LEAST, size);
  }

  static Dimension any() {
    return atLeast(0);
  }

  static Dimension upTo(long size) {
    return new Dimension(Dimension.Rule.UP_TO, size);
  }

  static Dimension divisorOf(long size) {
    return new Dimension(Dimension.Rule.DIVISOR_OF, size);
  }
}
