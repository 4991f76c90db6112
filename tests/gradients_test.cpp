// The trainer's passes against PyTorch: losses, the gradient of every tensor and 20 steps of
// AdamW, on tiny models of every kind (tests/reference/make_gradients.py); against finite
// differences; and against themselves: threads, batches, documents in company, frozen parts.

#include "tests/support/gradients.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>

#include "tests/support/goldens.h"
#include "train/lora.h"
#include "train/optimizer.h"
#include "train/random.h"

namespace drover {
namespace {

using namespace testing;

// Of the largest entry of a tensor's gradient. The two forms of attention of the judge itself are
// up to 2e-5 apart, and a mechanism that is wrong or missing moves some gradient by a tenth and
// more.
constexpr double kTolerance = 1e-4;

double dot(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * double{b[i]};
  return sum;
}
double norm(std::span<const float> a) { return std::sqrt(dot(a, a)); }

std::vector<std::vector<float>> all_gradients(const Parameters& parameters) {
  std::vector<std::vector<float>> out;
  for (const Parameter& p : parameters.all()) {
    const auto gradient = gradient_of(p);
    out.emplace_back(gradient.begin(), gradient.end());
  }
  return out;
}

// Every tensor within the tolerance of the golden's, the worst of them in the report.
void expect_gradients(const std::deque<Parameter>& parameters, const GradientGolden& golden,
                      std::string_view kind) {
  double worst = 0;
  for (const Parameter& p : parameters) {
    const std::vector<float> expected = golden.tensor(kind, p.name);
    ASSERT_EQ(static_cast<int64_t>(expected.size()), p.size()) << p.name;
    const double difference = relative_difference(gradient_of(p), expected);
    EXPECT_LE(difference, kTolerance) << p.name;
    worst = std::max(worst, difference);
  }
  ::testing::Test::RecordProperty("worst_gradient", std::to_string(worst));
}

class Gradients : public ::testing::TestWithParam<const char*> {
 protected:
  const GradientGolden golden_{GetParam()};
  const double scale_ = 1 / golden_.weight();
};

TEST_P(Gradients, AndLossesAreThoseOfPyTorch) {
  for (const Isa isa : {Isa::kPlain, detect_isa()}) {
    SCOPED_TRACE(isa_name(isa));
    Student student(golden_, {.isa = isa});
    const PassReport report = student.learn(golden_.documents, scale_);
    EXPECT_DOUBLE_EQ(report.weight, golden_.weight());
    EXPECT_NEAR(report.loss / report.weight, golden_.json.at("loss").to_number<double>(), 1e-5);
    EXPECT_LE(relative_difference(student.losses(), golden_.losses(golden_.json.at("losses"))),
              1e-5);
    expect_gradients(student.parameters.all(), golden_, "gradient");
  }
}

TEST_P(Gradients, ThreadsDoNotChangeTheirBits) {
  for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
    Student one(golden_, {.precision = precision, .threads = 1});
    Student three(golden_, {.precision = precision, .threads = 3});
    one.learn(golden_.documents, scale_);
    three.learn(golden_.documents, scale_);
    EXPECT_EQ(one.losses(), three.losses());
    EXPECT_EQ(all_gradients(one.parameters), all_gradients(three.parameters));
  }
}

// Losses to the bit: what a row is depends on its document alone. Gradients are sums over rows, and
// those run in another order.
TEST_P(Gradients, OfTwoBatchesAddUpToThoseOfOne) {
  Student whole(golden_, {}), parts(golden_, {});
  whole.learn(golden_.documents, scale_);
  std::vector<float> losses;
  const auto documents = std::span(golden_.documents);
  for (const auto& part : {documents.first(1), documents.subspan(1)}) {
    parts.learn(part, scale_);
    const std::vector<float> mine = parts.losses();
    losses.insert(losses.end(), mine.begin(), mine.end());
  }
  EXPECT_EQ(losses, whole.losses());
  const auto expected = all_gradients(whole.parameters);
  for (size_t i = 0; i < expected.size(); ++i) {
    const Parameter& p = parts.parameters.all()[i];
    EXPECT_LE(relative_difference(gradient_of(p), expected[i]), 1e-5) << p.name;
  }
}

// The loss along a random direction of each tensor, to fourth order in the step. Of a direction d
// the bound counts the mean size of g.d over all directions, |g| |d| / sqrt(n), so that one that
// happens to be at right angles to the gradient asks for no more than others.
TEST_P(Gradients, AreTheSlopesOfTheLoss) {
  Student student(golden_, {});
  student.learn(golden_.documents, scale_);
  const auto gradients = all_gradients(student.parameters);
  double worst = 0;
  for (size_t i = 0; i < gradients.size(); ++i) {
    Parameter& p = student.parameters.all()[i];
    const std::vector<float> value(p.value.data(), p.value.data() + p.size());
    Random random(7, i);
    std::vector<float> direction;
    for (int64_t k = 0; k < p.size(); ++k) direction.push_back(static_cast<float>(random.normal()));
    // Small beside the lead of every chosen expert, and large beside the rounding of the loss.
    const double step = 1e-3;
    const auto loss_at = [&](double steps) {
      for (size_t k = 0; k < value.size(); ++k) {
        p.value[k] = static_cast<float>(value[k] + steps * step * direction[k]);
      }
      student.parameters.refresh(student.context);
      const PassReport report = student.forward(golden_.documents, 0);
      return report.loss / report.weight;
    };
    const double slope =
        (8 * (loss_at(1) - loss_at(-1)) - (loss_at(2) - loss_at(-2))) / (12 * step);
    loss_at(0);
    const double mean = norm(gradients[i]) * norm(direction) / std::sqrt(p.size());
    const double difference = std::abs(slope - dot(gradients[i], direction));
    // The step divides the rounding of the loss, some 1e-7: up to 4e-3 of the mean.
    EXPECT_LE(difference, 0.02 * mean) << p.name << ": slope " << slope;
    worst = std::max(worst, difference / mean);
  }
  RecordProperty("worst_slope", std::to_string(worst));
}

// Rounding both factors of a product to bf16 moves it by 2^-9 sqrt(2/3), root mean square: 1.6e-3.
// From a weight to the loss and back there are some 40 products in these models, whose errors are
// independent: 1e-2. Norms and gates make up to five times as much of it.
TEST_P(Gradients, InBf16PointTheSameWay) {
  Student exact(golden_, {}), rounded(golden_, {.precision = Precision::kBF16});
  exact.learn(golden_.documents, scale_);
  rounded.learn(golden_.documents, scale_);
  double difference = 0, size = 0;
  for (size_t i = 0; i < exact.parameters.all().size(); ++i) {
    const auto a = gradient_of(exact.parameters.all()[i]);
    const auto b = gradient_of(rounded.parameters.all()[i]);
    EXPECT_GT(dot(a, b), 0.99 * norm(a) * norm(b)) << exact.parameters.all()[i].name;
    for (size_t k = 0; k < a.size(); ++k) difference += std::pow(double{a[k]} - double{b[k]}, 2);
    size += dot(a, a);
  }
  const double relative = std::sqrt(difference / size);
  RecordProperty("relative_difference", std::to_string(relative));
  EXPECT_GT(relative, 0) << "nothing was rounded";
  EXPECT_LE(relative, 0.05);
}

// Half of the tensors, then the other half; the decoder, then the eyes.
TEST_P(Gradients, OfTaughtTensorsDoNotDependOnFrozenOnes) {
  Student whole(golden_, {});
  whole.learn(golden_.documents, scale_);
  using Frozen = bool (*)(const Parameter&, size_t);
  const Frozen frozen[] = {
      [](const Parameter&, size_t i) { return i % 2 == 0; },
      [](const Parameter&, size_t i) { return i % 2 == 1; },
      [](const Parameter& p, size_t) { return !is_vision_tensor(p.name); },
      [](const Parameter& p, size_t) { return is_vision_tensor(p.name); },
  };
  for (const Frozen& is_frozen : frozen) {
    Student half(golden_, {});
    auto& all = half.parameters.all();
    for (size_t i = 0; i < all.size(); ++i) {
      if (is_frozen(all[i], i)) half.parameters.freeze(all[i]);
    }
    half.parameters.clear_gradients(half.context);
    half.learn(golden_.documents, scale_);
    EXPECT_EQ(half.losses(), whole.losses());
    for (size_t i = 0; i < all.size(); ++i) {
      if (is_frozen(all[i], i)) continue;
      EXPECT_TRUE(std::ranges::equal(gradient_of(all[i]), gradient_of(whole.parameters.all()[i])))
          << all[i].name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Gradients,
                         ::testing::Values("text", "moe", "top_2", "vision", "tied"),
                         [](const auto& info) { return std::string(info.param); });

// ---- What only some have ----

TEST(GradientsOfExperts, LossesThatKeepExpertsInUseAreThoseOfPyTorch) {
  const GradientGolden golden("moe");
  const boost::json::object& with = golden.json.at("auxiliary").as_object();
  Student student(golden, {.options = {.balance = with.at("balance").to_number<float>(),
                                       .router_z = with.at("router_z").to_number<float>()}});
  const PassReport report = student.learn(golden.documents, 1 / golden.weight());
  // They are no part of the loss that is reported.
  EXPECT_NEAR(report.loss / report.weight, golden.json.at("loss").to_number<double>(), 1e-5);
  expect_gradients(student.parameters.all(), golden, "auxiliary");
}

TEST(GradientsOfExperts, TokensOfEachExpertAndTheirBalanceAreThoseOfPyTorch) {
  for (const char* name : {"moe", "top_2", "vision"}) {
    const GradientGolden golden(name);
    Student student(golden, {});
    const PassReport report = student.forward(golden.documents, 0);
    EXPECT_NEAR(report.balance, golden.json.at("balance").to_number<double>(), 1e-5) << name;
    std::vector<int64_t> expected;
    size_t moe_layers = 0;
    const auto& counts = golden.json.at("expert_tokens").as_array();
    for (const LayerConfig& layer : golden.config.layers) {
      for (int64_t e = 0; e < golden.config.experts; ++e) {
        expected.push_back(layer.moe ? counts.at(moe_layers).at(e).to_number<int64_t>() : 0);
      }
      if (layer.moe) ++moe_layers;
    }
    EXPECT_EQ(report.expert_tokens, expected) << name;
  }
}

TEST(GradientsOfExperts, SelectionBiasChoosesExpertsAndIsNoPartOfTheirGates) {
  const GradientGolden golden("top_2");
  const boost::json::object& biased = golden.json.at("biased").as_object();
  Student student(golden, {});
  const auto bias = student.pass.selection_bias();
  ASSERT_EQ(static_cast<int64_t>(bias.size()), golden.config.layer_count() * golden.config.experts);
  const auto& values = biased.at("bias").as_array();
  for (size_t i = 0; i < bias.size(); ++i) {
    bias[i] = values.at(i % values.size()).to_number<float>();
  }
  student.forward(golden.documents, 0);
  EXPECT_LE(relative_difference(student.losses(), golden.losses(biased.at("losses"))), 1e-5);
}

// A chunk that is filler all through, repeated three times, is the document that has it three
// times: its local layers see chunks alone, and its one global layer counts keys, not places.
TEST(VirtualRepetition, GivesTheLossesOfTheLongerDocument) {
  const GradientGolden golden("moe");
  ASSERT_TRUE(golden.config.chunks_stand_alone());
  const auto chunk = static_cast<size_t>(golden.config.chunk);
  Random random(5, 0);
  std::vector<Token> parts[3];  // before the filler, filler, after it
  for (auto& part : parts) {
    for (size_t i = 0; i < chunk; ++i) {
      part.push_back(static_cast<Token>(4 + random.below(golden.config.vocab - 4)));
    }
  }
  Example brief, longer;
  for (const size_t part : {0, 1, 2}) {
    brief.tokens.insert(brief.tokens.end(), parts[part].begin(), parts[part].end());
    brief.weights.insert(brief.weights.end(), chunk, part == 2 ? 1.0f : 0.0f);
    brief.filler.insert(brief.filler.end(), chunk, part == 1);
  }
  brief.repeats = 3;
  for (const size_t part : {0, 1, 1, 1, 2}) {
    longer.tokens.insert(longer.tokens.end(), parts[part].begin(), parts[part].end());
    longer.weights.insert(longer.weights.end(), chunk, part == 2 ? 1.0f : 0.0f);
  }
  Student student(golden, {});
  const auto losses_of = [&](const Example& document) {
    student.forward({&document, 1}, 0);
    const std::vector<float> all = student.losses();
    return std::vector<float>(all.end() - static_cast<std::ptrdiff_t>(chunk), all.end());
  };
  const std::vector<float> expected = losses_of(longer);
  EXPECT_LE(relative_difference(losses_of(brief), expected), 1e-5);
  brief.repeats = 1;
  EXPECT_GT(relative_difference(losses_of(brief), expected), 1e-3) << "it makes no difference";
}

// ---- Steps ----

// PyTorch's AdamW on the same batch, step after step: its losses before each step and after the
// last. Clipped where the golden says so; with the losses of the experts where it has them.
TEST(Steps, OfAdamWFollowPyTorchsLosses) {
  for (const char* name : {"text", "moe"}) {
    const GradientGolden golden(name);
    const boost::json::object& how = golden.json.at("steps").as_object();
    const auto number = [](const boost::json::value& value) { return value.to_number<double>(); };
    PassOptions options;
    if (const auto* with = golden.json.if_contains("auxiliary")) {
      options.balance = with->at("balance").to_number<float>();
      options.router_z = with->at("router_z").to_number<float>();
    }
    Student student(golden, {.options = options});
    std::vector<Parameter*> all;
    for (Parameter& p : student.parameters.all()) all.push_back(&p);
    const AdamWOptions adamw{.rate = number(how.at("rate")),
                             .beta1 = number(how.at("betas").at(0)),
                             .beta2 = number(how.at("betas").at(1)),
                             .decay = number(how.at("decay")),
                             .epsilon = number(how.at("epsilon"))};
    Optimizer optimizer(student.context, all, {.muon = {}, .adamw = adamw}, Precision::kF32);
    const double clip = how.at("clip").is_null() ? 0 : number(how.at("clip"));
    double worst = 0;
    const auto& losses = how.at("losses").as_array();
    for (size_t step = 0; step < losses.size(); ++step) {
      student.parameters.clear_gradients(student.context);
      const PassReport report = student.learn(golden.documents, 1 / golden.weight());
      const double loss = report.loss / report.weight;
      EXPECT_NEAR(loss, number(losses[step]), 1e-3) << name << ", step " << step;
      worst = std::max(worst, std::abs(loss - number(losses[step])));
      if (step + 1 == losses.size()) break;
      const double norm = optimizer.gradient_norm();
      EXPECT_NEAR(norm, number(how.at("norms").at(step)), 1e-3 * norm) << name << ", " << step;
      optimizer.update(1, clip_scale(norm, clip));
      student.parameters.refresh(student.context);
    }
    RecordProperty(std::string("worst_loss_of_") + name, std::to_string(worst));
  }
}

// ---- Adapters ----

TEST(GradientsOfAdapters, AreThoseOfPyTorch) {
  const GradientGolden golden("lora");
  const boost::json::object& how = golden.json.at("lora").as_object();
  Student student(golden, {});
  Lora lora(student.parameters, {.rank = how.at("rank").to_number<int64_t>(),
                                 .alpha = how.at("alpha").to_number<double>()});
  ASSERT_EQ(lora.factors().size(), 2 * 2 * (4 + 3 + 2));  // A and B, two layers
  for (Parameter& factor : lora.factors()) {
    const std::vector<float> value = golden.tensor("value", factor.name);
    ASSERT_EQ(static_cast<int64_t>(value.size()), factor.size()) << factor.name;
    std::copy(value.begin(), value.end(), factor.value.data());
  }
  lora.apply(student.context);
  lora.clear_gradients(student.context);
  const PassReport report = student.learn(golden.documents, 1 / golden.weight());
  EXPECT_NEAR(report.loss / report.weight, golden.json.at("loss").to_number<double>(), 1e-5);
  lora.backward(student.context);
  expect_gradients(lora.factors(), golden, "gradient");
}

}  // namespace
}  // namespace drover
