// Reads the tiny checkpoints of tests/data/goldens and what the outside judge says of them.
#pragma once

#include <boost/json.hpp>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "model/decoder.h"
#include "model/model.h"
#include "tests/support/temp_folder.h"

namespace drover::testing {

inline const std::filesystem::path kGoldens = "tests/data/goldens";

struct Golden {
  std::string name;
  double bf16_difference = 0;  // what bf16 everywhere costs the judge; 0 if not measured
  bool has_experts = false;
  std::vector<Token> tokens;
  std::vector<float> logits;  // [tokens, vocab]
  int64_t vocab = 0;

  // What GoogleTest prints of a case.
  friend void PrintTo(const Golden& golden, std::ostream* out) { *out << golden.name; }

  std::filesystem::path folder() const { return kGoldens / name; }
};

// float32, C order, two dimensions: what NumPy writes for our goldens.
inline std::vector<float> read_npy(const std::filesystem::path& path, int64_t& cols) {
  const std::string bytes = read_file(path, size_t{1} << 30);
  const size_t header =
      10 + static_cast<unsigned char>(bytes.at(8)) + 256 * static_cast<unsigned char>(bytes.at(9));
  const std::string text = bytes.substr(10, header - 10);
  if (text.find("'<f4'") == std::string::npos || text.find("False") == std::string::npos) {
    throw std::runtime_error(path.string() + ": not a C-ordered float32 array");
  }
  const size_t open = text.find('(');
  const int64_t rows = std::stoll(text.substr(open + 1));
  cols = std::stoll(text.substr(text.find(',', open) + 1));
  std::vector<float> out(static_cast<size_t>(rows * cols));
  if (bytes.size() - header != out.size() * sizeof(float)) {
    throw std::runtime_error(path.string() + ": size and shape disagree");
  }
  std::memcpy(out.data(), bytes.data() + header, bytes.size() - header);
  return out;
}

inline std::vector<Golden> all_goldens() {
  std::vector<Golden> out;
  const auto root = boost::json::parse(read_file(kGoldens / "goldens.json", size_t{1} << 20));
  for (const auto& entry : root.at("cases").as_array()) {
    Golden golden;
    golden.name = std::string(entry.at("name").as_string());
    if (const auto* value = entry.as_object().if_contains("bf16_difference")) {
      golden.bf16_difference = value->to_number<double>();
    }
    const auto* margin = entry.as_object().if_contains("router_margin");
    golden.has_experts = margin != nullptr && !margin->is_null();
    const auto tokens =
        boost::json::parse(read_file(golden.folder() / "tokens.json", size_t{1} << 20));
    for (const auto& token : tokens.as_array()) golden.tokens.push_back(token.to_number<Token>());
    golden.logits = read_npy(golden.folder() / "logits.npy", golden.vocab);
    out.push_back(std::move(golden));
  }
  return out;
}

// Logits after every token, the tokens given in the slices of these sizes (the last size repeats).
inline std::vector<float> logits_of(const Model& model, Context& context,
                                    std::span<const Token> tokens, DType cache_type = DType::kF32,
                                    std::vector<int64_t> slices = {1 << 20}) {
  const ModelConfig& config = model.config();
  Decoder decoder(context, config, model.weights());
  KvCache cache(config.cache_layout(cache_type), static_cast<int64_t>(tokens.size()));
  std::vector<float> out(tokens.size() * static_cast<size_t>(config.vocab));
  size_t slice = 0;
  for (size_t first = 0; first < tokens.size();) {
    const size_t n =
        std::min<size_t>(slices[std::min(slice++, slices.size() - 1)], tokens.size() - first);
    const SequenceSlice piece{&cache, tokens.subspan(first, n), static_cast<int64_t>(n)};
    decoder.forward({&piece, 1}, {out.data() + first * config.vocab, static_cast<int64_t>(n),
                                  config.vocab, config.vocab});
    first += n;
  }
  return out;
}

// max |a - b| / max |b|; infinite when something is not a number.
inline double relative_difference(std::span<const float> a, std::span<const float> b) {
  double difference = 0, largest = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    if (!std::isfinite(a[i])) return INFINITY;
    difference = std::max(difference, std::abs(static_cast<double>(a[i]) - b[i]));
    largest = std::max(largest, std::abs(static_cast<double>(b[i])));
  }
  return difference / largest;
}

}  // namespace drover::testing
