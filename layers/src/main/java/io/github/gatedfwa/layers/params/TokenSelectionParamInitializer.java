package io.github.gatedfwa.layers.params;

import io.github.gatedfwa.layers.TokenSelectionLayer;
import java.util.Map;

/**
 * Parameters of {@link TokenSelectionLayer}: Wq, Wk, Wv, Wo and, if it has them, bq, bk, bv, bo as
 * those of {@link GatedFWAParamInitializer}.
 */
public final class TokenSelectionParamInitializer
    extends AttentionParamInitializer<TokenSelectionLayer> {
  public static final TokenSelectionParamInitializer INSTANCE =
      new TokenSelectionParamInitializer();

  private TokenSelectionParamInitializer() {
    super(TokenSelectionLayer.class);
  }

  @Override
  public Map<String, Long> projections(TokenSelectionLayer conf) {
    return heads(conf, KEY_WEIGHT, VALUE_WEIGHT);
  }
}
