// Adapters at run time: the logits of merged weights, whatever file they come from, and clear words
// about those that do not fit. That results do not depend on company is in company_test.cpp.

#include "model/adapter.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <cstring>
#include <map>

#include "base/file_writer.h"
#include "formats/safetensors.h"
#include "model/export_gguf.h"
#include "model/fingerprint.h"
#include "tests/support/expect_error.h"
#include "tests/support/goldens.h"
#include "tests/support/mutate.h"
#include "tests/support/random_adapter.h"

namespace drover {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using namespace testing;

// Float32 sums in another order: the goldens, which differ from float64 by less than 4e-6 in as
// many products, have the same tolerance.
constexpr double kRounding = 2e-5;

const Golden& golden(std::string_view name) {
  static const std::vector<Golden> all = all_goldens();
  return *std::find_if(all.begin(), all.end(), [&](const Golden& g) { return g.name == name; });
}

class AdapterTest : public ::testing::TestWithParam<std::string> {
 protected:
  std::string adapter(std::string_view name, int64_t rank, uint32_t seed, double alpha = 8) {
    const fs::path path = folder_ / name;
    write_random_adapter(path, config(), rank, seed, alpha);
    return path.string();
  }
  ModelConfig config() const {
    const auto folder = HuggingfaceFolder::open_config_only(golden(GetParam()).folder());
    return config_from_huggingface(folder.config, "config.json");
  }
  std::vector<float> logits(const Model& model) {
    return logits_of(model, context_, golden(GetParam()).tokens);
  }
  std::unique_ptr<Model> load(const std::vector<std::string>& adapters) {
    return Model::load(golden(GetParam()).folder().string(), {}, {}, adapters);
  }
  // The model with adapters merged into its weights.
  std::unique_ptr<Model> merged(const std::vector<std::string>& adapters) {
    const Adapter adapter = read_adapter(adapters, config());
    const fs::path path = folder_ / "merged.gguf";
    const auto folder = HuggingfaceFolder::open(golden(GetParam()).folder());
    GgufExport(folder, {.mixture = DType::kF32, .adapter = &adapter}).write(context_, path);
    return Model::load(path.string());
  }

