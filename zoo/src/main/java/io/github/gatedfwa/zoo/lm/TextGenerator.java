package io.github.gatedfwa.zoo.lm;

import static java.nio.charset.StandardCharsets.UTF_8;

import io.github.gatedfwa.layers.GatedFWALayer;
import io.github.gatedfwa.layers.TokenWiseLayer;
import io.github.gatedfwa.zoo.text.TextWindowSequenceRecordReader;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.Set;
import java.util.SplittableRandom;
import java.util.function.Predicate;
import java.util.stream.IntStream;
import org.deeplearning4j.nn.api.Layer;
import org.deeplearning4j.nn.api.layers.RecurrentLayer;
import org.deeplearning4j.nn.conf.ComputationGraphConfiguration;
import org.deeplearning4j.nn.conf.InputPreProcessor;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.conf.graph.ElementWiseVertex;
import org.deeplearning4j.nn.conf.graph.FrozenVertex;
import org.deeplearning4j.nn.conf.graph.GraphVertex;
import org.deeplearning4j.nn.conf.graph.LayerVertex;
import org.deeplearning4j.nn.conf.graph.MergeVertex;
import org.deeplearning4j.nn.conf.graph.ScaleVertex;
import org.deeplearning4j.nn.conf.graph.ShiftVertex;
import org.deeplearning4j.nn.conf.layers.ActivationLayer;
import org.deeplearning4j.nn.conf.layers.BaseRecurrentLayer;
import org.deeplearning4j.nn.conf.layers.DenseLayer;
import org.deeplearning4j.nn.conf.layers.DropoutLayer;
import org.deeplearning4j.nn.conf.layers.EmbeddingSequenceLayer;
import org.deeplearning4j.nn.conf.layers.FeedForwardLayer;
import org.deeplearning4j.nn.conf.layers.GravesBidirectionalLSTM;
import org.deeplearning4j.nn.conf.layers.RnnOutputLayer;
import org.deeplearning4j.nn.conf.layers.misc.FrozenLayer;
import org.deeplearning4j.nn.conf.layers.misc.FrozenLayerWithBackprop;
import org.deeplearning4j.nn.conf.preprocessor.FeedForwardToRnnPreProcessor;
import org.deeplearning4j.nn.conf.preprocessor.RnnToFeedForwardPreProcessor;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.deeplearning4j.nn.layers.wrapper.BaseWrapperLayer;
import org.nd4j.linalg.activations.impl.ActivationSoftmax;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.nd4j.linalg.indexing.NDArrayIndex;

/**
 * Lets a language model over bytes continue texts, byte by byte through {@code rnnTimeStep}.
 *
 * <p>The network is one as {@link GatedFwaLM} makes: input [minibatch, 1, time] with bytes as
 * values, output 256 probabilities in either RNN format. Its layers are recurrent in one direction
 * or treat every byte by itself, and may be frozen. A prompt is read in chunks. With {@link
 * GatedFWALayer}s alone, memory and time per byte do not grow with the length: each keeps its last
 * {@code windowSize - 1} keys and values, and of a long prompt only the end is read that can still
 * be seen, which is their windows added up. With other recurrent layers all of it is read.
 *
 * <p>The next byte is drawn in this order: the repetition penalty changes the model's
 * probabilities; the temperature flattens or sharpens them; topK and then topP leave only the
 * likeliest; a random number decides. The same seed gives the same text. Probabilities that are not
 * numbers, as broken weights give them, are an IllegalStateException.
 *
 * <p>A prompt may be empty (a new file begins), may hold bytes that are not UTF-8, and may be of
 * any length. What a model writes need not be UTF-8 either: in text, broken characters become
 * U+FFFD.
 *
 * <p>Not thread-safe: generating uses, and clears, the network's stored state.
 */
public final class TextGenerator {
  /** Time steps of a chunk of a prompt: bounds the memory that reading it takes. */
  private static final int CHUNK = 1024;

