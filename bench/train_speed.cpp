// How fast Drover trains a decoder of a given shape: script/compare-training sets it beside
// PyTorch.
//
//   train_speed CONFIG.json [--documents 8] [--length 512] [--precision bf16] [--threads 2]
//   train_speed CONFIG.json --documents 90 --length 45 --pictures 90 --muon    # as recipes/edge
//
// A step is all that training does with a batch: forward, backward, the gradient's length, AdamW
// or Muon, and the copies of weights that products take. The model begins at random; tokens and
// pictures are random and the same in every step. Prints one JSON object: of the whole step and, as
// medians too, of its parts. The encoder's operations are not in its counts.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <boost/json.hpp>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "formats/huggingface.h"
#include "formats/json.h"
#include "kernels/limits/limits.h"
#include "train/batch.h"
#include "train/decoder_pass.h"
#include "train/optimizer.h"
#include "train/parameters.h"
#include "train/random.h"
#include "train/vision_pass.h"

namespace drover {
namespace {

using Clock = std::chrono::steady_clock;

double median_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Flags {
  std::string config;
  int64_t documents = 8, length = 512, pictures = 0;
  bool muon = false;
  Precision precision = Precision::kBF16;
  int threads = 2;
  int64_t repeat = 5;
  uint64_t seed = 1;
  bool step = false;
};

// One tile that nobody has seen.
TiledImage noise(int64_t size, Random random) {
  TiledImage out{{1, 1, size, size}, size, {}};
  for (int64_t i = 0; i < size * size * 3; ++i) {
    out.pixels.push_back(static_cast<uint8_t>(random.below(256)));
  }
  return out;
}

// Pictures go to the documents in turn and stand at their beginnings. Token 0 stands for patches,
// whose targets count like all others.
TrainingBatch random_batch(const ModelConfig& config, const std::optional<VisionConfig>& eyes,
                           const Flags& flags) {
  const int64_t tile_tokens = eyes ? eyes->tile_tokens() : 0;
  std::vector<Example> examples;
  for (int64_t d = 0; d < flags.documents; ++d) {
    Random random(flags.seed, static_cast<uint64_t>(d));
    Example& example = examples.emplace_back();
    for (int64_t i = d; i < flags.pictures; i += flags.documents) {
      example.pictures.push_back(
          noise(eyes->tiles.size, Random(flags.seed + 1, static_cast<uint64_t>(i))));
      example.tokens.resize(example.tokens.size() + static_cast<size_t>(tile_tokens));
    }
    while (static_cast<int64_t>(example.tokens.size()) < flags.length) {
      example.tokens.push_back(static_cast<Token>(1 + random.below(config.vocab - 1)));
    }
    example.weights.assign(example.tokens.size(), 1.0f);
  }
  return pack(config, /*patch_token=*/0, tile_tokens, examples);
}

// Operations of a step by count, a multiply-add as two: what the mathematics asks for, each product
// forward once and backward twice (by the input and by the weights). Attention's scores, which the
// backward pass computes again, are not counted again.
double operations(const Parameters& parameters, const TrainingBatch& batch) {
  const ModelConfig& c = parameters.config();
  const double tokens = static_cast<double>(batch.rows());
  double products = 0;  // multiply-adds, forward
  for (const Parameter& p : parameters.all()) {
    if (p.kind == Parameter::Kind::kVector) continue;
    const bool is_table = &p == parameters.embedding && !c.tied_embeddings;
    if (is_table) continue;
    const double matrices = p.matrices > 1 ? static_cast<double>(c.experts_used) : 1.0;
    products += matrices * static_cast<double>(p.rows * p.cols) * tokens;
  }
  for (const LayerConfig& layer : c.layers) {
    for (const RowSpan& span : layer.chunked ? batch.chunks : batch.documents) {
      const double pairs = static_cast<double>(span.count * (span.count + 1) / 2);
      products += 2 * pairs * static_cast<double>(c.heads * c.head_dim);  // scores, and values
    }
  }
  return 2 * 3 * products;
}

class Training {
 public:
  explicit Training(const Flags& flags)
      : context_(flags.threads),
        config_(config_from_huggingface(read_json_object(flags.config), flags.config)),
        eyes_(flags.pictures > 0 ? read_eyes(flags.config) : std::nullopt),
        parameters_(config_, eyes_, flags.precision),
        batch_(random_batch(config_, eyes_, flags)),
        pass_(context_, parameters_, {.balance = 0.01f}) {
    if (eyes_) {
      vision_.emplace(context_, parameters_);
      for (const TiledImage& picture : batch_.pictures) tiles_.push_back(picture.tile(0));
      const auto values = batch_.patch_rows.size() * static_cast<size_t>(config_.hidden);
      seen_.reserve_discarding(values);
      dseen_.reserve_discarding(values);
    }
    initialize(parameters_, {.seed = flags.seed});
    parameters_.refresh(context_);
    parameters_.clear_gradients(context_);
    std::vector<Parameter*> all;
    for (Parameter& p : parameters_.all()) all.push_back(&p);
    OptimizerOptions options;
    if (flags.muon) options.muon.emplace();
    optimizer_.emplace(context_, all, options, flags.precision);
  }

