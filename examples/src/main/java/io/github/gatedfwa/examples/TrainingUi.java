package io.github.gatedfwa.examples;

import io.vertx.core.Context;
import io.vertx.core.Promise;
import io.vertx.core.Vertx;
import io.vertx.core.http.HttpServer;
import java.io.IOException;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.lang.reflect.Proxy;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import org.deeplearning4j.config.DL4JSystemProperties;
import org.deeplearning4j.optimize.api.TrainingListener;
import org.deeplearning4j.ui.VertxUIServer;
import org.deeplearning4j.ui.model.stats.StatsListener;
import org.deeplearning4j.ui.model.storage.InMemoryStatsStorage;

/**
 * DL4J's training UI, for browsers on this machine only: DL4J itself would listen on every network
 * interface, and its pages ask for no password.
 */
final class TrainingUi implements AutoCloseable {
  private static final String LOOPBACK = "127.0.0.1";

  private final Vertx vertx = Vertx.vertx();
  private final LoopbackServer server = new LoopbackServer();
  private final InMemoryStatsStorage storage = new InMemoryStatsStorage();

  /** DL4J's server, which listens on the loopback interface whatever it asks for. */
  private static final class LoopbackServer extends VertxUIServer {
    @Override
    public void init(Vertx given, Context context) {
      super.init(
          proxy(
              Vertx.class,
              given,
              (method, arguments) ->
                  method.getName().equals("createHttpServer")
                      ? loopbackOnly(given.createHttpServer())
                      : method.invoke(given, arguments)),
          context);
    }

    /** DL4J's own waits for itself, on the thread that should do the work. */
    @Override
    public void stop(Promise<Void> stopped) {
      stopAsync(stopped);
    }

    private static HttpServer loopbackOnly(HttpServer server) {
      return proxy(
          HttpServer.class,
          server,
          (method, arguments) -> {
            if (method.getName().equals("listen")) {
              // The method that DL4J calls: port and handler.
              Method withHost =
                  HttpServer.class.getMethod(
                      "listen", int.class, String.class, method.getParameterTypes()[1]);
              withHost.invoke(server, arguments[0], LOOPBACK, arguments[1]);
              return server;
            }
            Object result = method.invoke(server, arguments);
            return result == server ? loopbackOnly(server) : result;
          });
    }

    private interface Call {
      Object on(Method method, Object[] arguments) throws ReflectiveOperationException;
    }

    /** A stand-in for {@code target}, which only tells the compiler the type. */
    @SuppressWarnings("UnusedVariable")
    private static <T> T proxy(Class<T> type, T target, Call call) {
      return type.cast(
          Proxy.newProxyInstance(
              type.getClassLoader(),
              new Class<?>[] {type},
              (self, method, arguments) -> {
                try {
                  return call.on(method, arguments);
                } catch (InvocationTargetException e) {
                  throw e.getCause();
                }
              }));
    }
  }

  private TrainingUi() {}

  /**
   * Starts the UI.
   *
   * @param port TCP port; 0 for any that is free
   * @throws IOException if the port is taken
   */
  static TrainingUi start(int port) throws IOException {
    TrainingUi ui = new TrainingUi();
    System.setProperty(DL4JSystemProperties.UI_SERVER_PORT_PROPERTY, Integer.toString(port));
    CompletableFuture<String> started = new CompletableFuture<>();
    ui.vertx.deployVerticle(
        ui.server,
        result -> {
          if (result.succeeded()) {
            started.complete(result.result());
          } else {
            started.completeExceptionally(result.cause());
          }
        });
    try {
      started.get();
    } catch (ExecutionException e) {
      ui.vertx.close();
      throw new IOException("no training UI on port " + port + ": " + e.getCause().getMessage(), e);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new IOException(e);
    }
    ui.server.attach(ui.storage);
    return ui;
  }

  /** What a network tells the UI about itself, every so many iterations. */
  TrainingListener listener(int frequency) {
    return new StatsListener(storage, frequency);
  }

  /** Where a browser finds it. */
  String address() {
    return "http://" + LOOPBACK + ":" + server.getPort() + "/train/overview";
  }

  @Override
  public void close() {
    vertx.close();
  }
}
