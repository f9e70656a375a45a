package io.github.gatedfwa.nativeops;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.HashSet;
import java.util.Set;
import org.junit.jupiter.api.Test;

/** What the plug-in takes from libnd4j is what the published libnd4jcpu.so has. */
class SymbolsTest {

  @Test
  void libnd4jExportsWhatThePlugInNeeds() throws IOException {
    Symbols plugIn = Symbols.of("/io/github/gatedfwa/nativeops/linux-x86_64/libgatedfwa_cpu.so");
    Symbols libnd4j =
        Symbols.of("/org/nd4j/linalg/cpu/nativecpu/bindings/linux-x86_64/libnd4jcpu.so");
    Set<String> needed = new HashSet<>();
    for (String symbol : plugIn.undefined()) {
      // Mangled names in the namespaces sd and samediff: functions and their members, type infos.
      if (symbol.matches("_Z\\w*?N?K?(2sd|8samediff).*")) {
        needed.add(symbol);
      }
    }
    assertThat(needed).contains("_ZN2sd3ops13OpRegistrator11getInstanceEv");
    assertThat(libnd4j.defined()).containsAll(needed);
  }

  /** The names in the dynamic symbol table of a 64-bit little-endian ELF file. */
  private record Symbols(Set<String> defined, Set<String> undefined) {

    private static final int SECTION_DYNSYM = 11;

    static Symbols of(String resource) throws IOException {
      byte[] bytes;
      try (InputStream in = SymbolsTest.class.getResourceAsStream(resource)) {
        assertThat(in).as(resource).isNotNull();
        bytes = in.readAllBytes();
      }
      ByteBuffer elf = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN);
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
          while (bytes[end] != 0) {
            end++;
          }
          String name = new String(bytes, start, end - start, StandardCharsets.US_ASCII);
          (elf.getShort(symbol + 6) == 0 ? symbols.undefined : symbols.defined).add(name);
        }
      }
      return symbols;
    }
  }
}
