// For the tests of context files: texts, and the pages that a model would have made of them.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/aligned.h"
#include "base/error.h"
#include "cache/context_file.h"
#include "cache/context_format.h"

namespace drover {

// A text that owns its tokens.
struct Story {
  std::vector<int32_t> tokens;
  std::vector<PlacedPicture> pictures;

  operator TextView() const { return {tokens, pictures}; }
  int64_t length() const { return std::ssize(tokens); }
};

// Random tokens by seed: two stories of one seed begin alike.
inline Story story(int64_t length, uint32_t seed = 1) {
  std::mt19937 random(seed);
  Story out;
  for (int64_t i = 0; i < length; ++i) out.tokens.push_back(static_cast<int32_t>(random() % 1000));
  return out;
}

// The first `length` tokens, then others.
inline Story turned(const Story& from, int64_t length, int64_t more, uint32_t seed) {
  Story out = from;
  out.tokens.resize(static_cast<size_t>(length));
  const Story rest = story(more, seed);
  out.tokens.insert(out.tokens.end(), rest.tokens.begin(), rest.tokens.end());
  return out;
}

inline Digest digest_of(uint8_t number) {
  Digest out;
  out.fill(number);
  return out;
}

inline ContextIdentity identity_of(CacheLayout layout) {
  return {digest_of(1), digest_of(2), 1000, std::move(layout)};
}

// Small pages: 4,096 bytes and a bit more, so that padding counts, too.
inline CacheLayout small_layout() {
  return {.kv_heads = 1,
          .head_dim = 6,
          .chunked = {true, false, true, false},
          .chunk = 512,
          .type = DType::kI8};
}

// What a cache would hold after a text: pages whose bytes follow from the layer and from all
// tokens (global) or the chunk's (chunked) up to the page's end.
class Memory {
 public:
  Memory(const CacheLayout& layout, const Story& text) : shape_(layout) {
    lists_.resize(layout.chunked.size());
    for (size_t layer = 0; layer < lists_.size(); ++layer) {
      const int64_t begin =
          layout.chunked[layer] ? text.length() - shape_.chunk_tokens(text.length()) : 0;
      for (int64_t at = begin; at < text.length(); at += kPageTokens) {
        const int64_t end = std::min(at + kPageTokens, text.length());
        uint64_t seed = layer + 1;
        for (int64_t i = begin; i < end; ++i) {
          seed =
              (seed ^ static_cast<uint64_t>(text.tokens[static_cast<size_t>(i)])) * 0x100000001b3;
        }
        AlignedArray<std::byte> page(shape_.page_bytes);
        std::mt19937_64 random(seed);
        for (size_t i = 0; i < page.size(); i += 8) {
          const uint64_t value = random();
          std::memcpy(page.data() + i, &value, std::min<size_t>(8, page.size() - i));
        }
        lists_[layer].push_back(page.data());
        memory_.push_back(std::move(page));
      }
    }
  }

  std::vector<PageList> lists() const { return {lists_.begin(), lists_.end()}; }
  size_t page_bytes() const { return shape_.page_bytes; }

 private:
  ContextShape shape_;
  std::vector<AlignedArray<std::byte>> memory_;
  std::vector<std::vector<const std::byte*>> lists_;
};

// Nothing if the file holds exactly this, else what differs.
inline std::string difference(const ContextFile& file, const CacheLayout& layout,
                              const Story& text) {
  const TextView got = file.text();
  if (!std::ranges::equal(got.tokens, text.tokens)) {
    return fmt::format("{} tokens instead of {}, or others", got.tokens.size(), text.length());
  }
  if (!std::ranges::equal(got.pictures, text.pictures)) return "other pictures";
  const Memory memory(layout, text);
  const std::vector<PageList> expected = memory.lists();
  for (size_t layer = 0; layer < expected.size(); ++layer) {
    const PageList pages = file.pages(static_cast<int64_t>(layer));
    if (pages.size() != expected[layer].size()) {
      return fmt::format("layer {}: {} pages instead of {}", layer, pages.size(),
                         expected[layer].size());
    }
    for (size_t p = 0; p < pages.size(); ++p) {
      if (reinterpret_cast<uintptr_t>(pages[p]) % kFileAlignment != 0) return "not aligned";
      if (std::memcmp(pages[p], expected[layer][p], memory.page_bytes()) != 0) {
        return fmt::format("layer {}: page {} differs", layer, p);
      }
    }
  }
  return {};
}

inline ContextSaved save(const std::filesystem::path& path, const CacheLayout& layout,
                         const Story& text) {
  ThreadPool threads(1);
  const Memory memory(layout, text);
  return save_context(path, identity_of(layout), text, memory.lists(), threads);
}

inline std::shared_ptr<const ContextFile> load(const std::filesystem::path& path,
                                               const CacheLayout& layout) {
  ThreadPool threads(1);
  return ContextFile::open(path, identity_of(layout), threads);
}

inline void expect_holds(const std::filesystem::path& path, const CacheLayout& layout,
                         const Story& text) {
  EXPECT_EQ(difference(*load(path, layout), layout, text), "");
}

}  // namespace drover
