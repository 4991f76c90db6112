#include "formats/safetensors.h"

#include <algorithm>
#include <array>
#include <boost/json/serialize.hpp>
#include <numeric>
#include <optional>

#include "base/byte_reader.h"
#include "base/checked.h"
#include "formats/json.h"
#include "formats/json_events.h"
#include "formats/name_index.h"
#include "formats/tensor_writer.h"

namespace drover {
namespace {

struct ElementType {
  std::string_view name;
  DType type;
};
// In the order in which the reference writer ranks them: it writes the last ones first.
constexpr std::array kElementTypes = {
    ElementType{"I8", DType::kI8},   ElementType{"I16", DType::kI16},
    ElementType{"F16", DType::kF16}, ElementType{"BF16", DType::kBF16},
    ElementType{"I32", DType::kI32}, ElementType{"F32", DType::kF32},
    ElementType{"F64", DType::kF64}, ElementType{"I64", DType::kI64},
};

// A tensor as the header describes it.
struct HeaderTensor {
  NamedTensor tensor;
  uint64_t begin = 0, end = 0;  // in the data section
};

// Reads the header from its JSON events. Only what the format allows gets through, so nothing but
// tensors and metadata takes memory.
class HeaderReader {
 public:
  static constexpr size_t kMaxKeyBytes = SafetensorsFile::kMaxNameBytes;
  static constexpr size_t kMaxTextBytes = SafetensorsFile::kMaxMetadataBytes;

  HeaderReader(const std::string& source, std::deque<std::string>& names,
               SafetensorsMetadata& metadata)
      : source_(source), names_(names), metadata_(metadata) {}

  std::vector<HeaderTensor> take() { return std::move(tensors_); }

  void begin(bool object) {
    switch (place_) {
      case Place::kTop:
        if (!object) refuse("expected an object, got an array");
        place_ = Place::kHeader;
        return;
      case Place::kHeader:
        if (!object) refuse("expected an object, got an array");
        if (key_ == "__metadata__") {
          if (has_metadata_) refuse("expected once, got twice");
          has_metadata_ = true;
          place_ = Place::kMetadata;
        } else {
          begin_tensor();
          place_ = Place::kTensor;
        }
        return;
      case Place::kTensor:
        if (object || (key_ != "shape" && key_ != "data_offsets")) break;
        place_ = key_ == "shape" ? Place::kShape : Place::kOffsets;
        return;
      case Place::kMetadata:
      case Place::kShape:
      case Place::kOffsets:
        break;
    }
    refuse(object ? "expected a plain value, got an object"
                  : "expected a plain value, got an array");
  }

  void end() {
    switch (place_) {
      case Place::kTensor:
        end_tensor();
        place_ = Place::kHeader;
        return;
      case Place::kShape:
        has_shape_ = true;
        place_ = Place::kTensor;
        return;
      case Place::kOffsets:
        if (offsets_.size() != 2) refuse("expected two numbers");
        has_offsets_ = true;
        place_ = Place::kTensor;
        return;
      case Place::kMetadata:
        place_ = Place::kHeader;
        return;
      case Place::kHeader:
      case Place::kTop:
        place_ = Place::kTop;
        return;
    }
  }

  void key(std::string_view text) {
    key_ = text;
    if (place_ != Place::kTensor) return;
    const bool seen = key_ == "dtype"          ? type_.has_value()
                      : key_ == "shape"        ? has_shape_
                      : key_ == "data_offsets" ? has_offsets_
                                               : false;
    if (seen) refuse("expected once, got twice");
    if (key_ != "dtype" && key_ != "shape" && key_ != "data_offsets") {
      refuse("expected dtype, shape or data_offsets");
    }
  }

  void scalar(const JsonScalar& scalar) {
    const auto* text = std::get_if<std::string_view>(&scalar);
    switch (place_) {
      case Place::kMetadata:
        if (text == nullptr) refuse("expected a string");
        if (metadata_.size() >= SafetensorsFile::kMaxMetadata) {
          throw_error(ErrorKind::kLimit, "{}: __metadata__: expected at most {} keys, got more",
                      source_, SafetensorsFile::kMaxMetadata);
        }
        if (!metadata_.try_emplace(key_, *text).second) refuse("expected once, got twice");
        return;
      case Place::kTensor:
        if (key_ != "dtype" || text == nullptr) {
          refuse(key_ == "dtype" ? "expected a string" : "expected an array");
        }
        type_.emplace(*text);
        return;
      case Place::kShape:
        if (shape_.size() >= SafetensorsFile::kMaxRank) {
          throw_error(ErrorKind::kLimit, "{}: expected at most {} dimensions, got more", where(),
                      SafetensorsFile::kMaxRank);
        }
        shape_.push_back(size(scalar));
        return;
      case Place::kOffsets:
        if (offsets_.size() >= 2) refuse("expected two numbers, got more");
        offsets_.push_back(size(scalar));
        return;
      case Place::kTop:
      case Place::kHeader:
        refuse("expected an object");
    }
  }

