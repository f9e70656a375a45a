package io.github.gatedfwa.examples;

import static java.nio.charset.StandardCharsets.UTF_8;

import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import io.github.gatedfwa.zoo.lm.TextGenerator;
import io.github.gatedfwa.zoo.lm.TextGenerator.Completion;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.lang.System.Logger.Level;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.time.Duration;
import java.util.HashSet;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.function.Supplier;
import org.deeplearning4j.nn.graph.ComputationGraph;
import org.nd4j.shade.jackson.core.JsonProcessingException;
import org.nd4j.shade.jackson.databind.JsonNode;
import org.nd4j.shade.jackson.databind.ObjectMapper;
import org.nd4j.shade.jackson.databind.node.ArrayNode;
import org.nd4j.shade.jackson.databind.node.ObjectNode;

/**
 * A web page on which a model completes text, for browsers on this machine only.
 *
 * <p>{@code POST /complete} takes JSON, {@code {"prompt": "...", "temperature": 0.6, "length": 500,
 * "seed": 1}}, and answers with one JSON object a line while the model writes:
 *
 * <ul>
 *   <li>{@code {"text": "..."}}: what comes next;
 *   <li>{@code {"gates": [{"c": "p", "f": [12, ...]}, ...]}}: the characters since the last such
 *       line, the prompt's end first, each with the percentage of its memory that each head forgets
 *       there; the heads are those of {@code GET /model};
 *   <li>{@code {"end": "length", "bytes": 500, "seconds": 12.5}}: the last one.
 * </ul>
 *
 * Whoever closes the connection ends the completion.
 */
final class CompletionServer implements AutoCloseable {
  private static final byte[] LOOPBACK_BYTES = {127, 0, 0, 1};

  private static final String JSON = "application/json";

  /** What the page is made of: path, and resource with its type. */
  private static final Map<String, Resource> PAGE =
      Map.of(
          "/", new Resource("page.html", "text/html; charset=utf-8"),
          "/page.css", new Resource("page.css", "text/css; charset=utf-8"),
          "/page.js", new Resource("page.js", "text/javascript; charset=utf-8"));

  private static final int LONGEST_REQUEST = 1 << 20;

  /** The page and requests that are refused must not wait for a completion. */
  private static final int THREADS = 4;

  /** How long a request waits for a completion that is stopped: it may be reading its prompt. */
  static final Duration PATIENCE = Duration.ofSeconds(30);

  /** How long closing waits for a completion to end by itself, and then for what it cut off. */
  private static final int CLOSING_SECONDS = 5;

  private static final int HTTP_PORT = 80;

  /** Characters from one look at the gates to the next: a look is a pass over the text's end. */
  private static final int GATES_EVERY = 256;

  /** Of a longer prompt only so many of its last characters are told with their gates. */
  private static final int MOST_GATES = 2048;

  private final ObjectMapper mapper = new ObjectMapper();
  private final Semaphore free = new Semaphore(1);
  private final ComputationGraph network;
  private final Defaults defaults;
  private final Supplier<TextGenerator.Builder> generators;
  private final Duration patience;
  private final HttpServer server;
  private final ExecutorService threads = Executors.newFixedThreadPool(THREADS);
  private final Set<String> hosts;
  private volatile boolean closing;

  private record Resource(String name, String type) {}

  /** What the page shows at first. */
  record Defaults(String model, String prompt, double temperature, int length, long seed) {}

  /** An answer that is not the one hoped for. */
  private static final class Refusal extends Exception {
    private static final long serialVersionUID = 1L;

    private final int status;

    private Refusal(int status, String message) {
      super(message);
      this.status = status;
    }
  }

  private CompletionServer(
      ComputationGraph network,
      Defaults defaults,
      Supplier<TextGenerator.Builder> generators,
      Duration patience,
      HttpServer server) {
    this.network = network;
    this.defaults = defaults;
    this.generators = generators;
    this.patience = patience;
    this.server = server;
    hosts = hosts(server.getAddress());
  }

  /**
   * What requests name as their host. A page of another site whose name leads to this machine sends
   * that name.
   */
  static Set<String> hosts(InetSocketAddress address) {
    Set<String> hosts = new HashSet<>();
    for (String name : List.of(address.getAddress().getHostAddress(), "localhost")) {
      hosts.add(name + ":" + address.getPort());
      if (address.getPort() == HTTP_PORT) {
        hosts.add(name);
      }
    }
    return hosts;
  }

