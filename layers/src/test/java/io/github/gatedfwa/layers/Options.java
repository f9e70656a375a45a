package io.github.gatedfwa.layers;

import org.deeplearning4j.nn.conf.RNNFormat;

/**
 * The options of {@link GatedFWALayer}, each on its own and all together, for parameterised tests.
 */
enum Options {
  UNGATED,
  GATED,
  FIXED_AMPLITUDE,
  GROUPED_HEADS,
  OWN_HEAD_SIZE,
  WINDOW_ONE,
  WINDOW_COVERS_ALL,
  ROPE,
  QK_NORM,
  ROPE_AND_NORM,
  KEY_SHIFT,
  VALUE_SHIFT,
  BIAS,
  EVERYTHING,
  EVERYTHING_NWC;

  /** Two heads, nOut = 4, window 3, and this option. */
  GatedFWALayer.Builder builder() {
    GatedFWALayer.Builder b = GatedFWALayer.builder().nOut(4).nHeads(2).windowSize(3);
    return switch (this) {
      case UNGATED -> b.gated(false);
      case GATED -> b;
      case FIXED_AMPLITUDE -> b.learnableAmplitude(false).gateBiasInit(0.5);
      case GROUPED_HEADS -> b.nHeads(4).nKvHeads(2).headSize(2);
      case OWN_HEAD_SIZE -> b.headSize(3);
      case WINDOW_ONE -> b.windowSize(1);
      case WINDOW_COVERS_ALL -> b.windowSize(1000);
      case ROPE -> b.ropeBase(100);
      case QK_NORM -> b.qkNorm(true);
      case ROPE_AND_NORM -> b.ropeBase(10).qkNorm(true);
      case KEY_SHIFT -> b.keyShift(true);
      case VALUE_SHIFT -> b.valueShift(true);
      case BIAS -> b.hasBias(true);
      case EVERYTHING, EVERYTHING_NWC ->
          b.nHeads(4)
              .nKvHeads(2)
              .headSize(4)
              .ropeBase(50)
              .qkNorm(true)
              .keyShift(true)
              .valueShift(true)
              .hasBias(true)
              .dataFormat(format());
    };
  }

  RNNFormat format() {
    return this == EVERYTHING_NWC ? RNNFormat.NWC : RNNFormat.NCW;
  }
}
