#include "model/importance.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/error.h"
#include "formats/gguf.h"
#include "formats/gguf_writer.h"

namespace drover {
namespace {

constexpr std::string_view kSums = ".in_sum2", kCounts = ".counts";
constexpr std::string_view kType = "general.type", kDatasets = "imatrix.datasets",
                           kWindows = "imatrix.chunk_count", kContext = "imatrix.chunk_size";

// The values of an f32 tensor, each finite and not negative.
std::vector<double> read_values(const GgufFile& file, const NamedTensor& tensor) {
  if (tensor.type != DType::kF32) {
    throw_error(ErrorKind::kBadData, "{}: tensor '{}': expected f32, got {}", file.path(),
                printable(tensor.name), dtype_name(tensor.type));
  }
  std::vector<double> out(static_cast<size_t>(tensor.bytes) / sizeof(float));
  for (size_t i = 0; i < out.size(); ++i) {
    float value;
    std::memcpy(&value, tensor.data + i * sizeof(float), sizeof(float));
    if (!(value >= 0) || std::isinf(value)) {
      throw_error(ErrorKind::kBadData, "{}: tensor '{}': expected finite numbers from 0 on, got {}",
                  file.path(), printable(tensor.name), value);
    }
    out[i] = value;
  }
  return out;
}

}  // namespace

bool InputStatistics::enough(int64_t matrix) const {
  const auto sums = square_sums.begin() + matrix * cols;
  return counts[matrix] >= kFewRows &&
         std::any_of(sums, sums + cols, [](double sum) { return sum > 0; });
}

void InputStatistics::weights(int64_t matrix, std::span<float> out) const {
  const auto sums = square_sums.begin() + matrix * cols;
  const double average = std::accumulate(sums, sums + cols, 0.0) / static_cast<double>(cols);
  for (int64_t i = 0; i < cols; ++i) {
    out[i] = static_cast<float>(std::max(sums[i], 1e-3 * average) / counts[matrix]);
  }
}

Importance Importance::load(const std::filesystem::path& path) {
  const GgufFile file = GgufFile::open(path);
  if (file.string_value(kType).value_or("") != "imatrix") {
    throw Error(ErrorKind::kUnsupported,
                fmt::format("{}: expected an importance matrix (general.type \"imatrix\"), got "
                            "another kind of GGUF file",
                            file.path()),
                "`drover score MODEL --text FILE --importance OUT` makes one");
  }
  Importance out;
  out.source = file.path();
  const auto datasets = file.string_array(kDatasets).value_or(std::vector<std::string_view>());
  if (!datasets.empty()) out.dataset = datasets.back();
  out.windows = static_cast<int64_t>(file.unsigned_value(kWindows).value_or(0) & INT64_MAX);
  out.context = static_cast<int64_t>(file.unsigned_value(kContext).value_or(0) & INT64_MAX);
  for (const NamedTensor& tensor : file.tensors()) {
    if (!tensor.name.ends_with(kSums)) continue;
    const std::string name(tensor.name.substr(0, tensor.name.size() - kSums.size()));
    const NamedTensor* counts = file.find_tensor(name + std::string(kCounts));
    if (counts == nullptr) {
      throw_error(ErrorKind::kBadData, "{}: tensor '{}': expected '{}{}' beside it, got none",
                  file.path(), printable(tensor.name), printable(name), kCounts);
    }
    InputStatistics statistics;
    statistics.square_sums = read_values(file, tensor);
    statistics.counts = read_values(file, *counts);
    const size_t matrices = statistics.counts.size();
    if (statistics.square_sums.size() % matrices != 0) {
      throw_error(ErrorKind::kBadData,
                  "{}: tensor '{}': expected a multiple of its {} counts, got {}", file.path(),
                  printable(tensor.name), matrices, statistics.square_sums.size());
    }
    statistics.cols = static_cast<int64_t>(statistics.square_sums.size() / matrices);
    out.maps.emplace(name, std::move(statistics));
  }
  if (out.maps.empty()) {
    throw_error(ErrorKind::kBadData, "{}: expected tensors 'NAME{}', got none", file.path(), kSums);
  }
  return out;
}

std::vector<std::string> Importance::gaps() const {
  constexpr size_t kNamed = 32;
  std::vector<std::string> out;
  const auto say = [&](std::string sentence) {
    // The maps of a layer's experts see the same tokens: once is enough.
    if (out.empty() || out.back() != sentence) out.push_back(std::move(sentence));
  };
  for (const auto& [name, statistics] : maps) {
    std::vector<int64_t> few;
    for (int64_t m = 0; m < statistics.matrices(); ++m) {
      if (!statistics.enough(m)) few.push_back(m);
    }
    if (few.empty()) continue;
    if (statistics.matrices() == 1) {
      say(fmt::format("{}: {} tokens have shown too little to weigh errors by", printable(name),
                      statistics.counts[0]));
      continue;
    }
    const size_t more = few.size() - std::min(few.size(), kNamed);
    few.resize(few.size() - more);
    say(fmt::format("{}: experts {}{} saw no data, or fewer than {} tokens",
                    printable(name.substr(0, name.find(".ffn_"))), fmt::join(few, ", "),
                    more == 0 ? std::string() : fmt::format(" and {} more", more),
                    InputStatistics::kFewRows));
  }
  return out;
}

void Importance::save(const std::filesystem::path& path) const {
  GgufWriter out;
  out.set(kType, "imatrix");
  out.set(kDatasets, std::vector<std::string>{dataset});
  out.set(kWindows, static_cast<uint32_t>(windows));
  out.set(kContext, static_cast<uint32_t>(context));
  std::vector<const std::vector<double>*> values;
  for (const auto& [name, statistics] : maps) {
    out.add_tensor(name + std::string(kSums), DType::kF32,
                   {statistics.matrices(), statistics.cols});
    values.push_back(&statistics.square_sums);
    out.add_tensor(name + std::string(kCounts), DType::kF32, {statistics.matrices(), 1});
    values.push_back(&statistics.counts);
  }
  out.write(path, [&](size_t number, const TensorSink& sink) {
    const std::vector<float> rounded(values[number]->begin(), values[number]->end());
    sink(std::as_bytes(std::span(rounded)));
  });
}

}  // namespace drover
