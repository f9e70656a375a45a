package io.github.gatedfwa.examples;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.awt.image.BufferedImage;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import javax.imageio.ImageIO;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class LossCurveTest {
  @TempDir Path folder;

  @Test
  void isKeptUpToTheStepAskedFor() throws IOException {
    LossCurve curve = new LossCurve();
    for (double loss : new double[] {8, 4, 2.5, 0.125}) {
      curve.add(loss);
    }
    Path csv = folder.resolve("loss.csv");
    curve.save(csv);
    assertThat(csv).hasContent("step,bits per byte\n1,8.0\n2,4.0\n3,2.5\n4,0.125\n");
    LossCurve all = LossCurve.load(csv, 4);
    assertThat(all.smoothed()).isEqualTo(curve.smoothed());
    assertThat(LossCurve.load(csv, 2).steps()).isEqualTo(2);
    assertThatThrownBy(() -> LossCurve.load(csv, 5))
        .isInstanceOf(IOException.class)
        .hasMessageContaining("at step 5");
    Files.writeString(csv, "step,bits per byte\n1,oops\n");
    assertThatThrownBy(() -> LossCurve.load(csv, 1))
        .isInstanceOf(IOException.class)
        .hasMessageContaining("line 2");
  }

  @Test
  void isDrawnAsPng() throws IOException {
    LossCurve curve = new LossCurve();
    for (int step = 0; step < 50; step++) {
      curve.add(8.0 / (step + 1));
    }
    Path png = folder.resolve("curves").resolve("loss.png");
    curve.draw(png, Map.of("order-0 model", 4.5));
    BufferedImage image = ImageIO.read(png.toFile());
    assertThat(image.getWidth()).isEqualTo(900);
    long blue = 0;
    for (int x = 0; x < image.getWidth(); x++) {
      for (int y = 0; y < image.getHeight(); y++) {
        blue += image.getRGB(x, y) == 0xff1e50a0 ? 1 : 0;
      }
    }
    assertThat(blue).as("pixels of the running average").isGreaterThan(100);
    assertThat(folder.resolve("curves")).isDirectoryNotContaining("glob:**.part");
  }
}
