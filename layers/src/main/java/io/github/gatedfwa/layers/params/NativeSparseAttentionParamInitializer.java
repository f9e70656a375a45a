package io.github.gatedfwa.layers.params;

import io.github.gatedfwa.layers.KeyValueSharing;
import io.github.gatedfwa.layers.NativeSparseAttentionLayer;
import java.util.Map;

/**
 * Parameters of {@link NativeSparseAttentionLayer}: those of {@link GatedFWAParamInitializer}, but
 * with keys and values per branch, {@link CompressionMlp} if there is one, and the branch gates. H,
 * Hkv: query and key/value heads; D: head size.
 *
 * <table>
 * <caption>Names, shapes and start values of what differs</caption>
 * <tr><td>WkCmp, WvCmp, WkSlc, WvSlc, WkWin, WvWin</td><td>[nIn, Hkv·D]</td><td>weightInit</td></tr>
 * <tr><td>Wk, Wv: in place of those of the branches that share</td><td>[nIn, Hkv·D]</td>
 *     <td>weightInit</td></tr>
 * <tr><td>Wbranch: columns of compression, selection, window</td><td>[nIn, 3·H]</td>
 *     <td>N(0, 0.02²)</td></tr>
 * <tr><td>bkCmp, ..., bk, bv, bbranch</td><td>as the weights' columns</td><td>biasInit</td></tr>
 * </table>
 */
public final class NativeSparseAttentionParamInitializer
    extends AttentionParamInitializer<NativeSparseAttentionLayer> {
  public static final NativeSparseAttentionParamInitializer INSTANCE =
      new NativeSparseAttentionParamInitializer();

  public static final String COMPRESSION_KEY_WEIGHT = "WkCmp";
  public static final String COMPRESSION_VALUE_WEIGHT = "WvCmp";
  public static final String SELECTION_KEY_WEIGHT = "WkSlc";
  public static final String SELECTION_VALUE_WEIGHT = "WvSlc";
  public static final String WINDOW_KEY_WEIGHT = "WkWin";
  public static final String WINDOW_VALUE_WEIGHT = "WvWin";
  public static final String BRANCH_WEIGHT = "Wbranch";
  public static final String BRANCH_BIAS = "bbranch";

  private NativeSparseAttentionParamInitializer() {
    super(NativeSparseAttentionLayer.class);
  }

  @Override
  public Map<String, Long> projections(NativeSparseAttentionLayer conf) {
    Map<String, Long> projections =
        switch (conf.getSharing()) {
          case NONE ->
              heads(
                  conf,
                  COMPRESSION_KEY_WEIGHT,
                  COMPRESSION_VALUE_WEIGHT,
                  SELECTION_KEY_WEIGHT,
                  SELECTION_VALUE_WEIGHT,
                  WINDOW_KEY_WEIGHT,
                  WINDOW_VALUE_WEIGHT);
          case COMPRESSION_AND_SELECTION ->
              heads(conf, KEY_WEIGHT, VALUE_WEIGHT, WINDOW_KEY_WEIGHT, WINDOW_VALUE_WEIGHT);
          case ALL -> heads(conf, KEY_WEIGHT, VALUE_WEIGHT);
        };
    addWindow(projections, conf);
    projections.put(BRANCH_WEIGHT, 3L * conf.getNHeads());
    return projections;
  }

  /**
   * Where the keys or values of a branch come from.
   *
   * @param own name of the weight that the branch has without sharing
   */
  public static String weightOf(KeyValueSharing sharing, String own) {
    boolean window = own.equals(WINDOW_KEY_WEIGHT) || own.equals(WINDOW_VALUE_WEIGHT);
    boolean shared =
        sharing == KeyValueSharing.ALL
            || (sharing == KeyValueSharing.COMPRESSION_AND_SELECTION && !window);
    if (!shared) {
      return own;
    }
    return own.startsWith(KEY_WEIGHT) ? KEY_WEIGHT : VALUE_WEIGHT;
  }

  @Override
  public CompressionMlp compressionMlp(NativeSparseAttentionLayer conf) {
    return CompressionMlp.of(
        conf, conf.getCompression(), conf.getBlockLength(), conf.getCompressionHiddenSize());
  }
}
