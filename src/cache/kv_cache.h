// What one sequence remembers: the keys and values of its past tokens, in pages.
//
// Llama 4 has two kinds of layers, and so there are two kinds of store. A global layer attends to
// the whole past: its pages are appended to and never change. A chunked layer attends to its own
// chunk only: it holds at most one chunk, position p in slot p mod chunk, and at a chunk border it
// is empty again.
//
// The cache owns its pages. One thread at a time uses it.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/aligned.h"
#include "kernels/attention/attention.h"

namespace drover {

// The types that a cache can have, as flags and messages say them: "f32", "bf16" and "int8" (DType
// kI8), in upper or lower case. Nothing for any other name.
std::string_view cache_type_name(DType type);
std::optional<DType> cache_type_from_name(std::string_view name);

// The shape of a model's cache.
struct CacheLayout {
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  std::vector<bool> chunked;  // per layer; the others are global
  int64_t chunk = 0;          // tokens; 0 if no layer is chunked
  DType type = DType::kBF16;  // kF32, kBF16 or kI8

  // Bytes that one more token costs on all global layers together.
  int64_t global_bytes_per_token() const;
  // The most bytes that all chunked layers hold together in a context of this many tokens.
  int64_t local_bytes(int64_t context) const;
};

class KvCache {
 public:
  // Room for at most `context` tokens; memory is taken page by page as they come.
  KvCache(CacheLayout layout, int64_t context);

  int64_t length() const { return length_; }
  int64_t context() const { return context_; }
  const CacheLayout& layout() const { return layout_; }

  // Takes the memory for positions [length, length + tokens). Throws kLimit when that is more than
  // the context; then nothing has changed.
  void reserve(int64_t tokens);

  // The pages of a layer. Position p of the sequence is position slot(layer, p) of the pages.
  KvPages pages(int64_t layer) const;
  int64_t slot(int64_t layer, int64_t position) const {
    return layout_.chunked[layer] ? position % layout_.chunk : position;
  }

  // Storing begins: from here until advance() the rings may hold parts of a chunk that the length
  // does not know of. If advance() never comes, because something was thrown, rewind() puts the
  // cache right again; nothing else may be called first.
  void begin_store();

  // Positions [length, length + tokens) have been stored on every layer.
  void advance(int64_t tokens);

  // Forgets the newest tokens, to at most `length`; returns the length that is left. It may be less
  // than asked: the rings of the chunked layers hold only the chunk that was written last, so a
  // step back into an earlier chunk goes to the border where that chunk begins.
  int64_t rewind(int64_t length);

  // Bytes of pages taken so far.
  int64_t bytes() const;

 private:
  struct Layer {
    std::vector<AlignedArray<std::byte>> memory;
    std::vector<std::byte*> pages;
  };

  CacheLayout layout_;
  int64_t context_;
  int64_t length_ = 0;
  int64_t ring_chunk_ = -1;  // the chunk whose tokens the rings hold; -1: none
  bool storing_ = false;
  std::vector<Layer> layers_;
};

}  // namespace drover
