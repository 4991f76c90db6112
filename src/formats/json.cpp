#include "formats/json.h"

#include <cmath>

#include "base/error.h"
#include "base/mapped_file.h"
#include "formats/json_events.h"

namespace drover {
namespace {

namespace json = boost::json;

// Builds the document from its events. Boost's own builder keeps the last of two equal keys.
class DocumentBuilder {
 public:
  static constexpr size_t kMaxKeyBytes = size_t{1} << 16;
  // JsonLimits bounds a document and so its texts: a picture in one may be most of a request.
  static constexpr size_t kMaxTextBytes = size_t{1} << 30;

  DocumentBuilder(const std::string& source, size_t max_values)
      : source_(source), max_values_(max_values) {}

  void begin(bool object) {
    json::value container = object ? json::value(json::object()) : json::value(json::array());
    open_.push_back({std::move(container), std::move(key_)});
  }

  void end() {
    Open closed = std::move(open_.back());
    open_.pop_back();
    key_ = std::move(closed.key);
    add(std::move(closed.value));
  }

  void key(std::string_view text) { key_ = text; }

  void scalar(const JsonScalar& scalar) {
    std::visit(
        [this](auto value) {
          if constexpr (std::is_same_v<decltype(value), double>) {
            if (!std::isfinite(value)) {
              throw_error(ErrorKind::kBadData,
                          "{}: key {}: expected a number that fits a double, got more", source_,
                          printable(key_));
            }
          }
          if constexpr (std::is_same_v<decltype(value), std::string_view>) {
            add(json::string(value.data(), value.size()));
          } else {
            add(value);
          }
        },
        scalar);
  }

  json::value take() { return std::move(root_); }

 private:
  // A container that is not closed yet, and the key it will stand under if its parent is an object.
  struct Open {
    json::value value;
    std::string key;
  };

  void add(json::value value) {
    if (++values_ > max_values_) {
      throw_error(ErrorKind::kLimit, "{}: expected at most {} JSON values, got more", source_,
                  max_values_);
    }
    if (open_.empty()) {
      root_ = std::move(value);
    } else if (json::array* array = open_.back().value.if_array()) {
      array->push_back(std::move(value));
    } else if (!open_.back().value.get_object().emplace(key_, std::move(value)).second) {
      throw_error(ErrorKind::kBadData, "{}: key {}: expected once, got twice", source_,
                  printable(key_));
    }
  }

