// Results do not depend on company: a token's logits are the same bits whatever way its prompt was
// cut, whoever shares the batch, on any number of threads and on any instruction set; but that the
// matrix unit has its own bits for bf16 weights.

#include <gtest/gtest.h>

#include <bit>

#include "model/export_gguf.h"
#include "tests/support/goldens.h"
#include "tests/support/random_adapter.h"
#include "tests/support/random_model.h"

namespace drover {
namespace {

using namespace testing;

// Cases that differ in how attention and experts run, and weight types that differ in how products
// run. bf16 is the case whose rows are all whole 32-value blocks.
// Rows of K-quants are 256 wide, which no golden has: those run on random weights.
constexpr std::string_view kRandom = "random_256";

struct Case {
  std::string golden;
  DType type;
  bool adapted = false;

  friend void PrintTo(const Case& c, std::ostream* out) {
    *out << c.golden << " " << dtype_name(c.type) << (c.adapted ? " adapted" : "");
  }
};

// Equal as bits: 0 and -0 differ.
::testing::AssertionResult same_bits(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size()) return ::testing::AssertionFailure() << a.size() << " and " << b.size();
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::bit_cast<uint32_t>(a[i]) == std::bit_cast<uint32_t>(b[i])) continue;
    return ::testing::AssertionFailure() << "logit " << i << ": " << a[i] << " and " << b[i];
  }
  return ::testing::AssertionSuccess();
}

class Company : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const Case& c = GetParam();
    std::filesystem::path source;
    if (c.golden == kRandom) {
      source = folder_ / "random";
      write_random_model(source);
      for (Token t = 0; t < 40; ++t) golden_.tokens.push_back(t * 17 % 64);
    } else {
      for (Golden& golden : all_goldens()) {
        if (golden.name == c.golden) golden_ = std::move(golden);
      }
      source = golden_.folder();
    }
    ASSERT_FALSE(golden_.tokens.empty());
    Context context(2);
    const auto path = folder_ / "model.gguf";
    export_gguf(context, HuggingfaceFolder::open(source), path, c.type);
    std::vector<std::string> adapters;
    if (c.adapted) {
      adapters.push_back((folder_ / "adapter").string());
      const auto folder = HuggingfaceFolder::open_config_only(source);
      write_random_adapter(adapters[0], config_from_huggingface(folder.config, "config.json"), 3,
                           1);
    }
    model_ = Model::load(path.string(), {}, {}, adapters);
  }

  // The bits that every run on this instruction set must have: those of the whole prompt on one
  // thread in plain code, or on the matrix unit where it has its own.
  std::vector<float> whole(DType cache, Isa isa = detect_isa()) {
    Context context(1, has_own_bits(isa) ? isa : Isa::kPlain);
    return logits_of(*model_, context, golden_.tokens, cache);
  }

  // Rounding to 8 bits can tip, and moves a product by a step of 1/127 of its largest term.
  bool quantized() const { return is_quantized(model_->weights().layers.front().wq.type); }

  bool has_own_bits(Isa isa) const { return isa == Isa::kAmx && has_bf16_weights(); }

  bool has_bf16_weights() const {
    const Weights& w = model_->weights();
    bool found = w.output.type == DType::kBF16;
    for (const LayerWeights& l : w.layers) {
      for (const DType type :
           {l.wq.type, l.wk.type, l.wv.type, l.wo.type, l.gate.type, l.up.type, l.down.type,
            l.router.type, l.expert_gate.type, l.expert_up.type, l.expert_down.type}) {
        found = found || type == DType::kBF16;
      }
    }
    return found;
  }

  TempFolder folder_;
  Golden golden_;
  std::unique_ptr<Model> model_;
};

TEST_P(Company, TokenByTokenAndSlicesOfAnySizeGiveTheBitsOfTheWholePrompt) {
  for (const DType cache : {DType::kF32, DType::kBF16, DType::kI8}) {
    const auto expected = whole(cache);
    Context context(2);
    for (int64_t size = 1; size <= static_cast<int64_t>(golden_.tokens.size()); ++size) {
      if (cache == DType::kI8 && size > 4) break;  // all sizes of the others take their time
      EXPECT_TRUE(same_bits(logits_of(*model_, context, golden_.tokens, cache, {size}), expected))
          << "slices of " << size;
    }
    EXPECT_TRUE(
        same_bits(logits_of(*model_, context, golden_.tokens, cache, {7, 1, 20, 3, 1}), expected));
  }
}

