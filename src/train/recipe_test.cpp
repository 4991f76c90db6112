#include "train/recipe.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <functional>
#include <string>

#include "formats/json.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

namespace json = boost::json;
using testing::expect_error;

constexpr const char* kWhole = R"({
  "name": "edge", "licence": "apache-2.0", "out": "here", "seed": 7, "precision": "f32",
  "model": {"config": "config.json", "tokenizer": "tokenizer.json"},
  "initialization": {"embedding": 0.03, "constant_components": 4, "constant": 2},
  "optimizer": {"muon": {"rate": 0.03, "momentum": 0.9, "decay": 0.01, "scale": "rms"},
                "adamw": {"rate": 0.002, "betas": [0.8, 0.99], "decay": 0.2, "epsilon": 1e-6},
                "clip": 0.5},
  "schedule": {"warmup": 10, "decay": 0.2, "kind": "cosine"},
  "experts": {"balance": 0.02, "router_z": 0.001, "selection_bias": {"rate": 0.002, "until": 0.4}},
  "freeze": ["v.*"],
  "sources": {"words": {"kind": "text", "files": ["a"]}, "needles": {"kind": "needles"}},
  "checkpoint": {"every": 50, "keep": 3},
  "evaluate": {"every": 25, "examples": 8},
  "stages": [
    {"steps": 100, "tokens": 8192, "micro": 2048, "length": 512, "mixture": {"needles": 2},
     "until": {"source": "needles", "accuracy": 0.8}},
    {"steps": 300, "tokens": 4096, "length": 1024, "mixture": {"words": 1, "needles": 3}}]
})";

json::object whole() { return parse_json(kWhole, "recipe").get_object(); }

Recipe read(const json::object& recipe) {
  return recipe_from_json(recipe, "folder", "recipe.json");
}

// The recipe with the value at "a.b.c" or "stages.0.c" replaced by this JSON; "-" removes it.
json::object with(std::string_view path, std::string_view text) {
  json::object out = whole();
  json::value* at = nullptr;
  json::object* in = &out;
  for (std::string_view rest = path;;) {
    const size_t dot = rest.find('.');
    const std::string_view key = rest.substr(0, dot);
    const bool last = dot == std::string_view::npos;
    if (last && text == "-") {
      in->erase({key.data(), key.size()});
      return out;
    }
    at = &(*in)[{key.data(), key.size()}];
    if (last) break;
    if (at->is_array()) {
      rest = rest.substr(dot + 1);
      at = &at->get_array()[static_cast<size_t>(rest[0] - '0')];
      rest = rest.substr(2);
    } else {
      rest = rest.substr(dot + 1);
    }
    in = &at->get_object();
  }
  *at = parse_json(text, "value");
  return out;
}

void expect_refusal(std::string_view path, std::string_view value, std::string_view words) {
  SCOPED_TRACE(std::string(path) + " = " + std::string(value));
  expect_error(ErrorKind::kBadData, words, [&] { read(with(path, value)); });
}

