// Whole models in other types: what is written, what comes of it, and what importance is worth.
#include "tensor/quantize.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>

#include "eval/collect_importance.h"
#include "formats/gguf_writer.h"
#include "model/export_gguf.h"
#include "tensor/dequantize.h"
#include "tests/support/expect_error.h"
#include "tests/support/goldens.h"
#include "tests/support/mutate.h"
#include "tests/support/random_model.h"

namespace drover {
namespace {

using namespace testing;

std::vector<float> floats_of(const NamedTensor& tensor) {
  std::vector<float> out(static_cast<size_t>(tensor.bytes / row_bytes(tensor.type, 256) * 256));
  dequantize_row(tensor.type, tensor.data, out);
  return out;
}

class Quantize : public ::testing::Test {
 protected:
  Quantize() {
    write_random_model(folder_ / "model");
    model_ = Model::load((folder_ / "model").string());
    for (Token t = 0; t < 60; ++t) tokens_.push_back(t * 17 % 64);
    GgufExport(*model_->huggingface(), {.mixture = DType::kF32}).write(context_, f32_);
  }

  // The model in f32 as a GGUF file, in another mixture.
  std::unique_ptr<Model> quantized(const ExportOptions& options) {
    const GgufFile file = GgufFile::open(f32_);
    GgufExport(file, options).write(context_, folder_ / "out.gguf");
    return Model::load((folder_ / "out.gguf").string());
  }

  Importance importance(std::span<const Token> tokens, std::vector<int64_t> slices = {1 << 20},
                        int threads = 2) {
    Context context(threads);
    ImportanceCollector collector(context, *model_);
    const ModelConfig& config = model_->config();
    Decoder decoder(context, config, model_->weights());
    decoder.observe(&collector);
    KvCache cache(config.cache_layout(DType::kF32), static_cast<int64_t>(tokens.size()));
    std::vector<float> logits(tokens.size() * static_cast<size_t>(config.vocab));
    size_t slice = 0;
    for (size_t first = 0; first < tokens.size();) {
      const size_t n =
          std::min<size_t>(slices[std::min(slice++, slices.size() - 1)], tokens.size() - first);
      const SequenceSlice piece{&cache, tokens.subspan(first, n), static_cast<int64_t>(n)};
      decoder.forward({&piece, 1},
                      {logits.data(), static_cast<int64_t>(n), config.vocab, config.vocab});
      first += n;
    }
    return collector.result();
  }