  /**
   * Starts a server.
   *
   * @param generators makes generators for the network, for which a request chooses temperature,
   *     length and seed
   * @param port TCP port; 0 for any that is free
   * @param patience how long a request waits while another text is written
   * @throws IOException if the port is taken
   */
  static CompletionServer start(
      ComputationGraph network,
      Defaults defaults,
      Supplier<TextGenerator.Builder> generators,
      int port,
      Duration patience)
      throws IOException {
    HttpServer http;
    try {
      http =
          HttpServer.create(
              new InetSocketAddress(InetAddress.getByAddress(LOOPBACK_BYTES), port), 0);
    } catch (IOException e) {
      throw new IOException("no page on port " + port + ": " + e.getMessage(), e);
    }
    CompletionServer server = new CompletionServer(network, defaults, generators, patience, http);
    http.setExecutor(server.threads);
    http.createContext("/", server::handle);
    http.start();
    return server;
  }

  /** Where a browser finds it. */
  String address() {
    InetSocketAddress bound = server.getAddress();
    return "http://" + bound.getAddress().getHostAddress() + ":" + bound.getPort() + "/";
  }

  /** Ends a completion after the byte that is being written, and the server. */
  @Override
  public void close() {
    closing = true;
    try {
      // One who asks and does not read blocks the completion: then stop() cuts the connection.
      boolean ended = free.tryAcquire(CLOSING_SECONDS, TimeUnit.SECONDS);
      server.stop(0);
      threads.shutdownNow();
      if (!ended) {
        threads.awaitTermination(CLOSING_SECONDS, TimeUnit.SECONDS);
      }
    } catch (InterruptedException e) {
      server.stop(0);
      threads.shutdownNow();
      Thread.currentThread().interrupt();
    }
  }

  private void handle(HttpExchange exchange) throws IOException {
    try (exchange) {
      exchange.getResponseHeaders().set("X-Content-Type-Options", "nosniff");
      exchange.getResponseHeaders().set("Cache-Control", "no-store");
      try {
        answer(exchange);
      } catch (Refusal e) {
        send(
            exchange,
            e.status,
            JSON,
            mapper.writeValueAsBytes(Map.of("error", String.valueOf(e.getMessage()))));
      } catch (RuntimeException e) {
        System.getLogger(CompletionServer.class.getName()).log(Level.ERROR, "a request failed", e);
        if (exchange.getResponseCode() < 0) { // nothing has been sent
          send(
              exchange,
              500,
              JSON,
              mapper.writeValueAsBytes(Map.of("error", CommandLines.message(e))));
        }
      }
    }
  }

  private void answer(HttpExchange exchange) throws IOException, Refusal {
    String host = exchange.getRequestHeaders().getFirst("Host");
    if (host == null || !hosts.contains(host.toLowerCase(Locale.ROOT))) {
      throw new Refusal(403, "this page is at " + address() + " only");
    }
    String path = exchange.getRequestURI().getPath();
    boolean completes = "/complete".equals(path);
    Resource resource = PAGE.get(path);
    if (!completes && resource == null && !"/model".equals(path)) {
      throw new Refusal(404, "there is nothing at " + path);
    }
    String method = completes ? "POST" : "GET";
    if (!exchange.getRequestMethod().equals(method)) {
      exchange.getResponseHeaders().set("Allow", method);
      throw new Refusal(405, path + " is for " + method);
    }
    if (completes) {
      complete(exchange);
    } else if (resource == null) {
      send(exchange, 200, JSON, mapper.writeValueAsBytes(model()));
    } else {
      exchange
          .getResponseHeaders()
          .set(
              "Content-Security-Policy",
              "default-src 'none'; script-src 'self'; style-src 'self'; "
                  + "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
                  + "frame-ancestors 'none'");
      try (InputStream in = CompletionServer.class.getResourceAsStream(resource.name())) {
        send(exchange, 200, resource.type(), in.readAllBytes());
      }
    }
  }

  private static void send(HttpExchange exchange, int status, String type, byte[] body)
      throws IOException {
    exchange.getResponseHeaders().set("Content-Type", type);
    exchange.sendResponseHeaders(status, body.length);
    exchange.getResponseBody().write(body);
  }

  private ObjectNode model() {
    ObjectNode model =
        mapper
            .createObjectNode()
            .put("name", defaults.model())
            .put("prompt", defaults.prompt())
            .put("temperature", defaults.temperature())
            .put("length", defaults.length())
            .put("seed", defaults.seed());
    ArrayNode heads = model.putArray("heads");
    TextGates.heads(network)
        .forEach(head -> heads.addObject().put("layer", head.layer()).put("head", head.head()));
    return model;
  }

