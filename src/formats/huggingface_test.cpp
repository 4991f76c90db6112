#include "formats/huggingface.h"

#include <gtest/gtest.h>

#include "formats/json.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

using testing::expect_error;
using testing::TempFolder;

TEST(HuggingfaceFolder, SaysWhatIsThere) {
  const HuggingfaceFolder folder = HuggingfaceFolder::open("tests/data/formats/sharded");
  EXPECT_EQ(JsonFields(folder.config, "config.json").required_text("model_type"), "llama4");
  EXPECT_EQ(folder.weights.tensors().size(), 4u);
  EXPECT_FALSE(folder.generation_config);
  EXPECT_FALSE(folder.tokenizer_config);
  EXPECT_FALSE(folder.tokenizer_json);
  EXPECT_FALSE(folder.tokenizer_model);
  EXPECT_FALSE(folder.chat_template);
}

TEST(HuggingfaceFolder, FindsTheFilesAroundTheWeights) {
  const TempFolder folder;
  folder.write("config.json", "{}");
  folder.write("generation_config.json", R"({"eos_token_id":[1,2]})");
  folder.write("tokenizer_config.json", R"({"bos_token":"<s>"})");
  folder.write("tokenizer.json", "{}");
  folder.write("tokenizer.model", "YQ== 0\n");
  const HuggingfaceFolder found = HuggingfaceFolder::open_config_only(folder.path());
  EXPECT_EQ(JsonFields(*found.generation_config, "").integers("eos_token_id"),
            (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(JsonFields(*found.tokenizer_config, "").text("bos_token"), "<s>");
  EXPECT_EQ(found.tokenizer_json, folder / "tokenizer.json");
  EXPECT_EQ(found.tokenizer_model, folder / "tokenizer.model");
  EXPECT_TRUE(found.weights.tensors().empty());
}

TEST(HuggingfaceFolder, TakesTheChatTemplateFromTheFirstPlaceThatHasOne) {
  const TempFolder folder;
  const auto found = [&] {
    return HuggingfaceFolder::open_config_only(folder.path()).chat_template;
  };
  folder.write("config.json", "{}");
  EXPECT_EQ(found(), std::nullopt);
  folder.write("tokenizer_config.json", R"({"chat_template":"in tokenizer_config"})");
  EXPECT_EQ(found(), "in tokenizer_config");
  folder.write("chat_template.json", R"({"chat_template":"in json"})");
  EXPECT_EQ(found(), "in json");
  folder.write("chat_template.jinja", "in jinja");
  EXPECT_EQ(found(), "in jinja");
}

TEST(HuggingfaceFolder, OfNamedChatTemplatesTheDefaultCounts) {
  const TempFolder folder;
  const auto found = [&] {
    return HuggingfaceFolder::open_config_only(folder.path()).chat_template;
  };
  folder.write("config.json", "{}");
  folder.write(
      "tokenizer_config.json",
      R"({"chat_template":[{"name":"rag","template":"r"},{"name":"default","template":"d"}]})");
  EXPECT_EQ(found(), "d");
  folder.write("tokenizer_config.json", R"({"chat_template":[{"name":"rag","template":"r"}]})");
  EXPECT_EQ(found(), std::nullopt);
  folder.write("tokenizer_config.json", R"({"chat_template":[3]})");
  expect_error(ErrorKind::kBadData, "expected objects in the list", found);
  folder.write("tokenizer_config.json", R"({"chat_template":3})");
  expect_error(ErrorKind::kBadData, "key chat_template: expected a string, got 3", found);
}

TEST(HuggingfaceFolder, SaysWhatIsMissing) {
  const TempFolder folder;
  const auto open = [&] { HuggingfaceFolder::open(folder.path()); };
  expect_error(ErrorKind::kNotFound, "no/such/folder: cannot open",
               [] { HuggingfaceFolder::open("no/such/folder"); });
  expect_error(ErrorKind::kUsage, "expected a GGUF file or a folder with config.json",
               [] { HuggingfaceFolder::open("CMakeLists.txt"); });
  expect_error(ErrorKind::kNotFound, "got a folder without config.json", open);
  folder.write("config.json", "[]");
  expect_error(ErrorKind::kBadData, "config.json: expected a JSON object, got an array", open);
  folder.write("config.json", "{}");
  expect_error(ErrorKind::kNotFound,
               "expected model.safetensors or model.safetensors.index.json, got neither", open);
}

}  // namespace
}  // namespace drover
