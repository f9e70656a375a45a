package io.github.gatedfwa.examples;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.condition.EnabledOnOs;
import org.junit.jupiter.api.condition.OS;
import org.junit.jupiter.api.io.TempDir;

class OwnTextTest {
  private static final long LEAST = 100;
  private static final long MOST = 1000;

  @TempDir Path folder;

  private void write(String name, String text) throws IOException {
    Path file = folder.resolve(name);
    Files.createDirectories(file.getParent());
    Files.writeString(file, text);
  }

  private OwnText read(String pattern) throws IOException {
    return OwnText.read(folder, pattern, LEAST, MOST, folder.resolve("model.zip"));
  }

  private static String training(OwnText own) throws IOException {
    assertThat(own.training()).hasSize(1);
    return Files.readString(own.training().get(0));
  }

  private static List<String> heldOut(OwnText own) throws IOException {
    List<String> texts = new ArrayList<>();
    for (Path file : own.heldOut()) {
      texts.add(Files.readString(file));
    }
    return texts;
  }

  @Test
  void filesAreHeldOutWhole() throws IOException {
    for (int i = 0; i < 40; i++) {
      write((i % 2 == 0 ? "" : "sub/") + i + ".txt", "<text number " + i + ">");
    }
    write("sub/other.md", "# Not asked for");
    write(".hidden/1.txt", "hidden");
    write("sub/.2.txt", "hidden");
    write("empty.txt", "");
    write("binary.txt", "a\0b");
    try (OwnText own = read("*.txt")) {
      List<String> learned = List.of(training(own).split("\0", -1));
      List<String> held = heldOut(own);
      assertThat(held).hasSizeBetween(4, 5);
      assertThat(learned).doesNotContainAnyElementsOf(held).hasSize(40 - held.size());
      List<String> all = new ArrayList<>(learned);
      all.addAll(held);
      for (int i = 0; i < 40; i++) {
        assertThat(all).contains("<text number " + i + ">");
      }
      assertThat(own.description())
          .contains(learned.size() + " files", held.size() + " files")
          .endsWith("; 2 files are empty or no text");
      try (OwnText again = read("*.txt")) {
        assertThat(heldOut(again)).isEqualTo(held);
      }
    }
    try (OwnText own = read("sub/*.{txt,md}")) {
      assertThat(training(own) + heldOut(own))
          .contains("<text number 1>", "# Not asked for")
          .doesNotContain("<text number 2>");
    }
  }

  @Test
  void aSingleFileIsSplitByPosition() throws IOException {
    write("one.txt", "a".repeat(900) + "b".repeat(100));
    try (OwnText own = read("*")) {
      assertThat(training(own)).isEqualTo("a".repeat(900));
      assertThat(heldOut(own)).containsExactly("b".repeat(100));
    }
    try (OwnText own =
        OwnText.read(folder.resolve("one.txt"), "*", LEAST, 30, Path.of("model.zip"))) {
      assertThat(training(own)).hasSize(970);
      assertThat(heldOut(own)).containsExactly("b".repeat(30));
    }
    // So is one beside which the others are too little.
    write("two.txt", "c");
    try (OwnText own = read("*")) {
      assertThat(training(own)).isEqualTo("a".repeat(900) + "\0c");
      assertThat(heldOut(own)).containsExactly("b".repeat(100));
    }
  }

  @Test
  void ofMuchTextOnlySoMuchIsMeasured() throws IOException {
    write("one.txt", "a".repeat(50_000));
    write("two.txt", "b".repeat(50_000));
    try (OwnText own = read("*")) {
      assertThat(training(own)).hasSize(50_000);
      assertThat(heldOut(own)).hasSize(1).allSatisfy(text -> assertThat(text).hasSize(1000));
    }
  }

  @Test
  void theCopiesAreDeleted() throws IOException {
    write("one.txt", "a".repeat(1000));
    OwnText own = read("*");
    Path copies = own.training().get(0).getParent();
    assertThat(copies).isNotEmptyDirectory();
    own.close();
    assertThat(copies).doesNotExist();
  }

  @Test
  void whatIsWrongIsNamed() throws IOException {
    refused("has no file that matches --files '*'", "*");
    write("data.bin", "\0".repeat(1000));
    refused("has no text: of 1 files that match --files '*' all are empty or hold bytes 0", "*");
    refused("has no file that matches --files '*.txt'", "*.txt");
    refused("--files '{' is not a pattern: ", "{");
    write("a.txt", "x".repeat(60));
    write("b.txt", "x".repeat(39));
    refused("has 99 bytes of text in 2 files; at least 100 are needed", "*");
    assertThatThrownBy(
            () -> OwnText.read(folder.resolve("nowhere"), "*", LEAST, MOST, Path.of("m.zip")))
        .isInstanceOf(IOException.class)
        .hasMessageContaining("nowhere: no such folder or file (--text)");
  }

  @Test
  @EnabledOnOs(OS.LINUX)
  void aFileThatCannotBeReadIsNamed() throws IOException {
    // One that even root cannot read from its start.
    Files.createSymbolicLink(folder.resolve("memory.txt"), Path.of("/proc/self/mem"));
    assertThatThrownBy(() -> read("*"))
        .isInstanceOf(IOException.class)
        .hasMessageStartingWith("cannot read " + folder.resolve("memory.txt") + " (--text): ");
  }

  @Test
  void whatTrainingWritesIsNoText() throws IOException {
    write("one.txt", "a".repeat(900));
    write("model.zippy", "b".repeat(100)); // not named after it
    String before;
    try (OwnText own = read("*")) {
      before = own.description();
    }
    for (String extension : List.of("", ".csv", ".checkpoint", ".checkpoint.part")) {
      write("model.zip" + extension, "written by a training");
    }
    Path link =
        Files.createSymbolicLink(folder.resolveSibling(folder.getFileName() + "-l"), folder);
    try (OwnText own = read("*");
        OwnText linked = OwnText.read(link, "*", LEAST, MOST, folder.resolve("model.zip"))) {
      assertThat(own.description()).isEqualTo(before).isEqualTo(linked.description());
      assertThat(training(own) + heldOut(own)).contains("b").doesNotContain("written");
    } finally {
      Files.delete(link);
    }
    // One of the same name in another folder is text.
    write("sub/model.zip.csv", "c".repeat(10));
    try (OwnText own = read("*")) {
      assertThat(training(own) + heldOut(own)).contains("c".repeat(10));
    }
  }

  private void refused(String message, String pattern) {
    assertThatThrownBy(() -> read(pattern))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining(message);
  }
}
