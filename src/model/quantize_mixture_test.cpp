// Mixtures: the types that llama.cpp gives, tensor by tensor.
#include "model/quantize_mixture.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <sstream>

#include "base/mapped_file.h"
#include "model/tensor_table.h"

namespace drover {
namespace {

namespace json = boost::json;

ModelConfig config_of(const json::object& model) {
  ModelConfig config;
  config.architecture = model.at("architecture").as_string();
  config.hidden = model.at("hidden").as_int64();
  config.heads = model.at("heads").as_int64();
  config.kv_heads = model.at("kv_heads").as_int64();
  config.experts = model.at("experts").as_int64();
  config.tied_embeddings = model.at("tied").as_bool();
  config.layers.resize(static_cast<size_t>(model.at("layers").as_int64()));
  return config;
}

// "q6_k*2 q4_k*1" as {"q6_k", "q6_k", "q4_k"}.
std::vector<std::string> unpack(std::string_view runs) {
  std::vector<std::string> out;
  std::istringstream stream{std::string(runs)};
  for (std::string run; stream >> run;) {
    const size_t star = run.find('*');
    out.insert(out.end(), std::stoul(run.substr(star + 1)), run.substr(0, star));
  }
  return out;
}

// tests/reference/make_mixtures.py has asked llama.cpp.
TEST(Mixture, GivesEveryTensorTheTypeThatLlamaCppGivesIt) {
  const json::value models =
      json::parse(read_file("tests/data/formats/mixtures.json", size_t{1} << 20));
  int64_t compared = 0;
  for (const json::value& value : models.as_array()) {
    const json::object& model = value.as_object();
    const ModelConfig config = config_of(model);
    for (const json::value& entry : model.at("mixtures").as_array()) {
      const std::string_view name = entry.at("mixture").as_string();
      const auto mixture = mixture_from_name(name);
      ASSERT_TRUE(mixture) << name;
      EXPECT_EQ(mixture->file_type, entry.at("file_type").as_int64()) << name;
      for (const auto& [part, runs] : entry.at("types").as_object()) {
        const std::vector<std::string> expected = unpack(runs.as_string());
        const bool of_layer = part != "token_embd" && part != "output";
        for (size_t i = 0; i < expected.size(); ++i) {
          const std::string tensor = of_layer ? layer_tensor(static_cast<int64_t>(i), part)
                                              : std::string(part) + ".weight";
          const bool is_down = tensor.find("ffn_down") != std::string::npos;
          std::vector<int64_t> shape = {2, model.at(is_down ? "width" : "hidden").as_int64()};
          if (part.ends_with("_exps")) shape.insert(shape.begin(), config.experts);
          for (const json::value& guided : entry.at("importance").as_array()) {
            EXPECT_EQ(dtype_name(mixture_type(*mixture, config, tensor, shape, guided.as_bool())),
                      expected[i])
                << model.at("name") << ", " << name << ", " << tensor << guided;
            ++compared;
          }
        }
      }
    }
  }
  EXPECT_GT(compared, 50000);
}

ModelConfig small_config() {
  ModelConfig config;
  config.architecture = "llama";
  config.heads = config.kv_heads = 4;
  config.layers.resize(8);
  return config;
}

TEST(Mixture, NormsRoutersBiasesAndStrangersStayFloat) {
  const Mixture mixture = *mixture_from_name("q4_k_m");
  const int64_t matrix[] = {512, 256}, vector[] = {256};
  for (const std::string_view name :
       {"blk.0.ffn_gate_inp.weight", "blk.0.attn_q_norm.weight", "blk.0.attn_q.bias",
        "v.patch_embd.weight", "v.position_embd.weight", "v.blk.0.attn_q.bias", "rope_freqs.weight",
        "blk.x.weight"}) {
    EXPECT_TRUE(stays_float(name, matrix)) << name;
    EXPECT_EQ(mixture_type(mixture, small_config(), name, matrix), DType::kF32) << name;
  }
  EXPECT_TRUE(stays_float("blk.0.attn_norm.weight", vector));
  for (const std::string_view name : {"blk.0.ffn_gate.weight", "blk.10.ffn_up_exps.weight",
                                      "token_embd.weight", "output.weight"}) {
    EXPECT_FALSE(stays_float(name, matrix)) << name;
    EXPECT_TRUE(stays_float(name, vector)) << name;
  }
}

// An encoder is small beside its decoder, and its rows seldom fit K-quants.
TEST(Mixture, AVisionEncodersMatricesGetQ8InWhateverQuantises) {
  const ModelConfig config = small_config();
  const int64_t matrix[] = {512, 256}, narrow[] = {512, 1408};
  for (const std::string_view name : {"v.blk.0.attn_q.weight", "mm.model.fc.weight"}) {
    EXPECT_FALSE(stays_float(name, matrix)) << name;
    for (const char* mixture : {"q4_k_m", "q2_k", "q8_0", "iq4_xs"}) {
      EXPECT_EQ(mixture_type(*mixture_from_name(mixture), config, name, matrix), DType::kQ8_0);
      EXPECT_EQ(mixture_type(*mixture_from_name(mixture), config, name, narrow), DType::kQ8_0);
    }
    EXPECT_EQ(mixture_type(*mixture_from_name("bf16"), config, name, matrix), DType::kBF16);
    EXPECT_EQ(mixture_type(DType::kQ4_0, config, name, matrix), DType::kQ4_0) << "pure";
  }
}

TEST(Mixture, ATypeByItselfGivesAllMatricesThatType) {
  const ModelConfig config = small_config();
  const int64_t shape[] = {512, 256}, narrow[] = {512, 96}, odd[] = {512, 33};
  for (const std::string_view name :
       {"output.weight", "token_embd.weight", "blk.0.attn_v.weight", "blk.0.ffn_down.weight"}) {
    for (const DType type : {DType::kQ4_K, DType::kQ4_0, DType::kF16, DType::kQ6_K}) {
      EXPECT_EQ(mixture_type(type, config, name, shape), type) << name;
    }
    EXPECT_EQ(mixture_type(DType::kQ6_K, config, name, narrow), DType::kQ8_0);
    EXPECT_EQ(mixture_type(DType::kQ6_K, config, name, odd), DType::kF16);
    EXPECT_EQ(mixture_type(DType::kQ4_0, config, name, odd), DType::kF16);
  }
  EXPECT_EQ(Mixture(DType::kQ4_K).file_type, mixture_from_name("q4_k_s")->file_type);
  EXPECT_EQ(Mixture(DType::kF16).file_type, 1u);
}

TEST(Mixture, NamesAreThoseThatPeopleKnow) {
  EXPECT_EQ(mixture_from_name("Q4_K_M")->name, "q4_k_m");
  EXPECT_EQ(mixture_from_name("q4_k")->name, "q4_k_m");
  EXPECT_EQ(mixture_from_name("Q5_K")->name, "q5_k_m");
  for (const std::string_view name : {"", "q4", "q4_k_x", "i8", "copy", "q4_k_m "}) {
    EXPECT_FALSE(mixture_from_name(name)) << name;
  }
  std::istringstream names(mixture_names());
  int count = 0;
  for (std::string name; std::getline(names >> std::ws, name, ',');) {
    EXPECT_TRUE(mixture_from_name(name)) << name;
    ++count;
  }
  EXPECT_EQ(count, 22);
}

}  // namespace
}  // namespace drover
