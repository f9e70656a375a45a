package io.github.gatedfwa.examples;

import static java.nio.charset.StandardCharsets.UTF_8;

import java.io.PrintWriter;
import java.nio.ByteBuffer;
import java.nio.CharBuffer;
import java.nio.charset.CharsetDecoder;
import java.nio.charset.CodingErrorAction;

/**
 * Prints bytes as UTF-8 text, each character once its last byte is there.
 *
 * <p>A model may emit anything: what is not UTF-8 and what would steer a terminal (control
 * characters other than tab and newline) is printed as U+FFFD.
 */
final class TextStream {
  private static final char REPLACEMENT = '\uFFFD';

  private final PrintWriter out;
  private final CharsetDecoder decoder =
      UTF_8
          .newDecoder()
          .onMalformedInput(CodingErrorAction.REPLACE)
          .onUnmappableCharacter(CodingErrorAction.REPLACE);
  private final ByteBuffer bytes = ByteBuffer.allocate(8);
  private final CharBuffer chars = CharBuffer.allocate(16);

  TextStream(PrintWriter out) {
    this.out = out;
  }

  void write(int oneByte) {
    bytes.put((byte) oneByte);
    decode(false);
  }

  /** Prints what is left of an unfinished character. */
  void finish() {
    decode(true);
    decoder.reset();
  }

  private void decode(boolean end) {
    bytes.flip();
    decoder.decode(bytes, chars, end);
    bytes.compact();
    chars.flip();
    while (chars.hasRemaining()) {
      char next = chars.get();
      boolean steers = Character.isISOControl(next) && next != '\n' && next != '\t';
      out.print(steers ? REPLACEMENT : next);
    }
    chars.clear();
    out.flush();
  }
}
