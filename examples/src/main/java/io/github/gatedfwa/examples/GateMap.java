package io.github.gatedfwa.examples;

import static java.nio.charset.StandardCharsets.UTF_8;

import io.github.gatedfwa.layers.GateListener;
import io.github.gatedfwa.layers.GateListener.Reading;
import io.github.gatedfwa.zoo.io.WholeFile;
import java.awt.Color;
import java.awt.Font;
import java.awt.Graphics2D;
import java.awt.RenderingHints;
import java.awt.image.BufferedImage;
import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Comparator;
import java.util.DoubleSummaryStatistics;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.Callable;
import java.util.stream.IntStream;
import javax.imageio.ImageIO;
import org.deeplearning4j.nn.graph.ComputationGraph;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/**
 * Shows what the gates of a model do over a text: a table of all heads, and a heat map of one of
 * them as PNG.
 */
@Command(
    name = "GateMap",
    mixinStandardHelpOptions = true,
    showDefaultValues = true,
    description =
        "Prints how far the heads of a model look back over a text, and draws where one of them"
            + " forgets.")
public final class GateMap implements Callable<Integer> {
  /** Characters in a line of the picture. */
  private static final int COLUMNS = 100;

  // Pixels.
  private static final int CELL_WIDTH = 10;
  private static final int CELL_HEIGHT = 18;
  private static final int BASELINE = 14;
  private static final int MARGIN = 16;
  private static final int HEADER = 44;

  @Option(names = "--model", paramLabel = CodeModel.NAME_OR_FILE, description = CodeModel.WHICH)
  String model = "SMALL_JAVA";

  @Option(names = "--text", paramLabel = "FILE", description = "the text", required = true)
  Path text;

  @Option(names = "--length", description = "characters of the text to read")
  int length = 1500;

  @Option(
      names = "--layer",
      paramLabel = "NAME",
      description = "layer to draw; if not given, that of the head whose gates differ most")
  String layer;

  @Option(
      names = "--head",
      paramLabel = "N",
      description = "head to draw, from 0; if not given, the one whose gates differ most")
  Integer head;

  @Option(names = "--image", paramLabel = "FILE", description = "where the picture goes")
  Path image = ProjectFolder.file("build", "gates.png");

  @Spec CommandSpec spec;

  /**
   * Runs the program and ends the process with its exit code.
   *
   * @param arguments see {@code --help}
   */
  public static void main(String[] arguments) {
    System.exit(CommandLines.of(new GateMap()).execute(arguments));
  }

  @Override
  public Integer call() throws IOException {
    CommandLines.requirePositive("--length", length);
    CommandLines.requireFile("--image", image);
    ComputationGraph network = CodeModel.open(model);
    List<TextGates.Head> heads = TextGates.heads(network);
    List<Integer> candidates =
        IntStream.range(0, heads.size())
            .filter(i -> layer == null || heads.get(i).layer().equals(layer))
            .filter(i -> head == null || heads.get(i).head() == head)
            .boxed()
            .toList();
    if (candidates.isEmpty()) {
      throw new IllegalArgumentException(
          "--layer %s --head %s is none of this model's: %s".formatted(layer, head, heads));
    }
    String whole = new String(Files.readAllBytes(text), UTF_8);
    String shown = whole.substring(0, Math.min(whole.length(), length));
    if (shown.isEmpty()) {
      throw new IllegalArgumentException("--text " + text + " is empty");
    }
    List<TextGates.Cell> cells = TextGates.of(network, shown, 0);
    int drawn = Collections.max(candidates, Comparator.comparingDouble(i -> variance(cells, i)));
    PrintWriter out = spec.commandLine().getOut();
    out.println("layer               head  mean decay  effective window");
    for (Reading reading : GateListener.read(network)) {
      out.printf(
          Locale.ROOT,
          "%-20s%4d%12.4f%18.1f%n",
          reading.layer(),
          reading.head(),
          reading.meanDecay(),
          reading.effectiveWindow());
    }
    BufferedImage picture = draw(cells, drawn, heads.get(drawn));
    WholeFile.write(image, stream -> ImageIO.write(picture, "png", stream));
    out.printf("Saved: %s%n", image);
    return 0;
  }

