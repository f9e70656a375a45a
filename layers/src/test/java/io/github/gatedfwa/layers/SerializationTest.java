package io.github.gatedfwa.layers;

import static org.assertj.core.api.Assertions.assertThat;

import io.github.gatedfwa.nativeops.Bits;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.ObjectInputStream;
import java.io.ObjectOutputStream;
import java.nio.file.Path;
import java.util.List;
import java.util.function.Consumer;
import java.util.stream.Stream;
import org.deeplearning4j.nn.conf.ComputationGraphConfiguration;
import org.deeplearning4j.nn.conf.MultiLayerConfiguration;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.conf.constraint.MaxNormConstraint;
import org.deeplearning4j.nn.conf.inputs.InputType;
import org.deeplearning4j.nn.conf.layers.Layer;
import org.deeplearning4j.nn.conf.weightnoise.DropConnect;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.deeplearning4j.nn.multilayer.MultiLayerNetwork;
import org.deeplearning4j.util.ModelSerializer;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.dataset.DataSet;
import org.nd4j.linalg.learning.config.Adam;

/** Every field of the configurations, and whole networks, through every format. */
class SerializationTest {
  private static final int N_IN = 4;

  /** Configurations in which every option has another value than its default. */
  private static Stream<Layer> layers() {
    return Stream.of(
        GatedFWALayer.builder()
            .nOut(6)
            .nHeads(4)
            .nKvHeads(2)
            .headSize(8)
            .windowSize(5)
            .gated(true)
            .learnableAmplitude(false)
            .gateBiasInit(0.25)
            .ropeBase(1234.5)
            .qkNorm(true)
            .keyShift(true)
            .valueShift(true)
            .hasBias(true)
            .dataFormat(RNNFormat.NWC)
            .dropOut(0.9)
            .weightNoise(new DropConnect(0.9))
            .constrainWeights(new MaxNormConstraint(2, 1))
            .constrainInputWeights(new MaxNormConstraint(3, 1))
            .updater(new Adam(0.5))
            .l2(0.1)
            .build(),
        GatedFWALayer.builder().nOut(6).nHeads(2).gated(false).build(),
        TokenCompressionLayer.builder()
            .nOut(6)
            .nHeads(4)
            .nKvHeads(2)
            .headSize(8)
            .ropeBase(1234.5)
            .qkNorm(true)
            .hasBias(true)
            .dataFormat(RNNFormat.NWC)
            .blockLength(6)
            .stride(3)
            .compression(Compression.MLP)
            .compressionHiddenSize(5)
            .constrainInputWeights(new MaxNormConstraint(3, 1))
            .build(),
        TokenSelectionLayer.builder()
            .nOut(6)
            .nHeads(2)
            .headSize(8)
            .dataFormat(RNNFormat.NWC)
            .blockLength(6)
            .stride(3)
            .selectionBlock(12)
            .topN(7)
            .build(),
        NativeSparseAttentionLayer.builder()
            .nOut(6)
            .nHeads(4)
            .nKvHeads(2)
            .headSize(8)
            .windowSize(5)
            .learnableAmplitude(false)
            .gateBiasInit(0.25)
            .ropeBase(1234.5)
            .qkNorm(true)
            .keyShift(true)
            .valueShift(true)
            .hasBias(true)
            .dataFormat(RNNFormat.NWC)
            .blockLength(6)
            .stride(3)
            .compression(Compression.MLP)
            .compressionHiddenSize(5)
            .selectionBlock(12)
            .topN(7)
            .sharing(KeyValueSharing.ALL)
            .build(),
        RMSNormLayer.builder().eps(0.5).gainInit(2).dataFormat(RNNFormat.NWC).build(),
        SwiGLULayer.builder()
            .nOut(3)
            .hiddenSize(7)
            .hasBias(true)
            .dataFormat(RNNFormat.NWC)
            .build());
  }

  private static MultiLayerConfiguration around(Layer layer) {
    return Nets.config(DataType.FLOAT)
        .list()
        .layer(layer)
        .layer(Nets.output(2))
        .setInputType(InputType.recurrent(N_IN, RNNFormat.NWC))
        .build();
  }

  @ParameterizedTest
  @MethodSource("layers")
  void jsonAndYamlKeepEveryField(Layer layer) {
    MultiLayerConfiguration conf = around(layer);
    for (MultiLayerConfiguration read :
        List.of(
            MultiLayerConfiguration.fromJson(conf.toJson()),
            MultiLayerConfiguration.fromYaml(conf.toYaml()))) {
      assertThat(read).isEqualTo(conf);
      assertSameFields(read.getConf(0).getLayer(), conf.getConf(0).getLayer());
    }
  }

