package io.github.gatedfwa.nativeops;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.HashSet;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * What a plug-in takes from libnd4j is what the published library of the back end has that is on
 * the class path. Reads the files only: no library is loaded, no GPU needed.
 */
class SymbolsTest {

  private static final Map<PlugIn, String> LIBND4J =
      Map.of(
          PlugIn.CPU, "/org/nd4j/linalg/cpu/nativecpu/bindings/linux-x86_64/libnd4jcpu.so",
          PlugIn.CUDA, "/org/nd4j/linalg/jcublas/bindings/linux-x86_64/libnd4jcuda.so");

  @TempDir Path directory;

  @Test
  void libnd4jExportsWhatThePlugInNeeds() throws IOException {
    int compared = 0;
    for (Map.Entry<PlugIn, String> pair : LIBND4J.entrySet()) {
      if (SymbolsTest.class.getResource(pair.getValue()) == null) {
        continue; // not this build's back end
      }
      Symbols plugIn = symbols(pair.getKey().resource("linux-x86_64"));
      Symbols libnd4j = symbols(pair.getValue());
      Set<String> needed = new TreeSet<>();
      for (String symbol : plugIn.undefined()) {
        // Mangled names in the namespaces sd and samediff: functions and their members, type infos.
        if (symbol.matches("_Z\\w*?N?K?(2sd|8samediff).*")) {
          needed.add(symbol);
        }
      }
      assertThat(needed).contains("_ZN2sd3ops13OpRegistrator11getInstanceEv");
      Set<String> missing = new TreeSet<>(needed);
      missing.removeAll(libnd4j.defined());
      assertThat(missing).as("not in " + pair.getValue()).isEmpty();
      System.out.printf(
          "%s: all %d symbols that %s needs are among its %d%n",
          pair.getValue(), needed.size(), pair.getKey().file(), libnd4j.defined().size());
      compared++;
    }
    assertThat(compared).as("back ends on the class path").isEqualTo(1);
  }

  private Symbols symbols(String resource) throws IOException {
    Path file = directory.resolve("library.so");
    try (InputStream in = SymbolsTest.class.getResourceAsStream(resource)) {
      assertThat(in).as(resource).isNotNull();
      Files.copy(in, file, StandardCopyOption.REPLACE_EXISTING);
    }
    try (FileChannel channel = FileChannel.open(file)) {
      return Symbols.of(channel.map(FileChannel.MapMode.READ_ONLY, 0, channel.size()));
    }
  }

  /** The names in the dynamic symbol table of a 64-bit little-endian ELF file. */
  private record Symbols(Set<String> defined, Set<String> undefined) {

    private static final int SECTION_DYNSYM = 11;

    static Symbols of(ByteBuffer elf) {
      elf.order(ByteOrder.LITTLE_ENDIAN);
      assertThat(elf.getInt(0)).as("ELF magic").isEqualTo(0x464c457f);
      long sections = elf.getLong(0x28);
      int sectionSize = elf.getShort(0x3a);
      int sectionCount = elf.getShort(0x3c);
      Symbols symbols = new Symbols(new HashSet<>(), new HashSet<>());
      for (int i = 0; i < sectionCount; i++) {
        int section = (int) (sections + (long) i * sectionSize);
        if (elf.getInt(section + 4) != SECTION_DYNSYM) {
          continue;
        }
        int table = (int) elf.getLong(section + 0x18);
        int size = (int) elf.getLong(section + 0x20);
        int strings = (int) (sections + (long) elf.getInt(section + 0x28) * sectionSize);
        int names = (int) elf.getLong(strings + 0x18);
        for (int symbol = table; symbol < table + size; symbol += 24) {
          int start = names + elf.getInt(symbol);
          int end = start;
          while (elf.get(end) != 0) {
            end++;
          }
          byte[] text = new byte[end - start];
          elf.get(start, text);
          String name = new String(text, StandardCharsets.US_ASCII);
          (elf.getShort(symbol + 6) == 0 ? symbols.undefined : symbols.defined).add(name);
        }
      }
      return symbols;
    }
  }
}
