package io.github.gatedfwa.examples;

import static java.nio.charset.StandardCharsets.UTF_8;

import io.github.gatedfwa.layers.GateListener;
import io.github.gatedfwa.layers.GateListener.Reading;
import io.github.gatedfwa.layers.runtime.WindowedAttention;
import io.github.gatedfwa.zoo.io.WholeFile;
import io.github.gatedfwa.zoo.text.TextWindowSequenceRecordReader;
import java.awt.Color;
import java.awt.Font;
import java.awt.Graphics2D;
import java.awt.RenderingHints;
import java.awt.image.BufferedImage;
import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.Callable;
import javax.imageio.ImageIO;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/**
 * Shows what the gates of a model that {@link TrainCodeModel} saved do over a text: a table of all
 * heads, and a heat map of one of them as PNG.
 */
@Command(
    name = "GateMap",
    mixinStandardHelpOptions = true,
    showDefaultValues = true,
    description =
        "Prints how far the heads of a model look back over a text, and draws where one of them"
            + " forgets.")
public final class GateMap implements Callable<Integer> {
  @Option(names = "--model", paramLabel = "FILE", description = "what TrainCodeModel saved")
  Path model = Path.of("build", "code-model.zip");

  @Option(names = "--text", paramLabel = "FILE", description = "the text", required = true)
  Path text;

  @Option(names = "--length", description = "bytes of the text to read")
  int length = 1500;

  @Option(names = "--layer", paramLabel = "NAME", description = "layer to draw")
  String layer = "block0-attention";

  @Option(names = "--head", description = "head to draw, from 0")
  int head = 0;

  @Option(names = "--image", paramLabel = "FILE", description = "where the picture goes")
  Path image = Path.of("build", "gates.png");

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
    ComputationGraph network = CodeModel.load(model);
    byte[] bytes = Files.readAllBytes(text);
    bytes = Arrays.copyOf(bytes, Math.min(bytes.length, length));
    Map<String, WindowedAttention<?>> layers = GateListener.gatedLayers(network);
    WindowedAttention<?> drawn = layers.get(layer);
    if (drawn == null) {
      throw new IllegalArgumentException(
          "--layer must be one of " + String.join(", ", layers.keySet()) + ", got " + layer);
    }
    if (head < 0 || head >= drawn.layerConf().getNHeads()) {
      throw new IllegalArgumentException(
          "--head must be from 0 to " + (drawn.layerConf().getNHeads() - 1) + ", got " + head);
    }

    INDArray input = Nd4j.create(DataType.FLOAT, 1, 1, bytes.length + 1);
    input.putScalar(0, TextWindowSequenceRecordReader.START);
    for (int i = 0; i < bytes.length; i++) {
      input.putScalar(i + 1, Byte.toUnsignedInt(bytes[i]));
    }
    network.feedForward(new INDArray[] {input}, false, false);
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
    INDArray decays = drawn.decays();
    double[] ofHead = new double[bytes.length];
    for (int i = 0; i < bytes.length; i++) {
      ofHead[i] = decays.getDouble(0, i + 1, head);
    }
    BufferedImage picture = draw(new String(bytes, UTF_8), ofHead, layer + ", head " + head);
    WholeFile.write(image, stream -> ImageIO.write(picture, "png", stream));
    out.printf("Saved: %s%n", image);
    return 0;
  }

  private static final int COLUMNS = 100;
  private static final int CELL_WIDTH = 10;
  private static final int CELL_HEIGHT = 18;
  private static final int MARGIN = 16;
  private static final int HEADER = 44;

  /**
   * The text with each character on a cell whose colour tells what share of the memory it fades.
   *
   * @param decays alpha of each byte; a character of several bytes shows its first
   */
  static BufferedImage draw(String text, double[] decays, String title) {
    int lines = 1;
    int column = 0;
    for (int i = 0; i < text.length(); i++) {
      column++;
      if (text.charAt(i) == '\n' || column == COLUMNS) {
        lines++;
        column = 0;
      }
    }
    BufferedImage picture =
        new BufferedImage(
            2 * MARGIN + COLUMNS * CELL_WIDTH,
            HEADER + 2 * MARGIN + lines * CELL_HEIGHT,
            BufferedImage.TYPE_INT_RGB);
    Graphics2D g = picture.createGraphics();
    g.setRenderingHint(
        RenderingHints.KEY_TEXT_ANTIALIASING, RenderingHints.VALUE_TEXT_ANTIALIAS_ON);
    g.setColor(Color.WHITE);
    g.fillRect(0, 0, picture.getWidth(), picture.getHeight());
    Font font = new Font(Font.MONOSPACED, Font.PLAIN, 14);
    g.setFont(font);
    drawLegend(g, title, picture.getWidth());
    column = 0;
    int line = 0;
    int at = 0;
    for (int i = 0; i < text.length() && at < decays.length; ) {
      int codePoint = text.codePointAt(i);
      int x = MARGIN + column * CELL_WIDTH;
      int y = HEADER + MARGIN + line * CELL_HEIGHT;
      double forgotten = 1 - Math.exp(-decays[at]);
      g.setColor(color(forgotten));
      g.fillRect(x, y, CELL_WIDTH, CELL_HEIGHT);
      g.setColor(forgotten > 0.6 ? Color.WHITE : Color.BLACK);
      String shown =
          codePoint == '\n'
              ? "¶"
              : codePoint == '\t' ? "→" : Character.toString(codePoint < ' ' ? '·' : codePoint);
      g.drawString(shown, x + 1, y + 14);
      column++;
      if (codePoint == '\n' || column == COLUMNS) {
        line++;
        column = 0;
      }
      at += Character.toString(codePoint).getBytes(UTF_8).length;
      i += Character.charCount(codePoint);
    }
    g.dispose();
    return picture;
  }

  private static void drawLegend(Graphics2D g, String title, int width) {
    g.setColor(Color.BLACK);
    g.drawString(title, MARGIN, MARGIN + 14);
    int steps = 200;
    int left = width - MARGIN - steps - 50;
    for (int i = 0; i < steps; i++) {
      g.setColor(color(i / (double) (steps - 1)));
      g.fillRect(left + i, MARGIN, 1, CELL_HEIGHT);
    }
    g.setColor(Color.BLACK);
    g.drawString("of the memory fades here: 0 %", left - 250, MARGIN + 14);
    g.drawString("100 %", left + steps + 6, MARGIN + 14);
  }

  /** From white over orange to dark red; evenly darker. */
  private static Color color(double share) {
    float s = (float) Math.max(0, Math.min(1, share));
    return new Color(1 - 0.5f * s * s, 1 - 0.85f * s, Math.max(0, 1 - 1.3f * s));
  }
}
