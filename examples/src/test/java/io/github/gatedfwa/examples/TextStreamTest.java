package io.github.gatedfwa.examples;

import static java.nio.charset.StandardCharsets.UTF_8;
import static org.assertj.core.api.Assertions.assertThat;

import java.io.PrintWriter;
import java.io.StringWriter;
import org.junit.jupiter.api.Test;

class TextStreamTest {
  private final StringWriter printed = new StringWriter();
  private final TextStream stream = new TextStream(new PrintWriter(printed));

  @Test
  void printsEachCharacterOnceItIsComplete() {
    byte[] bytes = "aé€\uD83D\uDE00".getBytes(UTF_8);
    String[] after = {"a", "a", "aé", "aé", "aé", "aé€", "aé€", "aé€", "aé€", "aé€\uD83D\uDE00"};
    for (int i = 0; i < bytes.length; i++) {
      stream.write(Byte.toUnsignedInt(bytes[i]));
      assertThat(printed).hasToString(after[i]);
    }
    stream.finish();
    assertThat(printed).hasToString(after[9]);
  }

  @Test
  void printsTheReplacementCharacterForWhatIsNotUtf8() {
    write(0x80, 'a', 0xff, 'b', 0xe2, 'c', 0xed, 0xa0, 0x80);
    stream.finish();
    assertThat(printed.toString().replace("\uFFFD", "?")).matches("\\?a\\?b\\?c\\?+");
  }

  @Test
  void anUnfinishedCharacterEndsAsReplacement() {
    write('a', 0xe2, 0x82);
    assertThat(printed).hasToString("a");
    stream.finish();
    assertThat(printed).hasToString("a\uFFFD");
  }

  @Test
  void controlCharactersDoNotReachTheTerminal() {
    write(0x1b, '[', 'm', '\t', '\n', '\r', 0, 0x7f, 0xc2, 0x9b);
    stream.finish();
    assertThat(printed).hasToString("\uFFFD[m\t\n\uFFFD\uFFFD\uFFFD\uFFFD");
  }

  @Test
  void everyByteStreamIsTaken() {
    for (int first = 0; first < 256; first++) {
      for (int second = 0; second < 256; second++) {
        write(first, second);
      }
    }
    stream.finish();
    assertThat(printed.toString().chars().filter(c -> c == 'a').count()).isGreaterThan(400);
  }

  private void write(int... bytes) {
    for (int one : bytes) {
      stream.write(one);
    }
  }
}
