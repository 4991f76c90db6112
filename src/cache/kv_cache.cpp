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

int64_t CacheLayout::global_bytes_per_token() const {
  const int64_t global = std::count(chunked.begin(), chunked.end(), false);
  return global * empty_pages(*this).page_bytes() / kPageTokens;
}

int64_t CacheLayout::local_bytes(int64_t context) const {
  const int64_t local = std::count(chunked.begin(), chunked.end(), true);
  return local * pages_for(std::min(chunk, context)) * empty_pages(*this).page_bytes();
}

KvCache::KvCache(CacheLayout layout, int64_t context)
    : layout_(std::move(layout)), context_(context), layers_(layout_.chunked.size()) {
  DROVER_CHECK(is_cache_type(layout_.type));
}

void KvCache::reserve(int64_t tokens) {
  DROVER_CHECK(!storing_);
  if (tokens > context_ - length_) {
    throw Error(ErrorKind::kLimit,
                fmt::format("context: expected at most {} tokens, got {} ({} kept and {} new)",
                            context_, length_ + tokens, length_, tokens),
                "ask for a larger context with --context, or shorten the text");
  }
  const int64_t end = length_ + tokens;
  for (size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = layers_[i];
    const int64_t positions = layout_.chunked[i] ? std::min(end, layout_.chunk) : end;
    while (static_cast<int64_t>(layer.pages.size()) < pages_for(positions)) {
      const size_t bytes = static_cast<size_t>(empty_pages(layout_).page_bytes());
      AlignedArray<std::byte> page(bytes);
      // Whole vectors are read past the last position; what they meet must be a number.
      std::memset(page.data(), 0, bytes);
      layer.memory.push_back(std::move(page));
      layer.pages.push_back(layer.memory.back().data());
    }
  }
}

KvPages KvCache::pages(int64_t layer) const {
  KvPages out = empty_pages(layout_);
  out.pages = layers_[static_cast<size_t>(layer)].pages.data();
  return out;
}

void KvCache::begin_store() {
  storing_ = true;
  ring_chunk_ = -1;
}

void KvCache::advance(int64_t tokens) {
  length_ += tokens;
  storing_ = false;
  if (layout_.chunk > 0 && length_ > 0) ring_chunk_ = (length_ - 1) / layout_.chunk;
}

int64_t KvCache::rewind(int64_t length) {
  length = std::clamp<int64_t>(length, 0, length_);
  const bool has_ring = std::count(layout_.chunked.begin(), layout_.chunked.end(), true) > 0;
  if (has_ring && length % layout_.chunk != 0 && length / layout_.chunk != ring_chunk_) {
    length = length / layout_.chunk * layout_.chunk;
  }
  storing_ = false;
  length_ = length;
  return length_;
}

int64_t KvCache::bytes() const {
  int64_t pages = 0;
  for (const Layer& layer : layers_) pages += static_cast<int64_t>(layer.pages.size());
  return pages * empty_pages(layout_).page_bytes();
}

}  // namespace drover
