// The gradient goldens of tests/data/gradients, and a model that learns from them: what PyTorch
// found, and what the trainer's passes find. tests/reference/README.md says what is in a golden.
#pragma once

#include <boost/json.hpp>
#include <cstring>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/aligned.h"
#include "base/mapped_file.h"
#include "formats/huggingface.h"
#include "formats/safetensors.h"
#include "tests/support/mixed_bits.h"
#include "train/batch.h"
#include "train/decoder_pass.h"
#include "train/parameters.h"
#include "train/vision_pass.h"

namespace drover::testing {

inline const std::filesystem::path kGradients = "tests/data/gradients";

class GradientGolden {
 public:
  explicit GradientGolden(const std::string& name)
      : file_(SafetensorsFile::open(kGradients / name / "tensors.safetensors")) {
    const std::filesystem::path folder = kGradients / name;
    const auto model = HuggingfaceFolder::open_config_only(folder);
    config = config_from_huggingface(model.config, folder.string());
    vision = vision_config_from_huggingface(model, config.hidden);
    json = boost::json::parse(read_file(folder / "golden.json", size_t{1} << 20)).as_object();
    uint64_t tile = 0;
    for (const auto& document : json.at("documents").as_array()) {
      Example example;
      for (const auto& token : document.at("tokens").as_array()) {
        example.tokens.push_back(token.to_number<Token>());
      }
      for (const auto& weight : document.at("weights").as_array()) {
        example.weights.push_back(weight.to_number<float>());
      }
      for (const auto& picture : document.at("pictures").as_array()) {
        const int64_t size = vision.value().tiles.size;
        TiledImage image{.layout = {.rows = picture.at(0).to_number<int64_t>(),
                                    .cols = picture.at(1).to_number<int64_t>(),
                                    .height = size,
                                    .width = size},
                         .size = size,
                         .pixels = {}};
        for (int64_t i = 0; i < image.layout.tiles(); ++i, ++tile) {
          for (int64_t byte = 0; byte < size * size * 3; ++byte) {
            image.pixels.push_back(static_cast<uint8_t>(mix(tile, byte) >> 56));
          }
        }
        example.pictures.push_back(std::move(image));
      }
      documents.push_back(std::move(example));
    }
  }

  boost::json::object json;
  ModelConfig config;
  std::optional<VisionConfig> vision;
  std::vector<Example> documents;

  double weight() const {  // of all targets
    double sum = 0;
    for (const Example& document : documents) {
      for (size_t i = 1; i < document.weights.size(); ++i) sum += document.weights[i];
    }
    return sum;
  }
  // "gradient/blk.0.attn_q.weight", row-major; empty if it is not there.
  std::vector<float> tensor(std::string_view kind, std::string_view name) const {
    const NamedTensor* found = file_.find(std::string(kind) + "/" + std::string(name));
    if (found == nullptr) return {};
    std::vector<float> out(static_cast<size_t>(found->bytes) / sizeof(float));
    std::memcpy(out.data(), found->data, out.size() * sizeof(float));
    return out;
  }
  std::span<const NamedTensor> tensors() const { return file_.tensors(); }
  // Of the losses of each row but each document's last, document after document.
  std::vector<float> losses(const boost::json::value& of) const {
    std::vector<float> out;
    for (const auto& document : of.as_array()) {
      for (const auto& loss : document.as_array()) out.push_back(loss.to_number<float>());
    }
    return out;
  }

 private:
  SafetensorsFile file_;
};

// A golden's model with the passes that teach it.
class Student {
 public:
  struct How {
    Precision precision = Precision::kF32;
    int threads = 2;
    Isa isa = detect_isa();
    PassOptions options = {};
  };

  Student(const GradientGolden& golden, const How& how)
      : context(how.threads, how.isa),
        parameters(golden.config, golden.vision, how.precision),
        pass(context, parameters, how.options) {
    if (golden.vision) eyes.emplace(context, parameters);
    for (Parameter& p : parameters.all()) {
      const std::vector<float> value = golden.tensor("value", p.name);
      if (static_cast<int64_t>(value.size()) != p.size()) {
        throw std::runtime_error(p.name + ": not in the golden, or of another shape");
      }
      std::copy(value.begin(), value.end(), p.value.data());
    }
    parameters.refresh(context);
    parameters.clear_gradients(context);
  }

  // Gradients are of the loss times scale, and those of several batches add up. With scale 0 it
  // takes no more than the loss.
  PassReport forward(std::span<const Example> documents, double scale) {
    const auto& vision = parameters.vision_config();
    batch_ = pack(parameters.config(), vision ? vision->patch_token : std::nullopt,
                  vision ? vision->tile_tokens() : 0, documents);
    std::vector<const uint8_t*> tiles;
    for (const TiledImage& picture : batch_.pictures) {
      for (int64_t i = 0; i < picture.layout.tiles(); ++i) tiles.push_back(picture.tile(i));
    }
    const auto rows = static_cast<int64_t>(batch_.patch_rows.size());
    const int64_t cols = parameters.config().hidden;
    seen_.assign(static_cast<size_t>(rows * cols), 0);
    dseen_.assign(seen_.size(), 0);
    const MatrixView seen{rows > 0 ? seen_.data() : nullptr, rows, cols, cols};
    if (rows > 0) eyes->forward(tiles, seen);
    return pass.forward(batch_, seen, static_cast<float>(scale));
  }
  void backward() {
    const auto rows = static_cast<int64_t>(batch_.patch_rows.size());
    const int64_t cols = parameters.config().hidden;
    const MatrixView dseen{rows > 0 ? dseen_.data() : nullptr, rows, cols, cols};
    pass.backward(batch_, dseen);
    if (rows > 0) eyes->backward(dseen);
  }
  PassReport learn(std::span<const Example> documents, double scale) {
    const PassReport report = forward(documents, scale);
    backward();
    return report;
  }
  // The losses of each row but each document's last.
  std::vector<float> losses() const {
    std::vector<float> out;
    for (const RowSpan& document : batch_.documents) {
      const auto mine = pass.losses().subspan(document.first, document.count - 1);
      out.insert(out.end(), mine.begin(), mine.end());
    }
    return out;
  }

  Context context;
  Parameters parameters;
  DecoderPass pass;
  std::optional<VisionPass> eyes;

 private:
  TrainingBatch batch_;
  std::vector<float> seen_, dseen_;
};

inline std::span<const float> gradient_of(const Parameter& p) {
  return {p.gradient.data(), static_cast<size_t>(p.size())};
}

}  // namespace drover::testing
