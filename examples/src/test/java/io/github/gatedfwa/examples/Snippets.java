package io.github.gatedfwa.examples;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** The parts of a class that a page shows: between "// PAGE: name" and "// PAGE: end". */
final class Snippets {
  private Snippets() {}

  /** As Markdown, in the order of the file. */
  static List<String> of(Class<?> source, String page) throws IOException {
    String code =
        Files.readString(Path.of("src/main/java", source.getName().replace('.', '/') + ".java"));
    Matcher snippet =
        Pattern.compile(
                " *// %1$s: (?!end)\\w+\n(.*?)\n *// %1$s: end".formatted(Pattern.quote(page)),
                Pattern.DOTALL)
            .matcher(code);
    List<String> snippets = new ArrayList<>();
    while (snippet.find()) {
      snippets.add("```java\n" + snippet.group(1).stripIndent() + "\n```");
    }
    return snippets;
  }
}
