package io.github.gatedfwa.layers;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import ch.qos.logback.classic.Level;
import ch.qos.logback.classic.Logger;
import ch.qos.logback.classic.spi.ILoggingEvent;
import ch.qos.logback.core.read.ListAppender;
import io.github.gatedfwa.nativeops.Bits;
import java.io.File;
import java.io.IOException;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import org.assertj.core.api.InstanceOfAssertFactories;
import org.deeplearning4j.core.storage.Persistable;
import org.deeplearning4j.datasets.iterator.ExistingDataSetIterator;
import org.deeplearning4j.earlystopping.EarlyStoppingConfiguration;
import org.deeplearning4j.earlystopping.EarlyStoppingResult;
import org.deeplearning4j.earlystopping.saver.InMemoryModelSaver;
import org.deeplearning4j.earlystopping.scorecalc.DataSetLossCalculator;
import org.deeplearning4j.earlystopping.termination.MaxEpochsTerminationCondition;
import org.deeplearning4j.earlystopping.trainer.EarlyStoppingGraphTrainer;
import org.deeplearning4j.earlystopping.trainer.EarlyStoppingTrainer;
import org.deeplearning4j.nn.api.Model;
import org.deeplearning4j.nn.conf.RNNFormat;
import org.deeplearning4j.nn.conf.layers.Layer;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.deeplearning4j.nn.multilayer.MultiLayerNetwork;
import org.deeplearning4j.optimize.listeners.CheckpointListener;
import org.deeplearning4j.optimize.listeners.PerformanceListener;
import org.deeplearning4j.ui.model.stats.StatsListener;
import org.deeplearning4j.ui.model.stats.api.StatsReport;
import org.deeplearning4j.ui.model.stats.api.StatsType;
import org.deeplearning4j.ui.model.storage.InMemoryStatsStorage;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.dataset.DataSet;
import org.nd4j.linalg.learning.config.Adam;
import org.nd4j.linalg.learning.config.Sgd;
import org.slf4j.LoggerFactory;

/** DL4J's training listeners, and early stopping. */
class ListenersTest {
  private static final int N_IN = 4;
  private static final int TIME = 12;

  private static Layer[] layers() {
    return new Layer[] {
      RMSNormLayer.builder().build(),
      Options.everything().windowSize(8).build(),
      Options.nsaEverything().build(),
      SwiGLULayer.builder().nOut(4).hiddenSize(6).build(),
      Nets.output(2)
    };
  }

  private static Model net(Nets.Kind kind) {
    return kind.net(
        Nets.config(DataType.FLOAT).updater(new Adam(0.02)), N_IN, RNNFormat.NCW, layers());
  }

  private static DataSet data(int seed) {
    return new DataSet(
        Nets.random(DataType.FLOAT, seed, 3, N_IN, TIME),
        Nets.labels(DataType.FLOAT, 3, 2, TIME, RNNFormat.NCW));
  }

  @ParameterizedTest
  @EnumSource
  void statsListenerReportsParametersAndUpdates(Nets.Kind kind) {
    Model net = net(kind);
    InMemoryStatsStorage storage = new InMemoryStatsStorage();
    net.addListeners(new StatsListener(storage, 1));
    for (int i = 0; i < 3; i++) {
      Nets.fit(net, data(i));
    }
    String session = storage.listSessionIDs().get(0);
    List<Persistable> updates =
        storage.getAllUpdatesAfter(
            session, StatsListener.TYPE_ID, storage.listWorkerIDsForSession(session).get(0), 0);
    assertThat(updates).hasSize(3);
    StatsReport report = (StatsReport) updates.get(2);
    assertThat(report.getScore()).isCloseTo(net.score(), within(1e-6));
    for (StatsType type : List.of(StatsType.Parameters, StatsType.Updates, StatsType.Gradients)) {
      assertThat(report.getMeanMagnitudes(type).keySet())
          .as("%s", type)
          .containsExactlyInAnyOrderElementsOf(net.paramTable().keySet());
      assertThat(report.getMeanMagnitudes(type).values())
          .as("%s", type)
          .allSatisfy(magnitude -> assertThat(magnitude).isPositive().isFinite());
    }
    assertThat(report.getHistograms(StatsType.Updates)).isNotEmpty();
  }

