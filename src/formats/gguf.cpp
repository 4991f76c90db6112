#include "formats/gguf.h"

#include <bit>
#include <cctype>
#include <numeric>

#include "base/byte_reader.h"
#include "base/checked.h"
#include "formats/name_index.h"

namespace drover {
namespace {

constexpr uint64_t kDefaultAlignment = 32;
// The fewest bytes an entry of the two tables takes: they bound the counts before any allocation.
constexpr uint64_t kMinKeyBytes = 8 + 1 + 4 + 1;  // name of one byte, type, one byte
constexpr uint64_t kMinTensorBytes =
    8 + 1 + 4 + 8 + 4 + 8;  // name, rank, one dimension, type, offset
constexpr uint32_t kMaxRank = 4;

std::string source_name(const MappedFile& file) { return printable(file.path(), 300); }

// --- One file -----------------------------------------------------------------------------------

// What one file says. The views point into its mapping.
struct Part {
  uint32_t version = 0;
  std::vector<GgufEntry> entries;
  std::vector<uint32_t> entries_by_key;
  std::vector<NamedTensor> tensors;

  const GgufValue* find(std::string_view key) const {
    const auto at = find_name(
        entries_by_key, [&](uint32_t i) { return entries[i].key; }, key);
    return at ? &entries[*at].value : nullptr;
  }
};

// The version, after a magic and a version that we read.
uint32_t read_preamble(ByteReader& reader) {
  const std::string_view magic = reader.text(4, "magic");
  if (magic == "FUGG") {
    throw_error(ErrorKind::kUnsupported,
                "{}: a big-endian GGUF file; only little-endian ones are read", reader.source());
  }
  if (magic != "GGUF") {
    // What a clone of a repository without Git LFS leaves in place of a large file.
    const bool pointer = magic == "vers";
    throw Error(
        ErrorKind::kBadData,
        fmt::format("{}: expected a GGUF file (magic \"GGUF\"), got \"{}\"", reader.source(),
                    printable(magic)),
        pointer ? "if this is a Git LFS pointer, fetch the file itself with `git lfs pull`" : "");
  }
  const auto version = reader.scalar<uint32_t>("version");
  if (version != 0 && (version & 0xffff) == 0) {
    throw_error(ErrorKind::kUnsupported,
                "{}: a big-endian GGUF file; only little-endian ones are read", reader.source());
  }
  if (version != 2 && version != 3) {
    throw Error(ErrorKind::kUnsupported,
                fmt::format("{}: expected GGUF version 2 or 3, got {}", reader.source(), version),
                version == 1 ? "convert the model again with a current tool" : "");
  }
  return version;
}

// Refuses a count of entries of at least `min_bytes` each that the file cannot hold.
void check_count(const ByteReader& reader, std::string_view what, uint64_t count, uint64_t limit,
                 uint64_t min_bytes) {
  if (count > reader.remaining() / min_bytes) {
    throw_error(ErrorKind::kBadData,
                "{}: expected at most {} {} in the {} bytes that follow, got {}", reader.source(),
                reader.remaining() / min_bytes, what, reader.remaining(), count);
  }
  if (count > limit) {
    throw_error(ErrorKind::kLimit, "{}: expected at most {} {}, got {}", reader.source(), limit,
                what, count);
  }
}

std::string_view read_name(ByteReader& reader, std::string_view what, uint64_t limit) {
  const size_t offset = reader.offset();
  const auto length = reader.scalar<uint64_t>(what);
  if (length == 0 || length > limit) {
    throw_error(ErrorKind::kBadData, "{}: {} at byte {}: expected 1 to {} bytes, got {}",
                reader.source(), what, offset, limit, length);
  }
  return reader.text(length, what);
}

GgufEntry read_entry(ByteReader& reader) {
  const std::string_view key = read_name(reader, "key", GgufFile::kMaxKeyBytes);
  return {key, GgufValue::read(reader, key)};
}

uint64_t alignment_of(const Part& part, const ByteReader& reader) {
  const GgufValue* value = part.find("general.alignment");
  if (value == nullptr) return kDefaultAlignment;
  const auto alignment = value->as_unsigned();
  if (!alignment || *alignment < 8 || *alignment > GgufFile::kMaxAlignment ||
      !std::has_single_bit(*alignment)) {
    throw_error(ErrorKind::kBadData,
                "{}: general.alignment: expected a power of two from 8 to {}, got {} {}",
                reader.source(), GgufFile::kMaxAlignment, value->type_name(), value->preview());
  }
  return *alignment;
}

// A tensor of the table without its data, whose place is known once the table has ended.
struct TensorInfo {
  NamedTensor tensor;
  uint64_t offset = 0;  // in the data section
};

TensorInfo read_tensor_info(ByteReader& reader, uint64_t alignment) {
  TensorInfo out;
  NamedTensor& tensor = out.tensor;
  tensor.name = read_name(reader, "tensor name", GgufFile::kMaxTensorNameBytes);
  const auto where = [&] {
    return fmt::format("{}: tensor {}", reader.source(), printable(tensor.name));
  };

  const auto rank = reader.scalar<uint32_t>("number of dimensions");
  if (rank < 1 || rank > kMaxRank) {
    throw_error(ErrorKind::kBadData, "{}: expected 1 to {} dimensions, got {}", where(), kMaxRank,
                rank);
  }
  tensor.shape.resize(rank);
  for (uint32_t i = 0; i < rank; ++i) {
    const auto size = reader.scalar<uint64_t>("dimension");
    if (size == 0 || size > INT64_MAX) {
      throw_error(ErrorKind::kBadData, "{}: expected dimension {} to be 1 to 2^63 - 1, got {}",
                  where(), i, size);
    }
    tensor.shape[rank - 1 - i] = static_cast<int64_t>(size);  // the file has the innermost first
  }

  const auto number = reader.scalar<uint32_t>("tensor type");
  const auto type = dtype_from_gguf(number);
  if (!type) {
    throw_error(ErrorKind::kUnsupported, "{}: type {} ({}) is not supported", where(),
                gguf_type_name(number), number);
  }
  tensor.type = *type;
  const auto bytes = tensor_bytes(*type, tensor.shape);
  if (!bytes) {
    throw_error(
        ErrorKind::kBadData,
        "{}: expected rows in whole blocks of {} values and a size below 2^63, got {} of [{}]",
        where(), dtype_info(*type).block_values, dtype_name(*type), fmt::join(tensor.shape, ", "));
  }
  tensor.bytes = *bytes;

  out.offset = reader.scalar<uint64_t>("tensor offset");
  if (out.offset % alignment != 0) {
    throw_error(ErrorKind::kBadData, "{}: expected an offset that is a multiple of {}, got {}",
                where(), alignment, out.offset);
  }
  return out;
}

// Points each tensor to its bytes in `data`, the file from the data section on, and refuses those
// that leave it or overlap.
void place_tensors(const ByteReader& reader, std::span<const std::byte> data,
                   std::span<const uint64_t> offsets, std::vector<NamedTensor>& tensors) {
  const auto end = [&](size_t i) {
    return checked_add(offsets[i], static_cast<uint64_t>(tensors[i].bytes));
  };
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (end(i).value_or(UINT64_MAX) > data.size()) {
      throw Error(
          ErrorKind::kBadData,
          fmt::format("{}: tensor {}: expected {} bytes at byte {} of the data section, got a "
                      "section of {} bytes",
                      reader.source(), printable(tensors[i].name), tensors[i].bytes, offsets[i],
                      data.size()),
          "the file is cut short or damaged; fetch it again");
    }
    tensors[i].data = data.data() + offsets[i];
  }
  std::vector<uint32_t> order(tensors.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(),
            [&](uint32_t a, uint32_t b) { return offsets[a] < offsets[b]; });
  for (size_t i = 1; i < order.size(); ++i) {
    if (end(order[i - 1]) > offsets[order[i]]) {
      throw_error(ErrorKind::kBadData,
                  "{}: tensors {} and {} overlap at byte {} of the data section", reader.source(),
                  printable(tensors[order[i - 1]].name), printable(tensors[order[i]].name),
                  offsets[order[i]]);
    }
  }
}

Part read_part(const MappedFile& file) {
  ByteReader reader(file.bytes(), source_name(file));
  Part part;
  part.version = read_preamble(reader);
  const auto tensor_count = reader.scalar<uint64_t>("tensor count");
  const auto key_count = reader.scalar<uint64_t>("key count");
  check_count(reader, "keys", key_count, GgufFile::kMaxKeys, kMinKeyBytes);
  check_count(reader, "tensors", tensor_count, GgufFile::kMaxTensors, kMinTensorBytes);

  part.entries.reserve(key_count);
  for (uint64_t i = 0; i < key_count; ++i) part.entries.push_back(read_entry(reader));
  const auto key_of = [&](uint32_t i) { return part.entries[i].key; };
  part.entries_by_key = index_by_name(part.entries.size(), key_of);
  if (const auto twice = find_duplicate(part.entries_by_key, key_of)) {
    throw_error(ErrorKind::kBadData, "{}: key {}: expected once, got twice", reader.source(),
                printable(key_of(*twice)));
  }

  const uint64_t alignment = alignment_of(part, reader);
  // The values may have used up what the tensors were promised.
  check_count(reader, "tensors", tensor_count, GgufFile::kMaxTensors, kMinTensorBytes);
  std::vector<uint64_t> offsets;
  offsets.reserve(tensor_count);
  part.tensors.reserve(tensor_count);
  for (uint64_t i = 0; i < tensor_count; ++i) {
    TensorInfo info = read_tensor_info(reader, alignment);
    offsets.push_back(info.offset);
    part.tensors.push_back(std::move(info.tensor));
  }

  // A file without tensors may end with its tables.
  const uint64_t padding = (alignment - reader.offset() % alignment) % alignment;
  if (tensor_count > 0) reader.take(padding, "padding before the data section");
  place_tensors(reader, reader.take(reader.remaining(), "data section"), offsets, part.tensors);
  return part;
}

// --- Split sets ---------------------------------------------------------------------------------

// NAME-00002-of-00003.gguf
struct SplitName {
  std::string stem;
  uint64_t number = 0;  // from 1
  uint64_t count = 0;

