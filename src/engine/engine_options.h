// How an engine reads and answers, and what follows from it for a model.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

#include "cache/context_file.h"
#include "model/decoder.h"
#include "model/model.h"

namespace drover {

// Tokens that are computed together. Sixteen experts get 128 of them each, enough to unpack an
// expert's weights for; and the activations of the largest models take half a gigabyte.
inline constexpr int64_t kDefaultBatch = 2048;

struct EngineOptions {
  int64_t context = 0;  // tokens of one conversation; 0: what the model was made for, <= 32,768
  int64_t batch = kDefaultBatch;
  // f32, bf16 or i8; unset: f32 for f32 weights, else bf16
  std::optional<DType> cache_type = std::nullopt;
  // Bytes of pages, at most. 0: two conversations of the whole context, or `parallel` of them up to
  // a quarter of the machine's memory.
  int64_t cache_memory = 0;
  std::filesystem::path cache_dir = {};  // pages lie in a file there; empty: in memory
  int64_t parallel = 64;                 // answers that are written at the same time, at most
  Shortcuts shortcuts = {};
  std::optional<PageChoice> choice = std::nullopt;  // which pages global layers visit; unset: all
  bool chunk_reuse = true;                          // PrefixTree::adopt_chunk
  InputObserver* observer = nullptr;                // of the decoder; must outlive the engine
};

// The type of cached keys and values: what was asked for (kUsage unless f32, bf16 or i8), else f32
// for a model of f32 weights and bf16 for others.
DType choose_cache_type(const Model& model, std::optional<DType> asked);

// What a context file is bound to: the model, its tokenizer, and how they are asked.
ContextIdentity context_identity(const Model& model, const EngineOptions& options);

// The length of a conversation, at most: what was asked for, or, for 0, what the model was made for
// up to 32,768. kUsage below 0; kLimit beyond the model's own.
int64_t choose_context(const ModelConfig& config, int64_t asked);

// Bytes of pages, at most, for conversations of `context` tokens: what was asked for, or room for
// two whole ones, and for as many as run together up to a quarter of the machine's memory; it is
// taken only as it is used. kUsage below 0.
int64_t choose_cache_memory(const CacheLayout& layout, int64_t context,
                            const EngineOptions& options);

}  // namespace drover