  TempFolder folder_;
  std::filesystem::path f32_ = folder_ / "f32.gguf";
  Context context_{2};
  std::unique_ptr<Model> model_;
  std::vector<Token> tokens_;
};

TEST_F(Quantize, EveryTensorHasTheTypeOfTheMixtureAndTheValuesOfItsQuantiser) {
  const GgufFile source = GgufFile::open(f32_);
  for (const std::string_view name : {"q4_k_m", "q5_k_s", "q4_0", "q8_0", "q6_k", "bf16"}) {
    const Mixture mixture = *mixture_from_name(name);
    const auto model = quantized({.mixture = mixture});
    const GgufFile& file = *model->gguf();
    EXPECT_EQ(file.unsigned_value("general.file_type"), mixture.file_type);
    ASSERT_EQ(file.tensors().size(), source.tensors().size());
    for (const NamedTensor& tensor : file.tensors()) {
      const NamedTensor& from = *source.find_tensor(tensor.name);
      EXPECT_EQ(tensor.type, mixture_type(mixture, model->config(), tensor.name, tensor.shape))
          << tensor.name;
      std::vector<std::byte> expected(static_cast<size_t>(tensor.bytes));
      quantize_row(tensor.type, floats_of(from), expected.data());
      EXPECT_EQ(std::memcmp(expected.data(), tensor.data, expected.size()), 0) << tensor.name;
    }
  }
}

// Each code is at most half a step from its value, and a step is range / (2^bits - 1) of a block:
// relative to the block's largest value 1/15, 1/31, 1/127 and so on for 4, 5 and 8 bits. Random
// errors of that size pass some 10 maps in a row, of which each adds its own: the logits move by
// about sqrt(10) / sqrt(3) times that, spread evenly, and the largest of 60 x 64 by three times
// their spread. 8 times the step bounds it; a wrong tensor moves logits by their own size.
TEST_F(Quantize, LogitsMoveAsFarAsTheBitsAllow) {
  const auto expected = logits_of(*model_, context_, tokens_);
  const std::pair<std::string_view, double> steps[] = {
      {"q8_0", 1.0 / 127}, {"q6_k", 1.0 / 31}, {"q5_k_m", 1.0 / 31}, {"bf16", 1.0 / 256}};
  for (const auto& [name, step] : steps) {
    const auto model = quantized({.mixture = *mixture_from_name(name)});
    const double moved = relative_difference(logits_of(*model, context_, tokens_), expected);
    EXPECT_GT(moved, 0) << name;
    EXPECT_LE(moved, 8 * step) << name;
  }
}

TEST_F(Quantize, TheFileHasTheSameBytesOnAnyNumberOfThreads) {
  const Importance found = importance(tokens_);
  const GgufFile file = GgufFile::open(f32_);
  std::string first;
  for (const int threads : {1, 2, 5}) {
    Context context(threads);
    GgufExport(file, {.mixture = *mixture_from_name("q4_k_m"), .importance = &found})
        .write(context, folder_ / "out.gguf");
    const std::string bytes = read_file(folder_ / "out.gguf", size_t{1} << 30);
    if (first.empty()) first = bytes;
    EXPECT_TRUE(bytes == first) << threads << " threads";
  }
}

TEST_F(Quantize, AFolderAndItsGgufGiveTheSameWeights) {
  const Mixture mixture = *mixture_from_name("q4_k_m");
  GgufExport(*model_->huggingface(), {.mixture = mixture}).write(context_, folder_ / "a.gguf");
  const auto b = quantized({.mixture = mixture});
  const GgufFile a = GgufFile::open(folder_ / "a.gguf");
  for (const NamedTensor& tensor : a.tensors()) {
    const NamedTensor& other = *b->gguf()->find_tensor(tensor.name);
    ASSERT_EQ(tensor.bytes, other.bytes) << tensor.name;
    EXPECT_EQ(std::memcmp(tensor.data, other.data, static_cast<size_t>(tensor.bytes)), 0);
  }
  EXPECT_EQ(a.metadata().size(), b->gguf()->metadata().size());
}

TEST_F(Quantize, RulesGoBeforeTheMixtureAndTheLastCounts) {
  const auto model = quantized(
      {.mixture = *mixture_from_name("q4_k_m"),
       .rules = {TensorRule::parse("*.ffn_down*=q8_0"), TensorRule::parse("blk.[01].*=q5_0"),
                 TensorRule::parse("blk.1.ffn_down_shexp.weight=BF16")}});
  const auto type = [&](std::string_view name) {
    return dtype_name(model->gguf()->find_tensor(name)->type);
  };
  EXPECT_EQ(type("blk.2.ffn_down.weight"), "q8_0");
  EXPECT_EQ(type("blk.3.ffn_down_exps.weight"), "q8_0");
  EXPECT_EQ(type("blk.0.ffn_down.weight"), "q5_0");
  EXPECT_EQ(type("blk.1.ffn_down_shexp.weight"), "bf16");
  EXPECT_EQ(type("blk.0.attn_norm.weight"), "f32");
  EXPECT_EQ(type("blk.1.ffn_gate_inp.weight"), "f32");
  EXPECT_EQ(type("output.weight"), "q6_k");
}

TEST_F(Quantize, WrongRulesAreRefusedBeforeAnyWork) {
  const auto refuses = [&](std::string_view rule, std::string_view words) {
    expect_error(ErrorKind::kUsage, words,
                 [&] { quantized({.mixture = DType::kQ8_0, .rules = {TensorRule::parse(rule)}}); });
  };
  refuses("q8_0", "expected PATTERN=TYPE");
  refuses("=q8_0", "expected PATTERN=TYPE");
  refuses("*=q4_k_m", "expected a type of weights, got 'q4_k_m'");
  refuses("*=i8", "expected a type of weights, got 'i8'");
  refuses("attn_v=q8_0", "expected 'attn_v' to match");
  refuses("*_norm.weight=f16", "it matches none");
  EXPECT_FALSE(std::filesystem::exists(folder_ / "out.gguf"));
}

TEST_F(Quantize, WhatIsRoundedTwiceIsSaid) {
  quantized({.mixture = DType::kQ8_0});
  const GgufFile file = GgufFile::open(folder_ / "out.gguf");
  const GgufExport again(file, {.mixture = DType::kQ4_0});
  ASSERT_EQ(again.warnings().size(), 1u);
  EXPECT_NE(again.warnings()[0].find("quantised already (q8_0)"), std::string::npos);
  EXPECT_TRUE(GgufExport(file, {.mixture = DType::kQ8_0}).warnings().empty());  // copied
  EXPECT_TRUE(GgufExport(file, {.mixture = DType::kF16}).warnings().empty());   // widened
}

TEST_F(Quantize, TensorsThatNoMixtureConcernsGoAlongUnchanged) {
  GgufWriter out;
  const GgufFile file = GgufFile::open(f32_);
  out.copy_metadata(file);
  for (const NamedTensor& t : file.tensors()) out.add_tensor(std::string(t.name), t.type, t.shape);
  out.add_tensor("v.patch.weight", DType::kF16, {2, 3, 4, 5});
  out.add_tensor("v.ids", DType::kI32, {7});
  std::vector<std::byte> strange(240);
  for (size_t i = 0; i < strange.size(); ++i) strange[i] = static_cast<std::byte>(i);
  out.write(folder_ / "in.gguf", [&](size_t i, const TensorSink& sink) {
    if (i < file.tensors().size()) {
      const NamedTensor& t = file.tensors()[i];
      return sink({t.data, static_cast<size_t>(t.bytes)});
    }
    sink(std::span(strange).first(i == file.tensors().size() ? 240 : 28));
  });
  const GgufFile in = GgufFile::open(folder_ / "in.gguf");
  GgufExport(in, {.mixture = DType::kQ4_0}).write(context_, folder_ / "out.gguf");
  const GgufFile written = GgufFile::open(folder_ / "out.gguf");
  for (const std::string_view name : {"v.patch.weight", "v.ids"}) {
    const NamedTensor& tensor = *written.find_tensor(name);
    EXPECT_EQ(tensor.type, in.find_tensor(name)->type);
    EXPECT_EQ(tensor.shape, in.find_tensor(name)->shape);
    EXPECT_EQ(std::memcmp(tensor.data, strange.data(), static_cast<size_t>(tensor.bytes)), 0);
  }
}

// The first layer's inputs can be computed here without a decoder: a = norm(embedding).
TEST_F(Quantize, ImportanceIsTheSumOfSquaresOfWhatTheMapsSee) {
  const Importance found = importance(tokens_);
  const Weights& w = model_->weights();
  std::vector<double> sums(256);
  for (const Token token : tokens_) {
    std::vector<float> row(256);
    dequantize_row(w.embedding.type, w.embedding.row(token), row);
    double mean = 0;
    for (const float x : row) mean += static_cast<double>(x) * x / 256;
    const double scale = 1 / std::sqrt(mean + model_->config().norm_eps);
    for (size_t i = 0; i < 256; ++i) {
      const double a = row[i] * scale * w.layers[0].attention_norm[i];
      sums[i] += a * a;
    }
  }
  for (const char* name : {"blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"}) {
    const InputStatistics& seen = found.maps.at(name);
    EXPECT_EQ(seen.counts, std::vector<double>{60}) << name;
    // f32 in the decoder, double here: a few roundings of 2^-24 each.
    for (size_t i = 0; i < 256; ++i) EXPECT_NEAR(seen.square_sums[i], sums[i], 1e-5 * sums[i]) << i;
  }
}

TEST_F(Quantize, ExpertsSeeTheGatedTokensThatChooseThem) {
  const Importance found = importance(tokens_);
  for (const int layer : {1, 3}) {
    const auto at = [&](std::string_view part) -> const InputStatistics& {
      return found.maps.at(layer_tensor(layer, part));
    };
    const InputStatistics& gate = at("ffn_gate_exps");
    EXPECT_EQ(gate.matrices(), 2);
    EXPECT_EQ(gate.counts[0] + gate.counts[1], 60);  // each token goes to one of two
    EXPECT_EQ(gate.counts, at("ffn_up_exps").counts);
    EXPECT_EQ(gate.counts, at("ffn_down_exps").counts);
    EXPECT_EQ(gate.square_sums, at("ffn_up_exps").square_sums);
    EXPECT_EQ(at("ffn_gate_shexp").square_sums, at("ffn_gate_inp").square_sums);
    // A gate is a sigmoid: it only takes away.
    for (size_t i = 0; i < 256; ++i) {
      EXPECT_LT(gate.square_sums[i] + gate.square_sums[256 + i], at("ffn_up_shexp").square_sums[i]);
    }
  }
  EXPECT_EQ(found.maps.at("output.weight").counts[0], 60);
}

TEST_F(Quantize, ImportanceDoesNotDependOnSlicesOrThreads) {
  const Importance expected = importance(tokens_);
  for (const auto& [slices, threads] :
       std::vector<std::pair<std::vector<int64_t>, int>>{{{1}, 1}, {{7, 20, 3}, 3}}) {
    const Importance found = importance(tokens_, slices, threads);
    ASSERT_EQ(found.maps.size(), expected.maps.size());
    for (const auto& [name, statistics] : expected.maps) {
      EXPECT_EQ(found.maps.at(name).counts, statistics.counts) << name;
      EXPECT_EQ(found.maps.at(name).square_sums, statistics.square_sums) << name;
    }
  }
}

TEST_F(Quantize, ImportanceFilesComeBackAsTheyWere) {
  Importance found = importance(tokens_);
  found.dataset = "a text";
  found.windows = 3;
  found.context = 20;
  found.save(folder_ / "importance.gguf");
  const Importance read = Importance::load(folder_ / "importance.gguf");
  EXPECT_EQ(read.dataset, "a text");
  EXPECT_EQ(read.windows, 3);
  EXPECT_EQ(read.context, 20);
  ASSERT_EQ(read.maps.size(), found.maps.size());
  for (const auto& [name, statistics] : found.maps) {
    const InputStatistics& other = read.maps.at(name);
    EXPECT_EQ(other.cols, statistics.cols);
    EXPECT_EQ(other.counts, statistics.counts);
    for (size_t i = 0; i < statistics.square_sums.size(); ++i) {
      EXPECT_EQ(other.square_sums[i], static_cast<float>(statistics.square_sums[i]));
    }
  }
}

// What importance is for: the error at a map's output, sum over columns of importance times
// squared error. The quantiser searches for exactly this sum, block by block, so every tensor gets
// better by it, or stays as it was where no better choice was found.
TEST_F(Quantize, ImportanceLowersTheErrorThatItWeighs) {
  Importance found = importance(tokens_);
  // Activations of a random model are all alike; a trained model's differ by orders of magnitude.
  for (auto& [name, statistics] : found.maps) {
    for (double& count : statistics.counts) count = 100;
    for (size_t i = 0; i < statistics.square_sums.size(); ++i) {
      statistics.square_sums[i] *= i % 7 == 0 ? 100 : 1;
    }
  }
  const GgufFile source = GgufFile::open(f32_);
  const auto errors = [&](const Importance* guide) {
    std::map<std::string, double> out;
    const auto model = quantized({.mixture = DType::kQ4_K, .importance = guide});
    for (const auto& [name, statistics] : found.maps) {
      if (name.find("ffn_gate_inp") != std::string::npos) continue;
      const auto exact = floats_of(*source.find_tensor(name));
      const auto rounded = floats_of(*model->gguf()->find_tensor(name));
      const size_t matrix = exact.size() / statistics.counts.size();
      for (size_t i = 0; i < exact.size(); ++i) {
        const double error = static_cast<double>(rounded[i]) - exact[i];
        out[name] += statistics.square_sums[i / matrix * 256 + i % 256] * error * error;
      }
    }
    return out;
  };
  const auto blind = errors(nullptr), guided = errors(&found);
  double sum = 0;
  for (const auto& [name, error] : blind) {
    EXPECT_LT(guided.at(name), error) << name;
    sum += guided.at(name) / error / static_cast<double>(blind.size());
  }
  RecordProperty("mean_ratio", std::to_string(sum));
}

TEST_F(Quantize, ExpertsWithoutDataAreNamedAndRoundedAsWithoutImportance) {
  Importance found = importance(tokens_);
  for (auto& [name, statistics] : found.maps) {
    for (double& count : statistics.counts) count = 1000;
    for (size_t i = 0; i < statistics.square_sums.size(); i += 3) statistics.square_sums[i] *= 1000;
  }
  for (const char* part : {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"}) {
    found.maps.at(layer_tensor(3, part)).counts[1] = 5;
  }
  const GgufFile file = GgufFile::open(f32_);
  const GgufExport work(file, {.mixture = DType::kQ4_K, .importance = &found});
  ASSERT_EQ(work.warnings().size(), 1u);
  EXPECT_NE(work.warnings()[0].find("blk.3: experts 1 saw no data"), std::string::npos)
      << work.warnings()[0];
  const auto guided = quantized({.mixture = DType::kQ4_K, .importance = &found});
  const auto blind = quantized({.mixture = DType::kQ4_K});
  const NamedTensor& a = *guided->gguf()->find_tensor("blk.3.ffn_up_exps.weight");
  const NamedTensor& b = *blind->gguf()->find_tensor("blk.3.ffn_up_exps.weight");
  const size_t half = static_cast<size_t>(a.bytes) / 2;
  EXPECT_NE(std::memcmp(a.data, b.data, half), 0);
  EXPECT_EQ(std::memcmp(a.data + half, b.data + half, half), 0);
}

TEST_F(Quantize, ImportanceOfAnotherModelIsRefused) {
  const GgufFile file = GgufFile::open(f32_);
  Importance strange;
  strange.source = "strange.gguf";
  strange.maps["blk.0.attn_x.weight"] = {256, std::vector<double>(256), {100}};
  const auto refuses = [&](std::string_view words) {
    expect_error(ErrorKind::kUsage, words,
                 [&] { GgufExport(file, {.mixture = DType::kQ4_K, .importance = &strange}); });
  };
  refuses("strange.gguf: expected data about this model's tensors, got none");
  strange.maps["blk.0.attn_q.weight"] = {128, std::vector<double>(128), {100}};
  refuses("'blk.0.attn_q.weight': expected 256 inputs of 1 matrices, got 128 of 1");
}

// Columns that the text left at zero are still written well: others may use them.
TEST_F(Quantize, ColumnsThatSawNothingKeepTheirValues) {
  Importance found;
  const std::string name = "blk.0.attn_q.weight";
  std::vector<double> sums(256, 100.0);
  std::fill_n(sums.begin(), 64, 0.0);
  found.maps[name] = {256, sums, {100}};
  const GgufFile file = GgufFile::open(f32_);
  const auto exact = floats_of(*file.find_tensor(name));
  for (const DType type : {DType::kQ4_K, DType::kQ5_K, DType::kQ6_K}) {
    const auto model = quantized({.mixture = type, .importance = &found});
    const auto rounded = floats_of(*model->gguf()->find_tensor(name));
    double error = 0, all = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
      if (i % 256 >= 64) continue;
      error += std::pow(static_cast<double>(rounded[i]) - exact[i], 2);
      all += std::pow(exact[i], 2);
    }
    // 4 bits over a normal block of 32: steps of a quarter of the spread, errors of a step's
    // 1/sqrt(12), 0.5 % of the squares; four times that is allowed.
    EXPECT_LT(error, 0.02 * all) << dtype_name(type);
  }
  found.maps[name].square_sums.assign(256, 0.0);
  EXPECT_NE(GgufExport(file, {.mixture = DType::kQ4_K, .importance = &found}).warnings().size(),
            0u);
}

// One count for all experts, as older files have it.
TEST_F(Quantize, OneCountServesAllExperts) {
  Importance apart, together;
  const std::string name = "blk.1.ffn_up_exps.weight";
  std::vector<double> sums(512);
  for (size_t i = 0; i < sums.size(); ++i) sums[i] = static_cast<double>(i % 11 * 50 + 1);
  apart.maps[name] = {256, sums, {100, 100}};
  together.maps[name] = {512, sums, {100}};
  const auto tensor = [&](const Importance& guide) {
    const auto model = quantized({.mixture = DType::kQ4_K, .importance = &guide});
    const NamedTensor& found = *model->gguf()->find_tensor(name);
    return std::string(reinterpret_cast<const char*>(found.data), found.bytes);
  };
  EXPECT_TRUE(tensor(apart) == tensor(together));
}

// Of a damaged model or a damaged importance file comes a typed error, or a file that is whole.
TEST(QuantizeDamaged, FilesGiveAnErrorOrAFile) {
  constexpr uint64_t kSeed = 20261125;
  Mutator mutator(kSeed);
  TempFolder folder(TempFolder::fast_parent());
  Context context(1);
  const std::filesystem::path model = folder / "model.gguf",
                              importance = folder / "importance.gguf";
  export_gguf(context, HuggingfaceFolder::open(kGoldens / "bf16"), model, DType::kBF16);
  Importance found;
  found.maps["blk.0.attn_q.weight"] = {32, std::vector<double>(32, 5.0), {100}};
  found.maps["blk.1.ffn_up_exps.weight"] = {32, std::vector<double>(2 * 32, 5.0), {100, 9}};
  found.save(importance);
  int written = 0, refused = 0;
  for (const auto& damaged : {model, importance}) {
    const std::string whole = read_file(damaged, size_t{1} << 24);
    const size_t tables = whole.rfind(".weight") + 64;
    for (int i = 0; i < 400; ++i) {
      std::string bytes = whole;
      for (uint64_t faults = 1 + mutator.below(3); faults > 0; --faults) {
        mutator.damage(bytes, 0, mutator.one_in(4) ? bytes.size() : tables);
      }
      folder.write(damaged.filename().string(), bytes);
      std::filesystem::remove(folder / "out.gguf");
      try {
        const GgufFile file = GgufFile::open(model);
        const Importance guide = Importance::load(importance);
        GgufExport(file, {.mixture = *mixture_from_name("q4_k_m"), .importance = &guide})
            .write(context, folder / "out.gguf");
        GgufFile::open(folder / "out.gguf");
        ++written;
      } catch (const Error& error) {
        EXPECT_NE(error.kind(), ErrorKind::kInternal)
            << "seed " << kSeed << ", mutant " << i << ": " << error.what();
        EXPECT_FALSE(std::filesystem::exists(folder / "out.gguf"));
        EXPECT_FALSE(std::filesystem::exists(folder / "out.gguf.partial"));
        ++refused;
      }
    }
    folder.write(damaged.filename().string(), whole);
  }
  EXPECT_GT(written, 50);
  EXPECT_GT(refused, 200);
}

class ImportanceFile : public ::testing::Test {
 protected:
  // A file with one tensor of sums and one of counts, and the general.type.
  void write(std::string_view type, std::vector<float> sums, std::vector<float> counts,
             DType stored = DType::kF32,
             std::string_view counts_name = "blk.0.attn_q.weight.counts") {
    GgufWriter out;
    out.set("general.type", type);
    out.add_tensor("blk.0.attn_q.weight.in_sum2", stored, {static_cast<int64_t>(sums.size())});
    out.add_tensor(std::string(counts_name), DType::kF32, {static_cast<int64_t>(counts.size())});
    out.write(path_, [&](size_t i, const TensorSink& sink) {
      auto bytes = std::as_bytes(std::span(i == 0 ? sums : counts));
      if (i == 0 && stored == DType::kF16) bytes = bytes.first(bytes.size() / 2);
      sink(bytes);
    });
  }
  void refuses(ErrorKind kind, std::string_view words) {
    expect_error(kind, words, [&] { Importance::load(path_); });
  }

