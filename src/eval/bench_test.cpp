#include "eval/bench.h"

#include <gtest/gtest.h>

#include <set>

#include "eval/random_model.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

using testing::TempFolder;

class BenchTests : public ::testing::Test {
 protected:
  // The tiny model with chunks of 16 tokens, so that tests cross borders.
  void SetUp() override {
    ModelConfig config = *random_shape("tiny").config;
    config.chunk = 16;
    write_random_model(context_, {config, {}}, *mixture_from_name("q8_0"), 1, folder_ / "m.gguf");
    model_ = Model::load((folder_ / "m.gguf").string());
  }

  const ModelConfig& config() const { return model_->config(); }

  // Bytes of all matrices that one token with logits meets, from the names in the file.
  double active_bytes() const {
    double sum = 0;
    for (const NamedTensor& tensor : model_->gguf()->tensors()) {
      if (tensor.shape.size() == 1 || tensor.name == "token_embd.weight") continue;
      const bool experts = tensor.name.find("_exps") != std::string_view::npos;
      sum += static_cast<double>(tensor.bytes / (experts ? config().experts : 1));
    }
    return sum;
  }
  double embedding_row() const {
    return static_cast<double>(model_->weights().embedding.row_stride());
  }

  // Bytes of the keys and values that the tokens [first, end) attend to, by looking at each.
  double cache_bytes(int64_t first, int64_t end) const {
    const double position = 2.0 * static_cast<double>(config().kv_heads * config().head_dim) * 2;
    double sum = 0;
    for (const LayerConfig& layer : config().layers) {
      std::set<int64_t> seen;
      for (int64_t t = first; t < end; ++t) {
        for (int64_t p = 0; p <= t; ++p) {
          if (!layer.chunked || p / config().chunk == t / config().chunk) seen.insert(p);
        }
      }
      sum += position * static_cast<double>(seen.size());
    }
    return sum;
  }

  TempFolder folder_;
  Context context_{2};
  std::unique_ptr<Model> model_;
};

TEST_F(BenchTests, AGeneratedTokenReadsItsExpertsAndItsPast) {
  Bencher bencher(context_, *model_);
  for (const int64_t depth : {0, 5, 15, 16, 37}) {
    const auto passes = bencher.warm_up({.generate = 3, .depth = depth});
    ASSERT_EQ(passes.size(), 3u);
    for (int64_t i = 0; i < 3; ++i) {
      EXPECT_EQ(passes[i].bytes,
                active_bytes() + embedding_row() + cache_bytes(depth + i, depth + i + 1))
          << "depth " << depth << ", token " << i;
    }
  }
}

TEST_F(BenchTests, OfATokenAllButTheRouterIsMultipliedInEightBits) {
  Bencher bencher(context_, *model_);
  const auto passes = bencher.warm_up({.generate = 1});
  const ModelConfig& c = config();
  const int64_t norms = c.hidden * (2 * c.layer_count() + 1);
  const int64_t matrices = count_parameters(c).active - c.vocab * c.hidden - norms;
  const int64_t routers = c.layer_count() * c.experts * c.hidden;
  EXPECT_EQ(passes[0].int8_products, static_cast<double>(matrices - routers));
  EXPECT_EQ(passes[0].float_products, static_cast<double>(routers));
}

// Weights in bf16 meet two terms of every activation on a matrix unit, and nothing of one
// elsewhere.
TEST_F(BenchTests, ProductsOnTheMatrixUnitAreCountedApart) {
  write_random_model(context_, {config(), {}}, *mixture_from_name("bf16"), 1, folder_ / "b.gguf");
  const auto model = Model::load((folder_ / "b.gguf").string());
  const ModelConfig& c = config();
  const int64_t norms = c.hidden * (2 * c.layer_count() + 1);
  const int64_t matrices = count_parameters(c).active - c.vocab * c.hidden - norms;
  const int64_t routers = c.layer_count() * c.experts * c.hidden;
  for (const Isa isa : available_isas()) {
    Context context(2, isa);
    const PassWork pass = Bencher(context, *model).warm_up({.generate = 1})[0];
    const bool unit = isa == Isa::kAmx;
    EXPECT_EQ(pass.bf16_products, unit ? 2.0 * static_cast<double>(matrices - routers) : 0);
    EXPECT_EQ(pass.float_products, static_cast<double>(unit ? routers : matrices));
    EXPECT_EQ(pass.int8_products, 0) << isa_name(isa);
  }
}

