// The vision encoder as it is taught: its forward against the one that looks, its gradients against
// finite differences, and what freezing, company and threads must not change.

#include "train/vision_pass.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "model/vision_encoder.h"
#include "train/random.h"

namespace drover {
namespace {

constexpr uint64_t kSeed = 7;

// A decoder only because there is no model without one; its width is that of the projector.
ModelConfig some_decoder() {
  ModelConfig config;
  config.architecture = "llama4";
  config.vocab = 8;
  config.hidden = 12;
  config.heads = config.kv_heads = 1;
  config.head_dim = 8;
  config.dense_width = 8;
  config.layers.resize(1);
  return config;
}

// 16 patches of 2 x 2 pixels and 4 tokens per tile; two layers, so that a gradient has to pass
// through one.
VisionConfig tiny_eyes() {
  VisionConfig config;
  config.tiles.size = 8;
  config.patch = 2;
  config.hidden = 16;
  config.heads = 2;
  config.width = 24;
  config.layer_count = 2;
  config.shuffle = 2;
  config.adapter = 20;
  config.embedding = 12;
  config.norm_eps = 1e-5f;
  config.rope_theta = 10000;
  return config;
}

// Values of a size at which every one of them matters.
void fill(Parameters& parameters) {
  uint64_t tensor = 0;
  for (Parameter& p : parameters.all()) {
    Random random(kSeed, tensor++);
    const bool is_norm_weight = p.kind == Parameter::Kind::kVector && p.name.ends_with(".weight");
    const double scale =
        p.kind == Parameter::Kind::kMatrix ? 1.0 / std::sqrt(static_cast<double>(p.cols)) : 0.3;
    for (float& x : p.value.span()) {
      x = static_cast<float>((is_norm_weight ? 1.0 : 0.0) + scale * random.normal());
    }
  }
}

struct Eyes {
  explicit Eyes(Precision precision = Precision::kF32, int threads = 2, Isa isa = detect_isa())
      : context(threads, isa), parameters(some_decoder(), tiny_eyes(), precision) {
    fill(parameters);
    parameters.refresh(context);
    parameters.clear_gradients(context);
  }

  std::vector<Parameter*> vision_parameters() {
    std::vector<Parameter*> out;
    for (Parameter& p : parameters.all()) {
      if (is_vision_tensor(p.name)) out.push_back(&p);
    }
    return out;
  }

  Context context;
  Parameters parameters;
  VisionPass pass{context, parameters};
};

std::vector<uint8_t> random_tile(uint64_t index) {
  std::vector<uint8_t> out(3 * 8 * 8);
  Random random(kSeed, 1000 + index);
  for (uint8_t& x : out) x = static_cast<uint8_t>(random.below(256));
  return out;
}

// So many different tiles, and weights of a sum over all outputs, by which a number becomes of
// them.
struct Scene {
  explicit Scene(int64_t count, int64_t first = 0) {
    const VisionConfig config = tiny_eyes();
    for (int64_t i = first; i < first + count; ++i) {
      pixels.push_back(random_tile(static_cast<uint64_t>(i)));
      Random random(kSeed, 2000 + static_cast<uint64_t>(i));
      for (int64_t k = 0; k < config.tile_tokens() * config.embedding; ++k) {
        weights.push_back(static_cast<float>(random.normal()));
      }
    }
    for (const auto& tile : pixels) tiles.push_back(tile.data());
    rows = count * config.tile_tokens();
    cols = config.embedding;
  }
  ConstMatrixView dout() const { return {weights.data(), rows, cols, cols}; }

