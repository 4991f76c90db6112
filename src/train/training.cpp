#include "train/training.h"

#include <algorithm>
#include <boost/json.hpp>

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/sha256.h"
#include "formats/huggingface.h"
#include "model/fingerprint.h"
#include "train/manifest.h"
#include "train/write_model.h"

namespace drover {
namespace {

namespace json = boost::json;
namespace fs = std::filesystem;

void read_tokenizer(const fs::path& named, Training& out) {
  const fs::path path = fs::is_directory(named) ? named / "tokenizer.json" : named;
  const fs::path beside = path.parent_path() / "tokenizer_config.json";
  out.tokenizer_json = read_file(path, kMaxTokenizerJsonBytes);
  std::optional<std::string> settings;
  if (fs::exists(beside)) settings = read_file(beside, kMaxTokenizerJsonBytes);
  out.tokenizer.emplace(vocabulary_from_tokenizer_json(
      out.tokenizer_json, path.string(),
      settings ? std::optional<std::string_view>(*settings) : std::nullopt));
}

void check_tokenizer(const Training& training, const ModelConfig& config,
                     std::optional<VisionConfig>& eyes) {
  const Tokenizer& tokenizer = *training.tokenizer;
  const std::string& source = tokenizer.vocabulary().source;
  if (tokenizer.size() > config.vocab) {
    throw_error(ErrorKind::kBadData, "{}: expected at most {} tokens, one per embedding, got {}",
                source, config.vocab, tokenizer.size());
  }
  if (!eyes) return;
  const std::optional<Token> patch = tokenizer.special("<|patch|>");
  if (!patch || eyes->patch_token.value_or(*patch) != *patch) {
    throw_error(ErrorKind::kBadData,
                "{}: expected <|patch|> to be the token of pictures that the configuration names",
                source);
  }
  eyes->patch_token = patch;
}

void make_sources(Training& out) {
  const ChatFormat format = detect_chat_format(out.tokenizer->vocabulary());
  const auto& eyes = out.parameters->vision_config();
  out.learnt_from = {.tokenizer = &*out.tokenizer,
                     .format = format,
                     .vision = eyes ? &*eyes : nullptr,
                     .folder = out.recipe.folder,
                     .held_out = false};
  out.asked_about = out.learnt_from;
  out.asked_about.held_out = true;
  for (const RecipeSource& source : out.recipe.sources) {
    try {
      out.sources.push_back(make_source(source.settings, out.learnt_from));
      out.held_out.push_back(make_source(source.settings, out.asked_about));
    } catch (const Error& error) {
      throw Error(error.kind(),
                  fmt::format("source '{}': {}", printable(source.name), error.message()),
                  error.hint());
    }
    if (!out.sources.back()) {
      throw_error(ErrorKind::kBadData, "source '{}': everything is held out, nothing to learn from",
                  printable(source.name));
    }
    out.parts.sources.push_back(out.sources.back().get());
    out.parts.held_out.push_back(out.held_out.back().get());
  }
}

std::vector<ManifestSource> sides_of(const Training& training) {
  std::vector<ManifestSource> out;
  for (size_t i = 0; i < training.recipe.sources.size(); ++i) {
    const RecipeSource& source = training.recipe.sources[i];
    out.push_back(
        {source.name, &source.settings, training.sources[i].get(), training.held_out[i].get()});
  }
  return out;
}

}  // namespace

std::unique_ptr<Training> prepare_training(Context& context, Recipe recipe,
                                           const Progress& progress) {
  auto out = std::make_unique<Training>();
  out->recipe = std::move(recipe);
  const Recipe& r = out->recipe;
  Sha256 hash;
  hash.update_text(json::serialize(r.essence));
  ModelConfig config;
  std::optional<VisionConfig> eyes;
  if (!r.start.empty()) {
    out->start = Model::load(r.start, progress);
    out->tokenizer = out->start->tokenizer();
    const HuggingfaceFolder* folder = out->start->huggingface();
    out->tokenizer_json = folder != nullptr && folder->tokenizer_json
                              ? read_file(*folder->tokenizer_json, kMaxTokenizerJsonBytes)
                              : vocabulary_to_tokenizer_json(out->tokenizer->vocabulary());
    config = out->start->config();
    if (out->start->has_vision()) eyes = out->start->vision().config;
    hash.update_text(hex(fingerprint(*out->start)));
  } else {
    const fs::path file = fs::is_directory(r.config) ? r.config / "config.json" : r.config;
    const auto folder = HuggingfaceFolder::open_config_only(file.parent_path());
    config = config_from_huggingface(folder.config, file.string());
    eyes = vision_config_from_huggingface(folder, config.hidden);
    read_tokenizer(r.tokenizer, *out);
    hash.update_text(json::serialize(folder.config));
  }
  hash.update_text(hex(fingerprint(out->tokenizer->vocabulary())));
  check_tokenizer(*out, config, eyes);

  if (r.initialization.constant_components > config.hidden) {
    throw_error(ErrorKind::kBadData,
                "{}: initialization: 'constant_components': expected at most {}, the hidden size, "
                "got {}",
                r.name, config.hidden, r.initialization.constant_components);
  }
  out->parameters = std::make_unique<Parameters>(config, eyes, r.precision);
  if (out->start) {
    load_values(context, *out->parameters, *out->start);
  } else {
    initialize(*out->parameters, r.initialization);
  }
  if (r.lora) {
    LoraOptions options = r.lora->options;
    if (r.lora->all_groups) options.experts = config.experts > 0;
    out->lora = std::make_unique<Lora>(*out->parameters, options);
    out->parts.lora = out->lora.get();
  } else {
    freeze(*out->parameters, r.freeze);
  }
  out->parameters->refresh(context);
  make_sources(*out);
  check_disjoint(sides_of(*out));
  out->parts.parameters = out->parameters.get();
  out->parts.patch_token = eyes ? eyes->patch_token : std::nullopt;
  out->parts.digest = hash.finish();
  return out;
}

std::vector<fs::path> write_taught(Context& context, const Training& training,
                                   const Progress& progress) {
  const Recipe& recipe = training.recipe;
  write_manifest(recipe.out / "manifest.json", sides_of(training));
  if (training.lora) {
    const fs::path folder = recipe.out / recipe.name;
    PeftNotes notes = training.lora->notes();
    if (training.start && training.start->huggingface() != nullptr) {
      notes.base_model = training.start->path().string();
    }
    write_peft(training.lora->adapters(), notes, training.parameters->config(), folder);
    return {folder};
  }
  const Vocabulary& vocabulary = training.tokenizer->vocabulary();
  ModelNotes notes;
  if (training.start) notes = notes_of(*training.start);
  notes.name = recipe.name;
  if (!recipe.licence.empty()) notes.licence = {.id = recipe.licence, .name = {}, .link = {}};
  const std::vector<fs::path> out = {recipe.out / (recipe.name + ".gguf"),
                                     recipe.out / recipe.name};
  write_gguf(context, *training.parameters, notes, vocabulary, out[0], DType::kBF16, progress);
  write_huggingface(*training.parameters, notes, vocabulary, training.tokenizer_json, out[1],
                    DType::kBF16, progress);
  return out;
}

}  // namespace drover
