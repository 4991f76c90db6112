// From a recipe's files to what a Trainer needs.
#include "train/training.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "base/mapped_file.h"
#include "formats/json.h"
#include "text/vocabulary.h"
#include "train/data/data_fixture.h"

namespace drover {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

constexpr const char* kConfig = R"({
  "model_type": "llama", "vocab_size": 512, "hidden_size": 16, "intermediate_size": 32,
  "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
  "rms_norm_eps": 1e-5, "tie_word_embeddings": true})";

// A folder with all that a small recipe names.
class TrainingTest : public SourceTest {
 protected:
  TrainingTest() {
    folder_.write("tokenizer.json", vocabulary_to_tokenizer_json(tokenizer_.vocabulary()));
    folder_.write("config.json", kConfig);
    folder_.write("words.txt", "the user says what the assistant says");
    write_recipe("config.json");
  }
  void write_recipe(std::string_view config, int64_t chunk = 0) const {
    json::object settings = data_settings("text", "words.txt");
    json::object model = {{"config", config}, {"tokenizer", "tokenizer.json"}};
    if (chunk > 0) model["chunk"] = chunk;
    const json::object recipe = {
        {"name", "small"},
        {"model", model},
        {"sources", {{"words", settings}}},
        {"stages", {{{"steps", 2}, {"tokens", 32}, {"length", 16}, {"mixture", {{"words", 1}}}}}}};
    folder_.write("recipe.json", json::serialize(recipe));
  }
  std::unique_ptr<Training> prepared() {
    return prepare_training(context_, read_recipe(folder_ / "recipe.json"));
  }

  Context context_{1};
};

TEST_F(TrainingTest, TheRecipeOfABareNameIsInTheWorkingFolder) {
  const fs::path before = fs::current_path();
  fs::current_path(folder_.path());
  std::unique_ptr<Training> training;
  EXPECT_NO_THROW(training = prepare_training(context_, read_recipe("recipe.json")));
  fs::current_path(before);
  ASSERT_TRUE(training);
  EXPECT_TRUE(fs::equivalent(training->recipe.folder, folder_.path()));
  EXPECT_EQ(training->recipe.out, training->recipe.folder / "small");
}

TEST_F(TrainingTest, TakesTheConfigurationThatIsNamedNotTheOneBesideIt) {
  json::object wider = parse_json(kConfig, "config").get_object();
  wider["hidden_size"] = 32;
  folder_.write("wider.json", json::serialize(wider));
  write_recipe("wider.json");
  EXPECT_EQ(prepared()->parameters->config().hidden, 32);
  fs::remove(folder_ / "config.json");
  EXPECT_EQ(prepared()->parameters->config().hidden, 32);
  write_recipe("config.json");
  testing::expect_error(ErrorKind::kNotFound, "config.json", [&] { prepared(); });
}

TEST_F(TrainingTest, TakesTheRecipesChunkInsteadOfTheModelsOwn) {
  json::object chunked = parse_json(kConfig, "config").get_object();
  chunked["model_type"] = "llama4_text";
  chunked["intermediate_size_mlp"] = 32;
  chunked["num_local_experts"] = 2;
  chunked["num_experts_per_tok"] = 1;
  chunked["attention_chunk_size"] = 512;
  chunked["layer_types"] = {"chunked_attention"};
  folder_.write("chunked.json", json::serialize(chunked));
  write_recipe("chunked.json");
  EXPECT_EQ(prepared()->parameters->config().chunk, 512);
  write_recipe("chunked.json", 64);
  EXPECT_EQ(prepared()->parameters->config().chunk, 64);
  write_recipe("config.json", 64);
  testing::expect_error(ErrorKind::kBadData, "none of its layers has chunks", [&] { prepared(); });
}