  private void complete(HttpExchange exchange) throws IOException, Refusal {
    JsonNode request = request(exchange);
    JsonNode prompt = request.get("prompt");
    if (prompt == null || !prompt.isTextual()) {
      throw new Refusal(400, "prompt must be a string, got " + shown(prompt));
    }
    TextGenerator generator;
    try {
      generator =
          generators
              .get()
              .temperature(number(request, "temperature", defaults.temperature()).doubleValue())
              .maxBytes(number(request, "length", defaults.length()).intValue())
              .seed(number(request, "seed", defaults.seed()).longValue())
              .build();
    } catch (IllegalArgumentException e) {
      throw new Refusal(400, e.getMessage());
    }
    acquire();
    try {
      exchange.getResponseHeaders().set("Content-Type", "application/x-ndjson; charset=utf-8");
      exchange.sendResponseHeaders(200, 0);
      new Answer(exchange.getResponseBody(), prompt.textValue()).write(generator);
    } finally {
      exchange.close(); // sends the end, which close() waits for
      free.release();
    }
  }

  private JsonNode request(HttpExchange exchange) throws IOException, Refusal {
    // A type that a page of another site cannot send without asking first, which is refused.
    String type = exchange.getRequestHeaders().getFirst("Content-Type");
    if (type == null || !type.toLowerCase(Locale.ROOT).startsWith(JSON)) {
      throw new Refusal(415, "the request must be " + JSON + ", got " + type);
    }
    byte[] body = exchange.getRequestBody().readNBytes(LONGEST_REQUEST + 1);
    if (body.length > LONGEST_REQUEST) {
      throw new Refusal(413, "the request must be " + LONGEST_REQUEST + " bytes at most");
    }
    try {
      JsonNode request = mapper.readTree(body);
      if (!request.isObject()) {
        throw new Refusal(400, "the request must be a JSON object");
      }
      return request;
    } catch (JsonProcessingException e) {
      throw new Refusal(400, "the request is not JSON: " + e.getOriginalMessage());
    }
  }

  private static Number number(JsonNode request, String name, Number otherwise) throws Refusal {
    JsonNode value = request.get(name);
    if (value == null) {
      return otherwise;
    }
    boolean whole = !(otherwise instanceof Double);
    boolean fits =
        otherwise instanceof Integer ? value.canConvertToInt() : value.canConvertToLong();
    if (!value.isNumber() || (whole && !(fits && value.canConvertToExactIntegral()))) {
      throw new Refusal(
          400, name + " must be a " + (whole ? "whole " : "") + "number, got " + shown(value));
    }
    return value.numberValue();
  }

  /** A value for a message. What is nested may be too deep to be written out. */
  private static String shown(JsonNode value) {
    return value != null && value.isContainerNode()
        ? "an " + value.getNodeType().name().toLowerCase(Locale.ROOT)
        : String.valueOf(value);
  }

  private void acquire() throws Refusal {
    try {
      if (!free.tryAcquire(patience.toMillis(), TimeUnit.MILLISECONDS)) {
        throw new Refusal(409, "the model is writing another text; stop that one first");
      }
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new Refusal(503, "the server is stopping");
    }
  }

  /** The lines of one completion. */
  private final class Answer {
    private final OutputStream out;
    private final StringBuilder text;

    /** Up to here the text has been told with its gates. */
    private int told;

    private Answer(OutputStream out, String prompt) {
      this.out = out;
      text = new StringBuilder(prompt);
      told = Math.max(0, prompt.length() - MOST_GATES);
    }

    private void write(TextGenerator generator) {
      long started = System.nanoTime();
      if (!gates() || closing) {
        return;
      }
      Completion completion = generator.generate(text.toString(), this::take);
      // Whoever has stopped it does not want to wait for the gates either.
      if (completion.reason() == TextGenerator.Reason.LISTENER || gates()) {
        line(
            mapper
                .createObjectNode()
                .put("end", completion.reason().name().toLowerCase(Locale.ROOT))
                .put("bytes", completion.bytes().length)
                .put("seconds", (System.nanoTime() - started) / 1e9));
      }
    }

    private boolean take(String piece) {
      text.append(piece);
      return !closing
          && line(mapper.createObjectNode().put("text", piece))
          && (text.length() - told < GATES_EVERY || gates());
    }

    /** Tells the gates of what has not been told with them, and answers whether anyone listens. */
    private boolean gates() {
      if (told == text.length()) {
        return true;
      }
      ObjectNode event = mapper.createObjectNode();
      ArrayNode cells = event.putArray("gates");
      for (TextGates.Cell cell : TextGates.of(network, text.toString(), told)) {
        ArrayNode percent = cells.addObject().put("c", cell.character()).putArray("f");
        cell.forgotten().forEach(share -> percent.add(Math.round(100 * share)));
      }
      told = text.length();
      return line(event);
    }

    private boolean line(ObjectNode event) {
      try {
        out.write((event + "\n").getBytes(UTF_8));
        out.flush();
        return true;
      } catch (IOException e) {
        return false; // whoever asked has gone
      }
    }
  }
}
