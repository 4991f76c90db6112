#include "train/checkpoint.h"

#include <algorithm>
#include <bit>
#include <boost/json.hpp>
#include <charconv>
#include <cstring>

#include "base/byte_reader.h"
#include "base/crc32c.h"
#include "base/file_writer.h"
#include "base/mapped_file.h"
#include "formats/json.h"

namespace drover {
namespace {

namespace json = boost::json;
namespace fs = std::filesystem;

constexpr std::string_view kMagic = "DRCKPT01";
constexpr std::string_view kPrefix = "step-", kSuffix = ".checkpoint";
constexpr JsonLimits kHeadLimits = {.bytes = size_t{64} << 20, .values = 2'000'000, .depth = 8};

// As their 64 bits: decimal numbers may come back rounded.
json::value to_json(double x) { return std::bit_cast<int64_t>(x); }
double to_double(const json::value& value) { return std::bit_cast<double>(value.get_int64()); }

json::object to_json(const TrainingCursor& c) {
  json::array scores;
  for (const RunningScore& s : c.scores) {
    scores.push_back({to_json(s.weight), to_json(s.loss), to_json(s.correct)});
  }
  return {{"step", c.step},
          {"stage", c.stage},
          {"stage_step", c.stage_step},
          {"example", static_cast<int64_t>(c.example)},
          {"evaluated", c.evaluated},
          {"optimizer_steps", c.optimizer_steps},
          {"tokens", c.tokens},
          {"seconds", to_json(c.seconds)},
          {"scores", scores}};
}

TrainingCursor cursor_from(const JsonFields& f) {
  TrainingCursor c;
  c.step = f.required_integer("step");
  c.stage = f.required_integer("stage");
  c.stage_step = f.required_integer("stage_step");
  c.example = static_cast<uint64_t>(f.required_integer("example"));
  c.evaluated = f.required_integer("evaluated");
  c.optimizer_steps = f.required_integer("optimizer_steps");
  c.tokens = f.required_integer("tokens");
  c.seconds = std::bit_cast<double>(f.required_integer("seconds"));
  const json::value* scores = f.find("scores");
  if (scores == nullptr || !scores->is_array()) {
    throw_error(ErrorKind::kBadData, "{}: expected a list of scores", f.where());
  }
  for (const json::value& value : scores->get_array()) {
    const json::array* s = value.if_array();
    if (s == nullptr || s->size() != 3 || !(*s)[0].is_int64() || !(*s)[1].is_int64() ||
        !(*s)[2].is_int64()) {
      throw_error(ErrorKind::kBadData, "{}: scores: expected three integers each", f.where());
    }
    c.scores.push_back({to_double((*s)[0]), to_double((*s)[1]), to_double((*s)[2])});
  }
  return c;
}

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

template <typename T>
void write_scalar(FileWriter& out, T scalar) {
  out.write(std::as_bytes(std::span(&scalar, 1)));
}

}  // namespace

bool TrainingCursor::operator==(const TrainingCursor& other) const {
  return to_json(*this) == to_json(other);
}

void write_checkpoint(const fs::path& path, const Digest& digest, const TrainingCursor& cursor,
                      std::span<const NamedFloats> arrays) {
  json::array table;
  for (const NamedFloats& array : arrays) {
    table.push_back({{"name", array.name},
                     {"floats", array.values.size()},
                     {"crc32c", crc32c(std::as_bytes(array.values))}});
  }
  const std::string head = json::serialize(
      json::object{{"digest", hex(digest)}, {"cursor", to_json(cursor)}, {"arrays", table}});
  FileWriter out(path);
  out.write(kMagic);
  write_scalar<uint64_t>(out, head.size());
  write_scalar<uint32_t>(out, crc32c(bytes_of(head)));
  out.write(head);
  for (const NamedFloats& array : arrays) out.write(std::as_bytes(array.values));
  out.commit();
}

TrainingCursor read_checkpoint(const fs::path& path, const Digest& digest,
                               std::span<const NamedFloats> arrays) {
  const MappedFile file(path);
  const std::string source = printable(file.path(), 300);
  ByteReader reader(file.bytes(), source);
  if (reader.text(kMagic.size(), "magic") != kMagic) {
    throw_error(ErrorKind::kBadData, "{}: expected a checkpoint of a training, got something else",
                source);
  }
  const auto head_bytes = reader.scalar<uint64_t>("size of the head");
  const auto head_sum = reader.scalar<uint32_t>("checksum of the head");
  const std::string_view head = reader.text(head_bytes, "head");
  if (crc32c(bytes_of(head)) != head_sum) {
    throw_error(ErrorKind::kBadData, "{}: head: expected checksum {:08x}, got {:08x}", source,
                head_sum, crc32c(bytes_of(head)));
  }
  const json::value value = parse_json(head, source, kHeadLimits);
  if (!value.is_object()) throw_error(ErrorKind::kBadData, "{}: expected an object", source);
  const JsonFields fields(value.get_object(), source);
  if (fields.required_text("digest") != hex(digest)) {
    throw Error(
        ErrorKind::kUnsupported,
        fmt::format("{}: expected a checkpoint of this recipe ({}), got one of another ({})",
                    source, short_hex(digest),
                    printable(fields.required_text("digest").substr(0, 12))),
        "the recipe, its data, its model's configuration or its tokenizer changed since; put them "
        "back, or begin in another folder");
  }
  TrainingCursor cursor = cursor_from(fields.required_fields("cursor"));

  const json::value* list = fields.find("arrays");
  if (list == nullptr || !list->is_array() || list->get_array().size() != arrays.size()) {
    throw_error(ErrorKind::kBadData, "{}: expected a list of {} arrays", source, arrays.size());
  }
  std::vector<std::span<const std::byte>> found;
  for (size_t i = 0; i < arrays.size(); ++i) {
    const json::value& entry = list->get_array()[i];
    if (!entry.is_object()) throw_error(ErrorKind::kBadData, "{}: array {}: no object", source, i);
    const JsonFields array(entry.get_object(), fmt::format("{}: array {}", source, i));
    const auto floats = static_cast<uint64_t>(array.required_integer("floats"));
    if (array.required_text("name") != arrays[i].name || floats != arrays[i].values.size()) {
      throw_error(ErrorKind::kBadData, "{}: expected '{}' of {} floats, got '{}' of {}",
                  array.where(), printable(arrays[i].name), arrays[i].values.size(),
                  printable(array.required_text("name")), floats);
    }
    const auto bytes = reader.take(arrays[i].values.size_bytes(), arrays[i].name);
    if (crc32c(bytes) != static_cast<uint64_t>(array.required_integer("crc32c"))) {
      throw_error(ErrorKind::kBadData, "{}: '{}' is damaged: its checksum is another", source,
                  printable(arrays[i].name));
    }
    found.push_back(bytes);
  }
  if (reader.remaining() != 0) {
    throw_error(ErrorKind::kBadData, "{}: expected the end at byte {}, got {} more", source,
                reader.offset(), reader.remaining());
  }
  for (size_t i = 0; i < arrays.size(); ++i) {
    if (!found[i].empty()) std::memcpy(arrays[i].values.data(), found[i].data(), found[i].size());
  }
  return cursor;
}

fs::path checkpoint_path(const fs::path& folder, int64_t step) {
  return folder / fmt::format("{}{:08}{}", kPrefix, step, kSuffix);
}

namespace {

// The step in a name such as step-00001200.checkpoint; nothing for any other name.
std::optional<int64_t> step_of(std::string_view name, std::string_view suffix) {
  if (!name.starts_with(kPrefix) || !name.ends_with(suffix)) return std::nullopt;
  name.remove_prefix(kPrefix.size());
  name.remove_suffix(std::min(name.size(), suffix.size()));
  int64_t step = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), step);
  if (error != std::errc() || end != name.data() + name.size() || step < 0) return std::nullopt;
  return step;
}

// Files of steps in the folder, the newest first.
std::vector<fs::path> steps_in(const fs::path& folder, std::string_view suffix) {
  std::vector<std::pair<int64_t, fs::path>> found;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const auto step = step_of(entry.path().filename().string(), suffix);
    if (step) found.emplace_back(*step, entry.path());
  }
  std::sort(found.begin(), found.end(), std::greater<>());
  std::vector<fs::path> out;
  for (auto& [step, path] : found) out.push_back(std::move(path));
  return out;
}

}  // namespace

std::vector<fs::path> checkpoints_in(const fs::path& folder) { return steps_in(folder, kSuffix); }

void remove_unfinished(const fs::path& folder) {
  std::error_code ignored;
  for (const fs::path& file : steps_in(folder, std::string(kSuffix) + ".partial")) {
    fs::remove(file, ignored);
  }
}

}  // namespace drover