  std::string part(uint64_t i) const {
    return fmt::format("{}-{:05}-of-{:05}.gguf", stem, i, count);
  }
};

std::optional<SplitName> parse_split_name(std::string_view name) {
  constexpr std::string_view kPattern = "-00000-of-00000.gguf";  // 0 stands for any digit
  if (name.size() <= kPattern.size()) return std::nullopt;
  SplitName out;
  out.stem = name.substr(0, name.size() - kPattern.size());
  name.remove_prefix(out.stem.size());
  for (size_t i = 0; i < kPattern.size(); ++i) {
    const bool digit = std::isdigit(static_cast<unsigned char>(name[i])) != 0;
    if (kPattern[i] == '0' ? !digit : name[i] != kPattern[i]) return std::nullopt;
  }
  out.number = std::stoul(std::string(name.substr(1, 5)));
  out.count = std::stoul(std::string(name.substr(10, 5)));
  return out;
}

uint64_t split_value(const Part& part, const MappedFile& file, std::string_view key) {
  const GgufValue* value = part.find(key);
  const auto number = value != nullptr ? value->as_unsigned() : std::nullopt;
  if (!number) {
    throw_error(ErrorKind::kBadData,
                "{}: a part of a split set: expected key {} to be a number, got {}",
                source_name(file), key, value != nullptr ? value->type_name() : "none");
  }
  return *number;
}

void check_split_keys(const Part& part, const MappedFile& file, uint64_t number, uint64_t count) {
  const uint64_t found_number = split_value(part, file, "split.no") + 1;
  const uint64_t found_count = split_value(part, file, "split.count");
  if (found_number != number || found_count != count) {
    throw Error(ErrorKind::kBadData,
                fmt::format("{}: expected part {} of {} by its name, got part {} of {}",
                            source_name(file), number, count, found_number, found_count),
                "give the parts of a split set the names they were published under");
  }
}

MappedFile open_part(const std::filesystem::path& path, uint64_t number, uint64_t count) {
  try {
    return MappedFile(path);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kNotFound) throw;
    throw Error(ErrorKind::kNotFound,
                fmt::format("{}: part {} of {} of the model is missing",
                            printable(path.string(), 300), number, count),
                "put all parts into one folder");
  }
}

}  // namespace