  /** Layers of DL4J that treat every byte by itself, beside {@link ActivationLayer}. */
  private static final Set<Class<?>> LAYERS =
      Set.of(
          EmbeddingSequenceLayer.class, DenseLayer.class, DropoutLayer.class, RnnOutputLayer.class);

  private static final Set<Class<?>> PREPROCESSORS =
      Set.of(RnnToFeedForwardPreProcessor.class, FeedForwardToRnnPreProcessor.class);

  private static final Set<Class<?>> VERTICES =
      Set.of(ElementWiseVertex.class, MergeVertex.class, ScaleVertex.class, ShiftVertex.class);

  private final ComputationGraph network;
  private final double temperature;
  private final int topK;
  private final double topP;
  private final double repetitionPenalty;
  private final int repetitionWindow;
  private final int maxBytes;
  private final List<byte[]> stops;
  private final long seed;
  private final long reach;
  private final boolean timeLast;

  private TextGenerator(Builder builder) {
    network = builder.network;
    temperature = builder.temperature;
    topK = builder.topK;
    topP = builder.topP;
    repetitionPenalty = builder.repetitionPenalty;
    repetitionWindow = builder.repetitionWindow;
    maxBytes = builder.maxBytes;
    stops = builder.stops.stream().map(stop -> stop.getBytes(UTF_8)).toList();
    seed = builder.seed;
    check(
        temperature >= 0 && Double.isFinite(temperature),
        "temperature",
        temperature,
        "must be 0 or greater");
    check(topK >= 0, "topK", topK, "must be 0 (all) or greater");
    check(topP > 0 && topP <= 1, "topP", topP, "must be above 0 and at most 1 (all)");
    check(
        repetitionPenalty >= 1 && Double.isFinite(repetitionPenalty),
        "repetitionPenalty",
        repetitionPenalty,
        "must be 1 (none) or greater");
    check(repetitionWindow >= 1, "repetitionWindow", repetitionWindow, "must be at least 1");
    check(maxBytes >= 1, "maxBytes", maxBytes, "must be at least 1");
    check(stops.stream().allMatch(stop -> stop.length > 0), "stop", "\"\"", "must not be empty");
    ComputationGraphConfiguration configuration = network.getConfiguration();
    Layer last = network.getOutputLayer(0); // null if it is a vertex without a layer
    check(
        network.getNumInputArrays() == 1
            && network.getNumOutputArrays() == 1
            && last != null
            && conf(last) instanceof RnnOutputLayer output
            && output.getNOut() == GatedFwaLM.BYTES,
        "network",
        configuration.getNetworkOutputs(),
        "must have one input and one output, an RnnOutputLayer of 256 probabilities");
    configuration.getVertices().forEach(TextGenerator::requireByteByByte);
    check(
        readsBytes(network),
        "network",
        configuration.getNetworkInputs(),
        "must read [minibatch, 1, time] with bytes as values, by an EmbeddingSequenceLayer of 256");
    reach = reach(network);
    timeLast = ((RnnOutputLayer) conf(last)).getRnnDataFormat() != RNNFormat.NWC;
  }

  /**
   * Refuses what mixes bytes without keeping those before as its state: byte by byte it would see
   * one alone.
   */
  private static void requireByteByByte(String name, GraphVertex vertex) {
    GraphVertex inner = vertex instanceof FrozenVertex frozen ? frozen.getUnderlying() : vertex;
    if (inner instanceof LayerVertex of) {
      org.deeplearning4j.nn.conf.layers.Layer layer = unfrozen(of.getLayerConf().getLayer());
      InputPreProcessor before = of.getPreProcessor();
      check(
          isRecurrent(layer)
              ? before == null
              : isByteByByte(layer)
                  && (before == null || PREPROCESSORS.contains(before.getClass())),
          "network",
          "%s (%s%s)"
              .formatted(
                  name,
                  layer.getClass().getSimpleName(),
                  before == null ? "" : " after " + before.getClass().getSimpleName()),
          "must be a recurrent layer of one direction, without a preprocessor, which rnnTimeStep leaves out there, or treat every byte by itself");
    } else {
      check(
          VERTICES.contains(inner.getClass()),
          "network",
          "%s (%s)".formatted(name, inner.getClass().getSimpleName()),
          "must be a vertex that adds, merges, scales or shifts");
    }
  }

