package io.github.gatedfwa.benchmarks;

import java.util.concurrent.TimeUnit;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Level;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.State;

/** The yardstick: ND4J's sgemm at its best, square, with the result in 'f' order. */
@State(Scope.Benchmark)
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MILLISECONDS)
public class SgemmBenchmark {

  static final int SIZE = 2048;

  private INDArray a;
  private INDArray b;
  private INDArray c;

  @Setup(Level.Trial)
  public void setUp() {
    a = Nd4j.randn(DataType.FLOAT, SIZE, SIZE);
    b = Nd4j.randn(DataType.FLOAT, SIZE, SIZE);
    c = Nd4j.create(DataType.FLOAT, new long[] {SIZE, SIZE}, 'f');
  }

  @Benchmark
  public void sgemm() {
    a.mmuli(b, c);
  }
}
