package io.github.gatedfwa.examples;

import io.github.gatedfwa.layers.AttentionLayer;
import io.github.gatedfwa.layers.DecoderBlock;
import io.github.gatedfwa.layers.GatedFWALayer;
import io.github.gatedfwa.layers.RMSNormLayer;
import io.github.gatedfwa.zoo.io.WholeFile;
import io.github.gatedfwa.zoo.lm.GatedFwaLM;
import io.github.gatedfwa.zoo.lm.GatedFwaLM.Pretrained;
import io.github.gatedfwa.zoo.training.WarmupCosineSchedule;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.util.Arrays;
import org.deeplearning4j.nn.conf.ComputationGraphConfiguration.GraphBuilder;
import org.deeplearning4j.nn.conf.GradientNormalization;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.conf.inputs.InputType;
import org.deeplearning4j.nn.conf.layers.EmbeddingSequenceLayer;
import org.deeplearning4j.nn.conf.layers.RnnOutputLayer;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.deeplearning4j.util.ModelSerializer;
import org.nd4j.linalg.activations.Activation;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.learning.config.Adam;
import org.nd4j.linalg.lossfunctions.impl.LossSparseMCXENT;

/**
 * A byte-level causal language model: embedding, pre-norm decoder blocks of gated windowed
 * attention and SwiGLU, a last RMSNorm, and a softmax over the next byte.
 *
 * <p>Input [minibatch, 1, T] with bytes as values 0 to 255, labels [minibatch, T, 1], output
 * [minibatch, T, 256] probabilities: inside, data is NWC, the faster format for these layers.
 */
final class CodeModel {
  private static final int BYTES = 256;

  /** What an option of a model takes, in {@code --help}. */
  static final String NAME_OR_FILE = "NAME|FILE";

  /** What such an option means. */
  static final String WHICH =
      "a pretrained model, TINY_JAVA or SMALL_JAVA, or a file that TrainCodeModel or FineTune saved";

  private CodeModel() {}

  /**
   * A new model.
   *
   * @param context time steps of a training window
   * @param schedule the learning rate
   */
  static ComputationGraph create(
      int width,
      int blocks,
      int heads,
      int window,
      int context,
      long seed,
      WarmupCosineSchedule schedule) {
    return network(
        BYTES,
        width,
        blocks,
        GatedFWALayer.builder()
            .nHeads(heads)
            .windowSize(window)
            .ropeBase(10000)
            .qkNorm(true)
            .keyShift(true)
            .valueShift(true)
            .build(),
        context,
        seed,
        schedule);
  }

  /**
   * A model with any attention and vocabulary.
   *
   * @param labels number of labels in a training example, over which the loss is a sum
   */
  static ComputationGraph network(
      int vocabulary,
      int width,
      int blocks,
      AttentionLayer attention,
      int labels,
      long seed,
      WarmupCosineSchedule schedule) {
    GraphBuilder graph =
        new NeuralNetConfiguration.Builder()
            .seed(seed)
            .dataType(DataType.FLOAT)
            .updater(Adam.builder().learningRateSchedule(schedule).beta1(0.9).beta2(0.95).build())
            // The loss is the sum over the labels, so this is a norm of 1 for their mean.
            .gradientNormalization(GradientNormalization.ClipL2PerLayer)
            .gradientNormalizationThreshold(labels)
            .graphBuilder()
            .addInputs("tokens")
            .setInputTypes(InputType.recurrent(vocabulary))
            .addLayer(
                "embedding",
                new EmbeddingSequenceLayer.Builder()
                    .nIn(vocabulary)
                    .nOut(width)
                    .outputDataFormat(RNNFormat.NWC)
                    .build(),
                "tokens");
    DecoderBlock block =
        DecoderBlock.builder()
            .nModel(width)
            .attention(attention)
            .hiddenSize(roundUp(width * 8 / 3, 16))
            .build();
    String last = "embedding";
    for (int i = 0; i < blocks; i++) {
      last = block.addTo(graph, "block" + i, last);
    }
    ComputationGraph network =
        new ComputationGraph(
            graph
                .addLayer("norm", RMSNormLayer.builder().build(), last)
                .addLayer(
                    "output",
                    new RnnOutputLayer.Builder(new LossSparseMCXENT())
                        .nOut(vocabulary)
                        .activation(Activation.SOFTMAX)
                        .build(),
                    "norm")
                .setOutputs("output")
                .build());
    network.init();
    return network;
  }

  /**
   * A pretrained model by its name, or one of a file.
   *
   * @param model what {@code --model} says
   * @throws IOException if it is neither, or cannot be read
   */
  static ComputationGraph open(String model) throws IOException {
    for (Pretrained pretrained : Pretrained.values()) {
      if (pretrained.name().equals(model)) {
        return GatedFwaLM.builder().build().initPretrained(pretrained);
      }
    }
    Path file = Path.of(model);
    if (!Files.exists(file)) {
      throw new NoSuchFileException(
          model,
          null,
          "--model is neither one of "
              + Arrays.toString(Pretrained.values())
              + " nor a file that TrainCodeModel or FineTune saved");
    }
    return load(file);
  }

  /**
   * A model that {@link #save} wrote, with the state of its updater if that was saved too.
   *
   * @throws IOException if the file is missing or is not a model; it stays as it is
   */
  static ComputationGraph load(Path file) throws IOException {
    if (!Files.exists(file)) {
      throw new NoSuchFileException(
          file.toString(), null, "no model here yet (--model): run TrainCodeModel first");
    }
    try {
      return ModelSerializer.restoreComputationGraph(file.toFile(), true);
    } catch (IOException | RuntimeException e) {
      throw new IOException(
          file + " is not a model that TrainCodeModel or FineTune saved: " + e.getMessage(), e);
    }
  }

  /** Saves a model with the state of its updater, so that training can go on. */
  static void save(ComputationGraph network, Path file) throws IOException {
    WholeFile.write(file, stream -> ModelSerializer.writeModel(network, stream, true));
  }

  /** Saves a model as it is used: a third of the size. */
  static void saveForUse(ComputationGraph network, Path file) throws IOException {
    WholeFile.write(file, stream -> ModelSerializer.writeModel(network, stream, false));
  }

  private static int roundUp(int value, int multiple) {
    return (value + multiple - 1) / multiple * multiple;
  }
}
