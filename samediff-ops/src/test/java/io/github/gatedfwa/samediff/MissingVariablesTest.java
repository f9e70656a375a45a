package io.github.gatedfwa.samediff;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.factory.Nd4j;

/** In a graph, variables that must be there are asked for by name before anything is built. */
class MissingVariablesTest {

  private interface Call {

    void on(SameDiff sd, SDVariable... inputs);
  }

  /** Leaves out one input after the other. */
  private static void assertRefused(String op, String names, Call... calls) {
    List<String> inputs = Arrays.asList(names.split(" "));
    for (Call call : calls) {
      for (int missing = 0; missing < inputs.size(); missing++) {
        SameDiff sd = SameDiff.create();
        SDVariable[] x = new SDVariable[inputs.size()];
        for (int i = 0; i < x.length; i++) {
          x[i] = sd.placeHolder(inputs.get(i), DataType.FLOAT, -1, -1, 2, 4);
        }
        x[missing] = null;
        assertThatIllegalArgumentException()
            .isThrownBy(() -> call.on(sd, x))
            .withMessage(op + ": " + inputs.get(missing) + " is null; expected a variable");
        assertThat(sd.getOps()).isEmpty();
      }
    }
  }

  @Test
  void attention() {
    assertRefused(
        "gated_fwa",
        "q k v",
        (sd, x) -> new SDGatedFwa(sd).gatedFwa(x[0], x[1], x[2], null, null, 3, 0),
        (sd, x) -> new GatedFwa(sd, x[0], x[1], x[2], null, null, 3, 0),
        (sd, x) -> new ComposedGraph(sd).gatedFwa(x[0], x[1], x[2], null, null, 3, 0));
    assertRefused(
        "gated_fwa_bp",
        "q k v o lse dO",
        (sd, x) -> new GatedFwaBp(sd, x[0], x[1], x[2], null, null, x[3], x[4], x[5], 3, 0));
  }

  @Test
  void gate() {
    assertRefused(
        "gated_fwa_gate",
        "h beta",
        (sd, x) -> new SDGatedFwa(sd).gate(x[0], x[1], 1e-3),
        (sd, x) -> new GatedFwaGate(sd, x[0], x[1], 1e-3),
        (sd, x) -> new ComposedGraph(sd).gate(x[0], x[1], 1e-3));
    assertRefused(
        "gated_fwa_gate_bp",
        "h beta dalpha",
        (sd, x) -> new GatedFwaGateBp(sd, x[0], x[1], x[2], 1e-3));
  }

  @Test
  void compressedAttention() {
    assertRefused(
        "nsa_compressed_attention",
        "q kCmp vCmp",
        (sd, x) -> new SDNsa(sd).compressedAttention(x[0], x[1], x[2], null, 2, 1, 0, 0),
        (sd, x) -> new NsaCompressedAttention(sd, x[0], x[1], x[2], null, 2, 1, 0, 0),
        (sd, x) ->
            new ComposedNsaGraph(sd).compressedAttention(x[0], x[1], x[2], null, 2, 1, 0, 0));
    assertRefused(
        "nsa_compressed_attention_bp",
        "q kCmp vCmp o lse dO",
        (sd, x) ->
            new NsaCompressedAttentionBp(sd, x[0], x[1], x[2], null, x[3], x[4], x[5], 2, 1, 0, 0));
  }

  @Test
  void selection() {
    assertRefused(
        "nsa_select",
        "q kCmp lse",
        (sd, x) -> new SDNsa(sd).select(x[0], x[1], x[2], null, 2, 1, 2, 3, 0, 0),
        (sd, x) -> new NsaSelect(sd, x[0], x[1], x[2], null, 2, 1, 2, 3, 0, 0),
        (sd, x) -> new ComposedNsaGraph(sd).select(x[0], x[1], x[2], null, 2, 1, 2, 3, 0, 0));
    assertRefused(
        "nsa_selected_attention",
        "q k v indices",
        (sd, x) -> new SDNsa(sd).selectedAttention(x[0], x[1], x[2], x[3], null, 2, 0),
        (sd, x) -> new NsaSelectedAttention(sd, x[0], x[1], x[2], x[3], null, 2, 0),
        (sd, x) -> new ComposedNsaGraph(sd).selectedAttention(x[0], x[1], x[2], x[3], null, 2, 0));
    assertRefused(
        "nsa_selected_attention_bp",
        "q k v indices o lse dO",
        (sd, x) ->
            new NsaSelectedAttentionBp(sd, x[0], x[1], x[2], x[3], null, x[4], x[5], x[6], 2, 0));
  }

  @Test
  void compression() {
    assertRefused("nsa_compress_mean", "x", (sd, x) -> new SDNsa(sd).compressMean(x[0], 2, 1));
    assertRefused(
        "nsa_compress_mlp",
        "x position w1 b1 w2 b2",
        (sd, x) -> new SDNsa(sd).compressMlp(x[0], x[1], x[2], x[3], x[4], x[5], 2, 1));
    assertRefused("nsa_block_mask", "mask", (sd, x) -> new SDNsa(sd).blockMask(x[0], 2, 1));
  }

  private static final NsaConfig SMALL = new NsaConfig(2, 1, 2, 3, 4);

  @Test
  void threeBranches() {
    assertRefused(
        "nsa",
        "q k v kCmp vCmp kWin vWin gates",
        (sd, x) ->
            new SDNsa(sd)
                .attention(x[0], x[1], x[2], x[3], x[4], x[5], x[6], null, x[7], null, SMALL));
  }

  /** Eight queries, six keys. */
  @Test
  void fewerKeysThanQueries() {
    SameDiff sd = SameDiff.create();
    SDVariable q = sd.var("q", Nd4j.rand(DataType.FLOAT, 1, 8, 2, 4));
    SDVariable k = sd.var("k", Nd4j.rand(DataType.FLOAT, 1, 6, 2, 4));
    SDVariable gates = sd.var("gates", Nd4j.rand(DataType.FLOAT, 1, 8, 2, 3));
    assertThatIllegalArgumentException()
        .isThrownBy(() -> new SDNsa(sd).attention(q, k, k, k, k, k, k, null, gates, null, SMALL))
        .withMessage("nsa: k has shape [1, 6, 2, 4]; expected at least as many tokens as q has, 8");
    assertThat(sd.getOps()).isEmpty();
  }
}