  TempFolder folder_;
  Context context_{1};
};

TEST_P(AdapterTest, BesideTheWeightsItGivesTheLogitsOfMergedOnes) {
  const std::vector<std::string> one = {adapter("one", 3, 1)};
  const auto expected = logits(*merged(one));
  EXPECT_LE(relative_difference(logits(*load(one)), expected), kRounding);
  EXPECT_GE(relative_difference(logits(*load({})), expected), 1e-2) << "it changes nothing";
}

TEST_P(AdapterTest, TwoAddUp) {
  const std::vector<std::string> both = {adapter("one", 3, 1), adapter("two", 2, 2, 4)};
  const auto expected = logits(*merged(both));
  EXPECT_LE(relative_difference(logits(*load(both)), expected), kRounding);
  for (const std::string& alone : both) {
    EXPECT_GE(relative_difference(logits(*load({alone})), expected), 1e-2);
  }
}

TEST_P(AdapterTest, AFileOfItReadsBackAsItWas) {
  const std::vector<LowRank> written = random_adapter(config(), 4, 5, 0.5f);
  write_peft(written, {.rank = 4, .alpha = 2}, config(), folder_ / "a");
  const std::vector<LowRank> read = read_peft(folder_ / "a", config());
  ASSERT_EQ(read.size(), written.size());
  for (size_t i = 0; i < read.size(); ++i) {
    EXPECT_EQ(read[i].target.module, written[i].target.module);
    EXPECT_EQ(read[i].rank, 4);
    EXPECT_EQ(read[i].scale, 0.5f);
    EXPECT_EQ(read[i].a, written[i].a) << read[i].target.module;
    EXPECT_EQ(read[i].b, written[i].b) << read[i].target.module;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, AdapterTest,
                         ::testing::Values("scout", "maverick", "top_2", "tied", "dense",
                                           "llama_gqa_3_to_1"),
                         [](const auto& info) { return info.param; });

class AdapterFile : public ::testing::Test {
 protected:
  AdapterFile() { write_random_adapter(path(), config(), 2, 1); }
  static ModelConfig config(std::string_view name = "scout") {
    const auto folder = HuggingfaceFolder::open_config_only(golden(name).folder());
    return config_from_huggingface(folder.config, "config.json");
  }
  fs::path path() const { return folder_ / "adapter"; }

  void set(std::string_view key, const json::value& value) {
    const fs::path file = path() / "adapter_config.json";
    json::object object = json::parse(read_file(file, size_t{1} << 20)).as_object();
    object[key] = value;
    write_file(file, json::serialize(object));
  }
  // Writes the tensors again, by a function of name and tensor; without a name they are left out.
  struct Changed {
    std::string name;
    std::vector<int64_t> shape;
    std::vector<float> values;
  };
  void rewrite(const std::function<void(Changed&)>& change) {
    const fs::path file = path() / "adapter_model.safetensors";
    std::vector<Changed> all;
    {
      const SafetensorsFile from = SafetensorsFile::open(file);
      for (const NamedTensor& tensor : from.tensors()) {
        Changed changed{std::string(tensor.name), tensor.shape, {}};
        changed.values.resize(static_cast<size_t>(tensor.bytes) / sizeof(float));
        std::memcpy(changed.values.data(), tensor.data, static_cast<size_t>(tensor.bytes));
        change(changed);
        if (!changed.name.empty()) all.push_back(std::move(changed));
      }
    }
    std::vector<TensorSpec> specs;
    for (const Changed& tensor : all) specs.push_back({tensor.name, DType::kF32, tensor.shape});
    write_safetensors(file, specs, {}, [&](size_t i, const TensorSink& sink) {
      sink(std::as_bytes(std::span(all[i].values)));
    });
  }

  TempFolder folder_;
};

TEST_F(AdapterFile, OfAnotherShapeIsRefusedWithBothShapes) {
  expect_error(ErrorKind::kBadData, "expected factors of [",
               [&] { read_peft(path(), config("wide_heads")); });
  // The experts alone differ.
  ModelConfig other = config();
  ++other.experts;
  rewrite([](Changed& tensor) {
    if (tensor.name.find(".experts.") == std::string::npos) tensor.name.clear();
  });
  expect_error(ErrorKind::kBadData, "experts", [&] { read_peft(path(), other); });
}

TEST_F(AdapterFile, ForAModuleThatIsNotThereIsRefusedByName) {
  ModelConfig other = config();
  other.layers.pop_back();
  expect_error(ErrorKind::kBadData, "layers.3.", [&] { read_peft(path(), other); });
  rewrite([](Changed& tensor) {
    if (const auto at = tensor.name.find("q_proj"); at != std::string::npos) {
      tensor.name.replace(at, 6, "c_proj");
    }
  });
  expect_error(ErrorKind::kBadData, "self_attn.c_proj", [&] { read_peft(path(), config()); });
}

TEST_F(AdapterFile, OfOtherKindsIsRefusedByWhatItIs) {
  const auto refused = [&](std::string_view key, const json::value& value,
                           const json::value& otherwise) {
    set(key, value);
    expect_error(ErrorKind::kUnsupported, key, [&] { read_peft(path(), config()); });
    set(key, otherwise);
  };
  refused("peft_type", "LOHA", "LORA");
  refused("use_dora", true, false);
  refused("bias", "all", "none");
  refused("fan_in_fan_out", true, false);
  refused("modules_to_save", json::array{"lm_head"}, nullptr);
  refused("init_lora_weights", "pissa", true);
  refused("alpha_pattern", json::object{{"q_proj|k_proj", 4}}, json::object());
  EXPECT_NO_THROW(read_peft(path(), config()));
  rewrite([](Changed& tensor) {
    if (const auto at = tensor.name.find("layers.0"); at != std::string::npos) {
      tensor.name = "base_model.model.vision_model.model." + tensor.name.substr(at);
    }
  });
  expect_error(ErrorKind::kUnsupported, "eyes", [&] { read_peft(path(), config()); });
}

TEST_F(AdapterFile, DamagedFoldersAreRefusedOrRead) {
  const ModelConfig model = config();
  Mutator mutator(20261127);
  int64_t read = 0, refused = 0;
  for (const char* name : {"adapter_config.json", "adapter_model.safetensors"}) {
    const fs::path file = path() / name;
    const std::string whole = read_file(file, size_t{1} << 24);
    // Damage to the numbers themselves makes another adapter.
    const size_t tables = std::min(whole.size(), 8 + whole.find("}}") + 2);
    for (int i = 0; i < 2000; ++i) {
      SCOPED_TRACE(fmt::format("{}, mutant {}", name, i));
      std::string bytes = whole;
      const bool anywhere = mutator.one_in(8);
      for (uint64_t faults = 1 + mutator.below(3); faults > 0; --faults) {
        mutator.damage(bytes, 0, anywhere ? bytes.size() : tables);
      }
      folder_.write(fmt::format("adapter/{}", name), bytes);  // which waits for no disk
      try {
        for (const LowRank& low : read_peft(path(), model)) {
          const AdapterTarget& target = low.target;
          EXPECT_EQ(std::ssize(low.a), target.matrices * low.rank * target.cols);
          EXPECT_EQ(std::ssize(low.b), target.matrices * target.rows * low.rank);
        }
        ++read;
      } catch (const Error& error) {
        EXPECT_NE(error.kind(), ErrorKind::kInternal) << error.what();
        ++refused;
      }
    }
    write_file(file, whole);
  }
  EXPECT_GT(read, 50);
  EXPECT_GT(refused, 1000);
}

TEST_F(AdapterFile, WithHalfOfAPairOrAnotherTensorIsRefused) {
  rewrite([](Changed& tensor) {
    if (tensor.name.ends_with("layers.1.self_attn.q_proj.lora_B.weight")) tensor.name.clear();
  });
  expect_error(ErrorKind::kBadData, "lora_A and lora_B", [&] { read_peft(path(), config()); });
  rewrite([](Changed& tensor) {
    if (tensor.name.ends_with("layers.1.self_attn.q_proj.lora_A.weight")) {
      tensor.name = "base_model.model.model.embed_tokens.lora_embedding_A";
    }
  });
  expect_error(ErrorKind::kUnsupported, "lora_embedding_A", [&] { read_peft(path(), config()); });
  rewrite([](Changed& tensor) {
    if (tensor.name.ends_with("lora_embedding_A")) {
      tensor.name = "base_model.model.lm_head.base_layer.weight";
    }
  });
  expect_error(ErrorKind::kUnsupported, "save_embedding_layers",
               [&] { read_peft(path(), config()); });
}

// What PEFT computes from alpha, rank and their exceptions.
TEST_F(AdapterFile, ScalesAsItsConfigurationSays) {
  set("alpha_pattern", json::object{{"o_proj", 6}, {"model.layers.1.self_attn.q_proj", 10}});
  const auto scale_of = [&](std::string_view module) {
    for (const LowRank& low : read_peft(path(), config())) {
      if (low.target.module == module) return low.scale;
    }
    return -1.0f;
  };
  EXPECT_EQ(scale_of("layers.0.self_attn.q_proj"), 4.0f);
  EXPECT_EQ(scale_of("layers.1.self_attn.q_proj"), 5.0f);
  EXPECT_EQ(scale_of("layers.2.self_attn.o_proj"), 3.0f);
  set("lora_alpha", 1e300);
  expect_error(ErrorKind::kBadData, "lora_alpha", [&] { read_peft(path(), config()); });
  set("lora_alpha", 8);
  set("use_rslora", true);
  EXPECT_EQ(scale_of("layers.0.self_attn.q_proj"), static_cast<float>(8 / std::sqrt(2.0)));
}

// PEFT to 0.19.0 took the second axis of [E, in, out] for the input, and later the last.
TEST_F(AdapterFile, OfExpertsIsTheSameInBothFormsThatPeftHasHad) {
  const ModelConfig c = config();
  const std::vector<LowRank> expected = read_peft(path(), c);
  const int64_t E = c.experts, rank = 2;
  std::map<std::string, Changed> factors;
  rewrite([&](Changed& tensor) {
    if (tensor.name.find(".experts.") != std::string::npos) factors[tensor.name] = tensor;
  });
  // lora_A [E r, in] and lora_B [out, r E] of the transpose are those of the matrix exchanged; the
  // numbering of experts and ranks changes with the place.
  rewrite([&](Changed& tensor) {
    if (!factors.contains(tensor.name)) return;
    const bool is_a = tensor.name.ends_with("lora_A.weight");
    std::string other = tensor.name;
    other.replace(other.find(is_a ? "lora_A" : "lora_B"), 6, is_a ? "lora_B" : "lora_A");
    const Changed& from = factors.at(other);
    const int64_t n = is_a ? from.shape[0] : from.shape[1];
    tensor.shape = is_a ? std::vector<int64_t>{E * rank, n} : std::vector<int64_t>{n, rank * E};
    tensor.values.resize(from.values.size());
    for (int64_t e = 0; e < E; ++e) {
      for (int64_t k = 0; k < rank; ++k) {
        for (int64_t i = 0; i < n; ++i) {
          const auto as_a = static_cast<size_t>((e * rank + k) * n + i);
          const auto as_b = static_cast<size_t>(i * rank * E + k * E + e);
          tensor.values[is_a ? as_a : as_b] = from.values[is_a ? as_b : as_a];
        }
      }
    }
  });
  const std::vector<LowRank> read = read_peft(path(), c);
  ASSERT_EQ(read.size(), expected.size());
  for (size_t i = 0; i < read.size(); ++i) {
    EXPECT_EQ(read[i].a, expected[i].a) << read[i].target.module;
    EXPECT_EQ(read[i].b, expected[i].b) << read[i].target.module;
  }
}

TEST_F(AdapterFile, ChangesTheFingerprintOfTheModel) {
  const std::string model = golden("scout").folder().string();
  const std::vector<std::string> one = {path().string()}, two = {one[0], one[0]};
  const Digest plain = fingerprint(*Model::load(model));
  const Digest adapted = fingerprint(*Model::load(model, {}, {}, one));
  EXPECT_NE(adapted, plain);
  EXPECT_NE(fingerprint(*Model::load(model, {}, {}, two)), adapted);
  set("lora_alpha", 9);
  EXPECT_NE(fingerprint(*Model::load(model, {}, {}, one)), adapted);
  set("lora_alpha", 8);
  EXPECT_EQ(fingerprint(*Model::load(model, {}, {}, one)), adapted);
}

}  // namespace
}  // namespace drover
