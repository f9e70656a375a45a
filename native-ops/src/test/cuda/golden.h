// Reads the golden cases: float64 operands, results and gradients of a reference implementation, one folder each.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace gatedfwa::test {

constexpr const char* kGoldenCases[] = {"basic",  "chunk_with_cache", "decode_step",       "gqa",
                                        "masked", "no_gate",          "window_covers_all", "window_one"};

/// Empty if there is no such file.
inline std::vector<double> readNpy(const std::string& path, std::vector<int64_t>* shape) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return {};
  char head[10];
  in.read(head, 10);
  const int size = static_cast<unsigned char>(head[8]) | static_cast<unsigned char>(head[9]) << 8;
  std::string header(size, ' ');
  in.read(&header[0], size);
  const std::string dims = header.substr(header.find('(') + 1, header.find(')') - header.find('(') - 1);
  std::stringstream stream(dims);
  int64_t count = 1;
  shape->clear();
  for (std::string d; std::getline(stream, d, ',');)
    if (d.find_first_not_of(' ') != std::string::npos) {
      shape->push_back(std::stoll(d));
      count *= shape->back();
    }
  std::vector<double> x(count);
  if (header.find("<f8") != std::string::npos) {
    in.read(reinterpret_cast<char*>(x.data()), count * 8);
  } else if (header.find("<i8") != std::string::npos) {
    std::vector<int64_t> raw(count);
    in.read(reinterpret_cast<char*>(raw.data()), count * 8);
    std::copy(raw.begin(), raw.end(), x.begin());
  } else if (header.find("|b1") != std::string::npos || header.find("|u1") != std::string::npos) {
    std::vector<char> raw(count);
    in.read(raw.data(), count);
    std::copy(raw.begin(), raw.end(), x.begin());
  } else {
    std::fprintf(stderr, "%s: unexpected type in %s\n", path.c_str(), header.c_str());
    std::exit(2);
  }
  return x;
}

inline double jsonNumber(const std::string& json, const std::string& key) {
  return std::stod(json.substr(json.find(':', json.find("\"" + key + "\"")) + 1));
}

}  // namespace gatedfwa::test
