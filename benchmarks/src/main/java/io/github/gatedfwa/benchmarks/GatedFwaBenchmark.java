package io.github.gatedfwa.benchmarks;

import java.util.concurrent.TimeUnit;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Level;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.State;

/** gated_fwa and gated_fwa_bp, FLOAT, B = 1, H = 8; results are checked before they are timed. */
@State(Scope.Benchmark)
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MILLISECONDS)
public class GatedFwaBenchmark {

  @Param({"512", "4096", "16384", "65536"})
  public long length;

  @Param({"128", "512"})
  public long window;

  @Param({"64", "128"})
  public long headSize;

  private AttentionOperands operands;

  @Setup(Level.Trial)
  public void setUp() {
    operands = new AttentionOperands(length, headSize, window);
    operands.check();
  }

  @Benchmark
  public void forward() {
    operands.forward();
  }

  @Benchmark
  public void backward() {
    operands.backward();
  }
}
