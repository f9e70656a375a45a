package io.github.gatedfwa.examples;

import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.NetworkInterface;
import java.net.Socket;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Stream;

/** Who can reach a server. */
final class Loopback {
  private static final int PATIENCE_MILLIS = 2000;

  private Loopback() {}

  /**
   * Nobody listens to a port on this machine's addresses in a network, and not on another address
   * of the loopback interface either, which no firewall keeps from one who listens on all.
   */
  static void assertReachableFromThisMachineOnly(int port) throws IOException {
    List<InetAddress> others =
        new ArrayList<>(List.of(InetAddress.getByAddress(new byte[] {127, 0, 0, 2})));
    try (Stream<NetworkInterface> interfaces = NetworkInterface.networkInterfaces()) {
      interfaces
          .flatMap(NetworkInterface::inetAddresses)
          .filter(address -> !address.isLoopbackAddress())
          .forEach(others::add);
    }
    for (InetAddress address : others) {
      assertThatThrownBy(() -> connect(address, port))
          .as("%s", address)
          .isInstanceOf(IOException.class);
    }
  }

  private static void connect(InetAddress address, int port) throws IOException {
    try (Socket socket = new Socket()) {
      socket.connect(new InetSocketAddress(address, port), PATIENCE_MILLIS);
    }
  }
}
