#include "train/training.h"

#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/sha256.h"
#include "formats/huggingface.h"
#include "formats/json.h"
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

void expect_room(const Recipe& recipe, bool resume) {
  const bool checkpoints = !checkpoints_in(recipe.out).empty();
  if (resume && checkpoints) return;
  const fs::path metrics = recipe.out / "metrics.jsonl",
                 model = recipe.out / (recipe.name + ".gguf");
  std::error_code ignored;
  const auto refuse = [&](std::string_view what, std::string_view hint) {
    throw Error(ErrorKind::kUsage,
                fmt::format("{}: there {} of a training already",
                            printable(recipe.out.string(), 300), what),
                std::string(hint));
  };
  if (checkpoints) refuse("are checkpoints", "--resume goes on with it; --out begins elsewhere");
  if (fs::exists(model, ignored)) {
    refuse("is the model", "its checkpoints are gone; --out begins elsewhere");
  }
  // Of one that was killed before its first checkpoint nothing else is left.
  const bool lines = fs::exists(metrics, ignored) && !fs::is_empty(metrics, ignored);
  if (lines && !resume) refuse("are metrics", "--resume begins it anew; --out begins elsewhere");
}

TeachingMemory teaching_memory(const Parameters& parameters, Lora* lora,
                               const OptimizerOptions& optimizer) {
  constexpr int64_t kFloat = sizeof(float);
  TeachingMemory out;
  out.copies = parameters.copy_bytes();
  const auto average = [&](const Parameter& p) {
    // Muon keeps one, AdamW two.
    const bool muon = optimizer.muon && p.kind == Parameter::Kind::kMatrix;
    out.averages += (muon ? 1 : 2) * kFloat * p.size();
  };
  for (const Parameter& p : parameters.all()) {
    out.values += kFloat * p.size();
    if (!p.taught) continue;
    out.gradients += kFloat * p.size();
    if (lora) {
      out.values += kFloat * p.size();  // as it was before
    } else {
      average(p);
    }
  }
  if (!lora) return out;
  for (const Parameter& p : lora->factors()) {
    out.values += kFloat * p.size();
    out.gradients += kFloat * p.size();
    average(p);
  }
  return out;
}

void expect_memory(const TeachingMemory& memory, int64_t machine) {
  if (memory.bytes() <= machine) return;
  throw Error(ErrorKind::kLimit,
              fmt::format("teaching: expected at most the machine's {} bytes of memory, got {}: "
                          "values {}, gradients {}, averages {}, copies {}",
                          machine, memory.bytes(), memory.values, memory.gradients, memory.averages,
                          memory.copies),
              "adapters of fewer groups, or freezing more, take less");
}

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
    HuggingfaceFolder folder;
    folder.path = file.parent_path();
    folder.config = read_json_object(file);
    config = config_from_huggingface(folder.config, file.string());
    eyes = vision_config_from_huggingface(folder, config.hidden);
    read_tokenizer(r.tokenizer, *out);
    hash.update_text(json::serialize(folder.config));
  }
  if (r.chunk > 0) {
    const auto chunked = [](const LayerConfig& layer) { return layer.chunked; };
    if (std::none_of(config.layers.begin(), config.layers.end(), chunked)) {
      throw_error(ErrorKind::kBadData, "{}: model: 'chunk': none of its layers has chunks", r.name);
    }
    config.chunk = r.chunk;
  }
  hash.update_text(hex(fingerprint(out->tokenizer->vocabulary())));
  hash.update_text(out->tokenizer->vocabulary().chat_template);
  check_tokenizer(*out, config, eyes);
  if (eyes) {
    // How pictures are prepared stands beside config.json.
    hash.update_text(fmt::format("{} {} {} {}", eyes->tiles.max_tiles, eyes->tiles.fill_canvas,
                                 fmt::join(eyes->mean, " "), fmt::join(eyes->std, " ")));
  }

  if (r.initialization.constant_components > config.hidden) {
    throw_error(ErrorKind::kBadData,
                "{}: initialization: 'constant_components': expected at most {}, the hidden size, "
                "got {}",
                r.name, config.hidden, r.initialization.constant_components);
  }
  out->parameters = std::make_unique<Parameters>(config, eyes, r.precision);
  // Pages that nobody has written to are not there yet.
  const int64_t machine = ::sysconf(_SC_PHYS_PAGES) * ::sysconf(_SC_PAGESIZE);
  if (!r.lora) {
    freeze(*out->parameters, r.freeze);
    expect_memory(teaching_memory(*out->parameters, nullptr, r.optimizer), machine);
  }
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
    expect_memory(teaching_memory(*out->parameters, out->parts.lora, r.optimizer), machine);
  }
  out->parameters->refresh(context);
  make_sources(*out);
  for (const auto& source : out->sources) {
    for (const auto& file : source->facts().files) hash.update_text(hex(file.sha256));
  }
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
