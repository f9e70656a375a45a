package io.github.gatedfwa.layers;

import java.util.Arrays;
import java.util.Random;
import org.deeplearning4j.nn.api.Model;
import org.deeplearning4j.nn.api.NeuralNetwork;
import org.deeplearning4j.nn.conf.ComputationGraphConfiguration.GraphBuilder;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.conf.inputs.InputType;
import org.deeplearning4j.nn.conf.layers.Layer;
import org.deeplearning4j.nn.conf.layers.RnnOutputLayer;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.deeplearning4j.nn.multilayer.MultiLayerNetwork;
import org.nd4j.linalg.activations.Activation;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.dataset.DataSet;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.indexing.INDArrayIndex;
import org.nd4j.linalg.indexing.NDArrayIndex;
import org.nd4j.linalg.learning.config.Sgd;
import org.nd4j.linalg.lossfunctions.LossFunctions.LossFunction;

/** Small networks and data for the tests. */
final class Nets {
  private Nets() {}

  static NeuralNetConfiguration.Builder config(DataType type) {
    return new NeuralNetConfiguration.Builder().seed(7).dataType(type).updater(new Sgd(0.1));
  }

  /** Layers on input of the given size and format, initialised. */
  static MultiLayerNetwork net(DataType type, int nIn, RNNFormat format, Layer... layers) {
    return net(config(type), nIn, format, layers);
  }

  static MultiLayerNetwork net(
      NeuralNetConfiguration.Builder config, int nIn, RNNFormat format, Layer... layers) {
    NeuralNetConfiguration.ListBuilder list = config.list();
    for (Layer layer : layers) {
      list.layer(layer);
    }
    MultiLayerNetwork net =
        new MultiLayerNetwork(list.setInputType(InputType.recurrent(nIn, format)).build());
    net.init();
    return net;
  }

  /** The same layers, one after the other, as a graph. */
  static ComputationGraph graph(
      NeuralNetConfiguration.Builder config, int nIn, RNNFormat format, Layer... layers) {
    GraphBuilder graph = config.graphBuilder().addInputs("in");
    String last = "in";
    for (int i = 0; i < layers.length; i++) {
      String name = "layer" + i;
      graph.addLayer(name, layers[i], last);
      last = name;
    }
    ComputationGraph net =
        new ComputationGraph(
            graph.setOutputs(last).setInputTypes(InputType.recurrent(nIn, format)).build());
    net.init();
    return net;
  }

  /** Either kind of network of the same layers: both keep their parameters in the same order. */
  enum Kind {
    MULTI_LAYER,
    GRAPH;

    Model net(NeuralNetConfiguration.Builder config, int nIn, RNNFormat format, Layer... layers) {
      return this == GRAPH
          ? graph(config, nIn, format, layers)
          : Nets.net(config, nIn, format, layers);
    }
  }

  static INDArray output(Model net, INDArray x) {
    return net instanceof ComputationGraph graph
        ? graph.outputSingle(x)
        : ((MultiLayerNetwork) net).output(x);
  }

  static INDArray timeStep(Model net, INDArray x) {
    return net instanceof ComputationGraph graph
        ? graph.rnnTimeStep(x)[0]
        : ((MultiLayerNetwork) net).rnnTimeStep(x);
  }

  static void fit(Model net, DataSet data) {
    ((NeuralNetwork) net).fit(data);
  }

  static double score(Model net, DataSet data) {
    return net instanceof ComputationGraph graph
        ? graph.score(data)
        : ((MultiLayerNetwork) net).score(data);
  }

  /** The run-time layers, in order. */
  static org.deeplearning4j.nn.api.Layer[] layers(Model net) {
    return net instanceof ComputationGraph graph
        ? graph.getLayers()
        : ((MultiLayerNetwork) net).getLayers();
  }

  static RnnOutputLayer output(int nOut) {
    return new RnnOutputLayer.Builder(LossFunction.MCXENT)
        .activation(Activation.SOFTMAX)
        .nOut(nOut)
        .build();
  }

  /** Moves all parameters off their special start values (W_beta = 0, gain = 1). */
  static <M extends Model> M shaken(M model) {
    INDArray params = model.params();
    params.addi(random(params.dataType(), 99, params.shape()).muli(0.4));
    return model;
  }

  /** Normally distributed values. */
  static INDArray random(DataType type, long seed, long... shape) {
    Random random = new Random(seed);
    INDArray array = Nd4j.create(DataType.DOUBLE, shape, 'c');
    for (long i = 0; i < array.length(); i++) {
      array.putScalar(i, random.nextGaussian());
    }
    return array.castTo(type);
  }

  /** One-hot labels [minibatch, classes, time] of a fixed pattern. */
  static INDArray labels(DataType type, int minibatch, int classes, int time, RNNFormat format) {
    INDArray labels = Nd4j.create(type, minibatch, classes, time);
    for (int b = 0; b < minibatch; b++) {
      for (int t = 0; t < time; t++) {
        labels.putScalar(new int[] {b, (b + t * t) % classes, t}, 1);
      }
    }
    return toFormat(labels, format);
  }

  /** From NCW to the given format, in memory of its own. */
  static INDArray toFormat(INDArray ncw, RNNFormat format) {
    return format == RNNFormat.NWC ? ncw.permute(0, 2, 1).dup('c') : ncw;
  }

  /** Tokens [from, to) of RNN data. */
  static INDArray steps(INDArray data, RNNFormat format, long from, long to) {
    INDArrayIndex time = NDArrayIndex.interval(from, to);
    INDArrayIndex all = NDArrayIndex.all();
    return format == RNNFormat.NCW ? data.get(all, all, time) : data.get(all, time, all);
  }

  /** Largest difference of two arrays; NaN if there is one, which ND4J's amax passes over. */
  static double distance(INDArray a, INDArray b) {
    return largest(a.castTo(DataType.DOUBLE).sub(b.castTo(DataType.DOUBLE)));
  }

  /** Largest absolute value; NaN if there is one. */
  static double largest(INDArray x) {
    double[] values = x.castTo(DataType.DOUBLE).dup('c').data().asDouble();
    return Arrays.stream(values).map(Math::abs).max().orElse(0);
  }
}