  std::vector<std::vector<uint8_t>> pixels;
  std::vector<const uint8_t*> tiles;
  std::vector<float> weights;
  int64_t rows = 0, cols = 0;
};

std::vector<float> forward(Eyes& eyes, const Scene& scene) {
  std::vector<float> out(scene.weights.size());
  eyes.pass.forward(scene.tiles, {out.data(), scene.rows, scene.cols, scene.cols});
  return out;
}

// The sum, which backward() differentiates, in double.
double value(Eyes& eyes, const Scene& scene) {
  const std::vector<float> out = forward(eyes, scene);
  double sum = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    sum += static_cast<double>(out[i]) * static_cast<double>(scene.weights[i]);
  }
  return sum;
}

std::vector<float> gradient(const Parameter& p) {
  return {p.gradient.data(), p.gradient.data() + p.size()};
}

std::vector<std::vector<float>> gradients(Eyes& eyes, const Scene& scene) {
  forward(eyes, scene);
  eyes.pass.backward(scene.dout());
  std::vector<std::vector<float>> out;
  for (const Parameter* p : eyes.vision_parameters()) out.push_back(gradient(*p));
  return out;
}

double largest(const std::vector<float>& x) {
  double most = 0;
  for (const float each : x) most = std::max(most, std::abs(static_cast<double>(each)));
  return most;
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    most = std::max(most, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  }
  return most;
}

std::vector<float> looked_at(Eyes& eyes, const Scene& scene) {
  const Vision vision = eyes.parameters.eyes().value();
  VisionEncoder encoder(eyes.context, vision);
  std::vector<float> out(scene.weights.size());
  encoder.encode(scene.tiles, {out.data(), scene.rows, scene.cols, scene.cols});
  return out;
}

// In f32 the two differ in the order of attention's sums alone: a row of at most 17 weights, and so
// a few units in the last place, which the norms after it keep relative to the row.
TEST(VisionPass, InF32SeesWhatTheEncoderSees) {
  for (const Isa isa : available_isas()) {
    Eyes eyes(Precision::kF32, 2, isa);
    const Scene scene(5);  // more than the encoder takes at a time
    const auto seen = forward(eyes, scene), expected = looked_at(eyes, scene);
    EXPECT_LE(largest_difference(seen, expected), 64 * 0x1p-24 * largest(expected))
        << isa_name(isa);
  }
}

// Both round what they multiply, to 2^-9 of itself, but not all at the same places; of several such
// errors in a row the outputs' largest is allowed a dozen.
TEST(VisionPass, InBf16SeesWhatTheEncoderSeesButForRounding) {
  for (const Isa isa : available_isas()) {
    Eyes eyes(Precision::kBF16, 2, isa);
    const Scene scene(5);
    const auto seen = forward(eyes, scene), expected = looked_at(eyes, scene);
    EXPECT_LE(largest_difference(seen, expected), 12 * 0x1p-9 * largest(expected)) << isa_name(isa);
  }
}

// Along a direction u of a parameter: central differences D at two steps, of which (4 D(e) -
// D(2 e)) / 3 has an error of order e^4, far below |D(e) - D(2 e)|. To that comes the rounding of
// outputs: each is off by some units in the last place of the largest, in random directions.
struct Slope {
  double slope = 0, tolerance = 0;
};
Slope slope_along(Eyes& eyes, const Scene& scene, Parameter& p, const std::vector<float>& u) {
  const auto kept = std::vector<float>(p.value.data(), p.value.data() + p.size());
  const auto at = [&](double step) {
    for (size_t i = 0; i < kept.size(); ++i) {
      p.value[i] = static_cast<float>(kept[i] + step * static_cast<double>(u[i]));
    }
    eyes.parameters.refresh(eyes.context);
    return value(eyes, scene);
  };
  constexpr double kStep = 0x1p-7;
  const double near = (at(kStep) - at(-kStep)) / (2 * kStep);
  const double far = (at(2 * kStep) - at(-2 * kStep)) / (4 * kStep);
  const double noise = 16 * 0x1p-24 * largest(forward(eyes, scene)) *
                       std::sqrt(static_cast<double>(scene.weights.size())) / kStep;
  at(0);
  return {(4 * near - far) / 3, std::abs(near - far) / 3 + noise};
}

TEST(VisionPass, GradientsAreFiniteDifferences) {
  Eyes eyes(Precision::kF32, /*threads=*/1);  // a thousand passes too small to share
  const Scene scene(2);
  gradients(eyes, scene);
  uint64_t number = 0;
  for (Parameter* p : eyes.vision_parameters()) {
    const auto g = gradient(*p);
    Random random(kSeed, 3000 + number++);
    const auto check = [&](const std::vector<float>& u, double size, const std::string& what) {
      double slope = 0;
      for (size_t i = 0; i < g.size(); ++i) {
        slope += static_cast<double>(g[i]) * static_cast<double>(u[i]);
      }
      const Slope expected = slope_along(eyes, scene, *p, u);
      EXPECT_NEAR(slope, expected.slope, expected.tolerance) << p->name << what;
      // What is allowed says something only if it is small beside gradients of this tensor.
      EXPECT_LE(expected.tolerance, 0.02 * size) << p->name << what;
    };
    double square = 0;
    for (const float x : g) square += static_cast<double>(x) * static_cast<double>(x);
    std::vector<float> u(g.size());
    for (float& x : u) x = random.chance(0.5) ? 1.0f : -1.0f;
    check(u, std::sqrt(square), ", all entries");
    for (int entry = 0; entry < 4; ++entry) {
      const auto i = static_cast<size_t>(random.below(p->size()));
      std::fill(u.begin(), u.end(), 0.0f);
      u[i] = 1;
      check(u, largest(g), ", entry " + std::to_string(i));
    }
  }
}

// Every parameter alone, wherever in the encoder it stands: the same bits as with all the others.
TEST(VisionPass, WhatIsFrozenChangesNothingInTheRest) {
  Eyes eyes;
  const Scene scene(2);
  const auto expected = gradients(eyes, scene);
  const auto all = eyes.vision_parameters();
  const auto freeze_all = [&] {
    for (Parameter* p : all) eyes.parameters.freeze(*p);
  };
  for (size_t i = 0; i < all.size(); ++i) {
    freeze_all();
    eyes.parameters.freeze(*all[i], false);
    eyes.parameters.clear_gradients(eyes.context);
    forward(eyes, scene);
    eyes.pass.backward(scene.dout());
    EXPECT_EQ(gradient(*all[i]), expected[i]) << all[i]->name;
  }
  // Nothing at all is taught: forward is what it was, backward has nothing to write to.
  const auto seen = forward(eyes, scene);
  freeze_all();
  EXPECT_EQ(forward(eyes, scene), seen);
  eyes.pass.backward(scene.dout());
  for (Parameter* p : all) EXPECT_EQ(p->gradient.size(), 0u) << p->name;
}

// Tiles do not see each other; only the sum over rows runs in another order, of 34 rows and more.
TEST(VisionPass, TilesInOneCallAreTilesOneByOne) {
  Eyes together, apart;
  const Scene both(2), first(1, 0), second(1, 1);
  const auto seen = forward(together, both);
  auto one_by_one = forward(apart, first);
  apart.pass.backward(first.dout());
  const auto rest = forward(apart, second);
  apart.pass.backward(second.dout());
  one_by_one.insert(one_by_one.end(), rest.begin(), rest.end());
  EXPECT_EQ(seen, one_by_one);

  together.pass.backward(both.dout());
  const auto a = together.vision_parameters(), b = apart.vision_parameters();
  for (size_t i = 0; i < a.size(); ++i) {
    const auto expected = gradient(*a[i]);
    EXPECT_LE(largest_difference(gradient(*b[i]), expected), 34 * 0x1p-24 * largest(expected))
        << a[i]->name;
  }
}

// Threads go through the encoder with a few tiles each, or all with all if there are fewer tiles.
TEST(VisionPass, NumberOfThreadsAndWhatWasThereBeforeChangeNoBit) {
  for (const int64_t tiles : {3, 9, 26}) {
    const Scene scene(tiles);
    for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
      Eyes one(precision, 1), three(precision, 3);
      const auto expected = gradients(one, scene);
      forward(three, Scene(tiles + 2, 10));  // larger memory, other content
      EXPECT_EQ(gradients(three, scene), expected) << tiles << " tiles";
    }
  }
}

TEST(VisionPass, NoTilesAreFine) {
  Eyes eyes;
  const Scene none(0);
  EXPECT_TRUE(forward(eyes, none).empty());
  eyes.pass.backward(none.dout());
  for (const Parameter* p : eyes.vision_parameters())
    EXPECT_EQ(largest(gradient(*p)), 0) << p->name;
}

}  // namespace
}  // namespace drover
