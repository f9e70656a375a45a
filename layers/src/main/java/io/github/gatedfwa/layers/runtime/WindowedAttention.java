package io.github.gatedfwa.layers.runtime;

import io.github.gatedfwa.layers.WindowedAttentionLayer;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.deeplearning4j.nn.workspace.LayerWorkspaceMgr;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/**
 * Run-time layer of a {@link WindowedAttentionLayer}: what its window's gate did can be read.
 *
 * @param <C> the configuration
 */
public abstract class WindowedAttention<C extends WindowedAttentionLayer> extends Attention<C> {
  private static final long serialVersionUID = 1L;

  private transient WindowBranch window; // null until it is needed

  WindowedAttention(NeuralNetConfiguration conf, DataType dataType) {
    super(conf, dataType);
  }

  abstract WindowBranch newWindow();

  final WindowBranch window() {
    if (window == null) {
      window = newWindow();
    }
    return window;
  }

  /**
   * The decays alpha of the tokens of the last forward pass, as the attention sees them: the
   * larger, the more of what came before is forgotten when the token arrives.
   *
   * <p>They are to be had while the layer has its input: in a listener's {@code onForwardPass}, and
   * after a {@code feedForward} that does not clear inputs. After a pass in inference mode they are
   * computed anew, with the mask that is set now.
   *
   * @return [minibatch, time, heads], a copy; 0 at padded tokens
   * @throws IllegalStateException if the layer has no gate or no input
   */
  public final INDArray decays() {
    if (!layerConf().isGated()) {
      throw new IllegalStateException(describe() + ": gated = false: there are no decays");
    }
    if (input == null) {
      throw new IllegalStateException(
          describe() + ": no input: decays can be read after a forward pass that keeps it");
    }
    return Memory.detached(
        () -> {
          Pass p = lastTrainingPass();
          if (p != null) {
            return p.window.decays(p.input.time());
          }
          p = new Pass(null);
          Scope scope = scope(false, LayerWorkspaceMgr.noWorkspaces());
          projectInput(p, scope);
          return window().decays(p, scope);
        });
  }
}
