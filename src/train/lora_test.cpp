#include "train/lora.h"

#include <gtest/gtest.h>

#include "model/adapter.h"
#include "model/fingerprint.h"
#include "tests/support/expect_error.h"
#include "tests/support/goldens.h"
#include "train/random.h"
#include "train/write_model.h"

namespace drover {
namespace {

using namespace testing;

class LoraTest : public ::testing::Test {
 protected:
  // The golden's values and an adapter on all that it can be on.
  explicit LoraTest(std::string_view name = "scout")
      : model_(Model::load((kGoldens / name).string())),
        parameters_(model_->config(), std::nullopt, Precision::kF32) {
    load_values(context_, parameters_, *model_);
  }

  // Something else than where teaching begins.
  static void shake(Lora& lora) {
    Random random(7, 0);
    for (Parameter& factor : lora.factors()) {
      for (int64_t i = 0; i < factor.size(); ++i) {
        factor.value[static_cast<size_t>(i)] = static_cast<float>(0.3 * random.normal());
      }
    }
  }

  Context context_{1};
  std::unique_ptr<Model> model_;
  Parameters parameters_;
};

TEST_F(LoraTest, BeginsAtTheModelItself) {
  Lora lora(parameters_, {.rank = 3});
  const std::vector<float> before(parameters_.layers[1].wq->value.data(),
                                  parameters_.layers[1].wq->value.data() + 100);
  lora.apply(context_);
  EXPECT_TRUE(std::equal(before.begin(), before.end(), parameters_.layers[1].wq->value.data()));
}

// What passes see, what PEFT's file says, and what the decoder adds at run time are one adapter.
TEST_F(LoraTest, IsTheAdapterThatItsFileSays) {
  const TempFolder folder;
  Lora lora(parameters_, {.rank = 3, .alpha = 5});
  shake(lora);
  lora.apply(context_);
  lora.apply(context_);  // from the base again, not on top
  write_peft(lora.adapters(), lora.notes(), model_->config(), folder / "adapter");
  const std::vector<std::string> adapters = {(folder / "adapter").string()};
  const Adapter adapter = read_adapter(adapters, model_->config());
  Parameters plain(model_->config(), std::nullopt, Precision::kF32);
  load_values(context_, plain, *model_);
  for (const auto& [name, factors] : adapter.factors()) {
    const Parameter& taught = *parameters_.find(name);
    Parameter& base = *plain.find(name);
    for (int64_t e = 0; e < base.matrices; ++e) {
      adapter.merge(factors, e, 0, base.rows,
                    {base.matrix(e), static_cast<size_t>(base.rows * base.cols)});
    }
    for (int64_t i = 0; i < base.size(); ++i) {
      // s (b a) and (s b) a: two roundings of three terms of some units.
      ASSERT_NEAR(taught.value[static_cast<size_t>(i)], base.value[static_cast<size_t>(i)], 1e-6)
          << name << " " << i;
    }
  }
  // Written merged and loaded, it gives what the base gives beside its adapter.
  std::vector<Token> tokens;
  for (Token t = 0; t < 40; ++t) tokens.push_back(t * 17 % 64);
  write_gguf(context_, parameters_, notes_of(*model_), Vocabulary(), folder / "merged.gguf",
             DType::kF32);
  const auto merged = Model::load((folder / "merged.gguf").string());
  const auto beside = Model::load((kGoldens / "scout").string(), {}, {}, adapters);
  const auto expected = logits_of(*merged, context_, tokens);
  EXPECT_LE(relative_difference(logits_of(*beside, context_, tokens), expected), 2e-5);
  EXPECT_GE(relative_difference(logits_of(*model_, context_, tokens), expected), 1e-2);
}

// Of the loss sum of g * value, whose gradient in the values is g: quadratic in the factors, so
// that central differences are exact but for rounding, 2^-24 of values of some units over the step.
TEST_F(LoraTest, GradientsOfFactorsAreThoseOfTheMatrices) {
  Lora lora(parameters_, {.rank = 2, .alpha = 3});
  shake(lora);
  lora.apply(context_);
  lora.clear_gradients(context_);
  std::vector<Parameter*> adapted;
  for (Parameter& p : parameters_.all()) {
    if (!p.taught) continue;
    adapted.push_back(&p);
    Random random(11, adapted.size());
    for (int64_t i = 0; i < p.size(); ++i) {
      p.gradient[static_cast<size_t>(i)] = static_cast<float>(random.normal());
    }
  }
  // 4 maps of attention, 3 of the shared expert, 3 of experts, in each layer.
  EXPECT_EQ(std::ssize(adapted), 10 * model_->config().layer_count());
  lora.backward(context_);
  const auto loss = [&] {
    double sum = 0;
    for (const Parameter* p : adapted) {
      for (int64_t i = 0; i < p->size(); ++i) {
        sum += static_cast<double>(p->gradient[static_cast<size_t>(i)]) *
               p->value[static_cast<size_t>(i)];
      }
    }
    return sum;
  };
  Random random(3, 0);
  for (Parameter& factor : lora.factors()) {
    double largest = 0;
    for (int64_t i = 0; i < factor.size(); ++i) {
      largest = std::max<double>(largest, std::abs(factor.gradient[static_cast<size_t>(i)]));
    }
    EXPECT_GT(largest, 0) << factor.name;
    const auto i = static_cast<size_t>(random.below(factor.size()));
    const float kept = factor.value[i];
    constexpr float kStep = 0.25f;
    factor.value[i] = kept + kStep;
    lora.apply(context_);
    const double up = loss();
    factor.value[i] = kept - kStep;
    lora.apply(context_);
    const double down = loss();
    factor.value[i] = kept;
    EXPECT_NEAR(factor.gradient[i], (up - down) / (2 * kStep), 1e-4 * (1 + largest))
        << factor.name << " " << i;
  }
}

TEST_F(LoraTest, RefusesWhatItCannotMean) {
  expect_error(ErrorKind::kUsage, "rank", [&] { Lora(parameters_, {.rank = 0}); });
  expect_error(ErrorKind::kUsage, "nothing",
               [&] { Lora(parameters_, {.attention = false, .shared = false, .experts = false}); });
  const auto dense = Model::load((kGoldens / "dense").string());
  Parameters parameters(dense->config(), std::nullopt, Precision::kF32);
  expect_error(ErrorKind::kUsage, "experts", [&] { Lora(parameters, {}); });
}

TEST_F(LoraTest, WhatWasTaughtIsAModelAgainInBothForms) {
  const TempFolder folder;
  write_gguf(context_, parameters_, notes_of(*model_), Vocabulary(), folder / "a.gguf",
             DType::kF32);
  write_huggingface(parameters_, notes_of(*model_), Vocabulary(), "", folder / "a", DType::kF32);
  EXPECT_EQ(fingerprint(*Model::load((folder / "a.gguf").string())), fingerprint(*model_));
  EXPECT_EQ(fingerprint(*Model::load((folder / "a").string())), fingerprint(*model_));
}

}  // namespace
}  // namespace drover