  @ParameterizedTest
  @EnumSource
  void checkpointsGoOnLikeTheNetwork(Nets.Kind kind, @TempDir Path folder) throws IOException {
    Model net =
        kind.net(Nets.config(DataType.FLOAT).updater(new Sgd(0.01)), N_IN, RNNFormat.NCW, layers());
    CheckpointListener checkpoints =
        new CheckpointListener.Builder(folder.toFile()).saveEveryNIterations(2).keepAll().build();
    net.addListeners(checkpoints);
    for (int i = 0; i < 4; i++) {
      Nets.fit(net, data(i));
    }
    assertThat(checkpoints.availableCheckpoints()).isNotEmpty();
    File file = checkpoints.getFileForCheckpoint(checkpoints.availableCheckpoints().get(0));
    Model restored =
        kind == Nets.Kind.GRAPH
            ? ComputationGraph.load(file, true)
            : MultiLayerNetwork.load(file, true);
    // DL4J counts an iteration after it has told the listeners of it.
    int next = iteration(restored) + 1;
    assertThat(next).isBetween(1, 3);
    for (int i = next; i < 4; i++) {
      Nets.fit(restored, data(i));
    }
    assertThat(Bits.of(restored.params())).isEqualTo(Bits.of(net.params()));
  }

  private static int iteration(Model net) {
    return net instanceof ComputationGraph graph
        ? graph.getIterationCount()
        : ((MultiLayerNetwork) net).getIterationCount();
  }

  @ParameterizedTest
  @EnumSource
  void performanceListenerCountsSamples(Nets.Kind kind) {
    Model net = net(kind);
    Logger logger = (Logger) LoggerFactory.getLogger(PerformanceListener.class);
    ListAppender<ILoggingEvent> log = new ListAppender<>();
    log.start();
    logger.addAppender(log);
    logger.setLevel(Level.INFO);
    try {
      net.addListeners(new PerformanceListener(1, true));
      for (int i = 0; i < 3; i++) {
        Nets.fit(net, data(i));
      }
    } finally {
      logger.detachAppender(log);
    }
    assertThat(log.list)
        .isNotEmpty()
        .last()
        .extracting(ILoggingEvent::getFormattedMessage, InstanceOfAssertFactories.STRING)
        .contains("iteration 2", "samples/sec:", "score:");
  }

  @ParameterizedTest
  @EnumSource
  void earlyStoppingKeepsTheBestNetwork(Nets.Kind kind) {
    Model net = net(kind);
    ExistingDataSetIterator held = new ExistingDataSetIterator(List.of(data(100)));
    ExistingDataSetIterator training = new ExistingDataSetIterator(List.of(data(1), data(2)));
    double[] scores;
    Model best;
    if (kind == Nets.Kind.GRAPH) {
      EarlyStoppingResult<ComputationGraph> result =
          new EarlyStoppingGraphTrainer(
                  ListenersTest.<ComputationGraph>stopping(held), (ComputationGraph) net, training)
              .fit();
      best = result.getBestModel();
      scores = result.getScoreVsEpoch().values().stream().mapToDouble(x -> x).toArray();
    } else {
      EarlyStoppingResult<MultiLayerNetwork> result =
          new EarlyStoppingTrainer(
                  ListenersTest.<MultiLayerNetwork>stopping(held),
                  (MultiLayerNetwork) net,
                  training)
              .fit();
      best = result.getBestModel();
      scores = result.getScoreVsEpoch().values().stream().mapToDouble(x -> x).toArray();
    }
    assertThat(scores).hasSize(4);
    double least = Arrays.stream(scores).min().orElseThrow();
    assertThat(Nets.score(best, data(100))).isCloseTo(least, within(1e-5));
  }

  private static <T extends Model> EarlyStoppingConfiguration<T> stopping(
      ExistingDataSetIterator held) {
    return new EarlyStoppingConfiguration.Builder<T>()
        .epochTerminationConditions(new MaxEpochsTerminationCondition(4))
        .scoreCalculator(new DataSetLossCalculator(held, true))
        .modelSaver(new InMemoryModelSaver<>())
        .build();
  }
}
