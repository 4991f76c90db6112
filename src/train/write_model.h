// What was taught becomes a model again: one GGUF file, or a Hugging Face folder that transformers
// loads. Free functions; nothing is kept.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/progress.h"
#include "kernels/context.h"
#include "model/model.h"
#include "model/quantize_mixture.h"
#include "text/vocabulary.h"
#include "train/parameters.h"

namespace drover {

// What a model says of itself beside configuration and numbers.
struct ModelNotes {
  std::string name;
  LicenceNote licence;
  GenerationDefaults generation;
  // Where answers end, beside what the vocabulary says: generation_config.json has a list.
  std::vector<Token> stops = {};
};

// The notes of a model that is there, to be written again.
ModelNotes notes_of(const Model& model);

// A chat template in Jinja that gives the turns of render_chat(ChatFormat::kLlama4), tools apart.
// What is written below has it where the vocabulary has the format's control tokens and no template
// of its own.
std::string_view plain_chat_template();

// Values are f32 and become what the mixture says; norms and routers stay f32. Eyes, where there
// are any, go into the same file. Throws what writing throws; the old file stays then.
void write_gguf(Context& context, const Parameters& parameters, const ModelNotes& notes,
                const Vocabulary& vocabulary, const std::filesystem::path& path,
                const Mixture& mixture = DType::kBF16, const Progress& progress = {});

// config.json, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json,
// for a model with eyes preprocessor_config.json and processor_config.json, and README.md with the
// licence. type: f32, f16 or bf16, of all tensors, else kUsage. vocabulary: what tokenizer_json
// says. The folder is made if it is not there; each of its files is the old or the new one.
// kUnsupported for what the form has no words for: rotations that only a GGUF file can say.
void write_huggingface(const Parameters& parameters, const ModelNotes& notes,
                       const Vocabulary& vocabulary, std::string_view tokenizer_json,
                       const std::filesystem::path& folder, DType type = DType::kBF16,
                       const Progress& progress = {});

}  // namespace drover
