package io.github.gatedfwa.zoo.lm;

import static java.nio.charset.StandardCharsets.UTF_8;

import java.nio.ByteBuffer;
import java.nio.CharBuffer;
import java.nio.charset.CharsetDecoder;
import java.nio.charset.CodingErrorAction;

/** Turns bytes that come in pieces into text, each character once its last byte is there. */
final class Utf8Decoder {
  private static final int LONGEST = 4; // bytes of a character

  private final CharsetDecoder decoder =
      UTF_8
          .newDecoder()
          .onMalformedInput(CodingErrorAction.REPLACE)
          .onUnmappableCharacter(CodingErrorAction.REPLACE);

  /** Bytes of a character that is not complete. */
  private ByteBuffer rest = ByteBuffer.allocate(0);

  /** Number of bytes that wait for the rest of their character. */
  int pending() {
    return rest.remaining();
  }

  /**
   * Decodes the bytes at [from, to).
   *
   * @param last whether nothing follows: an unfinished character becomes U+FFFD
   */
  String decode(byte[] bytes, int from, int to, boolean last) {
    ByteBuffer in = ByteBuffer.allocate(rest.remaining() + to - from);
    in.put(rest).put(bytes, from, to - from).flip();
    CharBuffer out = CharBuffer.allocate(in.remaining() + LONGEST);
    decoder.decode(in, out, last);
    if (last) {
      decoder.flush(out);
      decoder.reset();
    }
    rest = in;
    return out.flip().toString();
  }
}
