#include "model/fingerprint.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <functional>
#include <set>

#include "model/export_gguf.h"
#include "tests/support/random_model.h"
#include "tests/support/small_model.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

namespace fs = std::filesystem;
using testing::TempFolder;

class Fingerprint : public ::testing::Test {
 protected:
  Fingerprint() {
    testing::write_random_model(folder_ / "model");
    model_ = Model::load((folder_ / "model").string());
  }

  TempFolder folder_;
  std::unique_ptr<Model> model_;
};

TEST_F(Fingerprint, IsOfTheWeightsNotOfTheFile) {
  const Digest print = fingerprint(*model_);
  EXPECT_EQ(print, fingerprint(*Model::load((folder_ / "model").string())));
  // Converted without a change of types it computes the same, and is the same.
  Context context(1);
  GgufExport(*model_->huggingface(), {.mixture = DType::kF32}).write(context, folder_ / "f32.gguf");
  EXPECT_EQ(print, fingerprint(*Model::load((folder_ / "f32.gguf").string())));
  GgufExport(*model_->huggingface(), {.mixture = DType::kQ8_0}).write(context, folder_ / "q.gguf");
  EXPECT_NE(print, fingerprint(*Model::load((folder_ / "q.gguf").string())));
}

TEST_F(Fingerprint, SeesEverythingThatIsComputedWith) {
  std::set<Digest> seen = {fingerprint(*model_)};
  const auto differs = [&](const char* what,
                           const std::function<void(ModelConfig&, Weights&)>& change) {
    ModelConfig config = model_->config();
    Weights weights;
    weights.embedding = model_->weights().embedding;
    weights.layers = model_->weights().layers;
    weights.output_norm = model_->weights().output_norm;
    weights.output = model_->weights().output;
    change(config, weights);
    EXPECT_TRUE(seen.insert(fingerprint(config, weights, nullptr)).second) << what;
  };
  differs("heads", [](auto& c, auto&) { c.heads *= 2; });
  differs("experts_used", [](auto& c, auto&) { c.experts_used = 2; });
  differs("norm_eps", [](auto& c, auto&) { c.norm_eps *= 2; });
  differs("rope of layer 1", [](auto& c, auto&) { c.layers[1].rope ^= true; });
  differs("chunked layer 1", [](auto& c, auto&) { c.layers[1].chunked ^= true; });
  differs("chunk", [](auto& c, auto&) { c.chunk *= 2; });
  differs("qk_norm", [](auto& c, auto&) { c.qk_norm ^= true; });
  differs("temperature", [](auto& c, auto&) { c.temperature_tuning ^= true; });
  differs("floor_scale", [](auto& c, auto&) {
    c.temperature_tuning = true;
    c.floor_scale *= 3;
  });
  differs("rope_frequencies", [](auto& c, auto&) { c.rope_frequencies.back() *= 2; });
  // Every tensor is looked at: each in turn with other data of the same shape.
  const std::vector<float> other(1 << 20, 0.5f);
  const auto* data = reinterpret_cast<const std::byte*>(other.data());
  differs("embedding", [&](auto&, auto& w) { w.embedding.data = data; });
  differs("output", [&](auto&, auto& w) { w.output.data = data; });
  differs("output_norm", [&](auto&, auto& w) { w.output_norm = other.data(); });
  using L = LayerWeights;
  for (const auto member :
       {&L::wq, &L::wk, &L::wv, &L::wo, &L::gate, &L::up, &L::down, &L::router}) {
    differs("a matrix", [&](auto&, auto& w) { (w.layers[3].*member).data = data; });
  }
  for (const auto member : {&L::expert_gate, &L::expert_up, &L::expert_down}) {
    differs("experts", [&](auto&, auto& w) { (w.layers[3].*member).data = data; });
  }
  for (const auto member : {&L::attention_norm, &L::ffn_norm}) {
    differs("a norm", [&](auto&, auto& w) { w.layers[2].*member = other.data(); });
  }
  differs("a type", [&](auto&, auto& w) { w.layers[0].wq.type = DType::kI32; });
  // What nothing is computed with.
  ModelConfig renamed = model_->config();
  renamed.name = "another";
  renamed.context *= 2;
  EXPECT_EQ(fingerprint(renamed, model_->weights(), nullptr), fingerprint(*model_));
}