  // The mean loss before the step.
  double step() {
    parameters_.clear_gradients(context_);
    const auto rows = static_cast<int64_t>(batch_.patch_rows.size());
    const auto rows_in = [&](AlignedArray<float>& memory) {
      return vision_ ? MatrixView{memory.data(), rows, config_.hidden, config_.hidden}
                     : MatrixView{};
    };
    auto last = Clock::now();
    const auto done = [&](const char* part) {
      const auto now = Clock::now();
      parts_[part].push_back(std::chrono::duration<double>(now - last).count());
      last = now;
    };
    if (vision_) {
      vision_->forward(tiles_, rows_in(seen_));
      done("encoder_forward");
    }
    const PassReport report =
        pass_.forward(batch_, rows_in(seen_), static_cast<float>(1 / batch_.weight()));
    done("decoder_forward");
    pass_.backward(batch_, rows_in(dseen_));
    done("decoder_backward");
    if (vision_) {
      vision_->backward(rows_in(dseen_));
      done("encoder_backward");
    }
    optimizer_->update(/*rate_scale=*/1, clip_scale(optimizer_->gradient_norm(), /*limit=*/1));
    done("optimizer");
    parameters_.refresh(context_);
    done("weight_copies");
    return report.loss / report.weight;
  }
  // Seconds of each part of every step so far.
  const std::map<std::string, std::vector<double>>& parts() const { return parts_; }

  Context& context() { return context_; }
  const Parameters& parameters() const { return parameters_; }
  const TrainingBatch& batch() const { return batch_; }

 private:
  std::optional<VisionConfig> read_eyes(const std::string& path) const {
    const std::filesystem::path folder_path = std::filesystem::path(path).parent_path();
    const auto folder = HuggingfaceFolder::open_config_only(folder_path);
    std::optional<VisionConfig> eyes = vision_config_from_huggingface(folder, config_.hidden);
    if (!eyes) throw_error(ErrorKind::kUsage, "{}: expected a vision_config for pictures", path);
    return eyes;
  }

  Context context_;
  ModelConfig config_;
  std::optional<VisionConfig> eyes_;
  Parameters parameters_;
  TrainingBatch batch_;
  DecoderPass pass_;
  std::optional<VisionPass> vision_;
  std::vector<const uint8_t*> tiles_;
  AlignedArray<float> seen_, dseen_;  // [patch rows, D]
  std::optional<Optimizer> optimizer_;
  std::map<std::string, std::vector<double>> parts_;
};

int run(int argc, char** argv) {
  Flags flags;
  CLI::App app("How fast Drover trains a decoder of a given shape; prints JSON");
  app.add_option("config", flags.config, "config.json of a Llama 4, as transformers reads it")
      ->required();
  app.add_option("--documents", flags.documents, "In a step")->check(CLI::PositiveNumber);
  app.add_option("--length", flags.length, "Tokens of each")->check(CLI::PositiveNumber);
  app.add_option("--pictures", flags.pictures,
                 "In a step, of one tile each: the encoder is taught too")
      ->check(CLI::NonNegativeNumber);
  app.add_flag("--muon", flags.muon, "For matrices of hidden layers, in place of AdamW");
  app.add_option("--precision", flags.precision, "Of products: bf16 or f32")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, Precision>{{"bf16", Precision::kBF16}, {"f32", Precision::kF32}}));
  app.add_option("--threads", flags.threads, "To use");
  app.add_option("--repeat", flags.repeat, "Steps to time, after two to warm up")
      ->check(CLI::PositiveNumber);
  app.add_option("--seed", flags.seed, "Of weights and tokens");
  app.add_flag("--step", flags.step,
               "Say \"ready\", wait for a line and say the seconds, step by step");
  CLI11_PARSE(app, argc, argv);

  Training training(flags);
  const MachineLimits limits = measure_limits(training.context());
  const double first_loss = training.step();
  training.step();
  std::vector<double> seconds;
  double loss = 0;
  for (int64_t i = 0; i < flags.repeat; ++i) {
    if (flags.step) {
      std::puts("ready");
      std::fflush(stdout);
      std::string line;
      if (!std::getline(std::cin, line)) return 0;
    }
    const auto start = Clock::now();
    loss = training.step();
    const std::chrono::duration<double> time = Clock::now() - start;
    seconds.push_back(time.count());
    if (flags.step) std::printf("%.9g\n", seconds.back());
  }
  const double median = median_of(seconds);
  boost::json::object parts;
  for (const auto& [part, each] : training.parts()) {
    parts[part] = median_of({each.end() - flags.repeat, each.end()});
  }
  const bool on_matrix_unit = flags.precision == Precision::kBF16 && limits.bf16_rate > 0;
  const double peak = on_matrix_unit ? limits.bf16_rate : limits.float_rate;
  const double work = operations(training.parameters(), training.batch());
  const ParameterCount count = count_parameters(training.parameters().config());
  const boost::json::object report = {
      {"tokens", training.batch().rows()},
      {"seconds", boost::json::value_from(seconds)},
      {"parts", parts},
      {"tokens_per_second", static_cast<double>(training.batch().rows()) / median},
      {"operations", work},
      {"operations_per_second", work / median},
      {"peak", on_matrix_unit ? "bf16 on the matrix unit" : "f32"},
      {"peak_operations_per_second", peak},
      {"fraction_of_peak", work / median / peak},
      {"parameters", {{"total", count.total}, {"active", count.active}}},
      {"loss", {{"first", first_loss}, {"last", loss}}},
      {"threads", flags.threads},
      {"isa", isa_name(training.context().isa)}};
  std::puts(boost::json::serialize(report).c_str());
  return 0;
}

}  // namespace
}  // namespace drover

int main(int argc, char** argv) try {
  return drover::run(argc, argv);
} catch (const std::exception& error) {
  std::fprintf(stderr, "train_speed: %s\n", error.what());
  return 1;
}
