package io.github.gatedfwa.samediff;

/**
 * The sizes of native sparse attention (arXiv 2502.11089) with a window; {@link #PAPER} are the
 * paper's.
 *
 * @param blockLength l: how many tokens are compressed into one, at least 1
 * @param stride d: how many tokens lie between the starts of two compressed blocks, a divisor of l
 * @param selectionBlock l′: how many tokens a selection block has, a multiple of l
 * @param topN how many selection blocks a query gets, at least 3: the first, its own and the one
 *     before are always among them
 * @param window w: how many tokens the window has, at least 1
 */
public record NsaConfig(
    long blockLength, long stride, long selectionBlock, long topN, long window) {

  /** l = 32, d = 16, l′ = 64, topN = 16, w = 512. */
  public static final NsaConfig PAPER = new NsaConfig(32, 16, 64, 16, 512);

  /**
   * Checks the sizes.
   *
   * @throws IllegalArgumentException if one of them is not as described
   */
  public NsaConfig {
    NsaArguments.compression("nsa", blockLength, stride);
    NsaArguments.selection("nsa", blockLength, selectionBlock, topN);
    Arguments.window("nsa", window);
  }
}