TEST(Recipe, ReadsEveryField) {
  const Recipe r = read(whole());
  EXPECT_EQ(r.name, "edge");
  EXPECT_EQ(r.licence, "apache-2.0");
  EXPECT_EQ(r.out, "folder/here");
  EXPECT_EQ(r.seed, 7u);
  EXPECT_EQ(r.precision, Precision::kF32);
  EXPECT_EQ(r.config, "folder/config.json");
  EXPECT_EQ(r.tokenizer, "folder/tokenizer.json");
  EXPECT_EQ(r.initialization.seed, 7u);
  EXPECT_EQ(r.initialization.embedding, 0.03f);
  EXPECT_EQ(r.initialization.constant_components, 4);
  EXPECT_EQ(r.initialization.constant, 2);
  ASSERT_TRUE(r.optimizer.muon);
  EXPECT_EQ(r.optimizer.muon->rate, 0.03);
  EXPECT_EQ(r.optimizer.muon->momentum, 0.9);
  EXPECT_EQ(r.optimizer.muon->decay, 0.01);
  EXPECT_EQ(r.optimizer.muon->scale, MuonOptions::Scale::kRms);
  EXPECT_EQ(r.optimizer.adamw.rate, 0.002);
  EXPECT_EQ(r.optimizer.adamw.beta1, 0.8);
  EXPECT_EQ(r.optimizer.adamw.beta2, 0.99);
  EXPECT_EQ(r.optimizer.adamw.decay, 0.2);
  EXPECT_EQ(r.optimizer.adamw.epsilon, 1e-6);
  EXPECT_EQ(r.optimizer.clip, 0.5);
  EXPECT_EQ(r.schedule.warmup, 10);
  EXPECT_EQ(r.schedule.decay, 0.2);
  EXPECT_EQ(r.schedule.kind, Schedule::Kind::kCosine);
  EXPECT_EQ(r.experts.balance, 0.02f);
  EXPECT_EQ(r.experts.router_z, 0.001f);
  EXPECT_EQ(r.selection_bias.rate, 0.002);
  EXPECT_EQ(r.selection_bias.until, 0.4);
  EXPECT_EQ(r.freeze, std::vector<std::string>{"v.*"});
  EXPECT_EQ(r.checkpoint_steps, 50);
  EXPECT_EQ(r.checkpoint_minutes, 0);
  EXPECT_EQ(r.checkpoints_kept, 3);
  EXPECT_EQ(r.evaluate_steps, 25);
  EXPECT_EQ(r.evaluate_examples, 8);
  ASSERT_EQ(r.sources.size(), 2u);
  EXPECT_EQ(r.sources[1].name, "needles");
  EXPECT_EQ(r.sources[1].settings.at("kind"), "needles");
  ASSERT_EQ(r.stages.size(), 2u);
  EXPECT_EQ(r.stages[0].passes(), 4);
  EXPECT_EQ(r.stages[0].length, 512);
  EXPECT_EQ(r.stages[0].mixture, (std::vector<double>{0, 2}));
  ASSERT_TRUE(r.stages[0].until);
  EXPECT_EQ(r.stages[0].until->source, 1u);
  EXPECT_EQ(r.stages[0].until->accuracy, 0.8);
  EXPECT_EQ(r.stages[1].passes(), 1);
  EXPECT_EQ(r.stages[1].mixture, (std::vector<double>{1, 3}));
  EXPECT_FALSE(r.stages[1].until);
  EXPECT_EQ(r.steps(), 400);
}

TEST(Recipe, NamesAKeyThatItDoesNotKnow) {
  expect_refusal("sede", "1", "recipe.json: unknown key 'sede'; there is name, ");
  expect_refusal("optimizer.muon.momentun", "1", "optimizer.muon: unknown key 'momentun'");
  expect_refusal("stages.1.micros", "1", "stages[1]: unknown key 'micros'");
  expect_refusal("experts.selection_bias.decay", "1", "selection_bias: unknown key 'decay'");
  expect_refusal("stages.0.until.loss", "1", "until: unknown key 'loss'");
}

TEST(Recipe, NamesAFieldThatIsMissing) {
  expect_refusal("name", "-", "missing key name");
  expect_refusal("model", "-", "missing key model");
  expect_refusal("model.tokenizer", "-", "missing key tokenizer");
  expect_refusal("sources", "-", "missing key sources");
  expect_refusal("stages", "[]", "'stages': expected a list of at least one");
  expect_refusal("stages.0.steps", "-", "stages[0]: missing key steps");
  expect_refusal("stages.0.until.accuracy", "-", "missing key accuracy");
}

