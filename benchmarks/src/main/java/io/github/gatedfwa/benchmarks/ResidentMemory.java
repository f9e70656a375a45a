package io.github.gatedfwa.benchmarks;

import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.locks.LockSupport;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import javax.management.JMException;
import javax.management.ObjectName;

/** A process's resident memory, and fresh processes to measure it in. Linux only: reads /proc. */
final class ResidentMemory {
  private ResidentMemory() {}

  static double megabytes() throws IOException {
    return megabytes("VmRSS:");
  }

  /** The highest since the process started or {@link #resetPeak} was called. */
  static double peakMegabytes() throws IOException {
    return megabytes("VmHWM:");
  }

  static void resetPeak() throws IOException {
    Files.writeString(Path.of("/proc/self/clear_refs"), "5");
  }

  /**
   * ND4J and JavaCPP give memory back some time after the collector has seen the last reference to
   * it: collects until the heap does not shrink any more.
   *
   * @return bytes of the heap that are in use
   */
  static long collectGarbage() {
    Runtime java = Runtime.getRuntime();
    long used = Long.MAX_VALUE;
    for (int round = 0; round < 30; round++) {
      System.gc();
      long now = java.totalMemory() - java.freeMemory();
      if (round >= 3 && now > used - 100_000) {
        return now;
      }
      used = now;
      LockSupport.parkNanos(300_000_000);
    }
    return used;
  }

  /** What malloc keeps of freed memory goes back to the system. */
  static void trim() throws JMException {
    diagnosticCommand("systemTrimNativeHeap");
  }

  /**
   * Heap, classes, code, compiler and the rest of the JVM's own; needs
   * -XX:NativeMemoryTracking=summary.
   */
  static double committedByJvmMegabytes() throws JMException {
    String report = diagnosticCommand("vmNativeMemory", "summary");
    Matcher total = Pattern.compile("Total: .*committed=([0-9]+)KB").matcher(report);
    if (!total.find()) {
      throw new IllegalStateException("no total in the JVM's report: " + report);
    }
    return Double.parseDouble(total.group(1)) * 1024 / 1e6;
  }

  private static String diagnosticCommand(String operation, String... arguments)
      throws JMException {
    boolean none = arguments.length == 0;
    return (String)
        ManagementFactory.getPlatformMBeanServer()
            .invoke(
                new ObjectName("com.sun.management:type=DiagnosticCommand"),
                operation,
                none ? null : new Object[] {arguments},
                none ? null : new String[] {String[].class.getName()});
  }

  private static double megabytes(String field) throws IOException {
    for (String line : Files.readAllLines(Path.of("/proc/self/status"))) {
      if (line.startsWith(field)) {
        return Double.parseDouble(line.replaceAll("[^0-9]", "")) * 1024 / 1e6;
      }
    }
    throw new IOException("/proc/self/status has no " + field);
  }

  /**
   * Runs a program of this class path, its output on ours.
   *
   * @throws IOException if it cannot be started or fails: what it measures would be missing
   */
  static void inFreshProcess(Class<?> program, List<String> jvmArguments, String... arguments)
      throws IOException, InterruptedException {
    List<String> command = new ArrayList<>();
    command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
    command.addAll(jvmArguments);
    command.addAll(List.of("-classpath", System.getProperty("java.class.path"), program.getName()));
    command.addAll(List.of(arguments));
    int exitCode = new ProcessBuilder(command).inheritIO().start().waitFor();
    if (exitCode != 0) {
      throw new IOException(
          "%s %s ended with exit code %d"
              .formatted(program.getSimpleName(), String.join(" ", arguments), exitCode));
    }
  }
}
