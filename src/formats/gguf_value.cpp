#include "formats/gguf_value.h"

#include <cstring>
#include <limits>
#include <variant>

#include "base/checked.h"

namespace drover {
namespace {

constexpr uint32_t kTypeCount = 13;

// Bytes of a scalar; 0 for strings and arrays, which carry their own length.
size_t scalar_bytes(GgufType type) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool:
      return 1;
    case GgufType::kU16:
    case GgufType::kI16:
      return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32:
      return 4;
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64:
      return 8;
    case GgufType::kString:
    case GgufType::kArray:
      return 0;
  }
  return 0;
}

template <typename T>
T load(const std::byte* at) {
  T out;
  std::memcpy(&out, at, sizeof(T));
  return out;
}

// Any number of the format, widened without loss. Nothing for types that are not numbers.
using Number = std::variant<std::monostate, uint64_t, int64_t, double>;
Number load_number(GgufType type, const std::byte* at) {
  switch (type) {
    case GgufType::kU8:
      return uint64_t{load<uint8_t>(at)};
    case GgufType::kU16:
      return uint64_t{load<uint16_t>(at)};
    case GgufType::kU32:
      return uint64_t{load<uint32_t>(at)};
    case GgufType::kU64:
      return load<uint64_t>(at);
    case GgufType::kI8:
      return int64_t{load<int8_t>(at)};
    case GgufType::kI16:
      return int64_t{load<int16_t>(at)};
    case GgufType::kI32:
      return int64_t{load<int32_t>(at)};
    case GgufType::kI64:
      return load<int64_t>(at);
    case GgufType::kF32:
      return double{load<float>(at)};
    case GgufType::kF64:
      return load<double>(at);
    case GgufType::kBool:
    case GgufType::kString:
    case GgufType::kArray:
      return {};
  }
  return {};
}

std::optional<uint64_t> to_unsigned(const Number& number) {
  if (const auto* u = std::get_if<uint64_t>(&number)) return *u;
  if (const auto* i = std::get_if<int64_t>(&number); i != nullptr && *i >= 0) {
    return static_cast<uint64_t>(*i);
  }
  return std::nullopt;
}

std::optional<int64_t> to_signed(const Number& number) {
  if (const auto* i = std::get_if<int64_t>(&number)) return *i;
  if (const auto* u = std::get_if<uint64_t>(&number); u != nullptr && *u <= INT64_MAX) {
    return static_cast<int64_t>(*u);
  }
  return std::nullopt;
}

std::optional<double> to_double(const Number& number) {
  if (const auto* d = std::get_if<double>(&number)) return *d;
  if (const auto* i = std::get_if<int64_t>(&number)) return static_cast<double>(*i);
  if (const auto* u = std::get_if<uint64_t>(&number)) return static_cast<double>(*u);
  return std::nullopt;
}

GgufType read_type(ByteReader& reader, std::string_view key) {
  const auto number = reader.scalar<uint32_t>("value type");
  if (number >= kTypeCount) {
    throw_error(ErrorKind::kBadData, "{}: key {}: expected a value type from 0 to {}, got {}",
                reader.source(), printable(key), kTypeCount - 1, number);
  }
  return static_cast<GgufType>(number);
}

void check_bools(ByteReader& reader, std::string_view key, uint64_t count) {
  for (const std::byte b : reader.take(count, "bool")) {
    if (b > std::byte{1}) {
      throw_error(ErrorKind::kBadData, "{}: key {}: expected a bool of 0 or 1, got {}",
                  reader.source(), printable(key), std::to_integer<int>(b));
    }
  }
}

// Moves past `count` values of this type, checking them. `depth` counts the arrays around them.
void skip_values(ByteReader& reader, std::string_view key, GgufType type, uint64_t count,
                 int depth) {
  if (type == GgufType::kBool) return check_bools(reader, key, count);
  if (const size_t bytes = scalar_bytes(type); bytes > 0) {
    // A product that overflows is larger than any file.
    reader.take(checked_mul(count, bytes).value_or(UINT64_MAX), "value");
    return;
  }
  if (type == GgufType::kArray && depth >= GgufValue::kMaxDepth) {
    throw_error(ErrorKind::kLimit,
                "{}: key {}: expected at most {} arrays within each other, got more",
                reader.source(), printable(key), GgufValue::kMaxDepth);
  }
  // Each turn takes at least 8 bytes, so a false count runs into the end of the file.
  for (uint64_t i = 0; i < count; ++i) {
    if (type == GgufType::kString) {
      reader.take(reader.scalar<uint64_t>("string length"), "string");
    } else {
      const GgufType element_type = read_type(reader, key);
      const auto elements = reader.scalar<uint64_t>("array length");
      skip_values(reader, key, element_type, elements, depth + 1);
    }
  }
}

}  // namespace