TEST_P(Company, AnyNumberOfThreadsAndAnyInstructionSetGivesTheSameBits) {
  for (const DType cache : {DType::kBF16, DType::kI8}) {
    const auto plain = whole(cache, Isa::kPlain);
    for (const Isa isa : available_isas()) {
      const auto expected = has_own_bits(isa) ? whole(cache, isa) : plain;
      for (const int threads : {1, 2, 4}) {
        if (cache == DType::kI8 && threads != 2) continue;
        Context context(threads, isa);
        EXPECT_TRUE(same_bits(logits_of(*model_, context, golden_.tokens, cache), expected))
            << isa_name(isa) << ", " << threads << " threads";
        EXPECT_TRUE(same_bits(logits_of(*model_, context, golden_.tokens, cache, {1}), expected))
            << isa_name(isa) << ", " << threads << " threads, token by token";
      }
    }
  }
}

// The tolerance of the goldens, where a wrong mechanism moves logits by 1e-2 or more: a product on
// the matrix unit is off by 2^-16 of its terms at most, and these models make some tens in a row.
TEST_P(Company, TheMatrixUnitGivesNearlyTheLogitsOfPlainCode) {
  if (!has_own_bits(detect_isa())) GTEST_SKIP() << "no AMX, or no bf16 weights for it";
  EXPECT_LE(relative_difference(whole(DType::kF32, Isa::kAmx), whole(DType::kF32, Isa::kPlain)),
            1e-4);
}

// Five sequences of the same text at five places of it, in one batch, in uneven steps.
TEST_P(Company, OtherSequencesInTheBatchDoNotShow) {
  const auto expected = whole(DType::kBF16);
  const ModelConfig& config = model_->config();
  Context context(2);
  Decoder decoder(context, config, model_->weights());
  const int64_t total = static_cast<int64_t>(golden_.tokens.size());
  struct Sequence {
    KvCache cache;
    int64_t step;
  };
  std::vector<Sequence> sequences;
  for (const int64_t step : {1, 5, 2, 16, 40}) {
    sequences.push_back({KvCache(config.cache_layout(DType::kBF16), total), step});
  }
  for (;;) {
    std::vector<SequenceSlice> slices;
    int64_t rows = 0;
    for (Sequence& s : sequences) {
      const int64_t first = s.cache.length(), n = std::min(s.step, total - first);
      if (n == 0) continue;
      slices.push_back({&s.cache, std::span(golden_.tokens).subspan(first, n), n});
      rows += n;
    }
    if (slices.empty()) break;
    std::vector<int64_t> firsts;
    for (const SequenceSlice& slice : slices) firsts.push_back(slice.cache->length());
    std::vector<float> logits(rows * config.vocab);
    decoder.forward(slices, {logits.data(), rows, config.vocab, config.vocab});
    const float* row = logits.data();
    for (size_t i = 0; i < slices.size(); ++i) {
      const size_t count = slices[i].tokens.size() * config.vocab;
      EXPECT_TRUE(
          same_bits({row, count}, std::span(expected).subspan(firsts[i] * config.vocab, count)))
          << "sequence with " << slices[i].tokens.size() << " tokens at " << firsts[i];
      row += count;
    }
  }
}

TEST_P(Company, ARewoundCacheGivesTheBitsOfAFreshOne) {
  // int8, where one more token must not change what an earlier one was rounded to.
  constexpr DType kCache = DType::kI8;
  const auto expected = whole(kCache);
  const ModelConfig& config = model_->config();
  Context context(2);
  Decoder decoder(context, config, model_->weights());
  const int64_t total = static_cast<int64_t>(golden_.tokens.size());
  KvCache cache(config.cache_layout(kCache), total);
  for (const int64_t back : {total, total - 3, total / 2, int64_t{5}, int64_t{0}}) {
    // Reads the rest of the text from wherever the last step back led.
    const int64_t first = cache.rewind(back), n = total - first;
    std::vector<float> logits(n * config.vocab);
    const SequenceSlice slice{&cache, std::span(golden_.tokens).subspan(first), n};
    decoder.forward({&slice, 1}, {logits.data(), n, config.vocab, config.vocab});
    EXPECT_TRUE(same_bits(logits, std::span(expected).subspan(first * config.vocab)))
        << "from " << first;
  }
}