TEST_F(TrainingTest, CheckpointsBelongToItsDataItsChatTemplateAndItsEyes) {
  const std::string tokenizer = read_file(folder_ / "tokenizer.json", 1 << 20);
  const Digest first = prepared()->parts.digest;
  EXPECT_EQ(prepared()->parts.digest, first);
  folder_.write("words.txt", "the user says what the assistant said");
  EXPECT_NE(prepared()->parts.digest, first);
  folder_.write("words.txt", "the user says what the assistant says");
  folder_.write("tokenizer_config.json", R"({"chat_template": "<|header_start|>"})");
  EXPECT_NE(prepared()->parts.digest, first);
  fs::remove(folder_ / "tokenizer_config.json");
  EXPECT_EQ(prepared()->parts.digest, first);

  folder_.write("config.json", R"({"model_type": "llama4", "text_config": {
      "model_type": "llama4_text", "vocab_size": 512, "hidden_size": 16, "num_hidden_layers": 1,
      "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 16,
      "intermediate_size_mlp": 16, "num_local_experts": 2, "moe_layers": [],
      "attention_chunk_size": 16, "max_position_embeddings": 64}, "vision_config": {
      "model_type": "llama4_vision_model", "image_size": 56, "patch_size": 14, "hidden_size": 16,
      "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 1,
      "projector_output_dim": 16}})");
  const Digest eyes = prepared()->parts.digest;
  folder_.write("preprocessor_config.json", R"({"image_mean": [0.4, 0.5, 0.5]})");
  EXPECT_NE(prepared()->parts.digest, eyes);
}

TEST_F(TrainingTest, CountsTheMemoryThatTeachingTakes) {
  const auto training = prepared();
  int64_t values = 0, copies = 0;
  for (const Parameter& p : training->parameters->all()) {
    values += p.size();
    copies += static_cast<int64_t>(p.working.size() + p.transposed.size());
    for (const auto* all : {&p.packed, &p.packed_transposed}) {
      for (const RoundedRows& each : *all) copies += RoundedRows::bytes(each.rows(), each.cols());
    }
  }
  // All in f32: a value, a gradient, AdamW's two averages; copies as refresh() made them.
  const TeachingMemory memory =
      teaching_memory(*training->parameters, nullptr, training->recipe.optimizer);
  EXPECT_EQ(memory.values, 4 * values);
  EXPECT_EQ(memory.gradients, 4 * values);
  EXPECT_EQ(memory.averages, 8 * values);
  EXPECT_EQ(memory.copies, copies);
  EXPECT_EQ(memory.bytes(), 16 * values + copies);
  OptimizerOptions muon;
  muon.muon.emplace();
  EXPECT_LT(teaching_memory(*training->parameters, nullptr, muon).averages, memory.averages);
  Lora lora(*training->parameters, {.rank = 2, .experts = false});
  EXPECT_LT(teaching_memory(*training->parameters, &lora, {}).averages, memory.averages);
  EXPECT_NO_THROW(expect_memory(memory, memory.bytes()));
  testing::expect_error(ErrorKind::kLimit, "expected at most the machine's",
                        [&] { expect_memory(memory, memory.bytes() - 1); });
}

TEST_F(TrainingTest, ANewOneTakesNoPlaceOfAnother) {
  const Recipe recipe = read_recipe(folder_ / "recipe.json");
  fs::create_directory(recipe.out);
  const auto refuses = [&](bool resume, std::string_view words) {
    testing::expect_error(ErrorKind::kUsage, words, [&] { expect_room(recipe, resume); });
  };
  folder_.write("small/metrics.jsonl", "");
  EXPECT_NO_THROW(expect_room(recipe, false));
  folder_.write("small/metrics.jsonl", "{}\n");
  refuses(false, "there are metrics of a training already");
  EXPECT_NO_THROW(expect_room(recipe, true)) << "killed before its first checkpoint";
  folder_.write("small/small.gguf", "");
  refuses(false, "there is the model of a training already");
  refuses(true, "there is the model of a training already");
  folder_.write("small/step-00000004.checkpoint", "");
  refuses(false, "there are checkpoints of a training already");
  EXPECT_NO_THROW(expect_room(recipe, true));
}

}  // namespace
}  // namespace drover
