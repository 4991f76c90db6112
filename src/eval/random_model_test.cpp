#include "eval/random_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "base/mapped_file.h"
#include "model/decoder.h"
#include "model/model.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

using testing::TempFolder;

// Rows that each linear map met.
class RowCounter : public InputObserver {
 public:
  void see(WeightView w, ConstMatrixView x) override { rows[w.data] += x.rows; }
  std::map<const std::byte*, int64_t> rows;
};

std::vector<Token> some_tokens(const ModelConfig& config, int64_t count) {
  std::vector<Token> out;
  for (int64_t i = 0; i < count; ++i) {
    out.push_back(static_cast<Token>(i * 7919 % config.vocab));
  }
  return out;
}

// Every kind of mixture that kernels differ for.
constexpr std::string_view kTypes[] = {"f32",  "f16",    "bf16",   "q8_0",   "q4_0",   "q4_1",
                                       "q5_0", "q5_1",   "q6_k",   "q5_k",   "q4_k_m", "q4_k_s",
                                       "q2_k", "q3_k_m", "iq4_nl", "iq4_xs", "mxfp4"};

TEST(RandomModel, LoadsAsTheConfigurationItWasMadeOfInEveryType) {
  const TempFolder folder;
  Context context(2);
  const ModelConfig wanted = *random_shape("tiny").config;
  for (const std::string_view type : kTypes) {
    const Mixture mixture = *mixture_from_name(type);
    write_random_model(context, {wanted, {}}, mixture, 1, folder / "m.gguf");
    const auto model = Model::load((folder / "m.gguf").string());
    const ModelConfig& c = model->config();
    EXPECT_EQ(c.architecture, wanted.architecture);
    EXPECT_EQ(c.name, wanted.name);
    EXPECT_EQ(c.vocab, wanted.vocab);
    EXPECT_EQ(c.layers, wanted.layers);
    EXPECT_EQ(c.experts, wanted.experts);
    EXPECT_EQ(c.expert_width, wanted.expert_width);
    EXPECT_EQ(c.chunk, wanted.chunk);
    EXPECT_EQ(c.qk_norm, wanted.qk_norm);
    EXPECT_EQ(c.context, wanted.context);
    EXPECT_EQ(c.rope_frequencies, wanted.rope_frequencies);
    EXPECT_EQ(model->weights().layers[0].router.type, DType::kF32);
    EXPECT_EQ(model->weights().layers[0].wq.type,
              mixture_type(mixture, c, "blk.0.attn_q.weight", std::vector<int64_t>{256, 256}));
  }
}

TEST(RandomModel, ActivationsKeepTheirSizeAndTokensSpreadOverTheExperts) {
  const TempFolder folder;
  Context context(2);
  for (const std::string_view type : {"f32", "q4_0", "q4_k_m"}) {
    write_random_model(context, random_shape("tiny"), *mixture_from_name(type), 1,
                       folder / "m.gguf");
    const auto model = Model::load((folder / "m.gguf").string());
    const ModelConfig& c = model->config();
    constexpr int64_t kTokens = 512;
    const std::vector<Token> tokens = some_tokens(c, kTokens);
    KvCache cache(c.cache_layout(DType::kF32), kTokens);
    Decoder decoder(context, c, model->weights());
    RowCounter counter;
    decoder.observe(&counter);
    std::vector<float> logits(static_cast<size_t>(kTokens * c.vocab));
    const SequenceSlice slice{&cache, tokens, kTokens};
    decoder.forward({&slice, 1}, {logits.data(), kTokens, c.vocab, c.vocab});

    // The product of a normed token and a random row of variance 1/D has variance 1, give or take
    // what rounding and 512 rows in the pool's order do to it.
    double squares = 0;
    for (const float l : logits) squares += static_cast<double>(l) * l;
    const double size = std::sqrt(squares / static_cast<double>(logits.size()));
    EXPECT_GT(size, 0.5) << type;
    EXPECT_LT(size, 2) << type;
    for (const LayerWeights& w : model->weights().layers) {
      for (int64_t e = 0; e < c.experts; ++e) {
        // An even share is 128, its standard deviation 10, were tokens independent; an expert that
        // is left out, or takes all, is what must not be.
        const int64_t rows = counter.rows[w.expert_gate.expert(e).data];
        EXPECT_GT(rows, kTokens / c.experts / 4) << type << ", expert " << e;
        EXPECT_LT(rows, kTokens * 5 / 8) << type << ", expert " << e;
      }
    }
  }
}

TEST(RandomModel, IsTheSameFileForASeedOnAnyNumberOfThreads) {
  const TempFolder folder;
  const auto bytes = [&](int threads, uint64_t seed) {
    Context context(threads);
    write_random_model(context, random_shape("tiny"), *mixture_from_name("q4_k_m"), seed,
                       folder / "m.gguf");
    return read_file(folder / "m.gguf", size_t{1} << 30);
  };
  const std::string first = bytes(1, 1);
  EXPECT_TRUE(bytes(3, 1) == first);
  EXPECT_FALSE(bytes(1, 2) == first);
}

TEST(RandomModel, ItsTokenizerReadsAndWritesText) {
  const TempFolder folder;
  Context context(1);
  write_random_model(context, random_shape("tiny"), *mixture_from_name("q8_0"), 1,
                     folder / "m.gguf");
  const auto model = Model::load((folder / "m.gguf").string());
  const Tokenizer& tokenizer = model->tokenizer();
  const std::string text = "any words, \xC3\xA9 and numbers 123\n";
  std::string back;
  const std::vector<Token> tokens = tokenizer.encode(text);
  for (const Token token : tokens) back += tokenizer.token_bytes(token);
  EXPECT_EQ(back, text);
  EXPECT_LT(tokens.size(), text.size());  // merges join letters
  EXPECT_EQ(model->chat_format(), ChatFormat::kLlama4);
}

// Totals of spec section 1.1, which counted the released tensors.
TEST(RandomModel, ScoutAndMaverickHaveTheReleasedParametersAtFullDepth) {
  const auto full = [](std::string_view name) {
    ModelConfig c = *random_shape(name).config;
    const std::vector<LayerConfig> four = c.layers;
    while (c.layers.size() < 48) c.layers.insert(c.layers.end(), four.begin(), four.end());
    return count_parameters(c);
  };
  EXPECT_EQ(full("scout-4l").total, 107'769'861'120);
  EXPECT_EQ(full("scout-4l").active, 17'172'894'720);
  EXPECT_EQ(full("maverick-4l").total, 400'711'848'960);
  EXPECT_EQ(full("maverick-4l").active, 17'184'691'200);
}

TEST(RandomModel, TheDenseTwinsHaveTheParametersOfTheComparison) {
  const auto active = [](std::string_view name) {
    const ModelConfig c = *random_shape(name).config;
    return static_cast<double>(count_parameters(c).active - c.vocab * c.hidden);
  };
  EXPECT_NEAR(active("edge-dense") / active("edge-moe"), 4.1, 0.05);
  EXPECT_NEAR(active("edge-dense-active") / active("edge-moe"), 1.0, 0.01);
}

TEST(RandomModel, AnUnknownShapeIsRefusedByName) {
  testing::expect_error(ErrorKind::kUsage, "huge", [&] { random_shape("huge"); });
}

}  // namespace
}  // namespace drover
