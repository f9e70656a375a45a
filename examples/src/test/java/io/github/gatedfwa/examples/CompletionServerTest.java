package io.github.gatedfwa.examples;

import static java.nio.charset.StandardCharsets.UTF_8;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import io.github.gatedfwa.zoo.lm.GatedFwaLM;
import io.github.gatedfwa.zoo.lm.TextGenerator;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.nd4j.shade.jackson.databind.JsonNode;
import org.nd4j.shade.jackson.databind.ObjectMapper;

/** The page of CompleteCode: as HTTP, and in a real browser. */
class CompletionServerTest {
  private static final int HEADS = 4 * 4;

  private static final ObjectMapper MAPPER = new ObjectMapper();
  private static final HttpClient CLIENT = HttpClient.newHttpClient();

  private static ComputationGraph network;
  private static CompletionServer server;

  private static CompletionServer start(Duration patience) throws IOException {
    return CompletionServer.start(
        network,
        new CompletionServer.Defaults("TINY_JAVA", "public class ", 0, 40, 1),
        CompletionServerTest::generator,
        0,
        patience);
  }

  private static TextGenerator.Builder generator() {
    return TextGenerator.builder(network).topP(0.95);
  }

  @BeforeAll
  static void serve() throws IOException {
    network = CodeModel.open("TINY_JAVA");
    network.getLayer("output").getParam("b").putScalar(0, -100); // it never ends a file by itself
    server = start(CompletionServer.PATIENCE);
  }

  @AfterAll
  static void stop() {
    server.close();
  }

  private static HttpRequest.Builder request(String path) {
    return HttpRequest.newBuilder(URI.create(server.address()).resolve(path));
  }

  private static HttpRequest completion(String json) {
    return request("/complete")
        .header("Content-Type", "application/json")
        .POST(BodyPublishers.ofString(json))
        .build();
  }

  private static HttpResponse<String> send(HttpRequest request) throws Exception {
    return CLIENT.send(request, BodyHandlers.ofString());
  }

  private static List<JsonNode> lines(String body) throws IOException {
    List<JsonNode> lines = new ArrayList<>();
    for (String line : body.lines().toList()) {
      lines.add(MAPPER.readTree(line));
    }
    return lines;
  }

  @Test
  void streamsTextAndGates() throws Exception {
    String prompt = "/** Größe. */\npublic class ";
    HttpResponse<String> response =
        send(
            completion(
                "{\"prompt\": %s, \"temperature\": 0.5, \"length\": 300, \"seed\": 7}"
                    .formatted(MAPPER.writeValueAsString(prompt))));
    assertThat(response.statusCode()).isEqualTo(200);
    List<JsonNode> lines = lines(response.body());
    // The gates change nothing in what is written.
    String expected =
        generator().temperature(0.5).maxBytes(300).seed(7).build().generate(prompt).text();
    assertThat(
            lines.stream()
                .filter(line -> line.has("text"))
                .map(line -> line.get("text").asText())
                .collect(Collectors.joining()))
        .isEqualTo(expected);
    List<JsonNode> cells = new ArrayList<>();
    List<Integer> sizes = new ArrayList<>();
    for (JsonNode line : lines) {
      if (line.has("gates")) {
        line.get("gates").forEach(cells::add);
        sizes.add(line.get("gates").size());
      }
    }
    assertThat(sizes).containsExactly(prompt.length(), 256, expected.length() - 256);
    List<TextGates.Cell> whole = TextGates.of(network, prompt + expected, 0);
    assertThat(cells).hasSameSizeAs(whole);
    for (int i = 0; i < cells.size(); i++) {
      assertThat(cells.get(i).get("c").asText()).isEqualTo(whole.get(i).character());
      JsonNode percent = cells.get(i).get("f");
      assertThat(percent).hasSize(HEADS);
      for (int head = 0; head < HEADS; head++) {
        assertThat(percent.get(head).asDouble())
            .isCloseTo(100 * whole.get(i).forgotten().get(head), within(0.51));
      }
    }
    JsonNode last = lines.get(lines.size() - 1);
    assertThat(last.get("end").asText()).isEqualTo("length");
    assertThat(last.get("bytes").asInt()).isEqualTo(300);
  }

