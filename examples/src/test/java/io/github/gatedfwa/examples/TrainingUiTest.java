package io.github.gatedfwa.examples;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.github.gatedfwa.zoo.training.WarmupCosineSchedule;
import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Path;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.nd4j.linalg.api.buffer.DataType;
import org.nd4j.linalg.dataset.DataSet;
import org.nd4j.linalg.factory.Nd4j;

class TrainingUiTest {
  private final HttpClient client = HttpClient.newHttpClient();

  private HttpResponse<String> get(URI address) throws IOException, InterruptedException {
    return client.send(
        HttpRequest.newBuilder(address).build(), HttpResponse.BodyHandlers.ofString());
  }

  @Test
  void showsParametersAndUpdatesOnThisMachineOnly() throws Exception {
    URI overview;
    try (TrainingUi ui = TrainingUi.start(0)) {
      ComputationGraph network = QuickStart.network();
      network.addListeners(ui.listener(1));
      DataSet data =
          new DataSet(
              Nd4j.randn(DataType.FLOAT, 2, 64, 8), Nd4j.ones(DataType.FLOAT, 2, 10, 8).div(10));
      for (int i = 0; i < 3; i++) {
        network.fit(data);
      }
      overview = URI.create(ui.address());
      HttpResponse<String> page = get(overview);
      assertThat(page.statusCode()).isEqualTo(200);
      assertThat(page.body()).contains("<html", "Overview");
      assertThat(eventually(overview.resolve("/train/overview/data"), "\"scores\" : [ "))
          .contains("updateRatios");
      assertThat(eventually(overview.resolve("/train/model/graph"), "block-attention"))
          .contains("block-ffn");
      // Vertex 2: after the input and the attention's norm.
      assertThat(get(overview.resolve("/train/model/data/2")).body())
          .contains("block-attention", "GatedFWA", "paramMM", "updateMM", "updateHist")
          .contains("\"Wq\"", "\"Wg\"", "\"Wbeta\"", "\"bg\"", "\"Wo\"");
      Loopback.assertReachableFromThisMachineOnly(overview.getPort());
    }
  }

  /** The UI takes in what listeners report on a thread of its own, twice a second. */
  private String eventually(URI address, String expected) throws Exception {
    String body = "";
    for (int attempt = 0; attempt < 100 && !body.contains(expected); attempt++) {
      Thread.sleep(100);
      body = get(address).body();
    }
    assertThat(body).contains(expected);
    return body;
  }

  @Test
  void aBrowserShowsALayerAsItLearns(@TempDir Path folder) throws Exception {
    try (Browser browser = Browser.open();
        Interruption interruption = Interruption.listen();
        TrainingUi ui = TrainingUi.start(0)) {
      TestSources.write(folder, 120);
      ComputationGraph network =
          CodeModel.create(16, 2, 2, 8, 32, 1, new WarmupCosineSchedule(1e-2, 1e-3, 5, 50));
      network.addListeners(ui.listener(1));
      TextTraining.fit(
          network,
          SourceFiles.under(folder).training(),
          new TextTraining.Plan(50, 4, 32, 1e-2, 1),
          new LossCurve(),
          interruption,
          trained -> true);
      Path pictures = Path.of("target", "screenshots");

      browser.visit(ui.address(), 1280, 900);
      browser.await("document.querySelector('#scoreiterchart canvas') !== null");
      browser.screenshot(pictures.resolve("training-ui-overview.png"));

      browser.visit(ui.address().replace("overview", "model"), 1280, 1500);
      browser.await("window.cy && cy.nodes().length > 0");
      browser.evaluate(
          "cy.nodes().filter(n => n.data('name').includes('(block0-attention)')).emit('click'); 1");
      browser.await("document.getElementById('layerInfo').innerText.includes('block0-attention')");
      browser.await("document.querySelector('#meanmag canvas') !== null");
      String page = browser.evaluate("document.body.innerText").asText();
      assertThat(page).contains("GatedFWA", "Wq", "Wg", "Wbeta", "bg", "Wo");
      browser.screenshot(pictures.resolve("training-ui-layer.png"));
    }
  }

  @Test
  void aTakenPortIsAnError() throws IOException {
    try (ServerSocket taken = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
      assertThatThrownBy(() -> TrainingUi.start(taken.getLocalPort()))
          .isInstanceOf(IOException.class)
          .hasMessageContaining("no training UI on port " + taken.getLocalPort());
    }
  }
}
