package io.github.gatedfwa.examples;

import java.time.Duration;
import me.tongfei.progressbar.ConsoleProgressBarConsumer;
import me.tongfei.progressbar.DelegatingProgressBarConsumer;
import me.tongfei.progressbar.ProgressBar;
import me.tongfei.progressbar.ProgressBarBuilder;
import me.tongfei.progressbar.ProgressBarStyle;
import picocli.CommandLine.Help.Ansi;

/** The progress line of the example programs. */
final class Progress {
  /** Characters of the line: fits any terminal. */
  private static final int LINE = 79;

  private Progress() {}

  static ProgressBar bar(String task, int from, int to) {
    ProgressBarBuilder bar =
        new ProgressBarBuilder()
            .setTaskName(task)
            .setInitialMax(to)
            .startsFrom(from, Duration.ZERO)
            .setStyle(ProgressBarStyle.ASCII);
    if (Ansi.AUTO.enabled()) {
      // The default consumer asks JLine for the terminal, which takes SIGINT away from the JVM.
      bar.setConsumer(new ConsoleProgressBarConsumer(System.err, LINE));
    } else {
      // No terminal that could redraw a line: one line now and then.
      bar.setConsumer(new DelegatingProgressBarConsumer(System.err::println, LINE))
          .setUpdateIntervalMillis(15_000);
    }
    return bar.build();
  }
}
