#include "offload/host_rows.h"

#include <algorithm>
#include <cstring>

namespace gatedfwa::cuda {
namespace {

/// Calls body(address on the host, rows, bytes of the dense copy before them) for runs of rows within one plane.
template <typename Body>
void forRuns(const HostRows& a, int64_t first, int64_t count, Body body) {
  int64_t done = 0;
  while (done < count) {
    const int64_t flat = first + done, row = flat % a.rows, plane = flat / a.rows % a.planes;
    const int64_t outer = flat / a.rows / a.planes, run = std::min(count - done, a.rows - row);
    char* const start = a.data + (outer * a.outerStride + plane * a.planeStride + row * a.rowStride) * a.elementBytes;
    body(start, run, done * a.rowBytes());
    done += run;
  }
}

template <typename Element>
void copyElements(const char* from, int64_t fromStride, char* to, int64_t toStride, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    std::memcpy(to + i * toStride * static_cast<int64_t>(sizeof(Element)),
                from + i * fromStride * static_cast<int64_t>(sizeof(Element)), sizeof(Element));
}

void copyElements(int64_t elementBytes, const char* from, int64_t fromStride, char* to, int64_t toStride,
                  int64_t count) {
  switch (elementBytes) {
    case 1:
      return copyElements<uint8_t>(from, fromStride, to, toStride, count);
    case 2:
      return copyElements<uint16_t>(from, fromStride, to, toStride, count);
    case 4:
      return copyElements<uint32_t>(from, fromStride, to, toStride, count);
    default:
      return copyElements<uint64_t>(from, fromStride, to, toStride, count);
  }
}

uint64_t mix(uint64_t x) {
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93u;
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93u;
  return x ^ x >> 32;
}

}  // namespace

bool HostRows::operator==(const HostRows& o) const {
  return data == o.data && elementBytes == o.elementBytes && outer == o.outer && planes == o.planes && rows == o.rows &&
         width == o.width && outerStride == o.outerStride && planeStride == o.planeStride && rowStride == o.rowStride &&
         elementStride == o.elementStride;
}

void pack(const HostRows& source, int64_t first, int64_t count, char* target) {
  forRuns(source, first, count, [&](const char* start, int64_t rows, int64_t before) {
    if (source.adjoining()) {
      std::memcpy(target + before, start, static_cast<size_t>(rows * source.rowBytes()));
      return;
    }
    for (int64_t r = 0; r < rows; r++) {
      const char* const from = start + r * source.rowStride * source.elementBytes;
      char* const to = target + before + r * source.rowBytes();
      if (source.elementStride == 1)
        std::memcpy(to, from, static_cast<size_t>(source.rowBytes()));
      else
        copyElements(source.elementBytes, from, source.elementStride, to, 1, source.width);
    }
  });
}

void unpack(const char* source, const HostRows& target, int64_t first, int64_t count) {
  forRuns(target, first, count, [&](char* start, int64_t rows, int64_t before) {
    if (target.adjoining()) {
      std::memcpy(start, source + before, static_cast<size_t>(rows * target.rowBytes()));
      return;
    }
    for (int64_t r = 0; r < rows; r++) {
      const char* const from = source + before + r * target.rowBytes();
      char* const to = start + r * target.rowStride * target.elementBytes;
      if (target.elementStride == 1)
        std::memcpy(to, from, static_cast<size_t>(target.rowBytes()));
      else
        copyElements(target.elementBytes, from, 1, to, target.elementStride, target.width);
    }
  });
}

uint64_t fingerprint(const char* data, int64_t bytes) {
  // Eight lanes of multiply-accumulate over 32-bit halves, each word with its own key, as vector units do it; the state
  // is scrambled after each stripe of 1 KB, so that the order of words and stripes counts.
  constexpr int kLanes = 8;
  constexpr int64_t kStripe = 16;  // steps of kLanes words
  uint64_t state[kLanes], keys[kStripe][kLanes];
  for (uint64_t i = 0; i < kLanes; i++) state[i] = mix(i + 1);
  for (uint64_t s = 0; s < kStripe; s++)
    for (uint64_t i = 0; i < kLanes; i++) keys[s][i] = mix(0x9e3779b97f4a7c15u * (s * kLanes + i + 1));
  const auto step = [&](const uint64_t* words, const uint64_t* key) {
    for (int i = 0; i < kLanes; i++) {
      const uint64_t keyed = words[i] ^ key[i];
      state[i] += (keyed & 0xffffffffu) * (keyed >> 32) + (words[i] << 32 | words[i] >> 32);
    }
  };
  const auto scramble = [&] {
    for (int i = 0; i < kLanes; i++) state[i] = (state[i] ^ state[i] >> 47 ^ keys[0][i]) * 0x9e3779b97f4a7c15u;
  };
  constexpr int64_t kStepBytes = kLanes * 8;
  const int64_t steps = bytes / kStepBytes;
  uint64_t words[kLanes];
  for (int64_t i = 0; i < steps; i++) {
    std::memcpy(words, data + i * kStepBytes, kStepBytes);
    step(words, keys[i % kStripe]);
    if (i % kStripe == kStripe - 1) scramble();
  }
  std::memset(words, 0, sizeof words);
  std::memcpy(words, data + steps * kStepBytes, static_cast<size_t>(bytes % kStepBytes));
  step(words, keys[kStripe - 1]);
  uint64_t result = static_cast<uint64_t>(bytes);
  for (const uint64_t lane : state) result = mix(result + mix(lane));
  return result;
}

}  // namespace gatedfwa::cuda
