// What was taught becomes a model again: one GGUF file, or a Hugging Face folder that transformers
// loads. Free functions; nothing is kept.
#pragma once

#include <filesystem>
#include <string_view>

#include "base/progress.h"
#include "kernels/context.h"
#include "model/export_huggingface.h"
#include "model/quantize_mixture.h"
#include "text/vocabulary.h"
#include "train/parameters.h"

namespace drover {

// Values become what the mixture says; norms and routers stay f32. Eyes, where there are any, go
// into the same file. Throws what writing throws; the old file stays then. Where the vocabulary has
// no chat template but the control tokens of Llama 4, the plain one goes along. An empty vocabulary
// is none.
void write_gguf(Context& context, const Parameters& parameters, const ModelNotes& notes,
                const Vocabulary& vocabulary, const std::filesystem::path& path,
                const Mixture& mixture = DType::kBF16, const Progress& progress = {});

// As export_huggingface() says. vocabulary: what tokenizer_json says.
void write_huggingface(const Parameters& parameters, const ModelNotes& notes,
                       const Vocabulary& vocabulary, std::string_view tokenizer_json,
                       const std::filesystem::path& folder, DType type = DType::kBF16,
                       const Progress& progress = {});

}  // namespace drover
