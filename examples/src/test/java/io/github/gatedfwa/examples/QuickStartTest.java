package io.github.gatedfwa.examples;

import static java.nio.charset.StandardCharsets.UTF_8;
import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import javax.xml.parsers.DocumentBuilderFactory;
import javax.xml.xpath.XPath;
import javax.xml.xpath.XPathFactory;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.junit.jupiter.api.Test;
import org.nd4j.autodiff.samediff.SDVariable;
import org.nd4j.autodiff.samediff.SameDiff;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.api.ndarray.INDArray;
import org.nd4j.linalg.factory.Nd4j;
import org.w3c.dom.Document;

class QuickStartTest {
  @Test
  void theReadmeShowsThisCode() throws IOException {
    assertThat(Snippets.of(QuickStart.class, "README"))
        .hasSize(3)
        .allSatisfy(
            snippet -> assertThat(Path.of("..", "README.md")).content(UTF_8).contains(snippet));
  }

  @Test
  void theReadmeNamesTheVersionsOfThisBuild() throws Exception {
    Document pom =
        DocumentBuilderFactory.newInstance()
            .newDocumentBuilder()
            .parse(Path.of("..", "pom.xml").toFile());
    XPath xpath = XPathFactory.newInstance().newXPath();
    for (String path : List.of("/project/version", "/project/properties/nd4j.version")) {
      String version = xpath.evaluate(path, pom);
      assertThat(version).isNotEmpty();
      assertThat(Path.of("..", "README.md"))
          .content(UTF_8)
          .contains("<version>" + version + "</version>");
    }
  }

  @Test
  void theNetworkIsCausal() {
    ComputationGraph network = QuickStart.network();
    INDArray input = Nd4j.randn(DataType.FLOAT, 2, 64, 20);
    INDArray output = network.outputSingle(input).dup();
    assertThat(output.shape()).containsExactly(2, 10, 20);
    input.putScalar(new int[] {0, 3, 12}, 50);
    INDArray changed = network.outputSingle(input).sub(output).norm2(1);
    for (int t = 0; t < 20; t++) {
      assertThat(changed.getDouble(0, t) > 0).as("time %d", t).isEqualTo(t >= 12);
    }
  }

  @Test
  void theOpGivesTheSameFromSameDiffAndFromArrays() {
    Nd4j.getRandom().setSeed(3);
    INDArray fromArrays = QuickStart.arrays();
    assertThat(fromArrays.shape()).containsExactly(1, 1000, 8, 64);

    Nd4j.getRandom().setSeed(3);
    INDArray q = Nd4j.randn(DataType.FLOAT, 1, 1000, 8, 64);
    INDArray k = Nd4j.randn(DataType.FLOAT, 1, 1000, 2, 64);
    INDArray v = Nd4j.randn(DataType.FLOAT, 1, 1000, 2, 64);
    INDArray h = Nd4j.randn(DataType.FLOAT, 1, 1000, 8);
    SameDiff sd = SameDiff.create();
    SDVariable o = QuickStart.sameDiff(sd);
    INDArray fromGraph = o.eval(Map.of("q", q, "k", k, "v", v, "h", h, "beta", Nd4j.onesLike(h)));
    assertThat(fromGraph).isEqualTo(fromArrays);
  }
}