  private static double variance(List<TextGates.Cell> cells, int head) {
    DoubleSummaryStatistics first = new DoubleSummaryStatistics();
    DoubleSummaryStatistics second = new DoubleSummaryStatistics();
    for (TextGates.Cell cell : cells) {
      double forgotten = cell.forgotten().get(head);
      first.accept(forgotten);
      second.accept(forgotten * forgotten);
    }
    return second.getAverage() - first.getAverage() * first.getAverage();
  }

  /**
   * The text with each character on a cell whose colour tells what share of the memory fades.
   *
   * @param head place of the head in a cell's figures
   */
  private static BufferedImage draw(List<TextGates.Cell> cells, int head, TextGates.Head name) {
    List<List<TextGates.Cell>> lines = lines(cells);
    BufferedImage picture =
        new BufferedImage(
            2 * MARGIN + COLUMNS * CELL_WIDTH,
            HEADER + 2 * MARGIN + lines.size() * CELL_HEIGHT,
            BufferedImage.TYPE_INT_RGB);
    Graphics2D g = picture.createGraphics();
    g.setRenderingHint(
        RenderingHints.KEY_TEXT_ANTIALIASING, RenderingHints.VALUE_TEXT_ANTIALIAS_ON);
    g.setColor(Color.WHITE);
    g.fillRect(0, 0, picture.getWidth(), picture.getHeight());
    g.setFont(new Font(Font.MONOSPACED, Font.PLAIN, 14));
    drawLegend(g, name.layer() + ", head " + name.head(), picture.getWidth());
    for (int line = 0; line < lines.size(); line++) {
      for (int column = 0; column < lines.get(line).size(); column++) {
        TextGates.Cell cell = lines.get(line).get(column);
        int x = MARGIN + column * CELL_WIDTH;
        int y = HEADER + MARGIN + line * CELL_HEIGHT;
        double forgotten = cell.forgotten().get(head);
        g.setColor(color(forgotten));
        g.fillRect(x, y, CELL_WIDTH, CELL_HEIGHT);
        g.setColor(forgotten > 0.6 ? Color.WHITE : Color.BLACK);
        g.drawString(visible(cell.character()), x + 1, y + BASELINE);
      }
    }
    g.dispose();
    return picture;
  }

  /** Lines of at most {@value #COLUMNS} characters. */
  private static List<List<TextGates.Cell>> lines(List<TextGates.Cell> cells) {
    List<List<TextGates.Cell>> lines = new ArrayList<>();
    boolean ended = true;
    for (TextGates.Cell cell : cells) {
      if (ended) {
        lines.add(new ArrayList<>());
      }
      List<TextGates.Cell> line = lines.get(lines.size() - 1);
      line.add(cell);
      ended = line.size() == COLUMNS || cell.character().equals("\n");
    }
    return lines;
  }

  private static String visible(String character) {
    return switch (character) {
      case "\n" -> "¶";
      case "\t" -> "→";
      default -> Character.isISOControl(character.codePointAt(0)) ? "·" : character;
    };
  }

  private static void drawLegend(Graphics2D g, String title, int width) {
    g.setColor(Color.BLACK);
    g.drawString(title, MARGIN, MARGIN + BASELINE);
    int steps = 200;
    int left = width - MARGIN - steps - 50;
    for (int i = 0; i < steps; i++) {
      g.setColor(color(i / (double) (steps - 1)));
      g.fillRect(left + i, MARGIN, 1, CELL_HEIGHT);
    }
    g.setColor(Color.BLACK);
    g.drawString("of the memory fades here: 0 %", left - 250, MARGIN + BASELINE);
    g.drawString("100 %", left + steps + 6, MARGIN + BASELINE);
  }

  /** From white over orange to dark red; evenly darker. */
  private static Color color(double share) {
    float s = (float) Math.max(0, Math.min(1, share));
    return new Color(1 - 0.5f * s * s, 1 - 0.85f * s, Math.max(0, 1 - 1.3f * s));
  }
}
