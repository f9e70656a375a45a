// The checks that all ops start with: each says, with the op's name at its head, what came and what is allowed. Knows
// no framework.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "op/arguments.h"

namespace gatedfwa {

const char* nameOf(DataType type);
ElementType elementType(DataType type);
bool isFloatingPoint(DataType type);
std::string toString(const std::vector<int64_t>& shape);

/// The type of alpha and lse beside a q of the given type.
DataType accumulatorType(DataType type);

/// What a dimension may be.
struct Dimension {
  enum Rule { Exactly, AtLeast, UpTo, DivisorOf } rule;
  int64_t value;

  bool allows(int64_t size) const;
  std::string toString() const;
};

inline Dimension exactly(int64_t size) { return {Dimension::Exactly, size}; }
inline Dimension atLeast(int64_t size) { return {Dimension::AtLeast, size}; }
inline Dimension upTo(int64_t size) { return {Dimension::UpTo, size}; }
inline Dimension divisorOf(int64_t size) { return {Dimension::DivisorOf, size}; }

struct Named {
  const char* name;
  const ArrayView* view;
};

class Checker {
 public:
  explicit Checker(const char* op) : op_(op) {}

  template <typename... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    std::ostringstream message;
    message << op_ << ": ";
    (message << ... << parts);
    throw std::invalid_argument(message.str());
  }

  void count(const char* what, size_t came, size_t least, size_t most, const std::string& expected) const;
  /// Pairs the inputs with their names; `note` follows the list of names in the message.
  std::vector<Named> inputs(const OpArguments& arguments, const std::vector<const char*>& names,
                            const std::string& note) const;
  void type(const char* name, const ArrayView& array, DataType expected) const;
  void shape(const char* name, const ArrayView& array, std::initializer_list<Dimension> expected) const;
  void output(const OutputShape& expected, const ArrayView& array) const;

  /// q [B, N, H, D] of a type that attention takes.
  void queries(const ArrayView& q) const;
  /// mask [batch, keys] of q's type or BOOL.
  void mask(const ArrayView& mask, DataType type, int64_t batch, int64_t keys) const;
  /// lse [B, H, N].
  void lse(const ArrayView& lse, const ArrayView& q) const;
  /// o, lse and dO, of which o and dO are [B, N, H, Dv].
  void results(const ArrayView& o, const ArrayView& lse, const ArrayView& dO, const ArrayView& q,
               int64_t valueSize) const;
  /// The first real argument if there is one; 0, or none, is 1/sqrt(headSize).
  double scale(const OpArguments& arguments, int64_t headSize) const;

  /// Inputs with data; outputs of the right number, type and shape, with data, that overlap nothing.
  void memory(const std::vector<Named>& inputs, const std::vector<OutputShape>& expected,
              const std::vector<ArrayView>& outputs) const;

 private:
  /// Data there is, and its addresses can be computed.
  void data(const char* name, const ArrayView& array) const;

  const char* op_;
};

Input input(const ArrayView& view);
Output output(const ArrayView& view);

}  // namespace gatedfwa
