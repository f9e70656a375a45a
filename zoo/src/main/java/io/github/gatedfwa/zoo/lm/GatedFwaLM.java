package io.github.gatedfwa.zoo.lm;

import io.github.gatedfwa.layers.Compression;
import io.github.gatedfwa.layers.DecoderBlock;
import io.github.gatedfwa.layers.GatedFWALayer;
import io.github.gatedfwa.layers.KeyValueSharing;
import io.github.gatedfwa.layers.NativeSparseAttentionLayer;
import io.github.gatedfwa.layers.RMSNormLayer;
import io.github.gatedfwa.layers.WindowedAttentionLayer;
import io.github.gatedfwa.zoo.io.WholeFile;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.DigestOutputStream;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import org.deeplearning4j.common.resources.DL4JResources;
import org.deeplearning4j.common.resources.ResourceType;
import org.deeplearning4j.nn.api.Model;
import org.deeplearning4j.nn.conf.ComputationGraphConfiguration;
import org.deeplearning4j.nn.conf.ComputationGraphConfiguration.GraphBuilder;
import org.deeplearning4j.nn.conf.GradientNormalization;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.conf.inputs.InputType;
import org.deeplearning4j.nn.conf.layers.EmbeddingSequenceLayer;
import org.deeplearning4j.nn.conf.layers.RnnOutputLayer;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.deeplearning4j.zoo.PretrainedType;
import org.deeplearning4j.zoo.ZooModel;
import org.nd4j.linalg.activations.Activation;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.learning.config.Adam;
import org.nd4j.linalg.learning.config.IUpdater;
import org.nd4j.linalg.lossfunctions.impl.LossSparseMCXENT;

/**
 * A decoder-only language model over bytes: embedding, pre-norm {@link DecoderBlock}s of {@link
 * GatedFWALayer} (RoPE, normalised queries and keys, token shift) and SwiGLU, a last RMSNorm, and a
 * softmax over the next byte.
 *
 * <pre>
 *   ComputationGraph network = GatedFwaLM.builder().build().initPretrained(Pretrained.SMALL_JAVA);
 *   String text = TextGenerator.builder(network).build().generate("public class ").text();
 * </pre>
 *
 * <p>Input [minibatch, 1, time] with bytes as values 0 to 255, labels [minibatch, time, 1], output
 * [minibatch, time, 256] probabilities; {@link
 * io.github.gatedfwa.zoo.text.TextWindowSequenceRecordReader} makes such data. A byte 0 stands in
 * front of a text, and the models end a text with it.
 *
 * <p>Pretrained weights are part of this jar and need no network. They are copied to DL4J's folder
 * of models once and checked by SHA-256 every time, before anything else reads them. Several
 * threads and processes may do so at once.
 */
@SuppressWarnings("unchecked") // init(), as DL4J declares it
public final class GatedFwaLM extends ZooModel<GatedFwaLM> {
  /** Number of different tokens. */
  public static final int BYTES = 256;

  private static final double ROPE_BASE = 10000;

  /** Named sizes. */
  public enum Size {
    /** 3.2 million parameters. */
    TINY(256, 4, 4, 640),
    /** 11.8 million parameters. */
    SMALL(384, 6, 6, 1152);

    private final int width;
    private final int blocks;
    private final int heads;
    private final int hiddenSize;

    Size(int width, int blocks, int heads, int hiddenSize) {
      this.width = width;
      this.blocks = blocks;
      this.heads = heads;
      this.hiddenSize = hiddenSize;
    }
  }

  /**
   * Weights that come with this jar; docs/zoo.md has a card of each. All are of models with the
   * builder's defaults but for the size: GatedFWA with a window of 256 in every block.
   */
  public enum Pretrained {
    /** {@link Size#TINY}, trained on 360 MB of Java source. */
    TINY_JAVA(
        Size.TINY,
        "gatedfwa-lm-tiny-java-1.safetensors",
        "e699342a2eb7813b17d39dd2677a606631b3029ccf795d0e318213b8d805855d"),
    /** {@link Size#SMALL}, trained on 301 MB of Java source. */
    SMALL_JAVA(
        Size.SMALL,
        "gatedfwa-lm-small-java-1.safetensors",
        "4756a4b46cf13a3f32112ca4d8d0cc410f90284f98930bb4d5ea94be85286c06");

