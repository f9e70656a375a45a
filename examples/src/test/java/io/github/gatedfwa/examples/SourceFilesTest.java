package io.github.gatedfwa.examples;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.nio.file.AccessDeniedException;
import java.nio.file.Files;
import java.nio.file.NotDirectoryException;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class SourceFilesTest {
  @TempDir Path folder;

  @Test
  void theSplitIsByPathAlone() throws IOException {
    Path one = folder.resolve("one");
    Path other = folder.resolve("other");
    TestSources.write(one, 400);
    TestSources.write(other, 400);
    Files.writeString(one.resolve("notes.txt"), "not Java");
    SourceFiles files = SourceFiles.under(one);

    assertThat(files.training()).doesNotContainAnyElementsOf(files.heldOut()).isSorted();
    assertThat(files.training().size() + files.heldOut().size()).isEqualTo(400);
    assertThat(files.heldOut().size()).isBetween(8, 35);
    assertThat(SourceFiles.under(other).heldOut().stream().map(other::relativize))
        .containsExactlyElementsOf(files.heldOut().stream().map(one::relativize).toList());
  }

  @Test
  void aLinkToAFolderIsThatFolder() throws IOException {
    Path sources = folder.resolve("sources");
    TestSources.write(sources, 400);
    Path link = Files.createSymbolicLink(folder.resolve("link"), sources);
    SourceFiles files = SourceFiles.under(link);
    assertThat(files.training()).allSatisfy(file -> assertThat(file).startsWith(link));
    assertThat(files.heldOut().stream().map(link::relativize))
        .containsExactlyElementsOf(
            SourceFiles.under(sources).heldOut().stream().map(sources::relativize).toList());
  }

  @Test
  void aFolderThatCannotBeReadIsAnError() throws IOException {
    Path closed = Files.createDirectory(folder.resolve("closed"));
    assumeTrue(closed.toFile().setReadable(false) && !Files.isReadable(closed), "not as root");
    assertThatThrownBy(() -> SourceFiles.under(folder))
        .isInstanceOf(AccessDeniedException.class)
        .hasMessage(closed.toString());
  }

  @Test
  void aFolderWithoutEnoughFilesIsNamed() throws IOException {
    Path missing = folder.resolve("missing");
    assertThatThrownBy(() -> SourceFiles.under(missing))
        .isInstanceOf(NotDirectoryException.class)
        .hasMessageContaining("missing (--sources)");
    Files.writeString(folder.resolve("Only.java"), "class Only {}");
    assertThatThrownBy(() -> SourceFiles.under(folder))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("1 Java files")
        .hasMessageContaining("both are needed");
  }
}
