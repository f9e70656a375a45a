package io.github.gatedfwa.examples;

import static java.nio.charset.StandardCharsets.UTF_8;

import io.github.gatedfwa.layers.GateListener;
import io.github.gatedfwa.layers.runtime.WindowedAttention;
import io.github.gatedfwa.zoo.text.TextWindowSequenceRecordReader;
import java.util.ArrayList;
import java.util.List;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;

/** How much of its memory each head of a byte-level model forgets at each character of a text. */
final class TextGates {
  /** Characters in front of those asked for that a pass sees: more than the zoo's models reach. */
  private static final int CONTEXT = 2048;

  private TextGates() {}

  /** A head of a gated layer. */
  record Head(String layer, int head) {}

  /**
   * A character of a text.
   *
   * @param forgotten for each of the network's {@link #heads}, the share of its memory that fades
   *     when the character's first byte arrives: 1 − exp(−alpha), from 0 to 1
   */
  record Cell(String character, List<Double> forgotten) {}

  /** All heads that have a gate, layer by layer. */
  static List<Head> heads(ComputationGraph network) {
    List<Head> heads = new ArrayList<>();
    for (WindowedAttention<?> layer : GateListener.gatedLayers(network).values()) {
      for (int head = 0; head < layer.layerConf().getNHeads(); head++) {
        heads.add(new Head(layer.layerConf().getLayerName(), head));
      }
    }
    return heads;
  }

  /**
   * The characters of a text's end, by one pass over it that leaves the layers' inputs in place.
   *
   * @param from place of the first character asked for
   */
  static List<Cell> of(ComputationGraph network, String text, int from) {
    int start = Math.max(0, from - CONTEXT);
    if (start > 0 && Character.isLowSurrogate(text.charAt(start))) {
      start++;
    }
    byte[] bytes = text.substring(start).getBytes(UTF_8);
    INDArray input = Nd4j.create(DataType.FLOAT, 1, 1, bytes.length + 1);
    input.putScalar(0, TextWindowSequenceRecordReader.START);
    for (int i = 0; i < bytes.length; i++) {
      input.putScalar(i + 1, Byte.toUnsignedInt(bytes[i]));
    }
    network.feedForward(new INDArray[] {input}, false, false);
    List<INDArray> decays =
        GateListener.gatedLayers(network).values().stream().map(WindowedAttention::decays).toList();

    List<Cell> cells = new ArrayList<>();
    int at = 1; // place of the character's first byte in the input
    for (int i = start; i < text.length(); ) {
      String character = Character.toString(text.codePointAt(i));
      if (i >= from) {
        List<Double> forgotten = new ArrayList<>();
        for (INDArray alpha : decays) { // [1, time, heads]
          for (int head = 0; head < alpha.size(2); head++) {
            forgotten.add(1 - Math.exp(-alpha.getDouble(0, at, head)));
          }
        }
        cells.add(new Cell(character, forgotten));
      }
      at += character.getBytes(UTF_8).length;
      i += character.length();
    }
    return cells;
  }
}