  TempFolder folder_;
  std::filesystem::path path_ = folder_ / "importance.gguf";
};

TEST_F(ImportanceFile, IsCheckedNumberByNumber) {
  write("imatrix", {1, 2, 0, 4}, {2, 3});
  EXPECT_EQ(Importance::load(path_).maps.at("blk.0.attn_q.weight").cols, 2);
  for (const float bad : {-1.0f, std::nanf(""), INFINITY}) {
    write("imatrix", {1, 2, bad, 4}, {2, 3});
    refuses(ErrorKind::kBadData, "in_sum2': expected finite numbers from 0 on, got");
    write("imatrix", {1, 2, 3, 4}, {2, bad});
    refuses(ErrorKind::kBadData, "counts': expected finite numbers from 0 on, got");
  }
  write("imatrix", {1, 2, 3}, {2, 3});
  refuses(ErrorKind::kBadData, "expected a multiple of its 2 counts, got 3");
  write("imatrix", {1, 2, 3, 4}, {2, 3}, DType::kF16);
  refuses(ErrorKind::kBadData, "expected f32, got f16");
  write("imatrix", {1, 2, 3, 4}, {2, 3}, DType::kF32, "other.counts");
  refuses(ErrorKind::kBadData, "expected 'blk.0.attn_q.weight.counts' beside it, got none");
  write("model", {1, 2, 3, 4}, {2, 3});
  refuses(ErrorKind::kUnsupported, "expected an importance matrix");
  folder_.write("importance.gguf", "not a GGUF file at all");
  refuses(ErrorKind::kBadData, "");
  GgufWriter empty;
  empty.set("general.type", "imatrix");
  empty.write(path_, {});
  refuses(ErrorKind::kBadData, "expected tensors 'NAME.in_sum2', got none");
}

}  // namespace
}  // namespace drover
