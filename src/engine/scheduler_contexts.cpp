// What a scheduler does beside answering: whole texts scored, contexts taken from files and saved
// to them.
#include <algorithm>

#include "base/error.h"
#include "engine/sequence.h"

namespace drover {

void Scheduler::score(const Prompt& prompt, const EachLogits& each, const Progress& progress) {
  expect_prompt(prompt);
  std::vector<PlacedPicture> pictures;
  std::vector<const float*> embeddings;
  if (!prompt.pictures.empty()) {
    place_pictures(prompt, *model_.vision().config.patch_token, pictures, embeddings);
  }
  const std::span tokens(prompt.tokens);
  const int64_t wanted = layout_.pages(static_cast<int64_t>(tokens.size()));
  const int64_t left = std::max<int64_t>(0, pool_.capacity() - promised_ - tree_.pinned_pages());
  if (wanted > left) {
    throw Error(ErrorKind::kLimit,
                fmt::format("cache memory: {} bytes are needed for {} tokens, {} are available",
                            wanted * pool_.page_bytes(), tokens.size(), left * pool_.page_bytes()),
                "allow more with --cache-memory, or choose --cache-type int8");
  }
  KvCache cache(layout_, context_tokens_, pool_);
  const int64_t vocab = model_.config().vocab;
  const int64_t rows = std::clamp<int64_t>(kPromptLogitBytes / (vocab * 4), 1, options_.batch);
  AlignedArray<float> logits(static_cast<size_t>(rows * vocab));
  for (int64_t first = 0; first < static_cast<int64_t>(tokens.size()); first += rows) {
    const int64_t n = std::min<int64_t>(rows, tokens.size() - first);
    const MatrixView out{logits.data(), n, vocab, vocab};
    SequenceSlice slice{&cache, tokens.subspan(first, n), n};
    if (!embeddings.empty()) slice.embeddings = std::span(embeddings).subspan(first, n);
    take_room({&slice, 1});
    decoder_.forward({&slice, 1}, out);
    each(first, out);
    if (progress) progress(first + n, tokens.size());
  }
}

void Scheduler::adopt(std::shared_ptr<const ContextFile> file) {
  const TextView text = file->text();
  const int64_t length = file->length();
  const auto page = [&](int64_t layer, int64_t i) {
    // Nobody writes to a page that others hold, and the file always holds its own.
    return PageRef(file, const_cast<std::byte*>(file->pages(layer)[static_cast<size_t>(i)]));
  };
  KvCache cache(layout_, length, pool_);
  const uint64_t user = next_user_++;
  PrefixTree::Node* node = nullptr;
  for (int64_t at = 0; at < length; at += kPageTokens) {
    std::vector<PageRef> global, local;
    const int64_t begin = layout_.chunk_begin(length - 1);
    for (int64_t layer = 0; layer < model_.config().layer_count(); ++layer) {
      if (!layout_.chunked[static_cast<size_t>(layer)]) {
        global.push_back(page(layer, at / kPageTokens));
      } else if (at >= begin && !file->pages(layer).empty() && layout_.chunk % kPageTokens == 0) {
        local.push_back(page(layer, (at - begin) / kPageTokens));
      }
    }
    const int64_t end = std::min(at + kPageTokens, length);
    cache.adopt(global, local, end - at);
    node = tree_.insert({}, node, text, at, end, cache, /*rings=*/!local.empty(), user);
  }
  files_.push_back(std::move(file));
}

ContextSaved Scheduler::save(const std::filesystem::path& path, const Prompt& text) {
  std::vector<PlacedPicture> placed;
  std::vector<const float*> embeddings;
  if (!text.pictures.empty()) {
    place_pictures(text, *model_.vision().config.patch_token, placed, embeddings);
  }
  const PrefixTree::Match known = tree_.longest({}, {text.tokens, placed}, text.tokens.size());
  if (known.length == 0) {
    throw_error(ErrorKind::kNotFound, "context: nothing of {} tokens is known any more",
                text.tokens.size());
  }
  KvCache cache(layout_, known.length, pool_);
  tree_.fill(known, cache);
  std::vector<PlacedPicture> pictures;
  for (const PlacedPicture& p : placed) {
    if (p.end <= known.length) pictures.push_back(p);
  }
  std::vector<PageList> pages;
  for (size_t layer = 0; layer < layout_.chunked.size(); ++layer) {
    int64_t held = known.length;
    if (layout_.chunked[layer]) {
      const int64_t begin = layout_.chunk_begin(known.length);
      held = known.length > begin && cache.ring_holds(begin) ? known.length - begin : 0;
    }
    pages.emplace_back(cache.pages(static_cast<int64_t>(layer)).pages,
                       static_cast<size_t>((held + kPageTokens - 1) / kPageTokens));
  }
  const std::span tokens(text.tokens);
  return save_context(path, identity(), {tokens.first(static_cast<size_t>(known.length)), pictures},
                      pages, context_.threads);
}

}  // namespace drover
