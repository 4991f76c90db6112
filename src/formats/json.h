// JSON from outside, read within bounds: nesting, bytes and number of values are limited, a key
// that appears twice in an object is an error (parsers differ in which one they believe), and
// numbers are finite. JsonFields reads the fields of an object and names file and key in its
// errors.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace drover {

struct JsonLimits {
  size_t bytes = size_t{16} << 20;
  // Containers, strings, numbers and literals together. In memory a value takes up to 200 bytes
  // beside its text, so this bounds a document of empty values to some 50 MB.
  size_t values = 250'000;
  size_t depth = 64;
};

// `source` is named in errors. Throws kBadData with the byte offset, or kLimit.
boost::json::value parse_json(std::string_view text, const std::string& source,
                              const JsonLimits& limits = {});

// A file whose top is an object. Throws kNotFound, kPermission and kIo too.
boost::json::object read_json_object(const std::filesystem::path& path,
                                     const JsonLimits& limits = {});

// The fields of an object that somebody else owns. A field that is null counts as absent. Each
// getter gives nothing if the field is absent and throws kBadData if it has another type or does
// not fit; each required_ one throws kBadData if it is absent.
class JsonFields {
 public:
  // `where` is named in errors: "FOLDER/config.json", or "FOLDER/config.json: text_config" inside.
  JsonFields(const boost::json::object& object, std::string where)
      : object_(&object), where_(std::move(where)) {}

  const std::string& where() const { return where_; }
  const boost::json::object& object() const { return *object_; }

  // The field, or null if it is absent or JSON's null.
  const boost::json::value* find(std::string_view key) const;
  bool has(std::string_view key) const { return find(key) != nullptr; }

  // A number with a fraction of zero ("8192.0") counts as an integer.
  std::optional<int64_t> integer(std::string_view key) const;
  std::optional<double> number(std::string_view key) const;
  std::optional<bool> boolean(std::string_view key) const;
  std::optional<std::string_view> text(std::string_view key) const;
  std::optional<JsonFields> fields(std::string_view key) const;
  std::optional<std::vector<int64_t>> integers(std::string_view key) const;
  std::optional<std::vector<double>> numbers(std::string_view key) const;
  std::optional<std::vector<std::string_view>> texts(std::string_view key) const;

  int64_t required_integer(std::string_view key) const;
  double required_number(std::string_view key) const;
  bool required_boolean(std::string_view key) const;
  std::string_view required_text(std::string_view key) const;
  JsonFields required_fields(std::string_view key) const;

 private:
  template <typename T>
  T require(std::string_view key, std::optional<T> value) const;

  const boost::json::object* object_;
  std::string where_;
};

}  // namespace drover
