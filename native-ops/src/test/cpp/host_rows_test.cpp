// Packing of host arrays for the device, and the fingerprints of the packed blocks. Needs no GPU.
#include "offload/host_rows.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <random>
#include <set>
#include <vector>

using namespace gatedfwa::cuda;

namespace {

int failures = 0, checks = 0;

void expect(bool condition, const char* what, long detail = 0) {
  checks++;
  if (condition) return;
  failures++;
  std::printf("FAILED: %s (%ld)\n", what, detail);
}

/// Every order of strides, with gaps and with negative ones: what pack reads, unpack writes back, and nothing else.
void packing() {
  std::mt19937 random(7);
  for (int trial = 0; trial < 2000; trial++) {
    const auto draw = [&](int64_t least, int64_t most) {
      return std::uniform_int_distribution<int64_t>(least, most)(random);
    };
    HostRows a;
    a.elementBytes = int64_t{1} << draw(0, 3);
    a.outer = draw(1, 3);
    a.planes = draw(1, 4);
    a.rows = draw(1, 9);
    a.width = draw(1, 7);
    const int64_t sizes[] = {a.outer, a.planes, a.rows, a.width};
    int64_t* const strides[] = {&a.outerStride, &a.planeStride, &a.rowStride, &a.elementStride};
    int order[] = {0, 1, 2, 3};
    if (draw(0, 2) == 0) std::shuffle(order, order + 4, random);
    int64_t extent = 1, base = 0;
    for (int i = 3; i >= 0; i--) {
      const int at = order[i];
      const bool negative = draw(0, 9) == 0;
      *strides[at] = negative ? -extent : extent;
      if (negative) base += (sizes[at] - 1) * extent;
      extent = extent * sizes[at] + (draw(0, 3) == 0 ? draw(0, 3) : 0);
    }
    std::vector<char> memory(static_cast<size_t>(extent * a.elementBytes)), packed(static_cast<size_t>(a.bytes()));
    for (char& x : memory) x = static_cast<char>(draw(0, 255));
    a.data = memory.data() + base * a.elementBytes;
    for (int64_t first = 0; first < a.totalRows();) {
      const int64_t count = draw(1, a.totalRows() - first);
      pack(a, first, count, packed.data() + first * a.rowBytes());
      first += count;
    }
    bool same = true;
    int64_t at = 0;
    for (int64_t o = 0; o < a.outer; o++)
      for (int64_t p = 0; p < a.planes; p++)
        for (int64_t r = 0; r < a.rows; r++)
          for (int64_t e = 0; e < a.width; e++, at += a.elementBytes)
            same =
                same &&
                std::memcmp(packed.data() + at,
                            a.data + (o * a.outerStride + p * a.planeStride + r * a.rowStride + e * a.elementStride) *
                                         a.elementBytes,
                            static_cast<size_t>(a.elementBytes)) == 0;
    expect(same, "packed rows are the array's, in order", trial);
    const std::vector<char> before = memory;
    for (int64_t i = 0; i < a.bytes(); i++) packed[static_cast<size_t>(i)] ^= 0x5a;
    unpack(packed.data(), a, 0, a.totalRows());
    int64_t changed = 0;
    for (size_t i = 0; i < memory.size(); i++) changed += memory[i] != before[i];
    expect(changed == a.bytes(), "unpack writes the array's elements and no others", trial);
    for (int64_t i = 0; i < a.bytes(); i++) packed[static_cast<size_t>(i)] ^= 0x5a;
    unpack(packed.data(), a, 0, a.totalRows());
    expect(memory == before, "unpack is the reverse of pack", trial);
  }
}

void fingerprints() {
  std::mt19937_64 random(11);
  std::vector<char> data(5000);
  for (char& x : data) x = static_cast<char>(random());
  std::set<uint64_t> seen;
  for (int64_t bytes = 0; bytes <= 300; bytes++) seen.insert(fingerprint(data.data(), bytes));
  expect(seen.size() == 301, "each length has its fingerprint");
  seen.clear();
  const int64_t length = 4321;
  seen.insert(fingerprint(data.data(), length));
  for (int64_t bit = 0; bit < length * 8; bit++) {
    data[static_cast<size_t>(bit / 8)] ^= static_cast<char>(1 << bit % 8);
    seen.insert(fingerprint(data.data(), length));
    data[static_cast<size_t>(bit / 8)] ^= static_cast<char>(1 << bit % 8);
  }
  expect(seen.size() == static_cast<size_t>(length * 8 + 1), "each changed bit shows");
  seen.clear();
  std::vector<char> zeros(4096, 0);
  seen.insert(fingerprint(zeros.data(), 4096));
  for (int64_t i = 0; i < 4096 / 4; i++) {
    const float one = 1;
    std::memcpy(zeros.data() + 4 * i, &one, 4);
    seen.insert(fingerprint(zeros.data(), 4096));
    std::memset(zeros.data() + 4 * i, 0, 4);
  }
  expect(seen.size() == 1025, "where a value stands among zeros shows");
  const uint64_t before = fingerprint(data.data(), length);
  for (int64_t i = 0; i + 64 <= length; i += 8) {
    const int64_t other = (i + 1024) % (length / 8 * 8 - 8) / 8 * 8;
    if (std::memcmp(data.data() + i, data.data() + other, 8) == 0) continue;
    std::swap_ranges(data.begin() + i, data.begin() + i + 8, data.begin() + other);
    expect(fingerprint(data.data(), length) != before, "exchanged words show", i);
    std::swap_ranges(data.begin() + i, data.begin() + i + 8, data.begin() + other);
  }
}

}  // namespace

int main() {
  packing();
  fingerprints();
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
