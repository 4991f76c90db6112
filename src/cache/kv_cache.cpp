#include "cache/kv_cache.h"

#include <algorithm>
#include <cctype>
#include <cstring>

#include "base/error.h"

namespace drover {
namespace {

int64_t pages_for(int64_t positions) { return (positions + kPageTokens - 1) / kPageTokens; }

KvPages empty_pages(const CacheLayout& layout) {
  return {nullptr, layout.type, layout.kv_heads, layout.head_dim};
}

}  // namespace

std::string_view cache_type_name(DType type) {
  return type == DType::kI8 ? "int8" : dtype_name(type);
}

std::optional<DType> cache_type_from_name(std::string_view name) {
  const auto same = [](char a, char b) { return std::tolower(static_cast<unsigned char>(a)) == b; };
  for (const DType type : {DType::kF32, DType::kBF16, DType::kI8}) {
    const std::string_view known = cache_type_name(type);
    if (std::equal(name.begin(), name.end(), known.begin(), known.end(), same)) return type;
  }
  return std::nullopt;
}

int64_t CacheLayout::global_layers() const {
  return std::count(chunked.begin(), chunked.end(), false);
}

int64_t CacheLayout::tail() const {
  return std::find(chunked.rbegin(), chunked.rend(), false).base() - chunked.begin();
}

int64_t CacheLayout::page_bytes() const { return empty_pages(*this).page_bytes(); }

int64_t CacheLayout::global_bytes_per_token() const {
  return global_layers() * page_bytes() / kPageTokens;
}

int64_t CacheLayout::local_pages(int64_t context) const {
  return local_layers() * pages_for(std::min(chunk, context));
}

int64_t CacheLayout::pages(int64_t context) const {
  return global_layers() * pages_for(context) + local_pages(context);
}

KvCache::KvCache(CacheLayout layout, int64_t context, PagePool pool)
    : layout_(std::move(layout)),
      context_(context),
      pool_(std::move(pool)),
      layers_(layout_.chunked.size()) {
  DROVER_CHECK(is_cache_type(layout_.type));
}

KvCache::KvCache(CacheLayout layout, int64_t context)
    : KvCache(layout, context, PagePool(layout.page_bytes(), PagePool::kNoLimit)) {}

void KvCache::Layer::set(int64_t i, PageRef page) {
  const size_t at = static_cast<size_t>(i);
  DROVER_CHECK(at <= pages.size());
  if (at == pages.size()) {
    data.push_back(page.get());
    pages.push_back(std::move(page));
  } else {
    data[at] = page.get();
    pages[at] = std::move(page);
  }
}

template <typename Need>
void KvCache::for_pages_to_write(int64_t tokens, Need need) const {
  if (tokens == 0) return;
  const int64_t end = length_ + tokens;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const int64_t layer = static_cast<int64_t>(i);
    // Positions [kept, filled) of the layer's pages are written, or where a ring turns all of them.
    int64_t kept = length_, filled = end, first = length_ / kPageTokens;
    if (layout_.chunked[i]) {
      kept = length_ % layout_.chunk;
      const bool turns = kept + tokens > layout_.chunk;
      filled = turns ? layout_.chunk : kept + tokens;
      first = turns ? 0 : kept / kPageTokens;
    }
    for (int64_t page = first; page < pages_for(filled); ++page) {
      need(layer, page, page * kPageTokens < kept);
    }
  }
}

bool KvCache::writable(int64_t layer, int64_t i) const {
  const auto& pages = layers_[static_cast<size_t>(layer)].pages;
  return i < static_cast<int64_t>(pages.size()) && pages[static_cast<size_t>(i)].use_count() == 1;
}

int64_t KvCache::pages_to_take(int64_t tokens) const {
  int64_t out = 0;
  for_pages_to_write(tokens, [&](int64_t layer, int64_t i, bool) { out += !writable(layer, i); });
  return out;
}

void KvCache::reserve(int64_t tokens) {
  DROVER_CHECK(!storing_);
  if (tokens > context_ - length_) {
    throw Error(ErrorKind::kLimit,
                fmt::format("context: expected at most {} tokens, got {} ({} kept and {} new)",
                            context_, length_ + tokens, length_, tokens),
                "ask for a larger context with --context, or shorten the text");
  }
  for_pages_to_write(tokens, [&](int64_t layer, int64_t i, bool live) {
    if (writable(layer, i)) return;
    // At a border the rings still hold the chunk before it, until one of its pages goes.
    if (layout_.chunked[static_cast<size_t>(layer)] && length_ % layout_.chunk == 0) {
      ring_chunk_ = -1;
    }
    Layer& mine = layers_[static_cast<size_t>(layer)];
    PageRef page = pool_.take();
    if (live) {
      std::memcpy(page.get(), mine.data[static_cast<size_t>(i)],
                  static_cast<size_t>(layout_.page_bytes()));
    }
    mine.set(i, std::move(page));
  });
}

KvPages KvCache::pages(int64_t layer) const {
  KvPages out = empty_pages(layout_);
  const Layer& mine = layers_[static_cast<size_t>(layer)];
  out.pages = mine.data.data();
  out.bounds = mine.bounds_data.empty() ? nullptr : mine.bounds_data.data();
  return out;
}

