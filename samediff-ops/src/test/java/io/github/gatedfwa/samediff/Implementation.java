package io.github.gatedfwa.samediff;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

/** The implementations that must agree. */
enum Implementation {
  NATIVE {
    @Override
    List<INDArray> attention(AttentionCase c) {
      DataType type = c.q().dataType();
      long[] shape = c.q().shape();
      INDArray o = poisoned(type, c.dO().shape());
      INDArray lse = poisoned(NativeOp.accumulatorType(type), shape[0], shape[2], shape[1]);
      Nd4j.exec(
          new GatedFwa(c.q(), c.k(), c.v(), c.alpha(), c.mask(), c.window(), c.scale(), o, lse));
      List<INDArray> gradients = new ArrayList<>();
      gradients.add(poisoned(type, shape));
      gradients.add(poisoned(type, c.k().shape()));
      gradients.add(poisoned(type, c.v().shape()));
      if (c.alpha() != null) {
        gradients.add(poisoned(c.alpha().dataType(), c.alpha().shape()));
      }
      Nd4j.exec(
          new GatedFwaBp(
              c.q(),
              c.k(),
              c.v(),
              c.alpha(),
              c.mask(),
              o,
              lse,
              c.dO(),
              c.window(),
              c.scale(),
              gradients.toArray(INDArray[]::new)));
      List<INDArray> result = new ArrayList<>(List.of(o, lse));
      result.addAll(gradients);
      return result;
    }

    @Override
    List<INDArray> gate(INDArray h, INDArray beta, INDArray dalpha, double eps) {
      INDArray alpha = Nd4j.exec(new GatedFwaGate(h, beta, eps))[0];
      INDArray[] gradients = Nd4j.exec(new GatedFwaGateBp(h, beta, dalpha, eps));
      return List.of(alpha, gradients[0], gradients[1]);
    }
  },

  COMPOSED_ARRAYS {
    @Override
    List<INDArray> attention(AttentionCase c) {
      INDArray[] forward =
          ComposedArrays.gatedFwa(c.q(), c.k(), c.v(), c.alpha(), c.mask(), c.window(), c.scale());
      INDArray[] backward =
          ComposedArrays.gatedFwaBp(
              c.q(),
              c.k(),
              c.v(),
              c.alpha(),
              c.mask(),
              forward[0],
              forward[1],
              c.dO(),
              c.window(),
              c.scale());
      List<INDArray> result = new ArrayList<>(Arrays.asList(forward));
      result.addAll(Arrays.asList(backward));
      return result;
    }

    @Override
    List<INDArray> gate(INDArray h, INDArray beta, INDArray dalpha, double eps) {
      INDArray[] gradients = ComposedArrays.gateBp(h, beta, dalpha, eps);
      return List.of(ComposedArrays.gate(h, beta, eps), gradients[0], gradients[1]);
    }
  },

  COMPOSED_GRAPH {
    @Override
    List<INDArray> attention(AttentionCase c) {
      SameDiff sd = SameDiff.create();
      SDVariable q = sd.var("q", c.q());
      SDVariable k = sd.var("k", c.k());
      SDVariable v = sd.var("v", c.v());
      SDVariable alpha = c.alpha() == null ? null : sd.var("alpha", c.alpha());
      SDVariable mask = c.mask() == null ? null : sd.constant("mask", c.mask());
      SDVariable[] outputs =
          new ComposedGraph(sd).gatedFwa(q, k, v, alpha, mask, c.window(), c.scale());
      DataType type = NativeOp.accumulatorType(c.q().dataType());
      SDVariable dO = sd.constant("dO", c.dO().castTo(type));
      SDVariable loss = outputs[0].castTo(type).mul(dO).sum();
      sd.setLossVariables(loss);
      List<String> inputs = new ArrayList<>(List.of("q", "k", "v"));
      if (alpha != null) {
        inputs.add("alpha");
      }
      Map<String, INDArray> values = sd.output(Map.of(), outputs[0].name(), outputs[1].name());
      Map<String, INDArray> gradients = sd.calculateGradients(Map.of(), inputs);
      List<INDArray> result = new ArrayList<>();
      result.add(values.get(outputs[0].name()));
      result.add(values.get(outputs[1].name()));
      inputs.forEach(name -> result.add(gradients.get(name)));
      return result;
    }

    @Override
    List<INDArray> gate(INDArray h, INDArray beta, INDArray dalpha, double eps) {
      SameDiff sd = SameDiff.create();
      SDVariable alpha = new ComposedGraph(sd).gate(sd.var("h", h), sd.var("beta", beta), eps);
      sd.setLossVariables(alpha.mul(sd.constant("dalpha", dalpha)).sum());
      Map<String, INDArray> gradients = sd.calculateGradients(Map.of(), List.of("h", "beta"));
      return List.of(
          sd.outputSingle(Map.of(), alpha.name()), gradients.get("h"), gradients.get("beta"));
    }
  };

  /** o, lse, dq, dk, dv and, if there is an alpha, dalpha. */
  abstract List<INDArray> attention(AttentionCase c);

  /** alpha, dh, dbeta. */
  abstract List<INDArray> gate(INDArray h, INDArray beta, INDArray dalpha, double eps);

  static final List<String> ATTENTION_NAMES = List.of("o", "lse", "dq", "dk", "dv", "dalpha");
  static final List<String> GATE_NAMES = List.of("alpha", "dh", "dbeta");

  private static INDArray poisoned(DataType type, long... shape) {
    return Nd4j.valueArrayOf(shape, Double.NaN, type);
  }
}
