package io.github.gatedfwa.layers.runtime;

import io.github.gatedfwa.layers.RMSNormLayer;
import io.github.gatedfwa.layers.params.RMSNormParamInitializer;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.deeplearning4j.nn.workspace.LayerWorkspaceMgr;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;

/** Run-time layer of {@link RMSNormLayer}, where the formula is. */
public final class RMSNorm extends TokenWise<RMSNormLayer> {
  private static final long serialVersionUID = 1L;

  public RMSNorm(NeuralNetConfiguration conf, DataType dataType) {
    super(conf, dataType);
  }

  private double scale(double[] x) {
    double squares = 0;
    for (double value : x) {
      squares += value * value;
    }
    return 1 / Math.sqrt(squares / x.length + layerConf().getEps());
  }

  @Override
  void forward(INDArray in, INDArray out, boolean training, LayerWorkspaceMgr workspaces) {
    double[] gain = Matrices.vector(getParam(RMSNormParamInitializer.GAIN));
    int n = gain.length;
    Elements source = Elements.read(in);
    Elements target = Elements.write(out);
    Parallel.forEach(
        in.rows(),
        n,
        (from, to) -> {
          double[] x = new double[n];
          for (int t = from; t < to; t++) {
            source.load((long) t * n, x, n);
            double scale = scale(x);
            for (int i = 0; i < n; i++) {
              x[i] *= scale * gain[i];
            }
            target.store((long) t * n, x, n);
          }
        });
  }

  @Override
  void backward(
      INDArray in,
      INDArray gradient,
      INDArray out,
      boolean training,
      LayerWorkspaceMgr workspaces) {
    double[] gain = Matrices.vector(getParam(RMSNormParamInitializer.GAIN));
    int n = gain.length;
    Elements source = Elements.read(in);
    Elements error = Elements.read(gradient);
    Elements target = Elements.write(out);
    double[] dGain =
        Parallel.sum(
            in.rows(),
            n,
            (from, to, sums) -> {
              double[] x = new double[n];
              double[] dy = new double[n];
              for (int t = from; t < to; t++) {
                source.load((long) t * n, x, n);
                error.load((long) t * n, dy, n);
                double scale = scale(x);
                double dot = 0;
                for (int i = 0; i < n; i++) {
                  x[i] *= scale;
                  sums[i] += dy[i] * x[i];
                  dy[i] *= gain[i];
                  dot += dy[i] * x[i];
                }
                double mean = dot / n;
                for (int i = 0; i < n; i++) {
                  dy[i] = scale * (dy[i] - x[i] * mean);
                }
                target.store((long) t * n, dy, n);
              }
            });
    Matrices.assign(gradientViews.get(RMSNormParamInitializer.GAIN), dGain);
  }
}
