#include "eval/plan.h"

#include <gtest/gtest.h>

#include "engine/engine.h"
#include "eval/random_model.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

using testing::expect_error;
using testing::TempFolder;

PlannedModel scout() { return planned_model("tests/data/configs/scout/config.json"); }
PlannedModel maverick() { return planned_model("tests/data/configs/maverick"); }

TEST(Plan, CountsTheReleasedParametersFromAConfigurationAlone) {
  // Spec 1.1.
  EXPECT_EQ(scout().values(), 108'641'793'536);
  EXPECT_EQ(maverick().values(), 401'583'781'376);
  EXPECT_FALSE(scout().has_weights);
}

TEST(Plan, GivesTheDesignsCacheForScoutAtTenMillionTokens) {
  // 12 global layers of 8 heads of 128, keys and values: 24,576 elements a token; int8 adds a float
  // to each key and value. Whole pages of 256 tokens: 39,063 of them.
  const ModelConfig config = scout().config;
  const int64_t positions = 39'063 * 256;
  const CacheBytes bf16 = cache_bytes(config, DType::kBF16, 10'000'000);
  EXPECT_EQ(bf16.global, positions * 24'576 * 2);
  EXPECT_NEAR(static_cast<double>(bf16.global), 491.5e9, 0.05e9);
  const CacheBytes int8 = cache_bytes(config, DType::kI8, 10'000'000);
  EXPECT_EQ(int8.global, positions * (24'576 + 12 * 8 * 2 * 4));
  EXPECT_GE(int8.global, 253e9);
  EXPECT_LE(int8.global, 261e9);
  // 36 local layers keep one chunk of 8,192.
  EXPECT_EQ(bf16.local, int64_t{36} * 8192 * 2 * 8 * 128 * 2);
  EXPECT_EQ(cache_bytes(config, DType::kBF16, 1'000'000).local, bf16.local);
}

TEST(Plan, CountsThePagesThatAConversationReallyTakes) {
  ModelConfig config = *random_shape("tiny").config;
  config.chunk = 300;
  for (const DType type : {DType::kF32, DType::kBF16, DType::kI8}) {
    for (const int64_t tokens : {1, 255, 256, 257, 300, 301, 1000}) {
      KvCache cache(config.cache_layout(type), config.context);
      cache.reserve(tokens);
      EXPECT_EQ(cache_bytes(config, type, tokens).all(), cache.bytes()) << tokens;
    }
  }
}

TEST(Plan, FindsTheLongestContextToTheToken) {
  const ModelConfig config = scout().config;
  for (const DType type : {DType::kBF16, DType::kI8}) {
    for (const int64_t tokens : {256, 8192, 1'000'192}) {
      const int64_t bytes = cache_bytes(config, type, tokens).all();
      EXPECT_EQ(longest_context(config, type, bytes), tokens);
      EXPECT_EQ(longest_context(config, type, bytes - 1), tokens - 256);
    }
  }
  EXPECT_EQ(longest_context(config, DType::kI8, int64_t{1} << 50), config.context);
  EXPECT_EQ(longest_context(config, DType::kI8, 0), 0);
}

TEST(Plan, GivesTheWeightsOfAMixtureAsTheFileHasThem) {
  const TempFolder folder;
  Context context(2);
  for (const std::string_view shape : {"tiny", "tiny-vision"}) {
    for (const std::string_view type : {"q4_k_m", "q8_0", "bf16"}) {
      const Mixture mixture = *mixture_from_name(type);
      write_random_model(context, random_shape(shape), mixture, 1, folder / "m.gguf");
      const PlannedModel file = planned_model(folder / "m.gguf");
      EXPECT_TRUE(file.has_weights);
      const auto model = Model::load((folder / "m.gguf").string());
      int64_t bytes = 0;
      for (const NamedTensor& tensor : model->gguf()->tensors()) bytes += tensor.bytes;
      EXPECT_EQ(file.bytes(), bytes);
      EXPECT_EQ(in_mixture(file, mixture).bytes(), bytes) << shape << " " << type;
      EXPECT_EQ(file.vision_bytes() > 0, shape == "tiny-vision");
    }
  }
}

// The multiply-adds of a prompt, token by token and position by position.
TEST(Plan, CountsAttentionAsTheLayersDoIt) {
  ModelConfig config = *random_shape("tiny").config;
  config.chunk = 16;
  PlannedModel model;
  model.config = config;
  const int64_t last = config.layer_count() - 1;
  ASSERT_FALSE(config.layers[last].chunked);
  for (const int64_t n : {1, 15, 16, 17, 50}) {
    double all = 0, useful = 0;
    for (int64_t i = 0; i <= last; ++i) {
      for (int64_t t = 0; t < n; ++t) {
        const double seen = static_cast<double>(config.layers[i].chunked ? t % 16 + 1 : t + 1);
        all += seen;
        if (i < last || t == n - 1) useful += seen;
      }
    }
    const double each = 2.0 * static_cast<double>(config.heads * config.head_dim);
    EXPECT_DOUBLE_EQ(prefill_work(model, n, 8, true, Isa::kAvx512).attention, each * all);
    EXPECT_DOUBLE_EQ(prefill_work(model, n, 8, false, Isa::kAvx512).attention, each * useful);
  }
}

TEST(Plan, LeavesOutWhatNoLaterTokenReads) {
  // L L L G L: after the keys and values of layer 3 only the last chunk goes on.
  PlannedModel model;
  model.config = *random_shape("tiny").config;
  ModelConfig& c = model.config;
  c.chunk = 16;
  c.layers.resize(5);
  for (int64_t i = 0; i < 5; ++i) c.layers[i] = {.rope = i != 3, .chunked = i != 3, .moe = false};
  c.dense_width = 64;
  model = in_mixture(model, DType::kF32);
  const int64_t tokens = 50, live = 2;  // 48 is a border
  const double kv = 2.0 * static_cast<double>(c.hidden * c.kv_heads * c.head_dim);
  const double layer = kv + 2.0 * static_cast<double>(c.hidden * c.heads * c.head_dim) +
                       3.0 * static_cast<double>(c.hidden * c.dense_width);
  const double output = static_cast<double>(c.hidden * c.vocab);
  EXPECT_DOUBLE_EQ(prefill_work(model, tokens, 64, true, Isa::kAvx512).weights.float_products,
                   tokens * 5 * layer + output);
  EXPECT_DOUBLE_EQ(prefill_work(model, tokens, 64, false, Isa::kAvx512).weights.float_products,
                   tokens * 3 * layer + tokens * kv + live * (2 * layer - kv) + output);
  // The same without a global layer: nothing but the last chunk.
  c.layers[3].chunked = true;
  EXPECT_DOUBLE_EQ(prefill_work(model, tokens, 64, false, Isa::kAvx512).weights.float_products,
                   live * 5 * layer + output);
}

TEST(Plan, GivesTheResearchsArithmeticOfTenMillionTokens) {
  // research 2.3: global attention 1.23e19 operations, 1.13e19 without the last layer's; local
  // 3.0e16; matrices 3.4e17 at 17e9 parameters, of which one token's embedding is none.
  const PlannedModel model = scout();
  const double n = 1e7;
  const PrefillWork all = prefill_work(model, 10'000'000, 2048, true, Isa::kAvx512);
  const PrefillWork useful = prefill_work(model, 10'000'000, 2048, false, Isa::kAvx512);
  const double local = 36 * 4.0 * 5120 * n * 4096;
  EXPECT_NEAR((2 * all.attention - local) / 1.23e19, 1, 0.005);
  EXPECT_NEAR((2 * useful.attention - local) / 1.13e19, 1, 0.005);
  const PassWork& w = all.weights;
  const double operations = 2 * (w.float_products + w.int8_products + w.bf16_products);
  EXPECT_NEAR(operations / (2 * n), 16'138'408'960.0 - 202048.0 * 5120, 3e6);  // norms aside
}

TEST(Plan, TimesFollowTheLimits) {
  const PlannedModel model = in_mixture(scout(), *mixture_from_name("q4_k_m"));
  const MachineLimits limits{
      .threads = 1, .bandwidth = 100e9, .int8_rate = 10e12, .float_rate = 2e12, .bf16_rate = 0};
  const double decode = *decode_seconds(model, 1000, DType::kBF16, limits);
  // 16.1 billion weights at 4.5 to 6.6 bits, at 70 GB/s.
  EXPECT_GT(decode, 16.1e9 * 4.5 / 8 / 70e9);
  EXPECT_LT(decode, 16.1e9 * 6.6 / 8 / 70e9);
  EXPECT_GT(*decode_seconds(model, 10'000'000, DType::kBF16, limits), 491.5e9 / 70e9);
  EXPECT_LT(*prefill_seconds(model, 1'000'000, 2048, false, limits),
            *prefill_seconds(model, 1'000'000, 2048, true, limits));
  MachineLimits unknown = limits;
  unknown.int8_rate = 0;
  EXPECT_FALSE(prefill_seconds(model, 1000, 2048, false, unknown));
  EXPECT_TRUE(decode_seconds(model, 1000, DType::kBF16, unknown));
  unknown.bandwidth = 0;
  EXPECT_FALSE(decode_seconds(model, 1000, DType::kBF16, unknown));
}

TEST(Plan, EveryChangeMakesItFit) {
  const PlannedModel model = scout();
  for (const double gigabytes : {120.0, 230.0, 300.0, 400.0, 600.0}) {
    Demand demand{.context = 10'000'000,
                  .cache_type = DType::kBF16,
                  .batch = 2048,
                  .memory = static_cast<int64_t>(gigabytes * 1e9)};
    ASSERT_GT(needed_bytes(model, demand), demand.memory);
    EXPECT_EQ(conversations(model, demand), 0);
    const std::vector<Change> changes = changes_to_fit(model, demand);
    ASSERT_FALSE(changes.empty());
    for (size_t i = 0; i + 1 < changes.size(); ++i) {
      EXPECT_LE(changes[i].bytes, demand.memory) << changes[i].flags;
    }
    demand.memory = changes.back().bytes;
    EXPECT_EQ(conversations(model, demand), 1);
    EXPECT_EQ(needed_bytes(model, demand), demand.memory);
  }
}

TEST(Plan, ActivationsAreWhatADecoderTakes) {
  const TempFolder folder;
  Context context(2);
  write_random_model(context, random_shape("tiny"), *mixture_from_name("q8_0"), 1,
                     folder / "m.gguf");
  const auto model = Model::load((folder / "m.gguf").string());
  constexpr int64_t kBatch = 8192;
  Engine engine(*model, context, {.context = kBatch, .batch = kBatch});
  const std::vector<Token> prompt(kBatch, 7);
  GenerateOptions options;
  options.max_tokens = 1;
  const int64_t before = anonymous_memory();
  engine.generate(prompt, options);
  const double took = static_cast<double>(anonymous_memory() - before -
                                          engine.state().pages_used * engine.state().page_bytes);
  const double planned =
      static_cast<double>(activation_bytes(planned_model(folder / "m.gguf"), kBatch));
  // What is reserved and never written is not resident, the rotation's table is not counted, and
  // threads keep scratch of some MB: the right size, not the byte.
  EXPECT_GT(planned, 0.6 * took);
  EXPECT_LT(planned, 1.6 * took);
}

TEST(Plan, RefusesWhatIsNoModel) {
  const TempFolder folder;
  expect_error(ErrorKind::kNotFound, "config.json", [&] { planned_model(folder.path()); });
}

}  // namespace
}  // namespace drover
