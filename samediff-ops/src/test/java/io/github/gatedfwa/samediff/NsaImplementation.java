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

/** The implementations of native sparse attention that must agree. */
enum NsaImplementation {
  NATIVE {
    @Override
    List<INDArray> compressed(NsaCase c) {
      INDArray o = poisoned(c.q().dataType(), c.dO().shape());
      INDArray lse = poisonedLse(c);
      Nd4j.exec(
          new NsaCompressedAttention(
              c.q(),
              c.kCmp(),
              c.vCmp(),
              c.blockMask(),
              c.blockLength(),
              c.stride(),
              c.keyLength(),
              c.scale(),
              o,
              lse));
      INDArray[] gradients = poisonedLike(c.q(), c.kCmp(), c.vCmp());
      Nd4j.exec(
          new NsaCompressedAttentionBp(
              c.q(),
              c.kCmp(),
              c.vCmp(),
              c.blockMask(),
              o,
              lse,
              c.dO(),
              c.blockLength(),
              c.stride(),
              c.keyLength(),
              c.scale(),
              gradients));
      return List.of(o, lse, gradients[0], gradients[1], gradients[2]);
    }

    @Override
    INDArray select(NsaCase c, INDArray lse) {
      INDArray indices =
          poisoned(DataType.INT32, c.q().size(0), c.q().size(1), c.kCmp().size(2), c.topN());
      Nd4j.exec(
          new NsaSelect(
              c.q(),
              c.kCmp(),
              lse,
              c.blockMask(),
              c.blockLength(),
              c.stride(),
              c.selectionBlock(),
              c.topN(),
              c.keyLength(),
              c.scale(),
              indices));
      return indices;
    }

    @Override
    List<INDArray> selected(NsaCase c, INDArray indices) {
      INDArray o = poisoned(c.q().dataType(), c.dO().shape());
      INDArray lse = poisonedLse(c);
      Nd4j.exec(
          new NsaSelectedAttention(
              c.q(), c.k(), c.v(), indices, c.mask(), c.selectionBlock(), c.scale(), o, lse));
      INDArray[] gradients = poisonedLike(c.q(), c.k(), c.v());
      Nd4j.exec(
          new NsaSelectedAttentionBp(
              c.q(),
              c.k(),
              c.v(),
              indices,
              c.mask(),
              o,
              lse,
              c.dO(),
              c.selectionBlock(),
              c.scale(),
              gradients));
      return List.of(o, lse, gradients[0], gradients[1], gradients[2]);
    }
  },

  COMPOSED_ARRAYS {
    @Override
    List<INDArray> compressed(NsaCase c) {
      INDArray[] forward =
          ComposedNsaArrays.compressedAttention(
              c.q(),
              c.kCmp(),
              c.vCmp(),
              c.blockMask(),
              c.blockLength(),
              c.stride(),
              c.keyLength(),
              c.scale());
      List<INDArray> result = new ArrayList<>(Arrays.asList(forward));
      result.addAll(
          Arrays.asList(
              ComposedNsaArrays.compressedAttentionBp(
                  c.q(),
                  c.kCmp(),
                  c.vCmp(),
                  c.blockMask(),
                  forward[0],
                  forward[1],
                  c.dO(),
                  c.blockLength(),
                  c.stride(),
                  c.keyLength(),
                  c.scale())));
      return result;
    }

    @Override
    INDArray select(NsaCase c, INDArray lse) {
      return ComposedNsaArrays.select(
          c.q(),
          c.kCmp(),
          lse,
          c.blockMask(),
          c.blockLength(),
          c.stride(),
          c.selectionBlock(),
          c.topN(),
          c.keyLength(),
          c.scale());
    }

    @Override
    List<INDArray> selected(NsaCase c, INDArray indices) {
      INDArray[] forward =
          ComposedNsaArrays.selectedAttention(
              c.q(), c.k(), c.v(), indices, c.mask(), c.selectionBlock(), c.scale());
      List<INDArray> result = new ArrayList<>(Arrays.asList(forward));
      result.addAll(
          Arrays.asList(
              ComposedNsaArrays.selectedAttentionBp(
                  c.q(),
                  c.k(),
                  c.v(),
                  indices,
                  c.mask(),
                  forward[0],
                  forward[1],
                  c.dO(),
                  c.selectionBlock(),
                  c.scale())));
      return result;
    }
  },

