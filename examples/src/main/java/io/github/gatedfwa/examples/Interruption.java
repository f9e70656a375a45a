package io.github.gatedfwa.examples;

import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;

/**
 * Turns Ctrl-C (SIGINT) or SIGTERM into a request that work can look at and finish in order.
 *
 * <p>From the request on the JVM is shutting down; it waits until {@link #close()} says that the
 * work is done, two minutes at most.
 */
final class Interruption implements AutoCloseable {
  /** Exit code of a program that was interrupted, as shells have it for SIGINT. */
  static final int EXIT_CODE = 130;

  private static final long PATIENCE_MINUTES = 2;

  private final CountDownLatch asked = new CountDownLatch(1);
  private final CountDownLatch done = new CountDownLatch(1);
  private final Thread hook = new Thread(this::waitForWork, "interruption");

  private Interruption() {}

  static Interruption listen() {
    Interruption interruption = new Interruption();
    Runtime.getRuntime().addShutdownHook(interruption.hook);
    return interruption;
  }

  boolean requested() {
    return asked.getCount() == 0;
  }

  /** Waits for the request. */
  void await() throws InterruptedException {
    asked.await();
  }

  private void waitForWork() {
    asked.countDown();
    try {
      if (!done.await(PATIENCE_MINUTES, TimeUnit.MINUTES)) {
        System.err.println("Gave up waiting for the current step.");
      }
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
  }

  @Override
  public void close() {
    done.countDown();
    if (!requested()) {
      try {
        Runtime.getRuntime().removeShutdownHook(hook);
      } catch (IllegalStateException shuttingDown) {
        // The request came between the two lines; the hook finds the work done.
      }
    }
  }
}
