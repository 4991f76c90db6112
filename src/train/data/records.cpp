#include "train/data/records.h"

#include "base/error.h"
#include "formats/json.h"
#include "train/data/files.h"

namespace drover {
namespace {

// The values of the record at text[at]; goes on behind its line break and counts lines.
std::vector<std::string> next_record(std::string_view text, char delimiter,
                                     const std::string& source, size_t& at, int64_t& line) {
  const int64_t first = line;
  std::vector<std::string> out(1);
  bool quoted = false;
  while (at < text.size()) {
    const char c = text[at++];
    if (quoted) {
      if (c == '"' && at < text.size() && text[at] == '"') {
        out.back() += text[at++];
      } else if (c == '"') {
        quoted = false;
      } else {
        line += c == '\n';
        out.back() += c;
      }
    } else if (c == '"' && out.back().empty()) {
      quoted = true;
    } else if (c == delimiter) {
      out.emplace_back();
    } else if (c == '\n') {
      ++line;
      break;
    } else if (c != '\r' || at == text.size() || text[at] != '\n') {
      out.back() += c;
    }
  }
  if (quoted) throw_error(ErrorKind::kBadData, "{}:{}: a quote is not closed", source, first);
  return out;
}

}  // namespace

std::vector<Record> read_separated(std::string_view text, char delimiter,
                                   const std::string& source) {
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);  // what some programs begin with
  std::vector<Record> out;
  size_t at = 0;
  int64_t line = 1;
  const std::vector<std::string> names = next_record(text, delimiter, source, at, line);
  while (at < text.size()) {
    const int64_t first = line;
    std::vector<std::string> values = next_record(text, delimiter, source, at, line);
    if (values.size() == 1 && values[0].empty()) continue;
    if (values.size() != names.size()) {
      throw_error(ErrorKind::kBadData, "{}:{}: expected {} values, got {}", source, first,
                  names.size(), values.size());
    }
    Record record;
    for (size_t i = 0; i < names.size(); ++i) {
      if (!values[i].empty()) record[names[i]] = std::move(values[i]);
    }
    out.push_back(std::move(record));
  }
  return out;
}

std::vector<Record> read_json_lines(std::string_view text, const std::string& source) {
  std::vector<Record> out;
  for_each_line(text, [&](std::string_view line, int64_t number) {
    const std::string where = fmt::format("{}:{}", source, number);
    const boost::json::value value = parse_json(line, where);
    if (!value.is_object()) throw_error(ErrorKind::kBadData, "{}: expected a JSON object", where);
    Record record;
    for (const auto& [key, field] : value.get_object()) {
      const std::string name(key);
      if (field.is_object() || field.is_array()) {
        throw_error(ErrorKind::kBadData, "{}: {}: expected a text or a number", where,
                    printable(name));
      }
      const std::string written = field.is_null()     ? ""
                                  : field.is_string() ? std::string(field.get_string())
                                                      : boost::json::serialize(field);
      if (!written.empty()) record[name] = written;
    }
    out.push_back(std::move(record));
  });
  return out;
}

Template::Template(std::string_view text, const std::string& source) : texts_(1) {
  for (size_t at = 0; at < text.size(); ++at) {
    const char c = text[at];
    const bool twice = text.substr(at + 1, 1) == std::string_view(&c, 1);
    if ((c == '{' || c == '}') && twice) {
      texts_.back() += c;
      ++at;
    } else if (c == '{') {
      const size_t end = text.find('}', at);
      if (end == std::string_view::npos || end == at + 1) {
        throw_error(ErrorKind::kBadData, "{}: expected {{field}} at byte {}, got {}", source, at,
                    printable(text.substr(at, 40)));
      }
      fields_.emplace_back(text.substr(at + 1, end - at - 1));
      texts_.emplace_back();
      at = end;
    } else if (c == '}') {
      throw_error(ErrorKind::kBadData, "{}: expected }}}} for a brace at byte {}", source, at);
    } else {
      texts_.back() += c;
    }
  }
}

std::string Template::fill(const Record& record) const {
  std::string out = texts_[0];
  for (size_t i = 0; i < fields_.size(); ++i) {
    out += record.find(fields_[i])->second;
    out += texts_[i + 1];
  }
  return out;
}

}  // namespace drover