    private final Size size;
    private final String fileName;
    private final String sha256;

    Pretrained(Size size, String fileName, String sha256) {
      this.size = size;
      this.fileName = fileName;
      this.sha256 = sha256;
    }

    /** The size of the model. */
    public Size size() {
      return size;
    }

    /** Name of the file in this package of the jar and in DL4J's folder of models. */
    public String fileName() {
      return fileName;
    }
  }

  private final Builder settings;

  private GatedFwaLM(Builder builder) {
    Builder s = new Builder(builder);
    check(s.width > 0, "width", s.width, "must be at least 1");
    check(s.blocks > 0, "blocks", s.blocks, "must be at least 1");
    check(
        s.heads > 0 && s.width % s.heads == 0,
        "heads",
        s.heads,
        "must divide width (" + s.width + ")");
    check(s.hiddenSize > 0, "hiddenSize", s.hiddenSize, "must be at least 1");
    check(s.windowSize > 0, "windowSize", s.windowSize, "must be at least 1");
    check(s.context > 0, "context", s.context, "must be at least 1");
    check(s.nsaEvery >= 0, "nsaEvery", s.nsaEvery, "must be 0 (none) or greater");
    settings = s;
  }

  private static void check(boolean condition, String name, int value, String allowed) {
    if (!condition) {
      throw new IllegalArgumentException("GatedFwaLM: " + name + " = " + value + ": " + allowed);
    }
  }

  /** Starts a model of size {@link Size#TINY}. */
  public static Builder builder() {
    return new Builder();
  }

  /** A new model with random weights. */
  @Override
  public ComputationGraph init() {
    ComputationGraph network = new ComputationGraph(conf());
    network.init();
    return network;
  }

  /** The configuration of the network. */
  public ComputationGraphConfiguration conf() {
    GraphBuilder graph =
        new NeuralNetConfiguration.Builder()
            .seed(settings.seed)
            .dataType(DataType.FLOAT)
            .updater(settings.updater)
            // The loss is the sum over a window, so this is a norm of 1 for the mean over its
            // bytes.
            .gradientNormalization(GradientNormalization.ClipL2PerLayer)
            .gradientNormalizationThreshold(settings.context)
            .graphBuilder()
            .addInputs("bytes")
            .setInputTypes(InputType.recurrent(BYTES))
            .addLayer(
                "embedding",
                new EmbeddingSequenceLayer.Builder()
                    .nIn(BYTES)
                    .nOut(settings.width)
                    .outputDataFormat(RNNFormat.NWC)
                    .build(),
                "bytes");
    String last = "embedding";
    for (int i = 0; i < settings.blocks; i++) {
      boolean sparse = settings.nsaEvery > 0 && (i + 1) % settings.nsaEvery == 0;
      last =
          DecoderBlock.builder()
              .nModel(settings.width)
              .hiddenSize(settings.hiddenSize)
              .attention(sparse ? sparseAttention() : windowedAttention())
              .build()
              .addTo(graph, "block" + i, last);
    }
    return graph
        .addLayer("norm", RMSNormLayer.builder().build(), last)
        .addLayer(
            "output",
            new RnnOutputLayer.Builder(new LossSparseMCXENT())
                .nOut(BYTES)
                .activation(Activation.SOFTMAX)
                .build(),
            "norm")
        .setOutputs("output")
        .build();
  }

  private GatedFWALayer windowedAttention() {
    return common(GatedFWALayer.builder()).build();
  }

  /** Branches share keys and values, so that the model is as large as without it. */
  private NativeSparseAttentionLayer sparseAttention() {
    return common(NativeSparseAttentionLayer.builder())
        .sharing(KeyValueSharing.ALL)
        .compression(Compression.MEAN)
        .blockLength(32)
        .stride(16)
        .selectionBlock(64)
        .topN(8)
        .build();
  }

  private <B extends WindowedAttentionLayer.Builder<B>> B common(B attention) {
    return attention
        .nHeads(settings.heads)
        .ropeBase(ROPE_BASE)
        .qkNorm(true)
        .windowSize(settings.windowSize)
        .gated(settings.gated)
        .keyShift(true)
        .valueShift(true);
  }

