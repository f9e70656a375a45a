package io.github.gatedfwa.nativeops;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;

/**
 * A JVM of its own, with this one's class path: what is loaded once can be tested once in each.
 * Also for the tests of the modules that depend on this one.
 */
public final class JavaProcess {

  /** What a process came to; output and error stream are one text. */
  public record Result(int exitCode, String output) {}

  private JavaProcess() {}

  public static Result run(Class<?> main, List<String> jvmArguments) {
    return finish(start(main, jvmArguments));
  }

  public static Process start(Class<?> main, List<String> jvmArguments) {
    List<String> command = new ArrayList<>();
    command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
    command.add("-Xmx512m");
    command.add("-cp");
    command.add(System.getProperty("java.class.path"));
    command.addAll(jvmArguments);
    command.add(main.getName());
    try {
      return new ProcessBuilder(command).redirectErrorStream(true).start();
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  public static Result finish(Process process) {
    try {
      CompletableFuture<String> output = CompletableFuture.supplyAsync(() -> outputOf(process));
      if (!process.waitFor(5, TimeUnit.MINUTES)) {
        process.destroyForcibly();
      }
      return new Result(process.waitFor(), output.join());
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new IllegalStateException(e);
    }
  }

  private static String outputOf(Process process) {
    try {
      return new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }
}