BoundKeysJob KvCache::bounds_to_make(int64_t layer, int64_t end) {
  Layer& mine = layers_[static_cast<size_t>(layer)];
  const int64_t full = end / kPageTokens;
  const size_t spans = static_cast<size_t>((full + kSpanPages - 1) / kSpanPages);
  const size_t bytes = static_cast<size_t>(empty_pages(layout_).bounds_bytes());
  // A span that is written on is this cache's own: a copy of the cache shares those before.
  const size_t open = static_cast<size_t>(mine.bounded / kSpanPages);
  if (full > mine.bounded && open < mine.bounds.size() && mine.bounds[open].use_count() > 1) {
    auto own = std::make_shared<AlignedArray<std::byte>>(bytes);
    std::memcpy(own->data(), mine.bounds[open]->data(), bytes);
    mine.bounds[open] = std::move(own);
    mine.bounds_data[open] = mine.bounds[open]->data();
  }
  while (mine.bounds.size() < spans) {
    mine.bounds.push_back(std::make_shared<AlignedArray<std::byte>>(bytes));
    std::memset(mine.bounds.back()->data(), 0, bytes);
    mine.bounds_data.push_back(mine.bounds.back()->data());
  }
  const BoundKeysJob job{pages(layer), mine.bounded, std::max(full, mine.bounded)};
  mine.bounded = job.end_page;
  return job;
}

void KvCache::begin_store() {
  storing_ = true;
  ring_chunk_ = -1;
}

void KvCache::advance(int64_t tokens, int64_t live) {
  const int64_t first = length_;
  length_ += tokens;
  storing_ = false;
  if (!has_ring() || tokens == 0) return;
  const int64_t begin = layout_.chunk_begin(length_ - 1);
  DROVER_CHECK(live <= first || live % layout_.chunk == 0);
  ring_chunk_ = begin / layout_.chunk;
  tail_live_ = live < length_ && (begin >= first || tail_live_);
}

bool KvCache::ring_complete() const {
  return !has_ring() || length_ % layout_.chunk == 0 || ring_holds(length_);
}

bool KvCache::ring_holds(int64_t position) const {
  return has_ring() && ring_chunk_ >= 0 && position >= ring_chunk_ * layout_.chunk &&
         (length_ - 1) / layout_.chunk == ring_chunk_ && (tail_live_ || !layout_.has_tail());
}

int64_t KvCache::rewind(int64_t length) {
  length = std::clamp<int64_t>(length, 0, length_);
  if (has_ring() && length % layout_.chunk != 0 && !ring_holds(length)) {
    length = layout_.chunk_begin(length);
  }
  storing_ = false;
  length_ = length;
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (layout_.chunked[i]) continue;
    layers_[i].pages.resize(static_cast<size_t>(pages_for(length)));
    layers_[i].data.resize(static_cast<size_t>(pages_for(length)));
    layers_[i].bounded = std::min(layers_[i].bounded, length / kPageTokens);
  }
  return length_;
}

void KvCache::adopt(std::span<const PageRef> global, std::span<const PageRef> local,
                    int64_t tokens) {
  DROVER_CHECK(!storing_ && length_ % kPageTokens == 0 && tokens <= kPageTokens);
  DROVER_CHECK(static_cast<int64_t>(global.size()) == layout_.global_layers());
  const int64_t page = length_ / kPageTokens;
  const int64_t slot = has_ring() ? length_ % layout_.chunk : 0;
  const bool rings = !local.empty() && has_ring() && layout_.chunk % kPageTokens == 0 &&
                     (slot == 0 || ring_holds(length_));
  size_t next_global = 0, next_local = 0;
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (!layout_.chunked[i]) {
      layers_[i].set(page, global[next_global++]);
    } else if (rings) {
      layers_[i].set(slot / kPageTokens, local[next_local++]);
    }
  }
  length_ += tokens;
  ring_chunk_ = rings ? (length_ - 1) / layout_.chunk : -1;
  tail_live_ = true;
}

void KvCache::share_global(int64_t position, std::span<const PageRef> pages) {
  DROVER_CHECK(!storing_ && position < length_);
  DROVER_CHECK(static_cast<int64_t>(pages.size()) == layout_.global_layers());
  size_t next = 0;
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (!layout_.chunked[i]) layers_[i].set(position / kPageTokens, pages[next++]);
  }
}

std::vector<PageRef> KvCache::global_pages(int64_t position) const {
  std::vector<PageRef> out;
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (!layout_.chunked[i]) {
      out.push_back(layers_[i].pages[static_cast<size_t>(position / kPageTokens)]);
    }
  }
  return out;
}

std::vector<PageRef> KvCache::local_pages(int64_t position) const {
  std::vector<PageRef> out;
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (layout_.chunked[i]) {
      out.push_back(layers_[i].pages[static_cast<size_t>(position % layout_.chunk / kPageTokens)]);
    }
  }
  return out;
}

bool KvCache::ring_shared() const {
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (!layout_.chunked[i]) continue;
    for (const PageRef& page : layers_[i].pages) {
      if (page.use_count() > 1) return true;
    }
  }
  return false;
}

void KvCache::leave_shared_ring() {
  if (!has_ring() || length_ % layout_.chunk != 0 || !ring_shared()) return;
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (!layout_.chunked[i]) continue;
    layers_[i].pages.clear();
    layers_[i].data.clear();
  }
  ring_chunk_ = -1;
}

int64_t KvCache::bytes() const {
  int64_t pages = 0;
  for (const Layer& layer : layers_) pages += static_cast<int64_t>(layer.pages.size());
  return pages * layout_.page_bytes();
}

}  // namespace drover