  private static void assertSameFields(Layer actual, Layer expected) {
    assertThat(actual)
        .usingRecursiveComparison()
        .withEqualsForType((a, b) -> a.equals(b), Double.class) // NaN is unset
        .isEqualTo(expected);
  }

  @Test
  void jsonNamesAreStable() {
    String json = around(layers().toList().get(0)).toJson();
    assertThat(json)
        .contains("\"@class\" : \"io.github.gatedfwa.layers.GatedFWALayer\"")
        .contains("\"nheads\" : 4")
        .contains("\"nkvHeads\" : 2")
        .contains("\"headSize\" : 8")
        .contains("\"windowSize\" : 5")
        .contains("\"gated\" : true")
        .contains("\"learnableAmplitude\" : false")
        .contains("\"gateBiasInit\" : 0.25")
        .contains("\"ropeBase\" : 1234.5")
        .contains("\"qkNorm\" : true")
        .contains("\"keyShift\" : true")
        .contains("\"valueShift\" : true")
        .contains("\"hasBias\" : true")
        .contains("\"rnnDataFormat\" : \"NWC\"");
  }

  @Test
  void jsonNamesOfNsaAreStable() {
    Layer nsa =
        layers().filter(NativeSparseAttentionLayer.class::isInstance).findFirst().orElseThrow();
    assertThat(around(nsa).toJson())
        .contains("\"@class\" : \"io.github.gatedfwa.layers.NativeSparseAttentionLayer\"")
        .contains("\"windowSize\" : 5")
        .contains("\"blockLength\" : 6")
        .contains("\"stride\" : 3")
        .contains("\"compression\" : \"MLP\"")
        .contains("\"compressionHiddenSize\" : 5")
        .contains("\"selectionBlock\" : 12")
        .contains("\"topN\" : 7")
        .contains("\"sharing\" : \"ALL\"");
  }

  @ParameterizedTest
  @MethodSource("layers")
  void clonesAreEqualAndIndependent(Layer layer) {
    Layer clone = layer.clone();
    assertThat(clone).isNotSameAs(layer).isEqualTo(layer).hasSameHashCodeAs(layer);
    assertSameFields(clone, layer);
    assertThat(clone.toString()).isEqualTo(layer.toString()).contains("nIn=");
    clone.setLayerName("another");
    assertThat(layer.getLayerName()).isNull();
  }

  @Test
  void everyOptionCountsInEquality() {
    List<Consumer<GatedFWALayer>> changes =
        List.of(
            c -> c.setNHeads(2),
            c -> c.setNKvHeads(1),
            c -> c.setHeadSize(4),
            c -> c.setWindowSize(9),
            c -> c.setGated(false),
            c -> c.setLearnableAmplitude(true),
            c -> c.setGateBiasInit(1),
            c -> c.setRopeBase(0),
            c -> c.setQkNorm(false),
            c -> c.setKeyShift(false),
            c -> c.setValueShift(false),
            c -> c.setHasBias(false),
            c -> c.setNOut(12),
            c -> c.setRnnDataFormat(RNNFormat.NCW));
    for (int i = 0; i < changes.size(); i++) {
      GatedFWALayer layer = (GatedFWALayer) layers().toList().get(0);
      GatedFWALayer changed = layer.clone();
      changes.get(i).accept(changed);
      assertThat(changed).as("change %d", i).isNotEqualTo(layer);
      assertThat(changed.hashCode()).as("change %d", i).isNotEqualTo(layer.hashCode());
    }
    List<Consumer<NativeSparseAttentionLayer>> nsaChanges =
        List.of(
            c -> c.setWindowSize(9),
            c -> c.setBlockLength(3),
            c -> c.setStride(2),
            c -> c.setCompression(Compression.MEAN),
            c -> c.setCompressionHiddenSize(4),
            c -> c.setSelectionBlock(6),
            c -> c.setTopN(6),
            c -> c.setSharing(KeyValueSharing.NONE));
    for (int i = 0; i < nsaChanges.size(); i++) {
      NativeSparseAttentionLayer layer =
          (NativeSparseAttentionLayer)
              layers().filter(NativeSparseAttentionLayer.class::isInstance).findFirst().get();
      NativeSparseAttentionLayer changed = layer.clone();
      nsaChanges.get(i).accept(changed);
      assertThat(changed).as("change %d of NSA", i).isNotEqualTo(layer);
    }
    SwiGLULayer feedForward = SwiGLULayer.builder().nOut(3).hiddenSize(7).build();
    assertThat(feedForward)
        .isNotEqualTo(SwiGLULayer.builder().nOut(3).hiddenSize(8).build())
        .isNotEqualTo(SwiGLULayer.builder().nOut(3).hiddenSize(7).hasBias(true).build());
    assertThat(RMSNormLayer.builder().build())
        .isNotEqualTo(RMSNormLayer.builder().eps(1).build())
        .isNotEqualTo(RMSNormLayer.builder().dataFormat(RNNFormat.NWC).build());
  }

