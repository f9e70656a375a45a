package io.github.gatedfwa.benchmarks;

import java.util.concurrent.TimeUnit;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.api.ops.DynamicCustomOp;
import org.nd4j.linalg.factory.Nd4j;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Level;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.State;

/**
 * The peer in ND4J: dot_product_attention and its gradient, dense, neither causal nor windowed. It
 * keeps N x N matrices, so it stops at 4096 tokens.
 */
@State(Scope.Benchmark)
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MILLISECONDS)
public class DotProductAttentionBenchmark {

  @Param({"512", "4096"})
  public long length;

  @Param({"64", "128"})
  public long headSize;

  private INDArray queries;
  private INDArray keys;
  private INDArray values;
  private INDArray gradient;

  @Setup(Level.Trial)
  public void setUp() {
    long[] shape = {1, AttentionOperands.HEADS, headSize, length};
    queries = Nd4j.randn(DataType.FLOAT, shape);
    keys = Nd4j.randn(DataType.FLOAT, shape);
    values = Nd4j.randn(DataType.FLOAT, shape);
    gradient = Nd4j.randn(DataType.FLOAT, shape);
  }

  @Benchmark
  public void forward() {
    close(
        DynamicCustomOp.builder("dot_product_attention")
            .addInputs(queries, keys, values)
            .addIntegerArguments(1, 0)
            .build());
  }

  @Benchmark
  public void backward() {
    close(
        DynamicCustomOp.builder("dot_product_attention_bp")
            .addInputs(queries, keys, values, gradient)
            .addIntegerArguments(1)
            .build());
  }

  private static void close(DynamicCustomOp op) {
    for (INDArray result : Nd4j.exec(op)) {
      result.close();
    }
  }
}
