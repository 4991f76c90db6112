// What one sequence remembers: the keys and values of its past tokens, in pages.
//
// Llama 4 has two kinds of layers, and so there are two kinds of store. A global layer attends to
// the whole past: its pages are appended to and never change. A chunked layer attends to its own
// chunk only: it holds at most one chunk, position p in slot p mod chunk, and at a chunk border it
// is empty again.
//
// Pages come from pools and may be shared: with another sequence that began alike, a prefix tree, a
// file. A cache writes only to pages that it alone holds; one that others hold too is copied first.
// So a copy of a KvCache costs no page until one of the two goes on. One thread at a time uses a
// cache, and all those that share its pages belong to that thread too.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/aligned.h"
#include "cache/page_pool.h"
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

  int64_t global_layers() const;
  int64_t local_layers() const { return static_cast<int64_t>(chunked.size()) - global_layers(); }
  // The first layer after the last global one: from there on a token matters to its own chunk only.
  int64_t tail() const;
  bool has_tail() const { return tail() < static_cast<int64_t>(chunked.size()); }

  int64_t page_bytes() const;
  // Bytes that one more token costs on all global layers together.
  int64_t global_bytes_per_token() const;
  // The most pages and bytes that all chunked layers hold together in a context of this many
  // tokens.
  int64_t local_pages(int64_t context) const;
  int64_t local_bytes(int64_t context) const { return local_pages(context) * page_bytes(); }
  // Pages of all layers in a context of this many tokens.
  int64_t pages(int64_t context) const;
  // Where a chunk that holds `position` begins; 0 if no layer is chunked.
  int64_t chunk_begin(int64_t position) const { return chunk > 0 ? position / chunk * chunk : 0; }

  bool operator==(const CacheLayout&) const = default;
};

class KvCache {
 public:
  // Room for at most `context` tokens; pages are taken as they come, from this pool of pages of
  // the layout's size.
  KvCache(CacheLayout layout, int64_t context, PagePool pool);
  // With a pool of its own, without limit.
  KvCache(CacheLayout layout, int64_t context);

  int64_t length() const { return length_; }
  int64_t context() const { return context_; }
  const CacheLayout& layout() const { return layout_; }

  // Takes the pages for positions [length, length + tokens). Throws kLimit when that is more than
  // the context; then nothing has changed. Throws what PagePool::take throws.
  void reserve(int64_t tokens);
  // How many pages that would take.
  int64_t pages_to_take(int64_t tokens) const;

  // The pages of a layer. Position p of the sequence is position slot(layer, p) of the pages.
  KvPages pages(int64_t layer) const;
  int64_t slot(int64_t layer, int64_t position) const {
    return layout_.chunked[layer] ? position % layout_.chunk : position;
  }

  // For attention that leaves out pages: pages() of this global layer will tell the bounds of its
  // full pages before position `end`; the job makes those that are missing, and must be run first.
  BoundKeysJob bounds_to_make(int64_t layer, int64_t end);

  // Storing begins: from here until advance() the rings may hold parts of a chunk that the length
  // does not know of. If advance() never comes, because something was thrown, rewind() puts the
  // cache right again; nothing else may be called first.
  void begin_store();

  // Positions [length, length + tokens) have been stored: on every layer from position `live` on,
  // and before it on all layers but the tail (CacheLayout::tail), whose state there nobody will
  // need. `live` is where a chunk begins, or not after the first of these positions.
  void advance(int64_t tokens, int64_t live = 0);

  // Whether the next token can be read on every layer: false inside a chunk whose tail was left
  // out.
  bool ring_complete() const;

  // Forgets the newest tokens, to at most `length`; returns the length that is left. It may be less
  // than asked: the rings of the chunked layers hold only the chunk that was written last, so a
  // step back into an earlier chunk goes to the border where that chunk begins.
  int64_t rewind(int64_t length);

  // Appends positions [length, length + tokens), tokens <= kPageTokens and length a multiple of it,
  // that somebody else has stored: one page for each global layer, in order of layer, and for each
  // chunked layer, or none of these. Without them the cache is inside a chunk whose ring is lost
  // until a border is reached, by more of the kind or by rewind().
  void adopt(std::span<const PageRef> global, std::span<const PageRef> local, int64_t tokens);

  // Holds these pages of the global layers, in order of layer, in place of its own for the page of
  // this position: somebody else stored the same there.
  void share_global(int64_t position, std::span<const PageRef> pages);

  // The page of each global layer, or of each chunked layer, that holds this position, which must
  // be before the end; of chunked layers it must be in the chunk that the rings hold.
  std::vector<PageRef> global_pages(int64_t position) const;
  std::vector<PageRef> local_pages(int64_t position) const;
  // Whether the rings hold positions [position, length) as every layer needs them.
  bool ring_holds(int64_t position) const;

  // Whether somebody else holds a page of the rings too.
  bool ring_shared() const;
  // At a chunk border, where rings are empty, gives back the pages of theirs that others hold too.
  void leave_shared_ring();

  // Bytes of pages held, shared ones too.
  int64_t bytes() const;

 private:
  struct Layer {
    std::vector<PageRef> pages;
    std::vector<std::byte*> data;  // of each
    // Of the keys of the first `bounded` pages, span after span; no part of the pool.
    std::vector<std::shared_ptr<AlignedArray<std::byte>>> bounds;
    std::vector<std::byte*> bounds_data;
    int64_t bounded = 0;

    void set(int64_t i, PageRef page);
  };

  // Calls need(layer, i, live) for every page that storing so many tokens writes to; live: the
  // cache has positions in it already.
  template <typename Need>
  void for_pages_to_write(int64_t tokens, Need need) const;
  bool writable(int64_t layer, int64_t i) const;
  bool has_ring() const { return layout_.chunk > 0; }

  CacheLayout layout_;
  int64_t context_;
  PagePool pool_;
  int64_t length_ = 0;
  int64_t ring_chunk_ = -1;  // the chunk whose tokens the rings hold; -1: none
  bool tail_live_ = true;    // its tail is there too
  bool storing_ = false;
  std::vector<Layer> layers_;
};

}  // namespace drover