TEST(Recipe, NamesAFieldThatIsOutOfItsRange) {
  expect_refusal("precision", "\"fp8\"", "'precision': expected bf16 or f32");
  expect_refusal("name", "\"a/b\"", "'name'");
  expect_refusal("optimizer.clip", "-1", "'clip': expected 0 or more, got -1");
  expect_refusal("optimizer.muon.momentum", "1.5", "'momentum': expected 0 to 1");
  expect_refusal("optimizer.muon.scale", "\"big\"", "'scale': expected shape or rms");
  expect_refusal("optimizer.adamw.betas", "[0.9, 1]", "'betas': expected two numbers");
  expect_refusal("schedule.kind", "\"step\"", "'kind': expected linear or cosine");
  expect_refusal("stages.0.micro", "3000", "'micro': expected a divisor of 'tokens', 8192");
  expect_refusal("stages.0.length", "4096", "'length': expected 2 to 2048");
  expect_refusal("stages.0.mixture", "{\"needle\": 1}", "there is no source 'needle'");
  expect_refusal("stages.0.mixture", "{\"words\": 1}",
                 "'source': expected one of the stage's mixture");
  expect_refusal("stages.1.mixture", "{\"words\": 0}", "'mixture': expected a weight above 0");
  expect_refusal("stages.0.steps", "0", "'steps': expected 1 or more, got 0");
  expect_refusal("checkpoint.keep", "0", "'keep': expected 1 or more");
  for (const char* name : {"\"\"", "\".\"", "\"..\""}) {
    expect_refusal("name", name, "'name': expected a name for files");
  }
  expect_refusal("optimizer.adamw.epsilon", "0", "'epsilon': expected a number above 0");
  expect_refusal("optimizer.adamw.epsilon", "1e-60", "'epsilon': expected a number above 0");
  expect_refusal("experts.selection_bias.until", "1", "'until': expected below 1");
  expect_refusal("stages.0.steps", "1099511627776", "'steps': expected at most 2147483648");
  expect_refusal("stages", R"([{"steps": 2147483648, "tokens": 2147483648, "length": 1024,
                                "mixture": {"words": 1}}])",
                 "stages[0]: expected at most 1125899906842624 tokens in all stages");
  expect_refusal("model", R"({"start": "m.gguf"})", "expected 'initialization', or a model");
  expect_refusal("model.start", "\"m.gguf\"", "expected 'start', or 'config' and 'tokenizer'");
}

// Every value that is neither object nor array, wherever it stands.
void for_each_leaf(json::value& value, const std::function<void(json::value&)>& visit) {
  if (value.is_object()) {
    for (auto& [key, inner] : value.get_object()) for_each_leaf(inner, visit);
  } else if (value.is_array()) {
    for (json::value& inner : value.get_array()) for_each_leaf(inner, visit);
  } else {
    visit(value);
  }
}

TEST(Recipe, ValuesOfAnyKindInAnyPlaceAreRefusedOrRead) {
  const json::value hostile[] = {
      nullptr, true,  "",     "../../x", json::array{},    json::object{}, 0,        -1, 0.5,
      -1e-300, 1e308, 1e-308, 1u << 31,  int64_t{1} << 62, ~uint64_t{0},   INT64_MIN};
  json::value recipe = whole();
  int64_t read_ones = 0, refused = 0;
  for_each_leaf(recipe, [&](json::value& leaf) {
    const json::value before = leaf;
    for (const json::value& value : hostile) {
      leaf = value;
      SCOPED_TRACE(json::serialize(recipe));
      try {
        // What is read can be counted with.
        EXPECT_GT(read(recipe.get_object()).steps(), 0);
        ++read_ones;
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kBadData) << error.what();
        ++refused;
      }
    }
    leaf = before;
  });
  EXPECT_GT(read_ones, 50);
  EXPECT_GT(refused, 200);
}

TEST(Recipe, KeepsTheDecayBehindStagesThatMayEndEarly) {
  expect_refusal("schedule.decay", "0.8", "expected at most the 300 steps after the last stage");
  EXPECT_NO_THROW(read(with("schedule.decay", "0.75")));
}

TEST(Recipe, TakesCheckpointsByTimeWhereNothingIsSaid) {
  const Recipe r = read(with("checkpoint", "{}"));
  EXPECT_EQ(r.checkpoint_steps, 0);
  EXPECT_EQ(r.checkpoint_minutes, 10);
}

TEST(Recipe, IsBoundToWhatDecidesTheNumbersAlone) {
  const auto essence = [](const json::object& recipe) {
    return json::serialize(read(recipe).essence);
  };
  const std::string same = essence(whole());
  for (const auto& [path, value] : {std::pair{"name", "\"other\""},
                                    {"out", "\"there\""},
                                    {"checkpoint.every", "3"},
                                    {"evaluate.examples", "3"},
                                    {"licence", "\"mit\""}}) {
    EXPECT_EQ(essence(with(path, value)), same) << path;
  }
  for (const auto& [path, value] : {std::pair{"seed", "8"},
                                    {"optimizer.clip", "0.6"},
                                    {"stages.0.steps", "101"},
                                    {"sources.words.files", "[\"b\"]"},
                                    {"freeze", "[]"},
                                    {"precision", "\"bf16\""}}) {
    EXPECT_NE(essence(with(path, value)), same) << path;
  }
}