  COMPOSED_GRAPH {
    @Override
    List<INDArray> compressed(NsaCase c) {
      SameDiff sd = SameDiff.create();
      SDVariable[] outputs =
          new ComposedNsaGraph(sd)
              .compressedAttention(
                  sd.var("q", c.q()),
                  sd.var("k", c.kCmp()),
                  sd.var("v", c.vCmp()),
                  c.blockMask() == null ? null : sd.constant("mask", c.blockMask()),
                  c.blockLength(),
                  c.stride(),
                  c.keyLength(),
                  c.scale());
      return withGradients(sd, outputs, c.dO());
    }

    @Override
    INDArray select(NsaCase c, INDArray lse) {
      SameDiff sd = SameDiff.create();
      return new ComposedNsaGraph(sd)
          .select(
              sd.var("q", c.q()),
              sd.var("k", c.kCmp()),
              sd.var("lse", lse),
              c.blockMask() == null ? null : sd.constant("mask", c.blockMask()),
              c.blockLength(),
              c.stride(),
              c.selectionBlock(),
              c.topN(),
              c.keyLength(),
              c.scale())
          .eval();
    }

    @Override
    List<INDArray> selected(NsaCase c, INDArray indices) {
      SameDiff sd = SameDiff.create();
      SDVariable[] outputs =
          new ComposedNsaGraph(sd)
              .selectedAttention(
                  sd.var("q", c.q()),
                  sd.var("k", c.k()),
                  sd.var("v", c.v()),
                  sd.constant("indices", indices),
                  c.mask() == null ? null : sd.constant("mask", c.mask()),
                  c.selectionBlock(),
                  c.scale());
      return withGradients(sd, outputs, c.dO());
    }
  };

  /** o, lse, dq, dkCmp, dvCmp. */
  abstract List<INDArray> compressed(NsaCase c);

  abstract INDArray select(NsaCase c, INDArray lse);

  /** o, lse, dq, dk, dv. */
  abstract List<INDArray> selected(NsaCase c, INDArray indices);

  static final List<String> NAMES = List.of("o", "lse", "dq", "dk", "dv");

  private static List<INDArray> withGradients(SameDiff sd, SDVariable[] outputs, INDArray dO) {
    DataType type = NativeOp.accumulatorType(dO.dataType());
    SDVariable loss = outputs[0].castTo(type).mul(sd.constant("dO", dO.castTo(type))).sum();
    sd.setLossVariables(loss);
    Map<String, INDArray> values = sd.output(Map.of(), outputs[0].name(), outputs[1].name());
    Map<String, INDArray> gradients = sd.calculateGradients(Map.of(), "q", "k", "v");
    return List.of(
        values.get(outputs[0].name()),
        values.get(outputs[1].name()),
        gradients.get("q"),
        gradients.get("k"),
        gradients.get("v"));
  }

  private static INDArray poisonedLse(NsaCase c) {
    return poisoned(
        NativeOp.accumulatorType(c.q().dataType()), c.q().size(0), c.q().size(2), c.q().size(1));
  }

  private static INDArray[] poisonedLike(INDArray... arrays) {
    return Arrays.stream(arrays)
        .map(x -> poisoned(x.dataType(), x.shape()))
        .toArray(INDArray[]::new);
  }

  private static INDArray poisoned(DataType type, long... shape) {
    INDArray x = Nd4j.create(type, shape);
    return x.isEmpty() ? x : x.assign(type == DataType.INT32 ? -7 : Double.NaN);
  }
}
