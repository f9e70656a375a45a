package io.github.gatedfwa.nativeops;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.github.gatedfwa.nativeops.DeviceSettings.Mode;
import java.util.Properties;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class DeviceSettingsTest {

  private static DeviceSettings settings(String... namesAndValues) {
    Properties properties = new Properties();
    for (int i = 0; i < namesAndValues.length; i += 2) {
      properties.setProperty(namesAndValues[i], namesAndValues[i + 1]);
    }
    return DeviceSettings.of(properties);
  }

  @Test
  void defaults() {
    assertThat(settings()).isEqualTo(new DeviceSettings(Mode.AUTO, 0, false, 0, -1));
  }

  @ParameterizedTest
  @CsvSource({"auto,AUTO,0", "cpu,CPU,0", "cuda,CUDA,0", "cuda:0,CUDA,0", "cuda:13,CUDA,13"})
  void device(String value, Mode mode, int ordinal) {
    assertThat(settings("gatedfwa.device", value))
        .isEqualTo(new DeviceSettings(mode, ordinal, false, 0, -1));
  }

  @Test
  void floatProductsAndMemory() {
    assertThat(
            settings(
                "gatedfwa.device", "cuda:1",
                "gatedfwa.cuda.float", "tf32",
                "gatedfwa.cuda.memory", "8",
                "gatedfwa.cuda.cache", "0"))
        .isEqualTo(new DeviceSettings(Mode.CUDA, 1, true, 8L << 20, 0));
    assertThat(settings("gatedfwa.cuda.float", "strict")).isEqualTo(settings());
    assertThat(settings("gatedfwa.cuda.memory", "999999999").memoryLimit())
        .isEqualTo(999_999_999L << 20);
  }

  @ParameterizedTest
  @CsvSource({
    "gatedfwa.device,gpu,'auto, cpu, cuda or cuda:N'",
    "gatedfwa.device,CUDA,'auto, cpu, cuda or cuda:N'",
    "gatedfwa.device,cuda:,'auto, cpu, cuda or cuda:N'",
    "gatedfwa.device,cuda:-1,'auto, cpu, cuda or cuda:N'",
    "gatedfwa.device,cuda:99999,'auto, cpu, cuda or cuda:N'",
    "gatedfwa.device,'','auto, cpu, cuda or cuda:N'",
    "gatedfwa.cuda.float,half,strict or tf32",
    "gatedfwa.cuda.memory,8g,'a number of megabytes, at least 1'",
    "gatedfwa.cuda.memory,0,'a number of megabytes, at least 1'",
    "gatedfwa.cuda.memory,-1,'a number of megabytes, at least 1'",
    "gatedfwa.cuda.memory,9999999999,'a number of megabytes, at least 1'",
    "gatedfwa.cuda.cache,some,'a number of megabytes, at least 0'"
  })
  void otherValuesAreRefused(String name, String value, String allowed) {
    assertThatThrownBy(() -> settings(name, value))
        .isInstanceOf(NativeLibraryException.class)
        .hasMessage("the system property " + name + " is '" + value + "'; expected " + allowed);
  }
}