  private static MultiLayerNetwork trained() {
    MultiLayerNetwork net =
        Nets.net(
            Nets.config(DataType.FLOAT).updater(new Adam(0.01)),
            N_IN,
            RNNFormat.NCW,
            RMSNormLayer.builder().build(),
            Options.EVERYTHING.builder().build(),
            Options.NSA_EVERYTHING.builder().build(),
            SwiGLULayer.builder().nOut(4).hiddenSize(6).build(),
            Nets.output(2));
    net.fit(data());
    return net;
  }

  private static DataSet data() {
    return new DataSet(
        Nets.random(DataType.FLOAT, 51, 2, N_IN, 6),
        Nets.labels(DataType.FLOAT, 2, 2, 6, RNNFormat.NCW));
  }

  @Test
  void modelSerializerKeepsNetworkAndUpdater(@TempDir Path folder) throws IOException {
    MultiLayerNetwork net = trained();
    Path file = folder.resolve("net.zip");
    ModelSerializer.writeModel(net, file.toFile(), true);
    MultiLayerNetwork restored = ModelSerializer.restoreMultiLayerNetwork(file.toFile(), true);
    assertThat(Bits.of(restored.params())).isEqualTo(Bits.of(net.params()));
    INDArray x = data().getFeatures();
    assertThat(Bits.of(restored.output(x))).isEqualTo(Bits.of(net.output(x)));
    net.fit(data());
    restored.fit(data());
    assertThat(Bits.of(restored.params())).isEqualTo(Bits.of(net.params()));
  }

  @Test
  void javaSerialisationKeepsTheNetwork() throws IOException, ClassNotFoundException {
    MultiLayerNetwork net = trained();
    ByteArrayOutputStream bytes = new ByteArrayOutputStream();
    try (ObjectOutputStream out = new ObjectOutputStream(bytes)) {
      out.writeObject(net);
    }
    try (ObjectInputStream in =
        new ObjectInputStream(new ByteArrayInputStream(bytes.toByteArray()))) {
      MultiLayerNetwork restored = (MultiLayerNetwork) in.readObject();
      INDArray x = data().getFeatures();
      assertThat(Bits.of(restored.output(x))).isEqualTo(Bits.of(net.output(x)));
      assertThat(restored.getLayerWiseConfigurations()).isEqualTo(net.getLayerWiseConfigurations());
    }
  }

  @Test
  void networkClonesGiveTheSameOutput() {
    MultiLayerNetwork net = trained();
    INDArray x = data().getFeatures();
    assertThat(Bits.of(net.clone().output(x))).isEqualTo(Bits.of(net.output(x)));
  }

  @Test
  void graphsWithDecoderBlocksAreKept(@TempDir Path folder) throws IOException {
    DecoderBlock block =
        DecoderBlock.builder()
            .nModel(N_IN)
            .attention(Options.EVERYTHING.builder().build())
            .hasBias(true)
            .normEps(0.01)
            .build();
    var graph = Nets.config(DataType.FLOAT).graphBuilder().addInputs("in");
    graph.addLayer("out", Nets.output(2), block.addTo(graph, "block", "in")).setOutputs("out");
    ComputationGraphConfiguration conf = graph.setInputTypes(InputType.recurrent(N_IN)).build();
    assertThat(ComputationGraphConfiguration.fromJson(conf.toJson())).isEqualTo(conf);
    assertThat(ComputationGraphConfiguration.fromYaml(conf.toYaml())).isEqualTo(conf);
    ComputationGraph net = new ComputationGraph(conf);
    net.init();
    net.fit(data());
    Path file = folder.resolve("graph.zip");
    ModelSerializer.writeModel(net, file.toFile(), true);
    INDArray x = data().getFeatures();
    Bits expected = Bits.of(net.outputSingle(x));
    assertThat(Bits.of(ModelSerializer.restoreComputationGraph(file.toFile()).outputSingle(x)))
        .isEqualTo(expected);
    assertThat(Bits.of(net.clone().outputSingle(x))).isEqualTo(expected);
  }
}
