#include "formats/gguf_writer.h"

#include "base/error.h"
#include "formats/tensor_writer.h"

namespace drover {
namespace {

using gguf_internal::append;
using gguf_internal::append_array_head;

void append_string(std::string& out, std::string_view text) {
  append(out, static_cast<uint64_t>(text.size()));
  out.append(text);
}

template <typename Strings>
std::string encode_strings(const Strings& strings) {
  std::string out;
  append_array_head(out, GgufType::kString, strings.size());
  for (const std::string_view text : strings) append_string(out, text);
  return out;
}

uint64_t aligned(uint64_t offset) {
  return (offset + GgufWriter::kAlignment - 1) / GgufWriter::kAlignment * GgufWriter::kAlignment;
}

// add_tensor() has checked that the size exists.
uint64_t bytes_of(const TensorSpec& tensor) {
  return static_cast<uint64_t>(tensor_bytes(tensor.type, tensor.shape).value());
}

}  // namespace

void GgufWriter::set(std::string_view key, std::string_view value) {
  std::string encoded;
  append(encoded, GgufType::kString);
  append_string(encoded, value);
  set_encoded(key, std::move(encoded));
}

void GgufWriter::set(std::string_view key, const std::vector<std::string>& values) {
  set_encoded(key, encode_strings(values));
}

void GgufWriter::set(std::string_view key, const std::vector<std::string_view>& values) {
  set_encoded(key, encode_strings(values));
}

void GgufWriter::set(std::string_view key, const GgufValue& value) {
  const auto bytes = value.encoded();
  set_encoded(key, std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

void GgufWriter::set_encoded(std::string_view key, std::string encoded) {
  if (key.empty() || key.size() > GgufFile::kMaxKeyBytes) {
    throw_error(ErrorKind::kLimit, "GGUF key {}: expected 1 to {} bytes, got {}", printable(key),
                GgufFile::kMaxKeyBytes, key.size());
  }
  if (key == "general.alignment") {
    throw_error(ErrorKind::kInternal, "GGUF key {}: the writer aligns to {} and does not say so",
                key, kAlignment);
  }
  const auto [at, is_new] = key_positions_.try_emplace(std::string(key), keys_.size());
  if (is_new) {
    keys_.push_back({std::string(key), std::move(encoded)});
  } else {
    keys_[at->second].encoded = std::move(encoded);
  }
}

void GgufWriter::copy_metadata(const GgufFile& from,
                               const std::function<bool(std::string_view key)>& keep) {
  for (const GgufEntry& entry : from.metadata()) {
    if (entry.key == "general.alignment" || entry.key.starts_with("split.")) continue;
    if (!keep || keep(entry.key)) set(entry.key, entry.value);
  }
}

void GgufWriter::remove(std::string_view key) {
  const auto at = key_positions_.find(key);
  if (at == key_positions_.end()) return;
  const size_t position = at->second;
  key_positions_.erase(at);
  keys_.erase(keys_.begin() + static_cast<std::ptrdiff_t>(position));
  for (auto& [name, other] : key_positions_) {
    if (other > position) --other;
  }
}

void GgufWriter::add_tensor(std::string name, DType type, std::vector<int64_t> shape) {
  if (name.empty() || name.size() > kMaxNameBytes) {
    throw_error(ErrorKind::kLimit, "tensor {}: expected a name of 1 to {} bytes, got {}",
                printable(name), kMaxNameBytes, name.size());
  }
  if (shape.empty() || shape.size() > 4) {
    throw_error(ErrorKind::kLimit, "tensor {}: expected 1 to 4 dimensions, got {}", printable(name),
                shape.size());
  }
  if (tensor_bytes(type, shape).value_or(0) == 0) {
    throw_error(ErrorKind::kInternal, "tensor {}: {} cannot have the shape [{}]", printable(name),
                dtype_name(type), fmt::join(shape, ", "));
  }
  if (!tensor_positions_.try_emplace(name, tensors_.size()).second) {
    throw_error(ErrorKind::kInternal, "tensor {}: added twice", printable(name));
  }
  tensors_.push_back({std::move(name), type, std::move(shape)});
}

void GgufWriter::write(const std::filesystem::path& path, const TensorProducer& producer,
                       const Progress& progress) const {
  std::string tables = "GGUF";
  append(tables, uint32_t{3});
  append(tables, static_cast<uint64_t>(tensors_.size()));
  append(tables, static_cast<uint64_t>(keys_.size()));
  for (const Key& key : keys_) {
    append_string(tables, key.key);
    tables += key.encoded;
  }
  uint64_t offset = 0, total = 0;
  for (const TensorSpec& tensor : tensors_) {
    append_string(tables, tensor.name);
    append(tables, static_cast<uint32_t>(tensor.shape.size()));
    for (size_t i = tensor.shape.size(); i-- > 0;)
      append(tables, static_cast<uint64_t>(tensor.shape[i]));
    append(tables, tensor.type);
    append(tables, offset);
    offset = aligned(offset + bytes_of(tensor));
    total += bytes_of(tensor);
  }

  FileWriter file(path);
  file.write(tables);
  file.pad(kAlignment);
  uint64_t done = 0;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const uint64_t bytes = bytes_of(tensors_[i]);
    write_tensor_data(file, i, tensors_[i].name, bytes, producer, progress, done, total);
    file.pad(kAlignment);
    done += bytes;
  }
  file.commit();
}

}  // namespace drover
