// Vocabularies from whatever file holds them.
#pragma once

#include <string>

#include "formats/gguf.h"
#include "formats/huggingface.h"
#include "text/tokenizer.h"

namespace drover {

// kUnsupported when the file has no tokenizer, or one of a kind that Drover does not know.
Vocabulary vocabulary_of(const GgufFile& file);
Vocabulary vocabulary_of(const HuggingfaceFolder& folder);

// The tokenizer alone, without weights, of a model by name (locate_model), or of a bare
// tokenizer.json or tiktoken tokenizer.model file.
Tokenizer load_tokenizer(const std::string& name);

}  // namespace drover
