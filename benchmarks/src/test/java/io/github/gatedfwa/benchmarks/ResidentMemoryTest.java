package io.github.gatedfwa.benchmarks;

import static org.assertj.core.api.Assertions.assertThatCode;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.util.List;
import org.junit.jupiter.api.Test;

class ResidentMemoryTest {
  /** Ends with the exit code that it is told. */
  static final class Ending {
    private Ending() {}

    public static void main(String[] args) {
      System.exit(Integer.parseInt(args[0]));
    }
  }

  @Test
  void aProgramThatFailsInItsProcessIsAnError() {
    assertThatCode(() -> ResidentMemory.inFreshProcess(Ending.class, List.of(), "0"))
        .doesNotThrowAnyException();
    assertThatThrownBy(() -> ResidentMemory.inFreshProcess(Ending.class, List.of(), "3"))
        .isInstanceOf(IOException.class)
        .hasMessage("Ending 3 ended with exit code 3");
  }
}