  @Test
  void ofALongPromptTheEndHasGates() throws Exception {
    String prompt = "int x;\\n".repeat(500);
    String body = send(completion("{\"prompt\": \"" + prompt + "\", \"length\": 1}")).body();
    JsonNode cells = lines(body).get(0).get("gates");
    assertThat(cells).hasSize(2048);
    assertThat(cells.get(2047).get("c").asText()).isEqualTo("\n");
  }

  @Test
  void thePageIsOneOfThisServerAlone() throws Exception {
    HttpResponse<String> page = send(request("/").build());
    assertThat(page.statusCode()).isEqualTo(200);
    assertThat(page.headers().firstValue("Content-Type")).contains("text/html; charset=utf-8");
    assertThat(page.headers().firstValue("Content-Security-Policy").orElseThrow())
        .contains("default-src 'none'", "script-src 'self'")
        .doesNotContain("unsafe");
    assertThat(page.body()).contains("CompleteCode").doesNotContain("http:", "https:", "//");
    for (String path : List.of("/page.js", "/page.css")) {
      HttpResponse<String> part = send(request(path).build());
      assertThat(part.statusCode()).isEqualTo(200);
      assertThat(part.body()).doesNotContain("http:", "https:", "innerHTML");
      assertThat(part.headers().firstValue("X-Content-Type-Options")).contains("nosniff");
    }
    JsonNode model = MAPPER.readTree(send(request("/model").build()).body());
    assertThat(model.get("name").asText()).isEqualTo("TINY_JAVA");
    assertThat(model.get("heads")).hasSize(HEADS);
    String bound = URI.create(server.address()).getHost();
    assertThat(InetAddress.getByName(bound).isLoopbackAddress()).as(bound).isTrue();
    Loopback.assertReachableFromThisMachineOnly(port());
  }

  private static int port() {
    return URI.create(server.address()).getPort();
  }

  @Test
  void wrongRequestsAreRefused() throws Exception {
    assertThat(refusal(400, completion("{"))).contains("not JSON");
    assertThat(refusal(400, completion(""))).contains("must be a JSON object");
    assertThat(refusal(400, completion("{}"))).isEqualTo("prompt must be a string, got null");
    assertThat(refusal(400, completion("{\"prompt\": 1}"))).contains("prompt", "1");
    String deep = "[".repeat(100_000) + "]".repeat(100_000);
    assertThat(refusal(400, completion("{\"prompt\": " + deep + "}")))
        .isEqualTo("prompt must be a string, got an array");
    assertThat(refusal(400, completion("{\"prompt\": \"\", \"seed\": " + deep + "}")))
        .isEqualTo("seed must be a whole number, got an array");
    assertThat(refusal(400, completion("{\"prompt\": \"\", \"temperature\": -1}")))
        .isEqualTo("TextGenerator: temperature = -1.0: must be 0 or greater");
    assertThat(refusal(400, completion("{\"prompt\": \"\", \"temperature\": \"hot\"}")))
        .isEqualTo("temperature must be a number, got \"hot\"");
    for (String length : List.of("1.5", "1e10", "99999999999", "null")) {
      assertThat(refusal(400, completion("{\"prompt\": \"\", \"length\": " + length + "}")))
          .contains("length must be a whole number, got ");
    }
    assertThat(refusal(400, completion("{\"prompt\": \"\", \"length\": 0}"))).contains("maxBytes");
    assertThat(refusal(404, request("/page.html").build())).contains("/page.html");
    assertThat(refusal(405, request("/complete").build())).isEqualTo("/complete is for POST");
    assertThat(refusal(405, request("/").POST(BodyPublishers.ofString("x")).build()))
        .isEqualTo("/ is for GET");
    assertThat(refusal(413, completion("{\"prompt\": \"" + "x".repeat(1 << 20) + "\"}")))
        .contains("1048576");
    assertThat(
            refusal(
                415,
                request("/complete").POST(BodyPublishers.ofString("{\"prompt\":\"\"}")).build()))
        .contains("application/json");
  }

