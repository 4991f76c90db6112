// A model as people name it: a GGUF file, a Hugging Face folder, or a name in the local model
// folder. Loading maps the weights, reads the configuration, and finds out how the model is talked
// to. A Model owns all of it and never changes, so any number of threads may read.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/progress.h"
#include "formats/gguf.h"
#include "formats/huggingface.h"
#include "model/config.h"
#include "model/vision_weights.h"
#include "model/weights.h"
#include "text/chat_format.h"
#include "text/tokenizer.h"

namespace drover {

// What the model's makers advise for sampling; unset where they say nothing.
struct GenerationDefaults {
  std::optional<double> temperature;
  std::optional<int64_t> top_k;
  std::optional<double> top_p;
  std::optional<double> min_p;
  std::optional<double> repeat_penalty;
  bool greedy = false;  // do_sample false
};

// The licence as the file states it; empty where it states nothing.
struct LicenceNote {
  std::string id;  // "apache-2.0", "llama4"
  std::string name;
  std::string link;
};

LicenceNote licence_of(const GgufFile& file);             // general.license and its kin
LicenceNote licence_of(const HuggingfaceFolder& folder);  // the front matter of README.md

// The advice in a generation_config.json; what is of another type than it should be is left out.
GenerationDefaults generation_advice(const boost::json::object& generation_config);

// The tokens at which the makers' generation_config.json stops (its eos_token_id, one or a list).
std::vector<Token> generation_stops(const boost::json::object& generation_config);

// The key under which our GGUF files carry them: others have no place for a list.
inline constexpr std::string_view kStopTokensKey = "drover.stop_tokens";

// Turns what a user typed into a path: an existing file or folder as it is, else NAME or NAME.gguf
// in the local model folder. Throws kNotFound that names both places.
std::filesystem::path locate_model(const std::string& name);

// $DROVER_MODELS, else $XDG_DATA_HOME/drover/models, else ~/.local/share/drover/models.
std::filesystem::path local_model_folder();

class Model {
 public:
  // Throws what the readers throw. A vocabulary of a kind that Drover does not know is no error
  // until someone asks for the tokenizer; a damaged one is. mmproj: a GGUF file with the vision
  // encoder, if that is not in the model's own; it goes before one that is. adapters: folders as
  // PEFT writes them, which change what the model computes (Weights::adapter).
  static std::unique_ptr<Model> load(const std::string& name, const Progress& progress = {},
                                     const std::string& mmproj = {},
                                     std::span<const std::string> adapters = {});

  const std::filesystem::path& path() const { return path_; }
  const ModelConfig& config() const { return config_; }
  const Weights& weights() const { return weights_; }

  bool has_vision() const { return vision_.has_value(); }
  // Throws kUnsupported if the model has no eyes.
  const Vision& vision() const;

  bool has_tokenizer() const { return tokenizer_.has_value(); }
  // Throws the reason why there is none.
  const Tokenizer& tokenizer() const;

  ChatFormat chat_format() const { return chat_format_; }
  const GenerationDefaults& generation() const { return generation_; }
  const LicenceNote& licence() const { return licence_; }
  // Where the makers stop, beside what the tokenizer says (generation_stops).
  const std::vector<Token>& advised_stops() const { return generation_stops_; }

  // Tokens that end an answer: the chat format's, and the file's.
  std::vector<Token> stop_tokens(ChatFormat format) const;

  // What was read; one of the two.
  const GgufFile* gguf() const { return gguf_ ? &*gguf_ : nullptr; }
  const HuggingfaceFolder* huggingface() const { return huggingface_ ? &*huggingface_ : nullptr; }

 private:
  Model() = default;
  void find_patch_token();

  std::filesystem::path path_;
  std::optional<GgufFile> gguf_;
  std::optional<HuggingfaceFolder> huggingface_;
  std::optional<GgufFile> mmproj_;
  ModelConfig config_;
  Weights weights_;
  std::optional<Vision> vision_;
  std::optional<Tokenizer> tokenizer_;
  std::optional<Error> no_tokenizer_;
  ChatFormat chat_format_ = ChatFormat::kNone;
  GenerationDefaults generation_;
  std::vector<Token> generation_stops_;
  LicenceNote licence_;
};

}  // namespace drover