  /**
   * The pretrained model of this size: {@link Pretrained#TINY_JAVA} or {@link
   * Pretrained#SMALL_JAVA}.
   *
   * @throws IOException as {@link #initPretrained(Pretrained)}
   * @throws UnsupportedOperationException if the size is neither {@link Size#TINY} nor {@link
   *     Size#SMALL}, or as {@link #initPretrained(Pretrained)}
   */
  @Override
  public ComputationGraph initPretrained() throws IOException {
    for (Pretrained pretrained : Pretrained.values()) {
      Size size = pretrained.size;
      if (settings.width == size.width
          && settings.blocks == size.blocks
          && settings.heads == size.heads
          && settings.hiddenSize == size.hiddenSize) {
        return initPretrained(pretrained);
      }
    }
    throw new UnsupportedOperationException(
        "GatedFwaLM: there are no pretrained weights of width %d, %d blocks, %d heads, hidden size %d; there are of the sizes TINY and SMALL"
            .formatted(settings.width, settings.blocks, settings.heads, settings.hiddenSize));
  }

  /**
   * A pretrained model. Updater, seed and context are this object's. The rest is as it was trained:
   * the builder may leave sizes, windowSize, gated and nsaEvery out, or set them to the same
   * values.
   *
   * @throws IOException if its file cannot be copied or read, or if DL4J's folder of models has a
   *     file of that name with another content, which stays as it is
   * @throws UnsupportedOperationException if this object's sizes, windowSize, gated or nsaEvery are
   *     set to other values than the model was trained with
   */
  public ComputationGraph initPretrained(Pretrained pretrained) throws IOException {
    requireAsTrained(pretrained);
    Path file =
        DL4JResources.getDirectory(ResourceType.ZOO_MODEL, modelName())
            .toPath()
            .resolve(pretrained.fileName);
    if (!Files.exists(file)) {
      try {
        WholeFile.write(file, stream -> copyWeights(pretrained, stream));
      } catch (IOException e) {
        // Some systems do not let a file be replaced that another process has made and reads.
        if (!Files.exists(file)) {
          throw e;
        }
      }
    }
    String found = sha256(file);
    if (!found.equals(pretrained.sha256)) {
      throw new IOException(
          "%s is broken or of another origin: its SHA-256 is %s, that of %s is %s; delete it to have it written again"
              .formatted(file, found, pretrained, pretrained.sha256));
    }
    return SafetensorsImporter.read(file, settings);
  }

  private void requireAsTrained(Pretrained pretrained) {
    Builder stored = new Builder().size(pretrained.size);
    List<String> problems = new ArrayList<>();
    if (settings.sized) {
      compare("width", settings.width, stored.width, problems);
      compare("blocks", settings.blocks, stored.blocks, problems);
      compare("heads", settings.heads, stored.heads, problems);
      compare("hiddenSize", settings.hiddenSize, stored.hiddenSize, problems);
    }
    compare("windowSize", settings.windowSize, stored.windowSize, problems);
    compare("gated", settings.gated, stored.gated, problems);
    compare("nsaEvery", settings.nsaEvery, stored.nsaEvery, problems);
    if (!problems.isEmpty()) {
      throw new UnsupportedOperationException(
          "GatedFwaLM: %s was trained otherwise: %s; leave such options out, or use init()"
              .formatted(pretrained, String.join("; ", problems)));
    }
  }

  private static void compare(String name, Object given, Object stored, List<String> problems) {
    if (!given.equals(stored)) {
      problems.add("%s = %s, but %s in the stored weights".formatted(name, given, stored));
    }
  }

  private static void copyWeights(Pretrained pretrained, OutputStream to) throws IOException {
    try (InputStream weights = GatedFwaLM.class.getResourceAsStream(pretrained.fileName)) {
      if (weights == null) {
        throw new IOException("the zoo's jar lacks " + pretrained.fileName);
      }
      weights.transferTo(to);
    }
  }

  private static String sha256(Path file) throws IOException {
    try {
      MessageDigest digest = MessageDigest.getInstance("SHA-256");
      try (OutputStream sum = new DigestOutputStream(OutputStream.nullOutputStream(), digest)) {
        Files.copy(file, sum);
      }
      return HexFormat.of().formatHex(digest.digest());
    } catch (NoSuchAlgorithmException e) {
      throw new AssertionError("every Java platform has SHA-256", e);
    }
  }

  /** Null: DL4J's types of weights are of image models. {@link Pretrained} names this model's. */
  @Override
  public String pretrainedUrl(PretrainedType pretrainedType) {
    return null;
  }