  @SuppressWarnings("deprecation") // old models may have it
  private static boolean isRecurrent(org.deeplearning4j.nn.conf.layers.Layer layer) {
    return layer instanceof BaseRecurrentLayer && !(layer instanceof GravesBidirectionalLSTM);
  }

  private static boolean isByteByByte(org.deeplearning4j.nn.conf.layers.Layer layer) {
    // Softmax is taken over the last dimension, which is time in one of the formats.
    return layer instanceof TokenWiseLayer
        || (layer instanceof ActivationLayer activation
            && !(activation.getActivationFn() instanceof ActivationSoftmax))
        || LAYERS.contains(layer.getClass());
  }

  /** The layer that is frozen; rnnTimeStep looks into one wrapper, too. */
  private static org.deeplearning4j.nn.conf.layers.Layer unfrozen(
      org.deeplearning4j.nn.conf.layers.Layer layer) {
    if (layer instanceof FrozenLayer frozen) {
      return frozen.getLayer();
    }
    return layer instanceof FrozenLayerWithBackprop frozen ? frozen.getUnderlying() : layer;
  }

  /** Whether no layer that the input goes to wants more than one number for each byte. */
  private static boolean readsBytes(ComputationGraph network) {
    ComputationGraphConfiguration configuration = network.getConfiguration();
    String input = configuration.getNetworkInputs().get(0);
    return configuration.getVertexInputs().entrySet().stream()
        .filter(vertex -> vertex.getValue().contains(input))
        .map(vertex -> network.getLayer(vertex.getKey()))
        .filter(Objects::nonNull) // a vertex without a layer
        .map(TextGenerator::conf)
        .allMatch(
            layer ->
                !(layer instanceof FeedForwardLayer reader)
                    || reader.getNIn()
                        == (layer instanceof EmbeddingSequenceLayer ? GatedFwaLM.BYTES : 1));
  }

  /** The layer inside of wrappers, such as that of a frozen layer. */
  private static Layer unwrapped(Layer layer) {
    Layer inner = layer;
    while (inner instanceof BaseWrapperLayer wrapper) {
      inner = wrapper.getUnderlying();
    }
    return inner;
  }

  private static org.deeplearning4j.nn.conf.layers.Layer conf(Layer layer) {
    return unwrapped(layer).conf().getLayer();
  }

  private static void check(boolean condition, String name, Object value, String allowed) {
    if (!condition) {
      throw new IllegalArgumentException("TextGenerator: " + name + " = " + value + ": " + allowed);
    }
  }

  /** How many bytes, counted back from the newest, the network's output can depend on. */
  static long reach(ComputationGraph network) {
    long reach = 1;
    for (Layer layer : network.getLayers()) {
      if (conf(layer) instanceof GatedFWALayer attention) {
        boolean shifts = attention.isKeyShift() || attention.isValueShift();
        reach += attention.getWindowSize() - (shifts ? 0 : 1);
      } else if (unwrapped(layer) instanceof RecurrentLayer) {
        return Long.MAX_VALUE;
      }
    }
    return reach;
  }

  /** Starts a generator for a network. */
  public static Builder builder(ComputationGraph network) {
    return new Builder(network);
  }

  /** Why a completion ended. */
  public enum Reason {
    /** It has maxBytes bytes. */
    LENGTH,
    /** A stop string came, which is not part of the completion. */
    STOP,
    /** The model ended the text. */
    END,
    /** The listener wanted no more. */
    LISTENER
  }

  /** What the model wrote after a prompt. */
  public static final class Completion {
    private final String text;
    private final byte[] bytes;
    private final Reason reason;

