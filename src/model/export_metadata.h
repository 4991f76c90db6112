// What a GGUF file says of a model beside its tensors, from our own terms: for those who write
// models that did not come as GGUF. Free functions; nothing is kept.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "formats/gguf_writer.h"
#include "formats/huggingface.h"
#include "model/config.h"
#include "model/model.h"
#include "text/vocabulary.h"

namespace drover {

// The keys of spec section 9.2, and those of our own that carry what the family's files leave to
// defaults.
void write_config(GgufWriter& out, const ModelConfig& config);

// The makers' advice on sampling and on where to stop, under the keys that other writers use.
void write_advice(GgufWriter& out, const GenerationDefaults& advice,
                  const std::vector<Token>& stops);

// The tokenizer as spec section 9.2 has it. Ids up to `tokens` that the vocabulary leaves out are
// padded, since other readers want as many tokens as there are embeddings.
void write_vocabulary(GgufWriter& out, const Vocabulary& vocabulary, int64_t tokens);

// The first keys of every file: what it is, its name where it has one, and its licence.
void write_general(GgufWriter& out, std::string_view architecture, std::string_view type,
                   std::string_view name, const LicenceNote& licence);

// What a folder is called: the last part of its path.
std::string folder_name(const HuggingfaceFolder& folder);

// All of the above for a folder, with its name, its licence and its makers' advice on sampling. A
// folder without a tokenizer gives no tokenizer's keys.
void write_folder_metadata(GgufWriter& out, const HuggingfaceFolder& folder,
                           const ModelConfig& config);

// The divisors of llama3 scaling, one per pair (spec section 9.3): other readers find it only in
// the tensor rope_freqs.weight.
std::vector<float> rope_divisors(const ModelConfig& config);

}  // namespace drover