 private:
  enum class Place { kTop, kHeader, kMetadata, kTensor, kShape, kOffsets };

  bool in_tensor() const {
    return place_ == Place::kTensor || place_ == Place::kShape || place_ == Place::kOffsets;
  }
  std::string where() const {
    if (in_tensor()) return fmt::format("{}: tensor {}", source_, printable(names_.back()));
    return place_ == Place::kMetadata ? source_ + ": __metadata__" : source_ + ": header";
  }
  [[noreturn]] void refuse(std::string_view why) const {
    if (place_ == Place::kTop) throw_error(ErrorKind::kBadData, "{}: {}", where(), why);
    throw_error(ErrorKind::kBadData, "{}: key {}: {}", where(), printable(key_), why);
  }

  int64_t size(const JsonScalar& scalar) const {
    const auto* number = std::get_if<int64_t>(&scalar);
    if (number == nullptr || *number < 0) refuse("expected integers from 0 to 2^63 - 1");
    return *number;
  }

  void begin_tensor() {
    if (tensors_.size() >= SafetensorsFile::kMaxTensors) {
      throw_error(ErrorKind::kLimit, "{}: expected at most {} tensors, got more", source_,
                  SafetensorsFile::kMaxTensors);
    }
    names_.push_back(key_);
    type_.reset();
    shape_.clear();
    offsets_.clear();
    has_shape_ = has_offsets_ = false;
  }

  void end_tensor() {
    if (!type_ || !has_shape_ || !has_offsets_) {
      throw_error(ErrorKind::kBadData, "{}: missing key {}", where(),
                  !type_        ? "dtype"
                  : !has_shape_ ? "shape"
                                : "data_offsets");
    }
    const auto known = std::find_if(kElementTypes.begin(), kElementTypes.end(),
                                    [&](const ElementType& e) { return e.name == *type_; });
    if (known == kElementTypes.end()) {
      throw Error(ErrorKind::kUnsupported,
                  fmt::format("{}: element type {} is not supported", where(), printable(*type_)),
                  "save the model in BF16, F16 or F32");
    }
    const auto bytes = tensor_bytes(known->type, shape_);
    if (!bytes) {
      throw_error(ErrorKind::kBadData, "{}: expected a size below 2^63, got the shape [{}]",
                  where(), fmt::join(shape_, ", "));
    }
    if (offsets_[1] < offsets_[0] || offsets_[1] - offsets_[0] != *bytes) {
      throw_error(ErrorKind::kBadData, "{}: expected {} bytes ({} of [{}]), got data_offsets [{}]",
                  where(), *bytes, known->name, fmt::join(shape_, ", "), fmt::join(offsets_, ", "));
    }
    HeaderTensor out;
    out.tensor = {names_.back(), known->type, shape_, nullptr, *bytes};
    out.begin = static_cast<uint64_t>(offsets_[0]);
    out.end = static_cast<uint64_t>(offsets_[1]);
    tensors_.push_back(std::move(out));
  }

  const std::string& source_;
  std::deque<std::string>& names_;
  SafetensorsMetadata& metadata_;
  std::vector<HeaderTensor> tensors_;