    private Completion(String text, byte[] bytes, Reason reason) {
      this.text = text;
      this.bytes = bytes;
      this.reason = reason;
    }

    /** The bytes as UTF-8, broken characters as U+FFFD. */
    public String text() {
      return text;
    }

    /**
     * What it wrote, exactly; a copy. If the listener ended it, this is what the listener has got:
     * bytes that were held back, for a character or a stop string that was not complete, are left
     * out.
     */
    public byte[] bytes() {
      return bytes.clone();
    }

    /** Why it ended. */
    public Reason reason() {
      return reason;
    }
  }

  /** Takes text as it is written. */
  @FunctionalInterface
  public interface Listener {
    /**
     * Takes the next piece of a completion: whole characters, and nothing that may turn out to be
     * the start of a stop string.
     *
     * @param prompt place of the prompt in its list
     * @param piece at least one character; all pieces of a completion together are its text
     * @return whether to go on with this completion
     */
    boolean onText(int prompt, String piece);
  }

  /** Continues one text. */
  public Completion generate(String prompt) {
    return generate(prompt, piece -> true);
  }

  /**
   * Continues one text.
   *
   * @param listener takes each piece as it is written and answers whether to go on
   */
  public Completion generate(String prompt, Predicate<String> listener) {
    return generate(List.of(prompt), (index, piece) -> listener.test(piece)).get(0);
  }

  /** Continues several texts at a time, each with random numbers of its own. */
  public List<Completion> generate(List<String> prompts) {
    return generate(prompts, (prompt, piece) -> true);
  }

  /** Continues several texts at a time. */
  public List<Completion> generate(List<String> prompts, Listener listener) {
    return generateFromBytes(
        prompts.stream().map(prompt -> prompt.getBytes(UTF_8)).toList(), listener);
  }

  /**
   * Continues several texts at a time: all take each step together, and a text whose prompt is
   * longer reads on while others are already written.
   *
   * @param prompts any bytes
   * @return the completions, in the order of the prompts
   */
  public List<Completion> generateFromBytes(List<byte[]> prompts, Listener listener) {
    if (prompts.isEmpty()) {
      return List.of();
    }
    List<Stream> streams = new ArrayList<>();
    for (int i = 0; i < prompts.size(); i++) {
      streams.add(new Stream(i, prompts.get(i), listener));
    }
    clearState();
    try {
      int common = streams.stream().mapToInt(stream -> stream.prompt.length).min().getAsInt();
      double[][] probabilities = null;
      for (int from = 0; from < common; from += CHUNK) {
        probabilities = step(streams, from, Math.min(common, from + CHUNK));
      }
      for (int at = common; ; at++) {
        for (Stream stream : streams) {
          if (stream.reason == null && at >= stream.prompt.length) {
            stream.accept(draw(probabilities[stream.index], stream));
          }
        }
        if (streams.stream().allMatch(stream -> stream.reason != null)) {
          return streams.stream().map(Stream::completion).toList();
        }
        probabilities = step(streams, at, at + 1);
      }
    } finally {
      clearState();
    }
  }

  /** The network's own method leaves out layers in wrappers, though they take part in its steps. */
  private void clearState() {
    network.rnnClearPreviousState();
    for (Layer layer : network.getLayers()) {
      if (layer instanceof BaseWrapperLayer && unwrapped(layer) instanceof RecurrentLayer inner) {
        inner.rnnClearPreviousState();
      }
    }
  }

  /** Feeds the tokens at [from, to) of every stream and gives the distributions after them. */
  private double[][] step(List<Stream> streams, int from, int to) {
    int time = to - from;
    float[] tokens = new float[streams.size() * time];
    for (Stream stream : streams) {
      for (int t = 0; t < time; t++) {
        tokens[stream.index * time + t] = stream.token(from + t);
      }
    }
    INDArray input =
        Nd4j.createFromArray(tokens)
            .reshape(streams.size(), 1, time)
            .castTo(network.getConfiguration().getDataType());
    INDArray output = network.rnnTimeStep(input)[0];
    INDArray byTime = timeLast ? output.permute(0, 2, 1) : output; // [minibatch, time, 256]
    return byTime
        .get(NDArrayIndex.all(), NDArrayIndex.point(time - 1), NDArrayIndex.all())
        .dup('c')
        .reshape(streams.size(), GatedFwaLM.BYTES)
        .toDoubleMatrix();
  }

