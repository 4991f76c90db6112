// What tests/reference/formats_reference.py talks to: prints a GGUF or safetensors file as JSON,
// and copies one through Drover's reader and writer.
//
//   formats_probe dump FILE
//   formats_probe copy FILE NEW_FILE
#include <boost/json.hpp>
#include <cstdio>
#include <string>

#include "base/error.h"
#include "formats/gguf.h"
#include "formats/gguf_writer.h"
#include "formats/safetensors.h"

namespace drover {
namespace {

namespace json = boost::json;

json::value to_json(uint64_t x) { return x; }
json::value to_json(int64_t x) { return x; }
json::value to_json(bool x) { return x; }
// JSON has no infinities, and a hexadecimal float is exact.
json::value to_json(double x) { return json::string(fmt::format("{:a}", x)); }
json::value to_json(float x) { return to_json(double{x}); }
json::value to_json(std::string_view x) { return json::string(x.data(), x.size()); }

template <typename T>
json::value to_json(const std::vector<T>& list) {
  json::array out;
  for (const T x : list) out.push_back(to_json(x));
  return out;
}

json::value to_json(const GgufValue& value) {
  const auto is = [&](GgufType a, GgufType b) {
    return value.element_type() == a || value.element_type() == b;
  };
  if (value.type() != GgufType::kArray) {
    if (value.type() == GgufType::kString) return to_json(*value.as_string());
    if (value.type() == GgufType::kBool) return to_json(*value.as_bool());
    if (is(GgufType::kF32, GgufType::kF64)) return to_json(*value.as_float());
    return value.as_signed() ? to_json(*value.as_signed()) : to_json(*value.as_unsigned());
  }
  if (is(GgufType::kString, GgufType::kString)) return to_json(*value.as_string_array());
  if (is(GgufType::kBool, GgufType::kBool)) return to_json(*value.as_bool_array());
  if (is(GgufType::kU64, GgufType::kF64)) {
    // The unpacked forms are narrower; these types take eight bytes behind a head of sixteen.
    json::array out;
    for (uint64_t i = 0; i < value.count(); ++i) {
      const std::byte* at = value.encoded().data() + 16 + 8 * i;
      uint64_t bits;
      std::memcpy(&bits, at, 8);
      out.push_back(value.element_type() == GgufType::kU64 ? to_json(bits)
                                                           : to_json(std::bit_cast<double>(bits)));
    }
    return out;
  }
  if (value.element_type() == GgufType::kF32) return to_json(*value.as_float_array());
  return to_json(*value.as_signed_array());
}

json::array to_json(std::span<const NamedTensor> tensors) {
  json::array out;
  for (const NamedTensor& tensor : tensors) {
    std::string hex;
    for (int64_t i = 0; i < tensor.bytes; ++i) {
      fmt::format_to(std::back_inserter(hex), "{:02x}", std::to_integer<int>(tensor.data[i]));
    }
    out.push_back({{"name", to_json(tensor.name)},
                   {"type", to_json(dtype_name(tensor.type))},
                   {"shape", to_json(tensor.shape)},
                   {"data", hex}});
  }
  return out;
}

void dump(const std::filesystem::path& path) {
  json::object out;
  if (path.extension() == ".gguf") {
    const GgufFile file = GgufFile::open(path);
    json::array metadata;
    for (const GgufEntry& entry : file.metadata()) {
      metadata.push_back({{"key", to_json(entry.key)},
                          {"type", entry.value.type_name()},
                          {"value", to_json(entry.value)}});
    }
    out = {{"metadata", metadata}, {"tensors", to_json(file.tensors())}};
  } else {
    const SafetensorsFile file = SafetensorsFile::open(path);
    json::object metadata;
    for (const auto& [key, value] : file.metadata()) metadata[key] = value;
    out = {{"metadata", metadata}, {"tensors", to_json(file.tensors())}};
  }
  std::puts(json::serialize(out).c_str());
}

// Gives a tensor in pieces of odd sizes.
TensorProducer producer_of(std::span<const NamedTensor> tensors) {
  return [tensors](size_t i, const TensorSink& sink) {
    std::span<const std::byte> left(tensors[i].data, static_cast<size_t>(tensors[i].bytes));
    for (size_t piece = 1; !left.empty(); piece = piece * 3 + 1) {
      const size_t n = std::min(piece, left.size());
      sink(left.first(n));
      left = left.subspan(n);
    }
  };
}

void copy(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (from.extension() == ".gguf") {
    const GgufFile file = GgufFile::open(from);
    GgufWriter writer;
    writer.copy_metadata(file);
    for (const NamedTensor& t : file.tensors())
      writer.add_tensor(std::string(t.name), t.type, t.shape);
    writer.write(to, producer_of(file.tensors()));
  } else {
    const SafetensorsFile file = SafetensorsFile::open(from);
    std::vector<TensorSpec> specs;
    for (const NamedTensor& t : file.tensors())
      specs.push_back({std::string(t.name), t.type, t.shape});
    write_safetensors(to, specs, file.metadata(), producer_of(file.tensors()));
  }
}

}  // namespace
}  // namespace drover

int main(int argc, char** argv) {
  const std::string verb = argc > 1 ? argv[1] : "";
  try {
    if (verb == "dump" && argc == 3) {
      drover::dump(argv[2]);
    } else if (verb == "copy" && argc == 4) {
      drover::copy(argv[2], argv[3]);
    } else {
      std::fputs("usage: formats_probe dump FILE | copy FILE NEW_FILE\n", stderr);
      return 2;
    }
  } catch (const drover::Error& error) {
    std::fprintf(stderr, "formats_probe: %s\n", error.what());
    return drover::exit_code(error.kind());
  }
  return 0;
}
