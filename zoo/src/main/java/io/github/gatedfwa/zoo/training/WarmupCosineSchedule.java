package io.github.gatedfwa.zoo.training;

import java.util.Objects;
import org.nd4j.linalg.schedule.ISchedule;
import org.nd4j.shade.jackson.annotation.JsonProperty;

/**
 * A learning rate that rises linearly to its peak and falls from there on half a cosine (SGDR,
 * arXiv 1608.03983, without restarts).
 *
 * <p>Iteration {@code i}, counted from 0, gets {@code peak · (i + 1) / warmup} up to the peak, and
 * from there {@code last + (peak − last) · (1 + cos(π · p)) / 2}, where {@code p} is the part of
 * the iterations between warm-up and {@code total} that lie behind; after {@code total} it stays at
 * {@code last}. Epochs play no part.
 */
public final class WarmupCosineSchedule implements ISchedule {
  private static final long serialVersionUID = 1L;

  private final double peak;
  private final double last;
  private final int warmup;
  private final int total;

  /**
   * A schedule of linear warm-up and cosine decay.
   *
   * @param peak the highest value, greater than 0
   * @param last the value at the end, from 0 to peak
   * @param warmup iterations of the rise, from 0 to total
   * @param total iterations in all, at least 1
   * @throws IllegalArgumentException if an argument is out of its range
   */
  public WarmupCosineSchedule(
      @JsonProperty("peak") double peak,
      @JsonProperty("last") double last,
      @JsonProperty("warmup") int warmup,
      @JsonProperty("total") int total) {
    require(peak > 0 && Double.isFinite(peak), "peak must be greater than 0, got " + peak);
    require(last >= 0 && last <= peak, "last must be from 0 to peak " + peak + ", got " + last);
    require(total >= 1, "total must be at least 1, got " + total);
    require(
        warmup >= 0 && warmup <= total,
        "warmup must be from 0 to total " + total + ", got " + warmup);
    this.peak = peak;
    this.last = last;
    this.warmup = warmup;
    this.total = total;
  }

  private static void require(boolean condition, String message) {
    if (!condition) {
      throw new IllegalArgumentException("WarmupCosineSchedule: " + message);
    }
  }

  @Override
  public double valueAt(int iteration, int epoch) {
    if (iteration < warmup) {
      return peak * (iteration + 1) / warmup;
    }
    if (iteration >= total) {
      return last;
    }
    double behind = (double) (iteration - warmup) / (total - warmup);
    return last + (peak - last) * (1 + Math.cos(Math.PI * behind)) / 2;
  }

  @Override
  @SuppressWarnings("MissingSuperCall") // There is no state to copy.
  public ISchedule clone() {
    return this;
  }

  /** The highest value. */
  public double getPeak() {
    return peak;
  }

  /** The value at the end. */
  public double getLast() {
    return last;
  }

  /** Iterations of the rise. */
  public int getWarmup() {
    return warmup;
  }

  /** Iterations in all. */
  public int getTotal() {
    return total;
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof WarmupCosineSchedule that
        && peak == that.peak
        && last == that.last
        && warmup == that.warmup
        && total == that.total;
  }

  @Override
  public int hashCode() {
    return Objects.hash(peak, last, warmup, total);
  }

  @Override
  public String toString() {
    return "WarmupCosineSchedule(peak="
        + peak
        + ", last="
        + last
        + ", warmup="
        + warmup
        + ", total="
        + total
        + ")";
  }
}
