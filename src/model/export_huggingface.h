// Writes a model as a Hugging Face folder that transformers loads: the way back from GGUF names and
// layouts (model/tensor_table.h). Free functions; nothing is kept.
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/progress.h"
#include "formats/named_tensor.h"
#include "model/config.h"
#include "model/model.h"
#include "model/vision_config.h"
#include "text/vocabulary.h"

namespace drover {

// What a model says of itself beside configuration and numbers.
struct ModelNotes {
  std::string name;
  LicenceNote licence;
  GenerationDefaults generation;
  // Where answers end, beside what the vocabulary says.
  std::vector<Token> stops = {};
};

// The notes of a model that is there, to be written again.
ModelNotes notes_of(const Model& model);

// A chat template in Jinja that gives the turns of render_chat(ChatFormat::kLlama4), tools apart.
std::string_view plain_chat_template();

// The vocabulary's own template, or the plain one where it has none but the control tokens of the
// Llama 4 format; empty where it lacks them.
std::string_view chat_template_of(const Vocabulary& vocabulary);

// A model whose tensors are in memory or mapped: by GGUF names, in GGUF layout, of any weight type.
// A view of what must outlive it.
struct ModelParts {
  const ModelConfig& config;
  const VisionConfig* vision = nullptr;  // null for a model without eyes
  std::span<const NamedTensor> tensors;
  const ModelNotes& notes;
  const Vocabulary* vocabulary = nullptr;  // null for a model without a tokenizer
};

// The text of config.json for the class that transformers has for such a model:
// Llama4ForConditionalGeneration, Llama4ForCausalLM or LlamaForCausalLM. kUnsupported for what its
// classes have no words for: rotations that only a GGUF file can say, a vision network of another
// size than the joined patches.
std::string huggingface_config(const ModelParts& model, DType type);

// config.json, generation_config.json, model.safetensors; tokenizer.json (these bytes) and
// tokenizer_config.json for a model with a tokenizer; preprocessor_config.json and
// processor_config.json for one with eyes; README.md with the licence where there is one.
//
// type: f32, f16 or bf16, for all tensors, else kUsage. The folder is made if it is not there; each
// of its files is the old or the new one, and config.json comes last. kBadData names a tensor that
// is missing or has another shape than the configuration says.
void export_huggingface(const ModelParts& model, std::string_view tokenizer_json,
                        const std::filesystem::path& folder, DType type,
                        const Progress& progress = {});

}  // namespace drover