// --- GgufFile -----------------------------------------------------------------------------------

GgufFile GgufFile::open(const std::filesystem::path& path) {
  GgufFile out;
  out.files_.emplace_back(path);
  Part given = read_part(out.files_.front());
  const auto name = parse_split_name(path.filename().string());
  const bool split = (name && name->count > 1) || given.find("split.count") != nullptr;
  if (split) {
    if (!name) {
      // A lone part of a set of one may have any name.
      if (split_value(given, out.files_.front(), "split.count") > 1) {
        throw Error(ErrorKind::kBadData,
                    fmt::format("{}: a part of a split set: expected a name that ends in "
                                "-0000i-of-0000N.gguf",
                                source_name(out.files_.front())),
                    "give the parts of a split set the names they were published under");
      }
    } else {
      check_split_keys(given, out.files_.front(), name->number, name->count);
    }
  }
  const uint64_t count = name && split ? name->count : 1;

  std::vector<Part> parts;
  if (count == 1) {
    parts.push_back(std::move(given));
  } else {
    // The given part is read once more in its turn: simpler than to move it there, and cheap.
    out.files_.clear();
    for (uint64_t i = 1; i <= count; ++i) {
      out.files_.push_back(open_part(path.parent_path() / name->part(i), i, count));
      parts.push_back(read_part(out.files_.back()));
      check_split_keys(parts.back(), out.files_.back(), i, count);
    }
  }

  for (Part& part : parts) {
    std::move(part.tensors.begin(), part.tensors.end(), std::back_inserter(out.tensors_));
    if (out.tensors_.size() > kMaxTensors) {
      throw_error(ErrorKind::kLimit, "{}: expected at most {} tensors in all parts, got more",
                  source_name(out.files_.front()), kMaxTensors);
    }
  }
  const auto name_of = [&](uint32_t i) { return out.tensors_[i].name; };
  out.tensors_by_name_ = index_by_name(out.tensors_.size(), name_of);
  if (const auto twice = find_duplicate(out.tensors_by_name_, name_of)) {
    throw_error(ErrorKind::kBadData, "{}: tensor {}: expected once, got twice",
                source_name(out.files_.front()), printable(name_of(*twice)));
  }
  if (count > 1) {
    const uint64_t expected = split_value(parts.front(), out.files_.front(), "split.tensors.count");
    if (expected != out.tensors_.size()) {
      throw_error(ErrorKind::kBadData, "{}: expected {} tensors in all parts, got {}",
                  source_name(out.files_.front()), expected, out.tensors_.size());
    }
  }
  out.version_ = parts.front().version;
  out.entries_ = std::move(parts.front().entries);
  out.entries_by_key_ = std::move(parts.front().entries_by_key);
  return out;
}