  private static String refusal(int status, HttpRequest request) throws Exception {
    HttpResponse<String> response = send(request);
    assertThat(response.statusCode()).as(response.body()).isEqualTo(status);
    assertThat(response.headers().firstValue("Content-Type")).contains("application/json");
    return MAPPER.readTree(response.body()).get("error").asText();
  }

  @Test
  void aForeignHostIsRefused() throws Exception {
    // HttpClient does not let a test choose the host.
    for (String host : List.of("Host: example.org\r\n", "Host: 127.0.0.1\r\n", "")) {
      try (Socket socket = new Socket(InetAddress.getLoopbackAddress(), port())) {
        socket.getOutputStream().write(("GET / HTTP/1.0\r\n" + host + "\r\n").getBytes(UTF_8));
        assertThat(new String(socket.getInputStream().readAllBytes(), UTF_8))
            .startsWith("HTTP/1.1 403")
            .contains("this page is at " + server.address() + " only");
      }
    }
    HttpResponse<String> local =
        send(HttpRequest.newBuilder(URI.create("http://localhost:" + port() + "/")).build());
    assertThat(local.statusCode()).isEqualTo(200);
  }

  @Test
  void onTheUsualPortAHostNeedsNone() {
    InetAddress loopback = InetAddress.getLoopbackAddress();
    assertThat(CompletionServer.hosts(new InetSocketAddress(loopback, 80)))
        .containsExactlyInAnyOrder("127.0.0.1:80", "127.0.0.1", "localhost:80", "localhost");
    assertThat(CompletionServer.hosts(new InetSocketAddress(loopback, 8000)))
        .containsExactlyInAnyOrder("127.0.0.1:8000", "localhost:8000");
  }

  @Test
  void anErrorOfTheServerIsSaid() throws Exception {
    CompletionServer shared = server;
    server =
        CompletionServer.start(
            network,
            new CompletionServer.Defaults("", "", 0, 1, 1),
            () -> {
              throw new IllegalStateException("no generator");
            },
            0,
            Duration.ZERO);
    try {
      assertThat(refusal(500, completion("{\"prompt\": \"\"}"))).isEqualTo("no generator");
      assertThat(send(request("/").build()).statusCode()).isEqualTo(200);
    } finally {
      server.close();
      server = shared;
    }
  }

  private static InputStream endless() throws Exception {
    InputStream stream =
        CLIENT
            .send(
                completion("{\"prompt\": \"\", \"temperature\": 1, \"length\": 100000000}"),
                BodyHandlers.ofInputStream())
            .body();
    BufferedReader reader = new BufferedReader(new InputStreamReader(stream, UTF_8));
    assertThat(reader.readLine()).contains("text");
    return stream;
  }

  @Test
  @Timeout(value = 3, unit = TimeUnit.MINUTES)
  void oneTextAtATimeAndLeavingEndsIt() throws Exception {
    String next = "{\"prompt\": \"a\", \"length\": 3}";
    CompletionServer shared = server;
    server = start(Duration.ZERO);
    try {
      try (InputStream running = endless()) {
        assertThat(running.read()).isPositive();
        assertThat(refusal(409, completion(next))).contains("another text");
      }
      int status = send(completion(next)).statusCode();
      while (status == 409) { // who has left is missed when the next byte is sent
        Thread.sleep(20);
        status = send(completion(next)).statusCode();
      }
      assertThat(status).isEqualTo(200);
    } finally {
      server.close();
      server = shared;
    }
  }

  @Test
  void closingEndsATextAndFreesThePort() throws Exception {
    CompletionServer shared = server;
    server = start(CompletionServer.PATIENCE);
    int port = port();
    try (InputStream running = endless()) {
      server.close();
      assertThat(new String(running.readAllBytes(), UTF_8)).contains("\"end\":\"listener\"");
    } finally {
      server = shared;
    }
    try (ServerSocket free = new ServerSocket(port, 1, InetAddress.getLoopbackAddress())) {
      assertThatThrownBy(
              () ->
                  CompletionServer.start(
                      network,
                      new CompletionServer.Defaults("", "", 0, 1, 1),
                      CompletionServerTest::generator,
                      free.getLocalPort(),
                      Duration.ZERO))
          .isInstanceOf(IOException.class)
          .hasMessageContaining("no page on port " + port);
    }
  }