  /** 0: see {@link #pretrainedUrl}. */
  @Override
  public long pretrainedChecksum(PretrainedType pretrainedType) {
    return 0;
  }

  @Override
  public Class<? extends Model> modelType() {
    return ComputationGraph.class;
  }

  /**
   * Not supported.
   *
   * @throws UnsupportedOperationException always: a text may have any length
   */
  @Override
  public void setInputShape(int[][] inputShape) {
    throw new UnsupportedOperationException("GatedFwaLM: the input is text of any length");
  }

  /**
   * Not supported.
   *
   * @throws UnsupportedOperationException always: DL4J's metadata describes images
   */
  @Override
  @Deprecated
  @SuppressWarnings("deprecation") // as ZooModel declares it
  public org.deeplearning4j.zoo.ModelMetaData metaData() {
    throw new UnsupportedOperationException("GatedFwaLM: DL4J's metadata describes image models");
  }

  /** Builder of {@link GatedFwaLM}. */
  public static final class Builder {
    private int width;
    private int blocks;
    private int heads;
    private int hiddenSize;
    private boolean sized; // whether a size was asked for
    private int windowSize = 256;
    private boolean gated = true;
    private int nsaEvery;
    private int context = 1024;
    private long seed = 1;
    private IUpdater updater = Adam.builder().learningRate(1e-3).beta1(0.9).beta2(0.95).build();

    private Builder() {
      size(Size.TINY);
      sized = false;
    }

    /** A copy. */
    Builder(Builder other) {
      width = other.width;
      blocks = other.blocks;
      heads = other.heads;
      hiddenSize = other.hiddenSize;
      sized = other.sized;
      windowSize = other.windowSize;
      gated = other.gated;
      nsaEvery = other.nsaEvery;
      context = other.context;
      seed = other.seed;
      updater = other.updater;
    }

    /**
     * Width, blocks, heads and hidden size at once. Default: {@link Size#TINY}. {@link
     * GatedFwaLM#initPretrained(Pretrained)} brings its own size, and refuses another one.
     */
    public Builder size(Size size) {
      return width(size.width).blocks(size.blocks).heads(size.heads).hiddenSize(size.hiddenSize);
    }

    /** Features of a byte inside the model. */
    public Builder width(int width) {
      this.width = width;
      sized = true;
      return this;
    }

    /** Number of decoder blocks. */
    public Builder blocks(int blocks) {
      this.blocks = blocks;
      sized = true;
      return this;
    }

    /** Number of attention heads, a divisor of the width. */
    public Builder heads(int heads) {
      this.heads = heads;
      sized = true;
      return this;
    }

    /** Hidden size of the SwiGLU layers. */
    public Builder hiddenSize(int hiddenSize) {
      this.hiddenSize = hiddenSize;
      sized = true;
      return this;
    }

    /**
     * Number of bytes that a byte attends to in each block, itself included. Default: 256, as in
     * all pretrained models, which refuse another one.
     */
    public Builder windowSize(int windowSize) {
      this.windowSize = windowSize;
      return this;
    }

    /**
     * Whether memory decays by a learned gate; if not, plain windows. Default: true, as in all
     * pretrained models, which refuse false.
     */
    public Builder gated(boolean gated) {
      this.gated = gated;
      return this;
    }

    /**
     * Native sparse attention, with GatedFWA as its window, in every n-th block: blocks n - 1, 2n -
     * 1, ... Such a block sees all bytes before, and its cache grows with them. Default: 0, none,
     * as in all pretrained models, which refuse another value.
     */
    public Builder nsaEvery(int nsaEvery) {
      this.nsaEvery = nsaEvery;
      return this;
    }

    /**
     * Bytes in a training window, by which the clipping of gradients scales; the model itself takes
     * any length. Default: 1024.
     */
    public Builder context(int context) {
      this.context = context;
      return this;
    }

    /** Seed of the first weights. Default: 1. */
    public Builder seed(long seed) {
      this.seed = seed;
      return this;
    }

    /** Updater. Default: Adam with a learning rate of 1e-3. */
    public Builder updater(IUpdater updater) {
      this.updater = updater;
      return this;
    }

    /**
     * The model.
     *
     * @throws IllegalArgumentException if a setting is not allowed
     */
    public GatedFwaLM build() {
      return new GatedFwaLM(this);
    }
  }
}