  Place place_ = Place::kTop;
  std::string key_;
  bool has_metadata_ = false;
  // Of the tensor that is being read:
  std::optional<std::string> type_;
  std::vector<int64_t> shape_, offsets_;
  bool has_shape_ = false, has_offsets_ = false;
};

// Puts the tensors into file order and refuses ranges that do not cover `data` exactly once.
void place_tensors(const std::string& source, std::span<const std::byte> data,
                   std::vector<HeaderTensor>& tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const HeaderTensor& a, const HeaderTensor& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t covered = 0;
  for (HeaderTensor& t : tensors) {
    if (t.begin != covered) {
      throw_error(ErrorKind::kBadData, "{}: tensor {}: expected its data at byte {}, got {} ({})",
                  source, printable(t.tensor.name), covered, t.begin,
                  t.begin < covered ? "an overlap" : "a hole");
    }
    if (t.end > data.size()) {
      throw Error(
          ErrorKind::kBadData,
          fmt::format("{}: tensor {}: expected data up to byte {}, got a data section of {} bytes",
                      source, printable(t.tensor.name), t.end, data.size()),
          "the file is cut short or damaged; fetch it again");
    }
    t.tensor.data = data.data() + t.begin;
    covered = t.end;
  }
  if (covered != data.size()) {
    throw_error(ErrorKind::kBadData, "{}: expected {} bytes of data, got {}", source, covered,
                data.size());
  }
}

// The file `name` of the folder; `index` lists it. A name from outside must not lead elsewhere.
std::filesystem::path shard_path(const std::filesystem::path& folder, std::string_view name,
                                 const std::string& index) {
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string_view::npos ||
      name.find('\\') != std::string_view::npos || name.find('\0') != std::string_view::npos) {
    throw_error(ErrorKind::kBadData, "{}: expected a plain file name for a shard, got {}", index,
                printable(name));
  }
  const std::filesystem::path path = folder / name;
  std::error_code code;
  const auto home = std::filesystem::canonical(folder, code);
  if (code) throw_errno("resolve", folder.string(), code.value());
  const auto target = std::filesystem::canonical(path, code);
  if (code == std::errc::no_such_file_or_directory) {
    throw Error(ErrorKind::kNotFound,
                fmt::format("{}: shard {} is missing", index, printable(name)),
                "put all shards into the folder of the index");
  }
  if (code) throw_errno("resolve", path.string(), code.value());
  if (target.parent_path() == home) return target;
  // The download cache of Hugging Face: MODEL/snapshots/REVISION/NAME links to MODEL/blobs/HASH.
  const auto snapshots = home.parent_path();
  if (snapshots.filename() == "snapshots" &&
      target.parent_path() == snapshots.parent_path() / "blobs") {
    return target;
  }
  throw Error(
      ErrorKind::kBadData,
      fmt::format("{}: expected shard {} to lie in the folder of the index, got a link to {}",
                  index, printable(name), printable(target.string(), 300)),
      "copy the shard into the folder");
}

template <typename Owner>
const NamedTensor* find_tensor(const Owner& tensors, const std::vector<uint32_t>& by_name,
                               std::string_view name) {
  const auto at = find_name(
      by_name, [&](uint32_t i) { return tensors[i].name; }, name);
  return at ? &tensors[*at] : nullptr;
}

}  // namespace

// --- One file -----------------------------------------------------------------------------------

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) {
  SafetensorsFile out(path);
  const std::string source = printable(out.path(), 300);
  ByteReader reader(out.file_.bytes(), source);
  const auto header_bytes = reader.scalar<uint64_t>("header length");
  if (header_bytes > kMaxHeaderBytes) {
    throw_error(ErrorKind::kLimit, "{}: expected a header of at most {} bytes, got {}", source,
                kMaxHeaderBytes, header_bytes);
  }
  const std::string_view header = reader.text(header_bytes, "header");

  HeaderReader header_reader(source, out.names_, out.metadata_);
  parse_json_events(header, source, /*depth=*/8, header_reader);
  std::vector<HeaderTensor> tensors = header_reader.take();
  place_tensors(source, reader.take(reader.remaining(), "data section"), tensors);

  out.tensors_.reserve(tensors.size());
  for (HeaderTensor& t : tensors) out.tensors_.push_back(std::move(t.tensor));
  const auto name_of = [&](uint32_t i) { return out.tensors_[i].name; };
  out.by_name_ = index_by_name(out.tensors_.size(), name_of);
  if (const auto twice = find_duplicate(out.by_name_, name_of)) {
    throw_error(ErrorKind::kBadData, "{}: tensor {}: expected once, got twice", source,
                printable(name_of(*twice)));
  }
  return out;
}

const NamedTensor* SafetensorsFile::find(std::string_view name) const {
  return find_tensor(tensors_, by_name_, name);
}

// --- Sets ---------------------------------------------------------------------------------------

SafetensorsSet SafetensorsSet::open(const std::filesystem::path& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    for (const char* name : {"model.safetensors", "model.safetensors.index.json"}) {
      if (std::filesystem::exists(path / name, ignored)) return open(path / name);
    }
    throw Error(
        ErrorKind::kNotFound,
        fmt::format("{}: expected model.safetensors or model.safetensors.index.json, got neither",
                    printable(path.string(), 300)),
        "weights in other formats (.bin, .pth) are not read");
  }
  if (path.extension() == ".json") return open_index(path);
  SafetensorsSet out;
  out.files_.push_back(SafetensorsFile::open(path));
  const auto tensors = out.files_.front().tensors();
  out.tensors_.assign(tensors.begin(), tensors.end());
  out.by_name_ = index_by_name(tensors.size(), [&](uint32_t i) { return tensors[i].name; });
  return out;
}