TEST(Recipe, SourcesOfAFileAreThoseThatItsStagesUse) {
  const testing::TempFolder folder;
  folder.write("sources.json", R"({"unused": {"kind": "repeats"}, "words": {"kind": "text"},
                                   "needles": {"kind": "needles"}})");
  json::object recipe = with("sources", R"("sources.json")");
  const Recipe r = recipe_from_json(recipe, folder.path(), "recipe.json");
  ASSERT_EQ(r.sources.size(), 2u);
  EXPECT_EQ(r.sources[0].name, "words");
  EXPECT_EQ(r.stages[0].mixture, (std::vector<double>{0, 2}));
  // A checkpoint is bound to what the file says of them.
  EXPECT_EQ(json::serialize(r.essence.at("sources")),
            R"({"words":{"kind":"text"},"needles":{"kind":"needles"}})");
  recipe["sources"] = "none.json";
  expect_error(ErrorKind::kNotFound, "none.json",
               [&] { recipe_from_json(recipe, folder.path(), "recipe.json"); });
  folder.write("sources.json", R"({"unused": {"kind": "repeats"}})");
  recipe["sources"] = "sources.json";
  expect_error(ErrorKind::kBadData, "expected at least one source, got none",
               [&] { recipe_from_json(recipe, folder.path(), "recipe.json"); });
}

TEST(Recipe, TeachesAdaptersBesideAModelThatIsThere) {
  json::object tuned = with("freeze", "[]");
  tuned.erase("initialization");
  tuned["model"] = {{"start", "m.gguf"}};
  tuned["lora"] = {{"rank", 4}};
  Recipe r = read(tuned);
  ASSERT_TRUE(r.lora);
  EXPECT_EQ(r.start, "m.gguf");
  EXPECT_EQ(r.lora->options.rank, 4);
  EXPECT_EQ(r.lora->options.alpha, 8);
  EXPECT_EQ(r.lora->options.seed, 7u);
  EXPECT_TRUE(r.lora->all_groups);
  json::object other_chunk = tuned;
  other_chunk["model"] = {{"start", "m.gguf"}, {"chunk", 64}};
  expect_error(ErrorKind::kBadData, "expected 'chunk' or 'lora', got both",
               [&] { read(other_chunk); });
  tuned["lora"] = {{"groups", {"experts"}}, {"alpha", 3}};
  r = read(tuned);
  EXPECT_FALSE(r.lora->all_groups);
  EXPECT_TRUE(r.lora->options.experts);
  EXPECT_FALSE(r.lora->options.attention || r.lora->options.shared);
  EXPECT_EQ(r.lora->options.alpha, 3);
  tuned["lora"] = {{"groups", {"router"}}};
  expect_error(ErrorKind::kBadData, "'groups': expected attention, shared or experts",
               [&] { read(tuned); });
  tuned["lora"] = json::object();
  tuned["freeze"] = {"blk.*"};
  expect_error(ErrorKind::kBadData, "expected 'freeze' or 'lora'", [&] { read(tuned); });
  json::object fresh = with("freeze", "[]");
  fresh["lora"] = json::object();
  expect_error(ErrorKind::kBadData, "'lora': expected a model to 'start' from",
               [&] { read(fresh); });
}

ModelConfig small_config() {
  return config_from_huggingface(
      parse_json(R"({"model_type": "llama", "vocab_size": 16, "hidden_size": 8,
                     "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                     "num_key_value_heads": 1, "rms_norm_eps": 1e-5})",
                 "config")
          .get_object(),
      "config");
}

TEST(Freeze, TakesPatternsOfWholeNames) {
  Parameters parameters(small_config(), std::nullopt, Precision::kF32);
  const std::vector<std::string> patterns = {"blk.0.*", "token_embd.weight"};
  freeze(parameters, patterns);
  for (const Parameter& p : parameters.all()) {
    const bool frozen = p.name.starts_with("blk.0.") || p.name == "token_embd.weight";
    EXPECT_EQ(p.taught, !frozen) << p.name;
  }
}

TEST(Freeze, RefusesAPatternThatMatchesNothing) {
  Parameters parameters(small_config(), std::nullopt, Precision::kF32);
  const std::vector<std::string> wrong = {"blk.*", "blk.7.*"}, all = {"*"};
  expect_error(ErrorKind::kUsage, "'blk.7.*' matches no tensor",
               [&] { freeze(parameters, wrong); });
  expect_error(ErrorKind::kUsage, "nothing to teach", [&] { freeze(parameters, all); });
}

}  // namespace
}  // namespace drover