  private int draw(double[] probabilities, Stream stream) {
    double total = Arrays.stream(probabilities).sum();
    if (!(total > 0 && Double.isFinite(total))) {
      throw new IllegalStateException(
          "TextGenerator: after %d bytes of text %d the network's probabilities have the sum %s: its weights are broken or too large for its data type (%s)"
              .formatted(
                  stream.length, stream.index, total, network.getConfiguration().getDataType()));
    }
    // Logarithms: powers of small probabilities would become 0.
    double[] log = Arrays.stream(probabilities).map(Math::log).toArray();
    if (repetitionPenalty > 1) {
      stream.recent().forEach(seen -> log[seen] *= repetitionPenalty);
    }
    int[] likeliest =
        IntStream.range(0, log.length)
            .boxed()
            .sorted((a, b) -> Double.compare(log[b], log[a]))
            .mapToInt(Integer::intValue)
            .limit(topK == 0 ? log.length : topK)
            .toArray();
    if (temperature == 0) {
      return likeliest[0];
    }
    double[] weights = new double[likeliest.length];
    for (int i = 0; i < weights.length; i++) {
      // Relative to the likeliest: a small temperature must not underflow all weights to 0.
      weights[i] = Math.exp((log[likeliest[i]] - log[likeliest[0]]) / temperature);
    }
    int kept = 0;
    double sum = 0;
    double enough = topP * Arrays.stream(weights).sum();
    while (kept < weights.length && (kept == 0 || sum < enough)) {
      sum += weights[kept++];
    }
    double left = stream.random.nextDouble() * sum;
    for (int i = 0; i < kept; i++) {
      left -= weights[i];
      if (left < 0) {
        return likeliest[i];
      }
    }
    return likeliest[0];
  }

  /** One text of a batch: what has been read and written of it. */
  private final class Stream {
    private final int index;
    private final Listener listener;
    private final SplittableRandom random;
    private final Utf8Decoder decoder = new Utf8Decoder();
    private final StringBuilder text = new StringBuilder();

    /** What is fed before the first byte is drawn, at least one token. */
    private final byte[] prompt;

    private byte[] written = new byte[Math.min(maxBytes, 256)];
    private int length;

    /** How many of the written bytes the listener has got. */
    private int told;

    private Reason reason; // null until it has ended

    private Stream(int index, byte[] bytes, Listener listener) {
      this.index = index;
      this.listener = listener;
      // The generator of random numbers mixes the seed: neighbours are unrelated.
      random = new SplittableRandom(seed + index);
      byte[] start = {TextWindowSequenceRecordReader.START};
      if (bytes.length >= reach) {
        prompt = Arrays.copyOfRange(bytes, (int) (bytes.length - reach), bytes.length);
      } else {
        prompt = Arrays.copyOf(start, 1 + bytes.length);
        System.arraycopy(bytes, 0, prompt, 1, bytes.length);
      }
    }

    /** The token at a place; what follows the end of a completion does not matter. */
    private int token(int at) {
      if (at < prompt.length) {
        return Byte.toUnsignedInt(prompt[at]);
      }
      return at - prompt.length < length ? Byte.toUnsignedInt(written[at - prompt.length]) : 0;
    }

    /**
     * The last bytes, read or written, for the repetition penalty; the end of a text is no byte.
     */
    private IntStream recent() {
      int end = prompt.length + length;
      return IntStream.range(Math.max(0, end - repetitionWindow), end)
          .map(this::token)
          .filter(token -> token != TextWindowSequenceRecordReader.START)
          .distinct();
    }

