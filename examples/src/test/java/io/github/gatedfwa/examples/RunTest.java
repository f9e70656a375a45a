package io.github.gatedfwa.examples;

import static java.nio.charset.StandardCharsets.UTF_8;
import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.condition.DisabledOnOs;
import org.junit.jupiter.api.condition.OS;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** The script examples/run, in a project whose Maven and Java only tell that they were called. */
@DisabledOnOs(OS.WINDOWS)
class RunTest {
  @TempDir Path project;

  @BeforeEach
  void copy() throws IOException {
    Path programs = project.resolve("examples/src/main/java/io/github/gatedfwa/examples");
    Files.createDirectories(programs);
    Files.writeString(programs.resolve("First.java"), "public static void main(String[] a) {}");
    Files.writeString(programs.resolve("Second.java"), "public static void main(String[] a) {}");
    Files.writeString(programs.resolve("Helper.java"), "final class Helper {}");
    Files.createDirectories(project.resolve("examples/target"));
    Files.writeString(project.resolve("examples/target/classpath"), "some.jar");
    Files.copy(Path.of("run"), project.resolve("examples/run"));
    script("mvnw", "echo built");
    script("java-home/bin/java", "printf '[%s]' \"$@\"");
  }

  private void script(String name, String line) throws IOException {
    Path file = project.resolve(name);
    Files.createDirectories(file.getParent());
    Files.writeString(file, "#!/bin/sh\n" + line + "\n");
    assertThat(file.toFile().setExecutable(true)).isTrue();
  }

  /** What it prints, errors too, when it ends with this code. */
  private String run(int exitCode, String... arguments) throws Exception {
    List<String> command = new ArrayList<>(List.of("sh", "examples/run"));
    command.addAll(List.of(arguments));
    ProcessBuilder builder = new ProcessBuilder(command).directory(project.toFile());
    builder.environment().put("JAVA_HOME", project.resolve("java-home").toString());
    Process process = builder.redirectErrorStream(true).start();
    String printed = new String(process.getInputStream().readAllBytes(), UTF_8);
    assertThat(process.waitFor()).as(printed).isEqualTo(exitCode);
    return printed;
  }

  @Test
  void buildsAndRunsAProgramWithTheJavaOfJavaHome() throws Exception {
    assertThat(run(0, "Second", "--prompt", "two words"))
        .startsWith("built\n[-Xmx2g]")
        .endsWith("[io.github.gatedfwa.examples.Second][--prompt][two words]");
  }

  @Test
  void helpNamesTheProgramsAndBuildsNothing() throws Exception {
    assertThat(run(0, "--help"))
        .startsWith("usage: examples/run PROGRAM")
        .endsWith("\nFirst\nSecond\n")
        .isEqualTo(run(0, "-h"))
        .isEqualTo(run(2));
  }

  @ParameterizedTest
  @ValueSource(strings = {"Third", "Helper", ".*", "--version"})
  void anUnknownProgramIsRefusedBeforeAnythingIsBuilt(String name) throws Exception {
    assertThat(run(2, name))
        .startsWith("examples/run: there is no program \"" + name + "\"\nusage: ")
        .endsWith("\nFirst\nSecond\n");
  }
}
