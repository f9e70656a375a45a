package io.github.gatedfwa.zoo.training;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import org.deeplearning4j.nn.conf.MultiLayerConfiguration;
import org.deeplearning4j.nn.conf.NeuralNetConfiguration;
import org.deeplearning4j.nn.conf.layers.BaseLayer;
import org.deeplearning4j.nn.conf.layers.OutputLayer;
import org.junit.jupiter.api.Test;
import org.nd4j.linalg.learning.config.Adam;

class WarmupCosineScheduleTest {
  @Test
  void risesToItsPeakAndFallsToItsEnd() {
    WarmupCosineSchedule schedule = new WarmupCosineSchedule(1, 0.1, 4, 14);
    assertThat(schedule.valueAt(0, 0)).isEqualTo(0.25);
    assertThat(schedule.valueAt(3, 0)).isEqualTo(1);
    assertThat(schedule.valueAt(4, 0)).isEqualTo(1);
    assertThat(schedule.valueAt(9, 5)).isCloseTo(0.55, within(1e-15));
    for (int i = 5; i <= 14; i++) {
      assertThat(schedule.valueAt(i, 0)).isLessThan(schedule.valueAt(i - 1, 0));
    }
    assertThat(schedule.valueAt(14, 0)).isEqualTo(0.1);
    assertThat(schedule.valueAt(1_000_000, 0)).isEqualTo(0.1);
  }

  @Test
  void worksWithoutWarmUpAndWithoutDecay() {
    assertThat(new WarmupCosineSchedule(2, 0, 0, 10).valueAt(0, 0)).isEqualTo(2);
    WarmupCosineSchedule onlyWarmup = new WarmupCosineSchedule(2, 1, 10, 10);
    assertThat(onlyWarmup.valueAt(9, 0)).isEqualTo(2);
    assertThat(onlyWarmup.valueAt(10, 0)).isEqualTo(1);
  }

  @Test
  void isKeptByAConfiguration() {
    WarmupCosineSchedule schedule = new WarmupCosineSchedule(3e-3, 1e-4, 20, 500);
    MultiLayerConfiguration configuration =
        new NeuralNetConfiguration.Builder()
            .updater(new Adam(schedule))
            .list()
            .layer(new OutputLayer.Builder().nIn(2).nOut(2).build())
            .build();
    for (MultiLayerConfiguration copy :
        new MultiLayerConfiguration[] {
          MultiLayerConfiguration.fromJson(configuration.toJson()),
          MultiLayerConfiguration.fromYaml(configuration.toYaml()),
          configuration.clone()
        }) {
      Adam adam = (Adam) ((BaseLayer) copy.getConf(0).getLayer()).getIUpdater();
      assertThat(adam.getLearningRateSchedule()).isEqualTo(schedule).hasSameHashCodeAs(schedule);
    }
  }

  @Test
  void badArgumentsAreNamed() {
    assertThatThrownBy(() -> new WarmupCosineSchedule(0, 0, 1, 2))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("peak must be greater than 0, got 0.0");
    assertThatThrownBy(() -> new WarmupCosineSchedule(1, 2, 1, 2)).hasMessageContaining("last");
    assertThatThrownBy(() -> new WarmupCosineSchedule(1, 0, 3, 2)).hasMessageContaining("warmup");
    assertThatThrownBy(() -> new WarmupCosineSchedule(1, 0, 0, 0)).hasMessageContaining("total");
  }
}