  const std::string& source_;
  size_t max_values_;
  size_t values_ = 0;
  std::vector<Open> open_;
  std::string key_;
  json::value root_;
};

std::string_view kind_name(const json::value& value) {
  switch (value.kind()) {
    case json::kind::null:
      return "null";
    case json::kind::bool_:
      return "a boolean";
    case json::kind::int64:
    case json::kind::uint64:
    case json::kind::double_:
      return "a number";
    case json::kind::string:
      return "a string";
    case json::kind::array:
      return "an array";
    case json::kind::object:
      return "an object";
  }
  return "a value";
}

[[noreturn]] void throw_kind(const std::string& where, std::string_view key,
                             std::string_view expected, const json::value& found) {
  // A number of the wrong sort explains itself; the text of anything else may be long.
  const std::string got = found.is_double()   ? fmt::format("{}", found.get_double())
                          : found.is_number() ? json::serialize(found)
                                              : std::string(kind_name(found));
  throw_error(ErrorKind::kBadData, "{}: key {}: expected {}, got {}", where, printable(key),
              expected, got);
}

std::optional<int64_t> as_integer(const json::value& value) {
  if (const int64_t* number = value.if_int64()) return *number;
  if (const double* number = value.if_double()) {
    constexpr double kExact = 9007199254740992.0;  // 2^53: below it a double holds each integer
    if (std::trunc(*number) == *number && std::abs(*number) <= kExact)
      return static_cast<int64_t>(*number);
  }
  return std::nullopt;
}

std::optional<double> as_number(const json::value& value) {
  if (!value.is_number()) return std::nullopt;
  return value.to_number<double>();
}

std::optional<bool> as_boolean(const json::value& value) {
  if (const bool* flag = value.if_bool()) return *flag;
  return std::nullopt;
}

std::optional<std::string_view> as_text(const json::value& value) {
  if (const json::string* text = value.if_string())
    return std::string_view(text->data(), text->size());
  return std::nullopt;
}

template <typename T>
std::optional<std::vector<T>> as_list(const json::value& value,
                                      std::optional<T> (*as)(const json::value&)) {
  const json::array* array = value.if_array();
  if (array == nullptr) return std::nullopt;
  std::vector<T> out;
  out.reserve(array->size());
  for (const json::value& element : *array) {
    const std::optional<T> item = as(element);
    if (!item) return std::nullopt;
    out.push_back(*item);
  }
  return out;
}

std::optional<std::vector<int64_t>> as_integers(const json::value& value) {
  return as_list<int64_t>(value, as_integer);
}
std::optional<std::vector<double>> as_numbers(const json::value& value) {
  return as_list<double>(value, as_number);
}
std::optional<std::vector<std::string_view>> as_texts(const json::value& value) {
  return as_list<std::string_view>(value, as_text);
}

template <typename T>
std::optional<T> get(const JsonFields& fields, std::string_view key, std::string_view expected,
                     std::optional<T> (*as)(const json::value&)) {
  const json::value* value = fields.find(key);
  if (value == nullptr) return std::nullopt;
  std::optional<T> out = as(*value);
  if (!out) throw_kind(fields.where(), key, expected, *value);
  return out;
}

}  // namespace

json::value parse_json(std::string_view text, const std::string& source, const JsonLimits& limits) {
  if (text.size() > limits.bytes) {
    throw_error(ErrorKind::kLimit, "{}: expected at most {} bytes, got {}", source, limits.bytes,
                text.size());
  }
  DocumentBuilder builder(source, limits.values);
  parse_json_events(text, source, limits.depth, builder);
  return builder.take();
}

json::object read_json_object(const std::filesystem::path& path, const JsonLimits& limits) {
  const MappedFile file(path);
  const std::string source = printable(file.path(), 300);
  const auto bytes = file.bytes();
  json::value value =
      parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, source, limits);
  if (!value.is_object()) {
    throw_error(ErrorKind::kBadData, "{}: expected a JSON object, got {}", source,
                kind_name(value));
  }
  return std::move(value.get_object());
}

const json::value* JsonFields::find(std::string_view key) const {
  const json::value* value = object_->if_contains({key.data(), key.size()});
  return value == nullptr || value->is_null() ? nullptr : value;
}

template <typename T>
T JsonFields::require(std::string_view key, std::optional<T> value) const {
  if (!value) throw_error(ErrorKind::kBadData, "{}: missing key {}", where_, printable(key));
  return std::move(*value);
}

std::optional<int64_t> JsonFields::integer(std::string_view key) const {
  return get(*this, key, "an integer of 64 bits", as_integer);
}
std::optional<double> JsonFields::number(std::string_view key) const {
  return get(*this, key, "a number", as_number);
}
std::optional<bool> JsonFields::boolean(std::string_view key) const {
  return get(*this, key, "a boolean", as_boolean);
}
std::optional<std::string_view> JsonFields::text(std::string_view key) const {
  return get(*this, key, "a string", as_text);
}
std::optional<std::vector<int64_t>> JsonFields::integers(std::string_view key) const {
  return get(*this, key, "an array of integers", as_integers);
}
std::optional<std::vector<double>> JsonFields::numbers(std::string_view key) const {
  return get(*this, key, "an array of numbers", as_numbers);
}
std::optional<std::vector<std::string_view>> JsonFields::texts(std::string_view key) const {
  return get(*this, key, "an array of strings", as_texts);
}

std::optional<JsonFields> JsonFields::fields(std::string_view key) const {
  const json::value* value = find(key);
  if (value == nullptr) return std::nullopt;
  const json::object* object = value->if_object();
  if (object == nullptr) throw_kind(where_, key, "an object", *value);
  // "config.json: text_config", and "config.json: text_config.rope_scaling" within.
  const bool nested = where_.find(": ") != std::string::npos;
  return JsonFields(*object, where_ + (nested ? "." : ": ") + printable(key));
}

int64_t JsonFields::required_integer(std::string_view key) const {
  return require(key, integer(key));
}
double JsonFields::required_number(std::string_view key) const { return require(key, number(key)); }
bool JsonFields::required_boolean(std::string_view key) const { return require(key, boolean(key)); }
std::string_view JsonFields::required_text(std::string_view key) const {
  return require(key, text(key));
}
JsonFields JsonFields::required_fields(std::string_view key) const {
  return require(key, fields(key));
}

}  // namespace drover