  @Test
  @Timeout(value = 3, unit = TimeUnit.MINUTES, threadMode = Timeout.ThreadMode.SEPARATE_THREAD)
  void oneWhoDoesNotReadDoesNotKeepTheServerOpen() throws Exception {
    // With 1024 heads the gates of 2048 characters are more than the system takes to send.
    ComputationGraph wide =
        GatedFwaLM.builder()
            .width(256)
            .heads(128)
            .blocks(8)
            .hiddenSize(16)
            .windowSize(2)
            .build()
            .init();
    CompletionServer closing =
        CompletionServer.start(
            wide,
            new CompletionServer.Defaults("", "", 0, 1, 1),
            () -> TextGenerator.builder(wide),
            0,
            Duration.ZERO);
    int port = URI.create(closing.address()).getPort();
    try (Socket socket = new Socket()) {
      socket.setReceiveBufferSize(1024);
      socket.connect(new InetSocketAddress(InetAddress.getLoopbackAddress(), port));
      String body = "{\"prompt\": \"" + "x".repeat(2048) + "\"}";
      socket
          .getOutputStream()
          .write(
              ("POST /complete HTTP/1.1\r\nHost: localhost:%d\r\nContent-Type: application/json\r\n"
                      + "Content-Length: %d\r\n\r\n%s")
                  .formatted(port, body.length(), body)
                  .getBytes(UTF_8));
      assertThat(socket.getInputStream().read()).isEqualTo('H'); // of HTTP, and no more is read
      closing.close();
    }
    try (ServerSocket free = new ServerSocket(port, 1, InetAddress.getLoopbackAddress())) {
      assertThat(free.isBound()).isTrue();
    }
  }

  @Test
  void aBrowserShowsTextAndGates() throws Exception {
    try (Browser browser = Browser.open()) {
      browser.visit(server.address(), 1200, 800);
      browser.await("buttons.length === " + HEADS);
      String prompt = "/** A <b>list</b>. <img src=x onerror=alert(1)> */\npublic class ";
      set(browser, "prompt", prompt);
      set(browser, "length", "100");
      set(browser, "temperature", "0.5");
      browser.evaluate("document.getElementById('start').click()");
      browser.await("document.getElementById('status').textContent.includes('ended by')");

      String expected = generator().temperature(0.5).maxBytes(100).build().generate(prompt).text();
      assertThat(browser.evaluate("document.getElementById('text').textContent").asText())
          .isEqualTo(prompt + expected);
      // Each character is a cell, and markup is text.
      assertThat(browser.evaluate("document.querySelectorAll('#text > span').length").asInt())
          .isEqualTo((prompt + expected).length());
      assertThat(browser.evaluate("document.querySelectorAll('#text b, #text img').length").asInt())
          .isZero();
      List<TextGates.Cell> cells = TextGates.of(network, prompt + expected, 0);
      for (int head : new int[] {5, 0}) {
        browser.evaluate("buttons[" + head + "].click()");
        for (int i : new int[] {0, prompt.length(), cells.size() - 1}) {
          String title = browser.evaluate("cells[" + i + "].span.title").asText();
          assertThat(Double.parseDouble(title.replace(" %", "")))
              .isCloseTo(100 * cells.get(i).forgotten().get(head), within(0.51));
        }
      }
      assertThat(browser.evaluate("new Set(cells.map(c => c.span.style.background)).size").asInt())
          .isGreaterThan(3);
      browser.screenshot(Path.of("target", "screenshots", "complete-code.png"));

      set(browser, "length", "100000");
      browser.evaluate("document.getElementById('start').click()");
      browser.await("document.getElementById('text').textContent.length > 100");
      browser.evaluate("document.getElementById('stop').click()");
      browser.await("document.getElementById('status').textContent === 'stopped'");
      set(browser, "length", "5");
      browser.evaluate("document.getElementById('start').click()");
      browser.await("document.getElementById('status').textContent.startsWith('5 bytes')");
    }
  }

  private static void set(Browser browser, String field, String value) throws Exception {
    browser.evaluate(
        "document.getElementById('%s').value = %s"
            .formatted(field, MAPPER.writeValueAsString(value)));
  }
}