std::string_view gguf_value_type_name(GgufType type) {
  constexpr std::string_view kNames[kTypeCount] = {"u8",  "i8",  "u16",  "i16",    "u32",
                                                   "i32", "f32", "bool", "string", "array",
                                                   "u64", "i64", "f64"};
  return kNames[static_cast<uint32_t>(type)];
}

GgufValue GgufValue::read(ByteReader& reader, std::string_view key) {
  const std::byte* start = reader.take(0, "value").data();
  const size_t start_offset = reader.offset();
  const GgufType type = read_type(reader, key);
  GgufType element_type = type;
  uint64_t count = 1;
  if (type == GgufType::kArray) {
    element_type = read_type(reader, key);
    count = reader.scalar<uint64_t>("array length");
  }
  const size_t payload = reader.offset() - start_offset;
  skip_values(reader, key, element_type, count, /*depth=*/1);
  return {type, element_type, count, {start, reader.offset() - start_offset}, payload};
}

std::string GgufValue::type_name() const {
  if (type_ != GgufType::kArray) return std::string(gguf_value_type_name(type_));
  return fmt::format("array of {}", gguf_value_type_name(element_type_));
}

std::string GgufValue::preview(size_t limit) const {
  if (type_ == GgufType::kArray) {
    return fmt::format("{} x {}", count_, gguf_value_type_name(element_type_));
  }
  if (auto text = as_string()) return fmt::format("\"{}\"", printable(*text, limit));
  if (auto flag = as_bool()) return *flag ? "true" : "false";
  if (type_ == GgufType::kF32) return fmt::format("{}", load<float>(payload()));
  return std::visit(
      [](auto number) -> std::string {
        if constexpr (std::is_same_v<decltype(number), std::monostate>) {
          return {};
        } else {
          return fmt::format("{}", number);
        }
      },
      load_number(type_, payload()));
}

std::optional<uint64_t> GgufValue::as_unsigned() const {
  return to_unsigned(load_number(type_, payload()));
}

std::optional<int64_t> GgufValue::as_signed() const {
  return to_signed(load_number(type_, payload()));
}

std::optional<double> GgufValue::as_float() const {
  return to_double(load_number(type_, payload()));
}

std::optional<bool> GgufValue::as_bool() const {
  if (type_ != GgufType::kBool) return std::nullopt;
  return *payload() != std::byte{0};
}

std::optional<std::string_view> GgufValue::as_string() const {
  if (type_ != GgufType::kString) return std::nullopt;
  return std::string_view(reinterpret_cast<const char*>(payload()) + sizeof(uint64_t),
                          load<uint64_t>(payload()));
}

std::optional<std::vector<std::string_view>> GgufValue::as_string_array() const {
  if (type_ != GgufType::kArray || element_type_ != GgufType::kString) return std::nullopt;
  std::vector<std::string_view> out;
  out.reserve(count_);
  const std::byte* at = payload();
  for (uint64_t i = 0; i < count_; ++i) {
    const auto length = load<uint64_t>(at);
    out.emplace_back(reinterpret_cast<const char*>(at) + sizeof(uint64_t), length);
    at += sizeof(uint64_t) + length;
  }
  return out;
}

std::optional<std::vector<int64_t>> GgufValue::as_signed_array() const {
  const size_t bytes = scalar_bytes(element_type_);
  if (type_ != GgufType::kArray || bytes == 0) return std::nullopt;
  std::vector<int64_t> out;
  out.reserve(count_);
  for (uint64_t i = 0; i < count_; ++i) {
    const auto value = to_signed(load_number(element_type_, payload() + i * bytes));
    if (!value) return std::nullopt;
    out.push_back(*value);
  }
  return out;
}

std::optional<std::vector<float>> GgufValue::as_float_array() const {
  const size_t bytes = scalar_bytes(element_type_);
  if (type_ != GgufType::kArray || bytes == 0) return std::nullopt;
  std::vector<float> out;
  out.reserve(count_);
  for (uint64_t i = 0; i < count_; ++i) {
    const auto value = to_double(load_number(element_type_, payload() + i * bytes));
    if (!value) return std::nullopt;
    // Beyond float's range C++ leaves the conversion undefined; the nearest is an infinity.
    constexpr double kMax = std::numeric_limits<float>::max();
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    out.push_back(*value > kMax    ? kInfinity
                  : *value < -kMax ? -kInfinity
                                   : static_cast<float>(*value));
  }
  return out;
}

std::optional<std::vector<bool>> GgufValue::as_bool_array() const {
  if (type_ == GgufType::kArray && element_type_ == GgufType::kBool) {
    std::vector<bool> out(count_);
    for (uint64_t i = 0; i < count_; ++i) out[i] = payload()[i] != std::byte{0};
    return out;
  }
  const auto numbers = as_signed_array();
  if (!numbers) return std::nullopt;
  std::vector<bool> out;
  out.reserve(numbers->size());
  for (const int64_t number : *numbers) out.push_back(number != 0);
  return out;
}

}  // namespace drover
