// Configurations: the released models' figures, the family's defaults, and what is refused.
#include "model/model.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <cmath>

#include "base/error.h"
#include "model/config.h"
#include "model/tensor_table.h"

namespace drover {
namespace {

ModelConfig config_of(std::string_view text) {
  return config_from_huggingface(boost::json::parse(text).as_object(), "config.json");
}

// The released values of spec section 1.1, written as an early file writes them.
constexpr std::string_view kScout = R"({
  "architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4",
  "text_config": {"model_type": "llama4_text", "no_rope_layers": [], "attn_temperature_tuning": 4,
    "max_position_embeddings": 10485760, "use_qk_norm": true, "rope_theta": 500000.0,
    "rope_scaling": {"factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"}}})";
constexpr std::string_view kMaverick = R"({
  "model_type": "llama4",
  "text_config": {"model_type": "llama4_text", "num_local_experts": 128, "use_qk_norm": false,
    "interleave_moe_layer_step": 2, "rope_scaling": null, "max_position_embeddings": 1048576}})";

TEST(Config, ScoutHasThePublishedNumberOfParameters) {
  const ModelConfig c = config_of(kScout);
  EXPECT_EQ(count_parameters(c).total, 107'769'861'120);
  EXPECT_EQ(count_parameters(c).active, 17'172'894'720);
  EXPECT_EQ(c.chunk, 8192);
  EXPECT_TRUE(c.qk_norm && c.temperature_tuning);
  for (int64_t i = 0; i < 48; ++i) {
    EXPECT_EQ(c.layers[i], (LayerConfig{i % 4 != 3, i % 4 != 3, true})) << i;
  }
}

TEST(Config, MaverickHasThePublishedNumberOfParameters) {
  const ModelConfig c = config_of(kMaverick);
  EXPECT_EQ(count_parameters(c).total, 400'711'848'960);
  EXPECT_EQ(count_parameters(c).active, 17'184'691'200);
  for (int64_t i = 0; i < 48; ++i) EXPECT_EQ(c.layers[i].moe, i % 2 == 1) << i;
}

TEST(Config, TheCacheOfScoutCostsWhatTheArchitectureSays) {
  const CacheLayout layout = config_of(kScout).cache_layout(DType::kBF16);
  EXPECT_EQ(layout.global_bytes_per_token(), 48 * 1024);
  EXPECT_EQ(layout.local_bytes(10'485'760), 36ll * 8192 * 2048 * 2);
}

// Spec section 1.4, in double precision there; float32 keeps seven digits.
TEST(Config, RopeFrequenciesAreThoseOfTheSpec) {
  const auto expect = [](const ModelConfig& c, size_t k, double value) {
    EXPECT_NEAR(c.rope_frequencies[k], value, 2e-6 * value) << k;
  };
  const ModelConfig maverick = config_of(kMaverick);
  expect(maverick, 1, 0.81461723);
  expect(maverick, 34, 9.3847387e-4);
  expect(maverick, 63, 2.4551408e-6);
  const ModelConfig scout = config_of(kScout);
  expect(scout, 34, 9.3847387e-4);
  expect(scout, 35, 4.7781062e-5);
  expect(scout, 63, 1.5344630e-7);
  std::string early(kScout);
  early.replace(early.find("16.0"), 4, "8.0");
  early.replace(early.find("\"high_freq_factor\": 1.0"), 23, "\"high_freq_factor\": 4.0");
  const ModelConfig blended = config_of(early);
  expect(blended, 29, 2.1665708e-3);
  expect(blended, 31, 8.5675141e-4);
  expect(blended, 34, 1.7850781e-4);
}

TEST(Config, QueryTemperatureIsThatOfTheSpec) {
  const ModelConfig c = config_of(kScout);
  EXPECT_EQ(query_temperature(c, 8190), 1.0f);
  EXPECT_NEAR(query_temperature(c, 8191), 1.0693147, 1e-6);
  EXPECT_NEAR(query_temperature(c, 16383), 1.1098612, 1e-6);
  EXPECT_NEAR(query_temperature(c, 262143), 1.3496508, 1e-6);
  EXPECT_NEAR(query_temperature(c, 10485759), 1.7155396, 1e-6);
}

TEST(Config, NewerAndOlderSpellingsMeanTheSame) {
  const ModelConfig newer = config_of(R"({"model_type": "llama4_text", "attention_chunk_size": null,
    "no_rope_layers": [1, 0], "num_hidden_layers": 2, "moe_layers": [1],
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}})");
  EXPECT_EQ(newer.rope_theta, 1000.0);
  EXPECT_EQ(newer.chunk, 0);
  EXPECT_EQ(newer.layers, (std::vector<LayerConfig>{{true, false, false}, {false, false, true}}));
  const ModelConfig older = config_of(R"({"model_type": "llama4_text", "rope_theta": 1000.0,
    "attention_chunk_size": null, "no_rope_layers": [1, 0], "num_hidden_layers": 2,
    "interleave_moe_layer_step": 2, "rope_scaling": null})");
  EXPECT_EQ(older.layers, newer.layers);
  EXPECT_EQ(older.rope_frequencies, newer.rope_frequencies);
}

struct Refusal {
  std::string_view config;
  ErrorKind kind;
  std::string_view says;
};

TEST(Config, RefusesWhatItCannotRunAndSaysWhat) {
  const Refusal refusals[] = {
      {R"({"model_type": "mistral"})", ErrorKind::kUnsupported, "mistral"},
      {R"({})", ErrorKind::kUnsupported, "model_type"},
      {R"({"model_type": "llama", "attention_bias": true})", ErrorKind::kUnsupported,
       "attention_bias"},
      {R"({"model_type": "llama", "hidden_act": "gelu"})", ErrorKind::kUnsupported, "gelu"},
      {R"({"model_type": "llama", "rope_scaling": {"type": "yarn"}})", ErrorKind::kUnsupported,
       "yarn"},
      {R"({"model_type": "llama", "quantization_config": {}})", ErrorKind::kUnsupported,
       "quantization_config"},
      {R"({"model_type": "llama", "num_attention_heads": 0})", ErrorKind::kBadData, "query heads"},
      {R"({"model_type": "llama", "num_key_value_heads": 5})", ErrorKind::kBadData, "multiple"},
      {R"({"model_type": "llama", "hidden_size": -1})", ErrorKind::kBadData, "hidden_size"},
      {R"({"model_type": "llama", "hidden_size": "many"})", ErrorKind::kBadData, "hidden_size"},
      {R"({"model_type": "llama", "num_hidden_layers": 1e30})", ErrorKind::kBadData,
       "num_hidden_layers"},
      {R"({"model_type": "llama", "rms_norm_eps": 0})", ErrorKind::kBadData, "epsilon"},
      {R"({"model_type": "llama4_text", "num_experts_per_tok": 17})", ErrorKind::kBadData,
       "experts used"},
      {R"({"model_type": "llama4_text", "no_rope_layers": [1]})", ErrorKind::kBadData,
       "no_rope_layers"},
      {R"({"model_type": "llama4_text", "moe_layers": [48]})", ErrorKind::kBadData, "moe_layers"},
      {R"({"model_type": "llama4_text", "attention_chunk_size": 0})", ErrorKind::kBadData,
       "attention_chunk_size"},
      {R"({"model_type": "llama4_text", "floor_scale": 0})", ErrorKind::kBadData, "floor_scale"},
  };
  for (const Refusal& refusal : refusals) {
    try {
      config_of(refusal.config);
      ADD_FAILURE() << "accepted: " << refusal.config;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), refusal.kind) << error.what();
      EXPECT_NE(error.message().find(refusal.says), std::string::npos) << error.what();
    }
  }
}

