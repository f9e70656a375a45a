package io.github.gatedfwa.layers.params;

import io.github.gatedfwa.layers.TokenCompressionLayer;
import java.util.Map;

/**
 * Parameters of {@link TokenCompressionLayer}: Wq, Wk, Wv, Wo and, if it has them, bq, bk, bv, bo
 * as those of {@link GatedFWAParamInitializer}; those of {@link CompressionMlp} if there is one.
 */
public final class TokenCompressionParamInitializer
    extends AttentionParamInitializer<TokenCompressionLayer> {
  public static final TokenCompressionParamInitializer INSTANCE =
      new TokenCompressionParamInitializer();

  private TokenCompressionParamInitializer() {
    super(TokenCompressionLayer.class);
  }

  @Override
  public Map<String, Long> projections(TokenCompressionLayer conf) {
    return heads(conf, KEY_WEIGHT, VALUE_WEIGHT);
  }

  @Override
  public CompressionMlp compressionMlp(TokenCompressionLayer conf) {
    return CompressionMlp.of(
        conf, conf.getCompression(), conf.getBlockLength(), conf.getCompressionHiddenSize());
  }
}