// The prompt in slices of which only the last wants logits, with dead prefill and without.
TEST_P(Company, WhatATokenGivesToNobodyIsNotComputedAndDoesNotShow) {
  constexpr DType kCache = DType::kBF16;
  const auto expected = whole(kCache);
  const ModelConfig& config = model_->config();
  Context context(2);
  const int64_t total = static_cast<int64_t>(golden_.tokens.size());
  for (const bool on : {true, false}) {
    Decoder decoder(context, config, model_->weights(), {.dead_prefill = on});
    for (const int64_t size : {int64_t{1}, int64_t{3}, int64_t{7}, int64_t{16}, total}) {
      for (const int64_t prompt : {total - 5, total / 2 + 1, int64_t{17}}) {
        KvCache cache(config.cache_layout(kCache), total);
        std::vector<float> logits(config.vocab);
        for (int64_t first = 0; first < total;) {
          // The prompt, then token by token.
          const int64_t n = first < prompt ? std::min(size, prompt - first) : 1;
          const bool last = first + n >= prompt;
          const SequenceSlice slice{&cache, std::span(golden_.tokens).subspan(first, n),
                                    last ? 1 : 0, std::max(prompt - 1, first)};
          decoder.forward({&slice, 1}, {logits.data(), last ? 1 : 0, config.vocab, config.vocab});
          first += n;
          if (last) {
            ASSERT_TRUE(same_bits(
                logits, std::span(expected).subspan((first - 1) * config.vocab, config.vocab)))
                << "slices of " << size << ", prompt " << prompt << ", token " << first - 1;
          }
        }
      }
    }
  }
}

// Differences of positions are the same; what is left is the rounding of angles, which grows with
// them: below 1e-6 of a radian at positions of some tens. The two terms of a number on the matrix
// unit can tip by 2^-16.
TEST_P(Company, PositionsModuloTheChunkDifferInRoundingAlone) {
  Context context(2);
  Decoder plain(context, model_->config(), model_->weights(), {.positions_in_chunk = false});
  const int64_t total = static_cast<int64_t>(golden_.tokens.size());
  KvCache cache(model_->config().cache_layout(DType::kF32), total);
  std::vector<float> logits(total * model_->config().vocab);
  const SequenceSlice slice{&cache, golden_.tokens, total};
  plain.forward({&slice, 1},
                {logits.data(), total, model_->config().vocab, model_->config().vocab});
  EXPECT_LE(relative_difference(logits, whole(DType::kF32)), quantized()                  ? 2e-2
                                                             : has_own_bits(detect_isa()) ? 1e-4
                                                                                          : 1e-5);
}

INSTANTIATE_TEST_SUITE_P(
    Models, Company,
    ::testing::Values(
        Case{"scout", DType::kF32}, Case{"maverick", DType::kBF16}, Case{"top_2", DType::kF16},
        Case{"short_chunks", DType::kF32}, Case{"layer_types", DType::kF32},
        Case{"rope_list", DType::kF32}, Case{"llama", DType::kF32}, Case{"bf16", DType::kBF16},
        Case{"bf16", DType::kQ8_0}, Case{"bf16", DType::kQ4_0}, Case{"bf16", DType::kQ4_1},
        Case{"bf16", DType::kQ5_0}, Case{"bf16", DType::kQ5_1},
        Case{std::string(kRandom), DType::kQ4_K}, Case{std::string(kRandom), DType::kQ5_K},
        Case{std::string(kRandom), DType::kQ6_K}, Case{std::string(kRandom), DType::kQ2_K},
        Case{std::string(kRandom), DType::kQ3_K}, Case{"bf16", DType::kIQ4_NL},
        Case{std::string(kRandom), DType::kIQ4_XS}, Case{"bf16", DType::kMXFP4},
        Case{"top_2", DType::kF32, true}, Case{"maverick", DType::kBF16, true},
        Case{"bf16", DType::kQ8_0, true}),
    [](const auto& info) {
      return info.param.golden + "_" + std::string(dtype_name(info.param.type)) +
             (info.param.adapted ? "_adapted" : "");
    });

}  // namespace
}  // namespace drover