TEST(Model, ANameThatIsNowhereIsSearchedForInBothPlacesAndSaysSo) {
  try {
    locate_model("no-such-model");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kNotFound);
    EXPECT_NE(error.message().find(local_model_folder().string()), std::string::npos);
  }
}

// Experts are stored [E, in, out] with gate and up side by side; the decoder wants [E, out, in].
TEST(TensorSource, TransposesExpertsAndPicksTheirHalf) {
  constexpr int64_t kIn = 70, kOut = 45, kExperts = 2;
  std::vector<float> stored(kExperts * kIn * 2 * kOut);
  for (size_t i = 0; i < stored.size(); ++i) stored[i] = static_cast<float>(i);
  const NamedTensor tensor{"experts",
                           DType::kF32,
                           {kExperts, kIn, 2 * kOut},
                           reinterpret_cast<const std::byte*>(stored.data()),
                           static_cast<int64_t>(stored.size() * sizeof(float))};
  const TensorSource up{.name = "up",
                        .shape = {kExperts, kOut, kIn},
                        .from = &tensor,
                        .layout = TensorSource::Layout::kExperts,
                        .first_column = kOut};
  constexpr int64_t kFirst = 3, kCount = 41;
  std::vector<float> rows(kCount * kIn);
  read_rows(up, 1, kFirst, kCount, reinterpret_cast<std::byte*>(rows.data()));
  for (int64_t r = 0; r < kCount; ++r) {
    for (int64_t k = 0; k < kIn; ++k) {
      EXPECT_EQ(rows[r * kIn + k], stored[(kIn + k) * 2 * kOut + kOut + kFirst + r]);
    }
  }
}

}  // namespace
}  // namespace drover
