#include "eval/recall_map.h"

#include <boost/json.hpp>

#include "base/error.h"
#include "base/file_writer.h"
#include "formats/json.h"

namespace drover {
namespace {

namespace json = boost::json;

constexpr int64_t kVersion = 1;

double share(const JsonFields& f, std::string_view key) {
  const double value = f.required_number(key);
  if (!(value >= 0 && value <= 1)) {
    throw_error(ErrorKind::kBadData, "{}: '{}': expected 0 to 1, got {}", f.where(), key, value);
  }
  return value;
}

int64_t count(const JsonFields& f, std::string_view key, int64_t least) {
  const int64_t value = f.required_integer(key);
  if (value < least) {
    throw_error(ErrorKind::kBadData, "{}: '{}': expected at least {}, got {}", f.where(), key,
                least, value);
  }
  return value;
}

}  // namespace

int64_t vouched_length(const RecallMap& map, double threshold) {
  int64_t out = 0;
  if (map.control_recall > 0) return out;
  for (const RecallMap::Length& length : map.lengths) {
    if (length.recall < threshold) break;
    out = length.length;
  }
  return out;
}

void save_recall_map(const RecallMap& map, const std::filesystem::path& path) {
  json::array lengths;
  for (const RecallMap::Length& length : map.lengths) {
    json::object kinds;
    for (const auto& [kind, recall] : length.by_kind) kinds[kind] = recall;
    lengths.push_back({{"length", length.length},
                       {"trials", length.trials},
                       {"recall", length.recall},
                       {"kinds", kinds}});
  }
  write_file(path,
             json::serialize(json::object{{"drover_recall_map", kVersion},
                                          {"model", map.model},
                                          {"threshold", map.threshold},
                                          {"vouched_length", vouched_length(map, map.threshold)},
                                          {"control_trials", map.control_trials},
                                          {"control_recall", map.control_recall},
                                          {"lengths", lengths}}) +
                 "\n");
}

RecallMap load_recall_map(const std::filesystem::path& path) {
  const json::object object = read_json_object(path);
  const std::string source = printable(path.string(), 300);
  const JsonFields f(object, source);
  if (f.integer("drover_recall_map") != kVersion) {
    throw Error(ErrorKind::kBadData,
                fmt::format("{}: expected a recall map of version {}", source, kVersion),
                "`drover needle MODEL --recall-map FILE` makes one");
  }
  RecallMap out;
  out.model = f.required_text("model");
  out.threshold = share(f, "threshold");
  out.control_trials = count(f, "control_trials", 0);
  out.control_recall = share(f, "control_recall");
  const json::value* lengths = f.find("lengths");
  if (lengths == nullptr || !lengths->is_array()) {
    throw_error(ErrorKind::kBadData, "{}: 'lengths': expected a list", source);
  }
  int64_t last = 0;
  for (const json::value& value : lengths->get_array()) {
    if (!value.is_object()) {
      throw_error(ErrorKind::kBadData, "{}: 'lengths': expected objects", source);
    }
    const JsonFields one(value.get_object(), source + ": lengths");
    RecallMap::Length length;
    length.length = count(one, "length", last + 1);
    length.trials = count(one, "trials", 1);
    length.recall = share(one, "recall");
    if (const auto kinds = one.fields("kinds")) {
      for (const auto& kind : kinds->object()) {
        length.by_kind[std::string(kind.key())] = share(*kinds, kind.key());
      }
    }
    last = length.length;
    out.lengths.push_back(std::move(length));
  }
  return out;
}

}  // namespace drover