TEST_F(BenchTests, APromptIsCutIntoBatchesAndOnlyItsLastTokenHasLogits) {
  Bencher bencher(context_, *model_, {.batch = 24});
  const auto passes = bencher.warm_up({.prompt = 50, .depth = 10});
  ASSERT_EQ(passes.size(), 3u);
  const WeightView& output = model_->weights().output;
  double products = 0;
  for (const PassWork& pass : passes) products += pass.int8_products + pass.float_products;
  const ModelConfig& c = config();
  const int64_t always =
      count_parameters(c).active - 2 * c.vocab * c.hidden - c.hidden * (2 * c.layer_count() + 1);
  // The last layer gives keys and values of all tokens, and the rest of the last one alone.
  const int64_t layer = always / c.layer_count();
  const int64_t keys_and_values = 2 * c.kv_heads * c.head_dim * c.hidden;
  const int64_t early = always - layer + keys_and_values;
  EXPECT_EQ(products, 49.0 * static_cast<double>(early) +
                          static_cast<double>(always + output.rows * output.cols));
  // 24 tokens of 4 experts: which are chosen is the router's business, but all that the layers have
  // is the most, and what one token needs the least.
  const double most = static_cast<double>(model_->weights().bytes);
  EXPECT_LE(passes[0].bytes, most + 24 * embedding_row() + cache_bytes(10, 34));
  EXPECT_GE(passes[0].bytes, active_bytes() - static_cast<double>(output.bytes()) +
                                 24 * embedding_row() + cache_bytes(10, 34));
}

TEST_F(BenchTests, SequencesTogetherShareWeightsAndHaveTheirOwnPast) {
  Bencher bencher(context_, *model_);
  const auto one = bencher.warm_up({.generate = 1, .depth = 20});
  const auto four = bencher.warm_up({.generate = 1, .depth = 20, .parallel = 4});
  ASSERT_EQ(four.size(), 1u);
  EXPECT_EQ(four[0].int8_products, 4 * one[0].int8_products);
  EXPECT_LT(four[0].bytes, 4 * one[0].bytes);
  EXPECT_GE(four[0].bytes, active_bytes() + 4 * (embedding_row() + cache_bytes(20, 21)));
}

TEST_F(BenchTests, EveryRepeatDoesTheSameWork) {
  Bencher bencher(context_, *model_);
  const BenchTest test{.prompt = 30, .generate = 2, .depth = 10};  // past a border and back
  const auto first = bencher.warm_up(test);
  EXPECT_GT(bencher.seconds(test), 0);
  const auto again = bencher.warm_up(test);
  ASSERT_EQ(again.size(), first.size());
  for (size_t i = 0; i < first.size(); ++i) EXPECT_EQ(again[i].bytes, first[i].bytes);
}

TEST_F(BenchTests, WhatCannotBeMeasuredIsRefused) {
  Bencher bencher(context_, *model_);
  testing::expect_error(ErrorKind::kUsage, "something to do", [&] { bencher.warm_up({}); });
  testing::expect_error(ErrorKind::kLimit, "context",
                        [&] { bencher.warm_up({.prompt = 5, .depth = config().context}); });
  testing::expect_error(ErrorKind::kUsage, "batch",
                        [&] { Bencher(context_, *model_, {.batch = 0}); });
}

TEST(Bench, AResultIsTheMedianBesideTheLeastTime) {
  const MachineLimits limits{.threads = 2, .bandwidth = 100, .int8_rate = 1000, .float_rate = 10};
  // The first pass moves for 2 s while it computes for 1; the second computes for 4 s.
  const PassWork passes[] = {{.bytes = 200, .int8_products = 500, .float_products = 0},
                             {.bytes = 100, .int8_products = 1000, .float_products = 10}};
  EXPECT_EQ(passes[0].least_seconds(limits), 2);
  EXPECT_EQ(passes[1].least_seconds(limits), 4);
  const MachineLimits matrix_unit{.bandwidth = 1, .int8_rate = 1, .float_rate = 1, .bf16_rate = 50};
  EXPECT_EQ((PassWork{.bf16_products = 75}.least_seconds(matrix_unit)), 3);
  const BenchTest test{.generate = 6, .parallel = 4};
  EXPECT_EQ(test.name(), "tg");
  const double seconds[] = {12, 8, 24};
  const BenchResult r = summarise(test, seconds, passes, limits);
  EXPECT_EQ(r.threads, 2);
  EXPECT_DOUBLE_EQ(r.tokens_per_second, 2);       // 24 tokens in 12 s
  EXPECT_DOUBLE_EQ(r.spread, (3.0 - 1.0) / 2.0);  // 8 s and 24 s
  EXPECT_DOUBLE_EQ(r.bytes_per_second, 300.0 / 12);
  EXPECT_DOUBLE_EQ(r.fraction_of_limit, 6.0 / 12);
  EXPECT_FALSE(r.bandwidth_bound);
  const double even[] = {12, 8};
  EXPECT_DOUBLE_EQ(summarise(test, even, passes, limits).tokens_per_second, 2.5);
}

TEST(Bench, MemoryBeyondFilesGrowsWithWhatIsTaken) {
  const int64_t before = anonymous_memory();
  ASSERT_GT(before, 0);
  constexpr int64_t kBytes = int64_t{64} << 20;
  std::vector<char> taken(kBytes, 1);
  EXPECT_GE(anonymous_memory() - before, kBytes * 9 / 10 * taken[kBytes / 2]);
}

}  // namespace
}  // namespace drover