const NamedTensor* GgufFile::find_tensor(std::string_view name) const {
  const auto at = find_name(
      tensors_by_name_, [&](uint32_t i) { return tensors_[i].name; }, name);
  return at ? &tensors_[*at] : nullptr;
}

const GgufValue* GgufFile::find(std::string_view key) const {
  const auto at = find_name(
      entries_by_key_, [&](uint32_t i) { return entries_[i].key; }, key);
  return at ? &entries_[*at].value : nullptr;
}

uint64_t GgufFile::file_bytes() const {
  uint64_t sum = 0;
  for (const MappedFile& file : files_) sum += file.bytes().size();
  return sum;
}

template <typename T>
std::optional<T> GgufFile::get(std::string_view key, std::string_view expected,
                               std::optional<T> (GgufValue::*as)() const) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->count() > kMaxElements) {
    throw_error(ErrorKind::kLimit, "{}: key {}: expected at most {} elements, got {}",
                printable(path(), 300), printable(key), kMaxElements, value->count());
  }
  std::optional<T> out = (value->*as)();
  if (!out) {
    throw_error(ErrorKind::kBadData, "{}: key {}: expected {}, got {} ({})", printable(path(), 300),
                printable(key), expected, value->type_name(), value->preview());
  }
  return out;
}

template <typename T>
T GgufFile::require(std::string_view key, std::optional<T> value) const {
  if (!value) {
    throw_error(ErrorKind::kBadData, "{}: missing key {}", printable(path(), 300), printable(key));
  }
  return std::move(*value);
}

std::optional<uint64_t> GgufFile::unsigned_value(std::string_view key) const {
  return get(key, "an unsigned integer", &GgufValue::as_unsigned);
}
std::optional<int64_t> GgufFile::signed_value(std::string_view key) const {
  return get(key, "a signed integer", &GgufValue::as_signed);
}
std::optional<double> GgufFile::float_value(std::string_view key) const {
  return get(key, "a number", &GgufValue::as_float);
}
std::optional<bool> GgufFile::bool_value(std::string_view key) const {
  return get(key, "a bool", &GgufValue::as_bool);
}
std::optional<std::string_view> GgufFile::string_value(std::string_view key) const {
  return get(key, "a string", &GgufValue::as_string);
}
std::optional<std::vector<std::string_view>> GgufFile::string_array(std::string_view key) const {
  return get(key, "an array of strings", &GgufValue::as_string_array);
}
std::optional<std::vector<int64_t>> GgufFile::signed_array(std::string_view key) const {
  return get(key, "an array of integers", &GgufValue::as_signed_array);
}
std::optional<std::vector<float>> GgufFile::float_array(std::string_view key) const {
  return get(key, "an array of numbers", &GgufValue::as_float_array);
}
std::optional<std::vector<bool>> GgufFile::bool_array(std::string_view key) const {
  return get(key, "an array of bools", &GgufValue::as_bool_array);
}

uint64_t GgufFile::required_unsigned(std::string_view key) const {
  return require(key, unsigned_value(key));
}
int64_t GgufFile::required_signed(std::string_view key) const {
  return require(key, signed_value(key));
}
double GgufFile::required_float(std::string_view key) const {
  return require(key, float_value(key));
}
bool GgufFile::required_bool(std::string_view key) const { return require(key, bool_value(key)); }
std::string_view GgufFile::required_string(std::string_view key) const {
  return require(key, string_value(key));
}
std::vector<std::string_view> GgufFile::required_string_array(std::string_view key) const {
  return require(key, string_array(key));
}
std::vector<int64_t> GgufFile::required_signed_array(std::string_view key) const {
  return require(key, signed_array(key));
}
std::vector<float> GgufFile::required_float_array(std::string_view key) const {
  return require(key, float_array(key));
}
std::vector<bool> GgufFile::required_bool_array(std::string_view key) const {
  return require(key, bool_array(key));
}

}  // namespace drover
