package io.github.gatedfwa.examples;

import java.io.File;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.WebSocket;
import java.nio.file.DirectoryNotEmptyException;
import java.nio.file.FileVisitResult;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.SimpleFileVisitor;
import java.nio.file.attribute.BasicFileAttributes;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Assumptions;
import org.nd4j.shade.jackson.databind.JsonNode;
import org.nd4j.shade.jackson.databind.ObjectMapper;

/**
 * A page in a headless Chromium, by the Chrome DevTools Protocol: no driver is needed. Where there
 * is no Chromium, the test is skipped.
 */
final class Browser implements AutoCloseable {
  private static final List<String> NAMES =
      List.of("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome");

  private static final int PATIENCE_SECONDS = 120;

  private final ObjectMapper mapper = new ObjectMapper();
  private final Map<Integer, CompletableFuture<JsonNode>> answers = new ConcurrentHashMap<>();

  /** In the build's folder: a Chromium in a snap sees another /tmp. */
  private final Path profile =
      Files.createTempDirectory(
          Files.createDirectories(Path.of("target").toAbsolutePath()), "browser");

  private final Process process;
  private final WebSocket socket;
  private int commands;

  private Browser(Path program) throws Exception {
    process =
        new ProcessBuilder(
                program.toString(),
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--remote-debugging-port=0",
                "--user-data-dir=" + profile,
                "about:blank")
            .redirectErrorStream(true)
            .redirectOutput(profile.resolve("log").toFile())
            .start();
    try {
      socket =
          HttpClient.newHttpClient()
              .newWebSocketBuilder()
              .buildAsync(page(), new Answers())
              .get(PATIENCE_SECONDS, TimeUnit.SECONDS);
    } catch (Exception e) {
      close();
      throw e;
    }
  }

  /** Starts a browser with an empty page, or skips the test that asks for one. */
  static Browser open() throws Exception {
    for (String folder : System.getenv("PATH").split(File.pathSeparator, -1)) {
      for (String name : NAMES) {
        Path program = Path.of(folder, name);
        if (Files.isExecutable(program)) {
          return new Browser(program);
        }
      }
    }
    Assumptions.abort("no Chromium on the PATH: what a browser shows is not tested");
    throw new AssertionError();
  }

  /** Where the page listens to commands. */
  private URI page() throws Exception {
    Path port = profile.resolve("DevToolsActivePort");
    HttpClient client = HttpClient.newHttpClient();
    for (int i = 0; i < 10 * PATIENCE_SECONDS && process.isAlive(); i++) {
      List<String> lines = Files.exists(port) ? Files.readAllLines(port) : List.of();
      if (!lines.isEmpty()) {
        URI list = URI.create("http://127.0.0.1:" + lines.get(0) + "/json/list");
        String pages =
            client
                .send(HttpRequest.newBuilder(list).build(), HttpResponse.BodyHandlers.ofString())
                .body();
        for (JsonNode page : mapper.readTree(pages)) {
          if (page.get("type").asText().equals("page")) {
            return URI.create(page.get("webSocketDebuggerUrl").asText());
          }
        }
      }
      Thread.sleep(100);
    }
    throw new IOException("no page: " + Files.readString(profile.resolve("log")));
  }

  private final class Answers implements WebSocket.Listener {
    private final StringBuilder message = new StringBuilder();

    @Override
    public CompletionStage<?> onText(WebSocket from, CharSequence part, boolean last) {
      message.append(part);
      if (last) {
        try {
          JsonNode answer = mapper.readTree(message.toString());
          if (answer.has("id")) { // the others are events
            answers.remove(answer.get("id").asInt()).complete(answer);
          }
        } catch (IOException e) {
          throw new AssertionError(e);
        }
        message.setLength(0);
      }
      from.request(1);
      return null;
    }
  }

  private JsonNode command(String method, Map<String, ?> parameters) throws Exception {
    int id = commands++;
    CompletableFuture<JsonNode> answer = new CompletableFuture<>();
    answers.put(id, answer);
    socket
        .sendText(
            mapper.writeValueAsString(Map.of("id", id, "method", method, "params", parameters)),
            true)
        .get(PATIENCE_SECONDS, TimeUnit.SECONDS);
    JsonNode got = answer.get(PATIENCE_SECONDS, TimeUnit.SECONDS);
    if (got.has("error") || got.path("result").has("exceptionDetails")) {
      throw new AssertionError(method + " " + parameters + ": " + got);
    }
    return got.get("result");
  }

  /** Loads a page of this size in pixels. */
  void visit(String address, int width, int height) throws Exception {
    command(
        "Emulation.setDeviceMetricsOverride",
        Map.of("width", width, "height", height, "deviceScaleFactor", 1, "mobile", false));
    command("Page.navigate", Map.of("url", address));
    await("location.href.startsWith('" + address + "') && document.readyState === 'complete'");
  }

  /** The value of a JavaScript expression in the page. */
  JsonNode evaluate(String expression) throws Exception {
    return command(
            "Runtime.evaluate",
            Map.of("expression", expression, "returnByValue", true, "awaitPromise", true))
        .get("result")
        .path("value");
  }

  /** Waits until a JavaScript expression is true. */
  void await(String condition) throws Exception {
    for (int i = 0; i < 10 * PATIENCE_SECONDS; i++) {
      if (evaluate("Boolean(" + condition + ")").asBoolean()) {
        return;
      }
      Thread.sleep(100);
    }
    throw new AssertionError("never true: " + condition + "; the page says " + text());
  }

  private String text() throws Exception {
    return evaluate("document.body.innerText").asText();
  }

  /** What the page looks like, as PNG. */
  void screenshot(Path file) throws Exception {
    JsonNode picture = command("Page.captureScreenshot", Map.of("format", "png"));
    Files.createDirectories(file.toAbsolutePath().getParent());
    Files.write(file, Base64.getDecoder().decode(picture.get("data").asText()));
  }

  @Override
  public void close() throws IOException {
    List<ProcessHandle> all = new ArrayList<>(process.descendants().toList());
    all.add(process.toHandle());
    all.forEach(ProcessHandle::destroy);
    all.forEach(handle -> handle.onExit().orTimeout(PATIENCE_SECONDS, TimeUnit.SECONDS).join());
    Files.walkFileTree(
        profile,
        new SimpleFileVisitor<>() {
          @Override
          public FileVisitResult visitFile(Path file, BasicFileAttributes attributes)
              throws IOException {
            Files.deleteIfExists(file);
            return FileVisitResult.CONTINUE;
          }

          @Override
          public FileVisitResult visitFileFailed(Path file, IOException vanished) {
            return FileVisitResult.CONTINUE;
          }

          @Override
          public FileVisitResult postVisitDirectory(Path folder, IOException vanished)
              throws IOException {
            try {
              Files.deleteIfExists(folder);
            } catch (DirectoryNotEmptyException e) {
              // A process of the browser is still writing; what is left goes with the build.
            }
            return FileVisitResult.CONTINUE;
          }
        });
  }
}
