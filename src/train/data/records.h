// Records of a table, whatever form its file has. Pure functions, thread-safe.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace drover {

// Fields by name; those that are empty or null are left out.
using Record = std::map<std::string, std::string, std::less<>>;

// Lines of values under a line of names (RFC 4180: quotes around values with delimiters, quotes or
// line breaks in them). kBadData names `source` and the line where a record has more or fewer
// values than there are names, or a quote is not closed.
std::vector<Record> read_separated(std::string_view text, char delimiter,
                                   const std::string& source);

// JSON objects, one a line, of texts, numbers and booleans. kBadData names `source` and the line.
std::vector<Record> read_json_lines(std::string_view text, const std::string& source);

// A text with {fields} in it; {{ and }} are braces. Plain data.
class Template {
 public:
  // `source` is named in errors: kBadData for a brace without its other.
  Template(std::string_view text, const std::string& source);

  const std::vector<std::string>& fields() const { return fields_; }
  // The text for a record that has all fields.
  std::string fill(const Record& record) const;

 private:
  std::vector<std::string> texts_;  // before each field, and after the last
  std::vector<std::string> fields_;
};

}  // namespace drover