SafetensorsSet SafetensorsSet::open_index(const std::filesystem::path& path) {
  const std::string source = printable(path.string(), 300);
  const boost::json::object index = read_json_object(path);
  const JsonFields weight_map = JsonFields(index, source).required_fields("weight_map");
  const auto folder = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");

  SafetensorsSet out;
  std::map<std::string_view, size_t> shards;  // name to position in files_
  for (const auto& item : weight_map.object()) {
    const std::string_view shard = weight_map.required_text({item.key().data(), item.key().size()});
    if (!shards.try_emplace(shard, shards.size()).second) continue;
    out.files_.push_back(SafetensorsFile::open(shard_path(folder, shard, source)));
  }
  for (const auto& item : weight_map.object()) {
    const std::string_view name{item.key().data(), item.key().size()};
    const std::string_view shard = weight_map.required_text(name);
    const NamedTensor* tensor = out.files_[shards.at(shard)].find(name);
    if (tensor == nullptr) {
      throw_error(ErrorKind::kBadData, "{}: expected tensor {} in shard {}, which does not have it",
                  source, printable(name), printable(shard));
    }
    out.tensors_.push_back(*tensor);
  }
  std::sort(out.tensors_.begin(), out.tensors_.end(),
            [](const NamedTensor& a, const NamedTensor& b) { return a.name < b.name; });
  out.by_name_.resize(out.tensors_.size());
  std::iota(out.by_name_.begin(), out.by_name_.end(), 0u);
  return out;
}

const NamedTensor* SafetensorsSet::find(std::string_view name) const {
  return find_tensor(tensors_, by_name_, name);
}

const SafetensorsMetadata& SafetensorsSet::metadata() const {
  static const SafetensorsMetadata kNone;
  return files_.empty() ? kNone : files_.front().metadata();
}

uint64_t SafetensorsSet::file_bytes() const {
  uint64_t sum = 0;
  for (const SafetensorsFile& file : files_) sum += file.file_bytes();
  return sum;
}

// --- Writing ------------------------------------------------------------------------------------

void write_safetensors(const std::filesystem::path& path, std::span<const TensorSpec> tensors,
                       const SafetensorsMetadata& metadata, const TensorProducer& producer,
                       const Progress& progress) {
  std::vector<size_t> ranks;  // positions in kElementTypes
  for (const TensorSpec& tensor : tensors) {
    const auto known = std::find_if(kElementTypes.begin(), kElementTypes.end(),
                                    [&](const ElementType& e) { return e.type == tensor.type; });
    if (known == kElementTypes.end()) {
      throw_error(ErrorKind::kUnsupported, "tensor {}: safetensors has no type {}",
                  printable(tensor.name), dtype_name(tensor.type));
    }
    ranks.push_back(static_cast<size_t>(known - kElementTypes.begin()));
  }
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return ranks[a] != ranks[b] ? ranks[a] > ranks[b] : tensors[a].name < tensors[b].name;
  });

  const auto quote = [](std::string_view text) {
    return boost::json::serialize(boost::json::string_view(text.data(), text.size()));
  };
  std::string header = "{";
  if (!metadata.empty()) {
    header += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      if (header.back() != '{') header += ',';
      header += quote(key) + ":" + quote(value);
    }
    header += '}';
  }
  std::vector<uint64_t> sizes;
  uint64_t total = 0;
  std::map<std::string_view, size_t> names;
  for (const size_t i : order) {
    const TensorSpec& tensor = tensors[i];
    const auto bytes = tensor_bytes(tensor.type, tensor.shape);
    if (!bytes || tensor.name == "__metadata__" || !names.try_emplace(tensor.name, i).second) {
      throw_error(
          ErrorKind::kInternal, "tensor {}: {}", printable(tensor.name),
          bytes ? "added twice, or a name that the format keeps for itself" : "impossible shape");
    }
    if (header.back() != '{') header += ',';
    header +=
        fmt::format("{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                    quote(tensor.name), kElementTypes[ranks[i]].name, fmt::join(tensor.shape, ","),
                    total, total + static_cast<uint64_t>(*bytes));
    sizes.push_back(static_cast<uint64_t>(*bytes));
    total += static_cast<uint64_t>(*bytes);
  }
  header += '}';
  header.resize((header.size() + 7) / 8 * 8, ' ');

  FileWriter file(path);
  const uint64_t header_bytes = header.size();
  file.write(std::as_bytes(std::span(&header_bytes, 1)));
  file.write(header);
  uint64_t done = 0;
  for (size_t k = 0; k < order.size(); ++k) {
    write_tensor_data(file, order[k], tensors[order[k]].name, sizes[k], producer, progress, done,
                      total);
    done += sizes[k];
  }
  file.commit();
}

}  // namespace drover