TEST_F(Fingerprint, SeesTheEndsOfALargeTensorAndWhatLiesEvenlyBetween) {
  // 2 MB: 32 of 512 blocks are looked at.
  const ModelConfig config = model_->config();
  const int64_t rows = 512, cols = 1024;
  std::vector<float> values(static_cast<size_t>(rows * cols), 1.0f);
  Weights weights;
  weights.embedding = {reinterpret_cast<const std::byte*>(values.data()), DType::kF32, rows, cols};
  const Digest print = fingerprint(config, weights, nullptr);
  const auto sees = [&](size_t at) {
    values[at] = 2.0f;
    const bool differs = fingerprint(config, weights, nullptr) != print;
    values[at] = 1.0f;
    return differs;
  };
  EXPECT_TRUE(sees(0));
  EXPECT_TRUE(sees(1023));
  EXPECT_TRUE(sees(values.size() - 1));
  EXPECT_TRUE(sees(values.size() - 1024));
  EXPECT_FALSE(sees(1024));  // as the header says
  size_t seen = 0;
  for (size_t at = 0; at < values.size(); at += 256) seen += sees(at);
  EXPECT_NEAR(static_cast<double>(seen), 32 * 4, 4);
}

TEST(FingerprintOfVision, SeesTheEncoder) {
  const TempFolder folder;
  std::set<Digest> seen;
  for (const auto& entry : fs::directory_iterator("tests/data/vision")) {
    if (!fs::exists(entry.path() / "config.json")) continue;
    const auto model = Model::load(entry.path().string());
    if (!model->has_vision()) continue;
    const Digest whole = fingerprint(*model);
    EXPECT_TRUE(seen.insert(whole).second) << entry.path();
    EXPECT_TRUE(seen.insert(fingerprint(model->config(), model->weights(), nullptr)).second);
    Vision vision;
    vision.config = model->vision().config;
    const VisionWeights& w = model->vision().weights;
    const auto copy = [&] {
      vision.weights.patch_embedding = w.patch_embedding;
      vision.weights.class_embedding = w.class_embedding;
      vision.weights.position_embedding = w.position_embedding;
      vision.weights.pre_norm = w.pre_norm;
      vision.weights.layers = w.layers;
      vision.weights.post_norm = w.post_norm;
      vision.weights.adapter_fc1 = w.adapter_fc1;
      vision.weights.adapter_fc2 = w.adapter_fc2;
      vision.weights.projector = w.projector;
    };
    copy();
    EXPECT_EQ(fingerprint(model->config(), model->weights(), &vision), whole);
    vision.config.tiles.max_tiles += 1;
    EXPECT_TRUE(seen.insert(fingerprint(model->config(), model->weights(), &vision)).second);
    vision.config = model->vision().config;
    std::swap(vision.weights.layers[0].wq, vision.weights.layers[0].wk);
    EXPECT_TRUE(seen.insert(fingerprint(model->config(), model->weights(), &vision)).second);
    copy();
    std::swap(vision.weights.pre_norm, vision.weights.post_norm);
    EXPECT_TRUE(seen.insert(fingerprint(model->config(), model->weights(), &vision)).second);
  }
  EXPECT_FALSE(seen.empty());
}

TEST(FingerprintOfATokenizer, SeesEverythingThatMakesTokens) {
  const Vocabulary vocabulary = vocabulary_from_tokenizer_json(
      testing::small_tokenizer_json(), "tokenizer.json", testing::small_tokenizer_config_json());
  std::set<Digest> seen = {fingerprint(vocabulary)};
  const auto differs = [&](const std::function<void(Vocabulary&)>& change) {
    Vocabulary other = vocabulary;
    change(other);
    EXPECT_TRUE(seen.insert(fingerprint(other)).second);
  };
  differs([](Vocabulary& v) { v.tokens[5] += "x"; });
  differs([](Vocabulary& v) { std::swap(v.tokens[5], v.tokens[6]); });
  differs([](Vocabulary& v) { v.tokens.push_back("new"), v.kinds.push_back(TokenKind::kNormal); });
  differs([](Vocabulary& v) { v.kinds[1] = TokenKind::kNormal; });
  differs([](Vocabulary& v) { std::swap(v.merges[0], v.merges[1]); });
  differs([](Vocabulary& v) { v.merges.pop_back(); });
  differs([](Vocabulary& v) { v.pre = PreTokenizer::kLlama3; });
  differs([](Vocabulary& v) { v.ignore_merges ^= true; });
  differs([](Vocabulary& v) { v.add_bos ^= true; });
  differs([](Vocabulary& v) { v.bos = 3; });
  differs([](Vocabulary& v) { v.eos.reset(); });
  differs([](Vocabulary& v) { v.pad = 3; });
  Vocabulary same = vocabulary;
  same.source = "elsewhere";
  same.chat_template += "x";
  EXPECT_EQ(fingerprint(same), fingerprint(vocabulary));
}

}  // namespace
}  // namespace drover