    private void accept(int next) {
      if (next == TextWindowSequenceRecordReader.START) {
        end(Reason.END);
        return;
      }
      if (length == written.length) {
        written = Arrays.copyOf(written, (int) Math.min(maxBytes, 2L * length));
      }
      written[length++] = (byte) next;
      for (byte[] stop : stops) {
        if (length >= stop.length && endsWithStartOf(stop, stop.length)) {
          length -= stop.length;
          end(Reason.STOP);
          return;
        }
      }
      if (length == maxBytes) {
        end(Reason.LENGTH);
      } else if (!tell(length - heldBack(), false)) {
        reason = Reason.LISTENER;
        length = told - decoder.pending();
      }
    }

    private void end(Reason why) {
      reason = why;
      tell(length, true);
    }

    /** How many of the last bytes may turn out to be the start of a stop string. */
    private int heldBack() {
      int most = 0;
      for (byte[] stop : stops) {
        for (int n = Math.min(stop.length - 1, length); n > most; n--) {
          if (endsWithStartOf(stop, n)) {
            most = n;
          }
        }
      }
      return most;
    }

    private boolean endsWithStartOf(byte[] stop, int n) {
      return Arrays.equals(written, length - n, length, stop, 0, n);
    }

    private boolean tell(int until, boolean last) {
      String piece = until > told || last ? decoder.decode(written, told, until, last) : "";
      told = Math.max(told, until);
      text.append(piece);
      return piece.isEmpty() || listener.onText(index, piece);
    }

    private Completion completion() {
      return new Completion(text.toString(), Arrays.copyOf(written, length), reason);
    }
  }

  /** Builder of {@link TextGenerator}. */
  public static final class Builder {
    private final ComputationGraph network;
    private double temperature = 1;
    private int topK;
    private double topP = 1;
    private double repetitionPenalty = 1;
    private int repetitionWindow = 64;
    private int maxBytes = 500;
    private List<String> stops = List.of();
    private long seed = 1;

    private Builder(ComputationGraph network) {
      this.network = network;
    }

    /** 0: always the likeliest byte; 1, the default: as the model predicts. */
    public Builder temperature(double temperature) {
      this.temperature = temperature;
      return this;
    }

    /** Choose among this many likeliest bytes. Default: 0, all. */
    public Builder topK(int topK) {
      this.topK = topK;
      return this;
    }

    /**
     * Choose among the fewest likeliest bytes that have this probability together. Default: 1, all.
     */
    public Builder topP(double topP) {
      this.topP = topP;
      return this;
    }

    /**
     * Exponent of the probability of a byte that is among the last {@link #repetitionWindow} ones.
     * Default: 1, none; above, repetition becomes less likely. The end of the text is no byte and
     * has no penalty.
     */
    public Builder repetitionPenalty(double repetitionPenalty) {
      this.repetitionPenalty = repetitionPenalty;
      return this;
    }

    /** How many bytes back the repetition penalty looks. Default: 64. */
    public Builder repetitionWindow(int repetitionWindow) {
      this.repetitionWindow = repetitionWindow;
      return this;
    }

    /** Most bytes of a completion. Default: 500. */
    public Builder maxBytes(int maxBytes) {
      this.maxBytes = maxBytes;
      return this;
    }

    /** Strings that end a completion; the first one to be complete counts. Default: none. */
    public Builder stop(String... stops) {
      this.stops = List.of(stops);
      return this;
    }

    /** Another seed, another text. Default: 1. */
    public Builder seed(long seed) {
      this.seed = seed;
      return this;
    }

    /**
     * The generator.
     *
     * @throws IllegalArgumentException if a setting is not allowed, or if the network does not read
     *     single bytes, its output is not an RnnOutputLayer of 256 probabilities or it has a layer
     *     or vertex that may need other bytes than those before and keeps no state of them
     */
    public TextGenerator build() {
      return new TextGenerator(this);
    }
  }
}
