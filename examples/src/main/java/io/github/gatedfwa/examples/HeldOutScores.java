package io.github.gatedfwa.examples;

import static java.nio.charset.StandardCharsets.UTF_8;

import io.github.gatedfwa.zoo.io.WholeFile;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/**
 * How good a model was on held-out text after which step, kept as CSV beside it: all that early
 * stopping has to know, so that a run that goes on stops where one without a break would have.
 */
final class HeldOutScores {
  private static final String HEADER = "step,held-out bits per byte";

  private final String run;
  private final TreeMap<Integer, Double> scores = new TreeMap<>();

  /**
   * @param run what is trained on what, in one line: scores of another run cannot be compared
   */
  HeldOutScores(String run) {
    this.run = "# " + run;
  }

  /**
   * The scores of a run that stands at a step.
   *
   * @throws IOException if the file is missing, is not one of ours or is of another run
   */
  static HeldOutScores load(Path csv, String run, int step) throws IOException {
    HeldOutScores loaded = new HeldOutScores(run);
    List<String> lines = Files.readAllLines(csv, UTF_8);
    if (lines.size() < 3 || !lines.get(1).equals(HEADER)) {
      throw new IOException(csv + " has no scores of held-out text; was it moved or edited?");
    }
    if (!lines.get(0).equals(loaded.run)) {
      throw new IOException(
          "%s is of another run (%s) than this one (%s): name another --save, or delete the files that begin so"
              .formatted(csv, lines.get(0).substring(1).strip(), run));
    }
    for (String line : lines.subList(2, lines.size())) {
      try {
        int comma = line.indexOf(',');
        int at = Integer.parseInt(line.substring(0, Math.max(0, comma)));
        if (at <= step) {
          loaded.add(at, Double.parseDouble(line.substring(comma + 1)));
        }
      } catch (NumberFormatException e) {
        throw new IOException(csv + ": no score in '" + line + "'", e);
      }
    }
    return loaded;
  }

  void save(Path csv) throws IOException {
    StringBuilder text = new StringBuilder(run).append('\n').append(HEADER).append('\n');
    scores.forEach((step, score) -> text.append(step).append(',').append(score).append('\n'));
    WholeFile.write(csv, stream -> stream.write(text.toString().getBytes(UTF_8)));
  }

  void add(int step, double bitsPerByte) {
    scores.put(step, bitsPerByte);
  }

  /** Bits per byte before the first step. */
  double before() {
    return scores.firstEntry().getValue();
  }

  /** The step of the best score, the first of several, with the score. */
  Map.Entry<Integer, Double> best() {
    return scores.entrySet().stream().min(Map.Entry.comparingByValue()).orElseThrow();
  }

  /** How many scores there have been since the best one. */
  int sinceBest() {
    return scores.tailMap(best().getKey(), false).size();
  }
}
