#include "cache/prefix_tree.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <string>

#include "base/error.h"

namespace drover {
namespace {

CacheLayout layout_of(std::vector<bool> chunked, int64_t chunk) {
  return {.kv_heads = 1,
          .head_dim = 16,
          .chunked = std::move(chunked),
          .chunk = chunk,
          .type = DType::kI8};
}
// L L G, and one layer after the global one; chunks of two pages.
const CacheLayout kOneGlobal = layout_of({true, true, false}, 512);
const CacheLayout kTail = layout_of({true, false, true}, 512);
const CacheLayout kTwoGlobal = layout_of({true, false, true, false}, 512);
const CacheLayout kDense = layout_of({false, false}, 0);
const CacheLayout kLocal = layout_of({true, true}, 512);
const CacheLayout kOddChunk = layout_of({true, false}, 300);

struct Text {
  std::vector<Token> tokens;
  std::vector<PlacedPicture> pictures = {};

  int64_t length() const { return static_cast<int64_t>(tokens.size()); }
  operator TextView() const { return {tokens, pictures}; }
};

Text random_text(std::mt19937& random, int64_t length) {
  Text text;
  for (int64_t i = 0; i < length; ++i) text.tokens.push_back(static_cast<Token>(random() % 1000));
  return text;
}

// The same, other from this token on.
Text fork_at(Text text, int64_t at, int64_t length, uint32_t seed) {
  text.tokens.resize(static_cast<size_t>(at));
  std::mt19937 random(seed);
  for (const Token t : random_text(random, length - at).tokens) text.tokens.push_back(t);
  return text;
}

PictureHash hash_of(int number) {
  PictureHash hash{};
  hash[31] = static_cast<uint8_t>(number);
  return hash;
}

// A decoder whose keys and values say which text they were made of: at each position a number that
// follows from all tokens that the layer could see.
class Marks {
 public:
  explicit Marks(const CacheLayout& layout) : layout_(layout) {}

  // Appends the text's tokens up to `end`; the tail of the layers is left out before `live`.
  void read(KvCache& cache, const Text& text, int64_t end, int64_t live = 0) const {
    const int64_t first = cache.length();
    if (first == end) return;
    cache.reserve(end - first);
    cache.begin_store();
    for (int64_t p = first; p < end; ++p) {
      for (int64_t layer = 0; layer < layers(); ++layer) {
        if (layer >= layout_.tail() && p < live) continue;
        *at(cache, layer, p) = mark(text, layer, p);
      }
    }
    cache.advance(end - first, live);
  }

  // Whether the cache holds what the next token needs, made of this text.
  ::testing::AssertionResult right(const KvCache& cache, const Text& text) const {
    for (int64_t layer = 0; layer < layers(); ++layer) {
      const bool ring = layout_.chunked[static_cast<size_t>(layer)];
      for (int64_t p = ring ? layout_.chunk_begin(cache.length()) : 0; p < cache.length(); ++p) {
        if (*at(cache, layer, p) == mark(text, layer, p)) continue;
        return ::testing::AssertionFailure()
               << "layer " << layer << ", position " << p << " of " << cache.length();
      }
    }
    return ::testing::AssertionSuccess();
  }

 private:
  int64_t layers() const { return static_cast<int64_t>(layout_.chunked.size()); }
  int64_t* at(const KvCache& cache, int64_t layer, int64_t p) const {
    const int64_t slot = cache.slot(layer, p);
    return reinterpret_cast<int64_t*>(cache.pages(layer).pages[slot / kPageTokens]) +
           slot % kPageTokens;
  }
  // With one global layer everything that stays follows from the chunk alone.
  int64_t mark(const Text& text, int64_t layer, int64_t p) const {
    const bool own_chunk = layout_.chunk > 0 && (layout_.chunked[static_cast<size_t>(layer)]
                                                     ? layout_.global_layers() == 0
                                                     : layout_.global_layers() == 1);
    uint64_t hash = static_cast<uint64_t>(layer);
    // The last tokens tell texts apart; all of them would take squares of time.
    const int64_t begin = own_chunk ? layout_.chunk_begin(p) : 0;
    for (int64_t i = std::max(begin, p - 5); i <= p; ++i) {
      hash = (hash ^ static_cast<uint64_t>(text.tokens[static_cast<size_t>(i)])) * 1099511628211u;
    }
    for (const PlacedPicture& picture : text.pictures) {
      if (picture.first <= p && picture.end > begin) hash += picture.hash[31] * 77u;
    }
    return static_cast<int64_t>(hash >> 1);
  }

  const CacheLayout layout_;
};

// Who reads a text as the scheduler does: takes over what is known, keeps what was read.
class Reader {
 public:
  Reader(PrefixTree& tree, const CacheLayout& layout, PagePool pool, uint64_t user, Text text,
         std::string salt = {})
      : tree_(tree),
        marks_(layout),
        user_(user),
        text_(std::move(text)),
        salt_(std::move(salt)),
        cache_(layout, 1 << 20, std::move(pool)) {
    const auto match = tree_.match(salt_, text_, text_.length() - 1);
    matched_ = match.length;
    tree_.pin(match.node);
    node_ = match.node;
    if (match.node != nullptr) tree_.fill(match, cache_);
    kept_ = match.length / kPageTokens * kPageTokens;
    if (match.length % kPageTokens != 0) node_ = tree_.step_back(node_);
  }

  // Reads up to `end` and keeps full pages, those before `live` without rings.
  void read(int64_t end, int64_t live = 0) {
    end = std::min(end, text_.length());
    while (cache_.length() < end) {
      // A shared ring ends with its chunk.
      cache_.leave_shared_ring();
      int64_t to = end;
      const int64_t chunk = cache_.layout().chunk;
      if (chunk > 0) to = std::min(end, cache_.layout().chunk_begin(cache_.length()) + chunk);
      marks_.read(cache_, text_, to, live);
      keep(live, false);
    }
  }
  void keep(int64_t live, bool finished) {
    const int64_t end = cache_.length();
    while (kept_ + kPageTokens <= end || (finished && kept_ < end)) {
      const int64_t to = std::min(kept_ + kPageTokens, end);
      node_ = tree_.insert(salt_, node_, text_, kept_, to, cache_, kept_ >= live, user_);
      kept_ = to;
    }
  }
  bool adopt_chunk() {
    PrefixTree::Node* node = tree_.adopt_chunk(salt_, node_, text_, cache_.length(), cache_, user_);
    if (node != nullptr) {
      node_ = node;
      kept_ = cache_.length();
    }
    return node != nullptr;
  }
  // Keeps what it has, to the token, and goes.
  void leave(int64_t live = 0) {
    keep(live, true);
    tree_.unpin(node_, user_);
    node_ = nullptr;
  }
  void all(int64_t live = 0) {
    read(text_.length(), live);
    leave(live);
  }

  ::testing::AssertionResult right() const { return marks_.right(cache_, text_); }
  int64_t matched() const { return matched_; }
  int64_t kept() const { return kept_; }
  uint64_t user() const { return user_; }
  const Text& text() const { return text_; }
  const std::string& salt() const { return salt_; }
  KvCache& cache() { return cache_; }

 private:
  PrefixTree& tree_;
  Marks marks_;
  uint64_t user_;
  Text text_;
  std::string salt_;
  KvCache cache_;
  PrefixTree::Node* node_ = nullptr;
  int64_t kept_ = 0;
  int64_t matched_ = 0;
};

class Tree : public ::testing::Test {
 protected:
  // Everything new, for this layout.
  void start(const CacheLayout& layout, int64_t pages = 1 << 20,
             int64_t most_nodes = PrefixTree::kMostNodes) {
    readers_.clear();
    layout_ = layout;
    pool_.emplace(layout.page_bytes(), pages * layout.page_bytes());
    tree_.emplace(layout, most_nodes);
  }
  Reader& reader(Text text, std::string salt = {}) {
    readers_.push_back(std::make_unique<Reader>(*tree_, layout_, *pool_, ++users_, std::move(text),
                                                std::move(salt)));
    return *readers_.back();
  }
  // Reads the whole text, as one whose every chunk has rings, and is gone.
  void know(const Text& text, std::string salt = {}, int64_t live = 0) {
    reader(text, std::move(salt)).all(live);
    readers_.pop_back();
  }
  int64_t matched(const Text& text, std::string_view salt = {}) {
    return tree_->match(salt, text, text.length()).length;
  }

  CacheLayout layout_;
  std::optional<PagePool> pool_;
  std::optional<PrefixTree> tree_;
  std::vector<std::unique_ptr<Reader>> readers_;
  uint64_t users_ = 0;
  std::mt19937 random_{1};
};

TEST_F(Tree, MatchesToTheTokenAndWhatItGivesIsRight) {
  for (const CacheLayout& layout : {kOneGlobal, kTail, kTwoGlobal, kDense, kLocal}) {
    for (const int64_t live : {0, 1024}) {
      const Text base = random_text(random_, 1300);
      for (const int64_t at : {0, 1, 255, 256, 257, 511, 512, 513, 700, 768, 1023, 1024, 1299}) {
        start(layout);
        know(base, {}, live);
        Reader& other = reader(fork_at(base, at, at + 40, 7));
        // Without rings it goes on where the chunk begins.
        EXPECT_EQ(other.matched(), layout.chunk > 0 && at < live ? at / 512 * 512 : at);
        EXPECT_TRUE(other.right()) << at;
        other.read(at + 40);
        EXPECT_TRUE(other.right()) << at;
        // All but the last token, which is read for its logits.
        EXPECT_EQ(reader(base).matched(), 1299);
      }
    }
  }
}

TEST_F(Tree, ChunksThatAreNotWholePagesGoOnAtTheirBorders) {
  start(kOddChunk);
  const Text base = random_text(random_, 1000);
  know(base);
  for (const int64_t at : {1, 299, 300, 301, 599, 650, 999}) {
    Reader& other = reader(fork_at(base, at, at + 300, 7));
    EXPECT_EQ(other.matched(), at / 300 * 300);
    other.read(at + 300);
    EXPECT_TRUE(other.right()) << at;
  }
}

// A long prompt keeps no rings of its early chunks. A short one that begins like it does.
TEST_F(Tree, OfTwoThatBeginAlikeTheOneWithRingsIsGoneOnWith) {
  for (const bool long_first : {true, false}) {
    start(kOneGlobal);
    const Text base = random_text(random_, 1200);
    Text beginning = base;
    beginning.tokens.resize(400);
    if (long_first) know(base, {}, /*live=*/1024);
    know(beginning);
    if (!long_first) know(base, {}, /*live=*/1024);
    EXPECT_EQ(matched(fork_at(base, 390, 500, 7)), 390) << long_first;
    EXPECT_EQ(matched(fork_at(base, 420, 500, 7)), 400) << long_first;
    EXPECT_EQ(matched(fork_at(base, 600, 700, 7)), 512) << long_first;
    EXPECT_EQ(matched(base), 1200);
  }
}

TEST_F(Tree, TextsOfDifferentSaltsNeverMeet) {
  start(kOneGlobal);
  const Text base = random_text(random_, 1100);
  know(base, "a");
  EXPECT_EQ(matched(base, "a"), 1100);
  EXPECT_EQ(matched(base, "b"), 0);
  EXPECT_EQ(matched(base, ""), 0);
  EXPECT_FALSE(reader(base, "b").adopt_chunk()) << "nor do their chunks";
  EXPECT_FALSE(tree_->knows_chunk("b", base, 0));
  EXPECT_TRUE(tree_->knows_chunk("a", base, 512));
  EXPECT_FALSE(tree_->knows_chunk("a", base, 256)) << "a chunk begins at a border";
}

TEST_F(Tree, PicturesTellTextsOfTheSameTokensApart) {
  start(kDense);
  Text base = random_text(random_, 1000);
  // One inside a page, one that reaches over two borders.
  base.pictures = {{30, 60, hash_of(1)}, {200, 600, hash_of(2)}};
  know(base);
  EXPECT_EQ(matched(base), 1000);
  const auto with = [&](std::vector<PlacedPicture> pictures) {
    Text text = base;
    text.pictures = std::move(pictures);
    return text;
  };
  EXPECT_EQ(matched(with({{30, 60, hash_of(3)}, {200, 600, hash_of(2)}})), 30);
  EXPECT_EQ(matched(with({{30, 60, hash_of(1)}, {200, 600, hash_of(3)}})), 200);
  EXPECT_EQ(matched(with({{30, 60, hash_of(1)}})), 200);
  EXPECT_EQ(matched(with({})), 30);
  EXPECT_EQ(matched(with({{30, 60, hash_of(1)}, {200, 601, hash_of(2)}})), 200);
  EXPECT_EQ(matched(with({{30, 60, hash_of(1)}, {199, 600, hash_of(2)}})), 199);
  EXPECT_EQ(matched(with({{10, 20, hash_of(1)}, {30, 60, hash_of(1)}, {200, 600, hash_of(2)}})),
            10);
  // One more later, and an end inside the picture.
  EXPECT_EQ(matched(with({{30, 60, hash_of(1)}, {200, 600, hash_of(2)}, {700, 705, hash_of(4)}})),
            700);
  for (const int64_t at : {201, 256, 300, 512, 599}) {
    EXPECT_EQ(matched(fork_at(base, at, at + 50, 7)), at);
  }
  // The page in the middle of a picture, after others of the same tokens: its rows are others.
  Text other = base;
  other.pictures = {{30, 60, hash_of(1)}, {200, 600, hash_of(9)}};
  know(other);
  for (const Text& text : {base, other}) {
    Reader& again = reader(text);
    EXPECT_EQ(again.matched(), 999);
    EXPECT_TRUE(again.right());
  }
}

TEST(SharedBeginning, StopsAtTheFirstTokenOrPictureThatDiffers) {
  const std::vector<Token> a = {1, 2, 3, 4, 5}, b = {1, 2, 3, 9};
  const std::vector<PlacedPicture> one = {{1, 3, hash_of(1)}}, over = {{-7, 2, hash_of(1)}};
  EXPECT_EQ(shared_beginning({a}, {b}), 3);
  EXPECT_EQ(shared_beginning({a}, {}), 0);
  EXPECT_EQ(shared_beginning({a, one}, {b, one}), 3);
  EXPECT_EQ(shared_beginning({a, one}, {b}), 1);
  EXPECT_EQ(shared_beginning({b}, {a, one}), 1);
  EXPECT_EQ(shared_beginning({a, over}, {b}), 0) << "a picture that began before";
  EXPECT_EQ(shared_beginning({a, over}, {b, over}), 3);
}

TEST_F(Tree, AChunkIsSharedAtAnyPlaceWhereOneBegins) {
  start(kOneGlobal);
  const Text base = random_text(random_, 1024);
  know(base);
  // Another chunk first, then the two in the other order.
  Text other = random_text(random_, 512);
  for (const int64_t from : {512, 0}) {
    other.tokens.insert(other.tokens.end(), base.tokens.begin() + from,
                        base.tokens.begin() + from + 512);
  }
  other.tokens.push_back(5);
  Reader& second = reader(other);
  EXPECT_EQ(second.matched(), 0);
  EXPECT_FALSE(second.adopt_chunk());
  second.read(512, 1536);
  const int64_t pages = pool_->pages();
  EXPECT_TRUE(second.adopt_chunk());
  EXPECT_TRUE(second.adopt_chunk());
  EXPECT_EQ(pool_->pages(), pages) << "shared, not copied";
  EXPECT_EQ(second.cache().length(), 1536);
  EXPECT_TRUE(second.right());
  second.read(1537);
  EXPECT_TRUE(second.right());
  second.leave();
  EXPECT_EQ(reader(other).matched(), 1536);
  EXPECT_EQ(tree_->pinned_pages(), 6);
}

TEST_F(Tree, ChunksStandAloneOnlyWithOneGlobalLayerAndWholePages) {
  for (const CacheLayout& layout : {kTwoGlobal, kDense, kLocal, kOddChunk}) {
    start(layout);
    EXPECT_FALSE(tree_->chunks_stand_alone());
    const Text base = random_text(random_, 1024);
    know(base);
    EXPECT_FALSE(reader(random_text(random_, 1024)).adopt_chunk());
  }
}

// The copy that was read first goes; its like, which shares the pages, is found all the same.
TEST_F(Tree, AChunkIsKnownAsLongAsItWasUsedLately) {
  start(kOneGlobal);
  const Text base = random_text(random_, 512);
  know(base);
  Text other = random_text(random_, 512);
  other.tokens.insert(other.tokens.end(), base.tokens.begin(), base.tokens.end());
  other.tokens.push_back(1);
  Reader& second = reader(other);
  second.read(512, 1024);
  ASSERT_TRUE(second.adopt_chunk());
  tree_->release(PagePool::kNoLimit);
  EXPECT_EQ(matched(base), 0);
  EXPECT_TRUE(tree_->knows_chunk("", base, 0));
  Text third = random_text(random_, 512);
  third.tokens.insert(third.tokens.end(), base.tokens.begin(), base.tokens.end());
  Reader& user = reader(third);
  user.read(512, 1024);
  EXPECT_TRUE(user.adopt_chunk());
  EXPECT_TRUE(user.right());
}

TEST_F(Tree, TwoWhoReadTheSameAtTheSameTimeHoldItOnce) {
  start(kTwoGlobal);
  const Text base = random_text(random_, 1100);
  Reader& a = reader(base);
  Reader& b = reader(base);
  for (int64_t end = 256; end <= 1024; end += 256) {
    a.read(end);
    b.read(end);
  }
  // Four pages on two global layers; and rings of two pages on two layers, those of the chunk that
  // is over, a's and b's.
  EXPECT_EQ(pool_->pages(), 4 * 2 + 3 * 2 * 2);
  EXPECT_EQ(tree_->pinned_pages(), 0) << "they count as a's";
  a.leave();
  EXPECT_EQ(tree_->pinned_pages(), 8);
  b.read(1100);
  EXPECT_TRUE(b.right());
  b.leave();
  EXPECT_EQ(tree_->pinned_pages(), 0);
}

// What is read anew, since its rings were not kept, counts as the reader's: the tree's own pages of
// it must not come on top of what the reader was promised.
TEST_F(Tree, WhatAReaderComesUponCountsAsItsOwn) {
  start(kOneGlobal);
  const Text base = random_text(random_, 1100);
  know(base, {}, /*live=*/1024);
  Reader& again = reader(fork_at(base, 400, 500, 7));
  EXPECT_EQ(again.matched(), 0);
  again.read(500);
  EXPECT_EQ(tree_->pinned_pages(), 0);
  tree_->release(PagePool::kNoLimit);
  EXPECT_EQ(pool_->pages(), 2 + 2 * 2) << "two pages and a ring of two on two layers";
  EXPECT_TRUE(again.right());
}

TEST_F(Tree, TheLongestUnusedGivesWayFirstLeafByLeaf) {
  start(kDense);
  std::vector<Text> texts;
  for (int i = 0; i < 4; ++i) {
    texts.push_back(random_text(random_, 512));
    know(texts.back());
  }
  EXPECT_EQ(matched(texts[0]), 512);  // used again
  EXPECT_EQ(tree_->release(1), 2) << "a page on two layers at once";
  EXPECT_EQ(tree_->nodes(), 7);
  tree_->release(6);
  EXPECT_EQ(tree_->nodes(), 4);
  tree_->release(2);
  EXPECT_EQ(matched(texts[1]), 0);
  EXPECT_EQ(matched(texts[2]), 0);
  EXPECT_EQ(matched(texts[3]), 256);
  EXPECT_EQ(matched(texts[0]), 512);
  EXPECT_EQ(tree_->release(PagePool::kNoLimit), 6);
  EXPECT_EQ(tree_->nodes(), 0);
  EXPECT_EQ(tree_->tokens(), 0);
  EXPECT_EQ(pool_->pages(), 0);
}

// What a conversation of an hour ends with was used now, however long ago it began.
TEST_F(Tree, WhoeverLeavesHasUsedItsTextUntilThen) {
  start(kDense);
  const Text one = random_text(random_, 512), two = random_text(random_, 512);
  Reader& first = reader(one);
  first.read(512);
  know(two);
  first.leave();
  readers_.clear();
  tree_->release(4);
  EXPECT_EQ(matched(one), 512);
  EXPECT_EQ(matched(two), 0);
}

TEST_F(Tree, WhatIsPinnedNeverGivesWay) {
  start(kOneGlobal);
  const Text base = random_text(random_, 1100);
  know(base, {}, /*live=*/1024);
  Reader& user = reader(fork_at(base, 700, 800, 7));
  ASSERT_EQ(user.matched(), 512);
  EXPECT_EQ(tree_->pinned_pages(), 2);
  tree_->release(PagePool::kNoLimit);
  EXPECT_EQ(tree_->nodes(), 2);
  EXPECT_EQ(pool_->pages(), 2);
  EXPECT_TRUE(user.right());
  user.read(800);
  EXPECT_TRUE(user.right());
}

// A ring that the tree shares with a cache would be copied when that writes on. When memory is
// short the tree leaves it to the cache, who then needs no page.
TEST_F(Tree, WhenMemoryIsShortRingsAreLeftToThoseWhoUseThem) {
  start(kOneGlobal);
  const Text base = random_text(random_, 900);
  Reader& owner = reader(base);
  owner.read(900);
  owner.keep(0, true);  // and stays: its last node is pinned
  const Text longer = fork_at(base, 900, 1000, 7);
  Reader& user = reader(longer);
  ASSERT_EQ(user.matched(), 900);
  owner.cache().rewind(0);
  owner.cache().leave_shared_ring();
  EXPECT_EQ(tree_->release(4), 4) << "the rings of the chunk before";
  EXPECT_EQ(user.cache().pages_to_take(1), 1 + 2);
  EXPECT_EQ(tree_->release(3), 0);
  EXPECT_EQ(user.cache().pages_to_take(1), 1) << "the global page alone, which is pinned";
  user.read(1000);
  EXPECT_TRUE(user.right());
}

TEST_F(Tree, LongTextsAreLongChainsAndNoTrouble) {
  // No layers: pages would take a gigabyte.
  start(layout_of({}, 0));
  constexpr int64_t kPages = 100'000;
  Text text;
  text.tokens.resize(kPages * kPageTokens);
  for (size_t i = 0; i < text.tokens.size(); ++i) text.tokens[i] = static_cast<Token>(i * i % 997);
  PrefixTree::Node* node = nullptr;
  KvCache cache(layout_, text.length(), *pool_);
  cache.advance(text.length());
  for (int64_t at = 0; at < text.length(); at += kPageTokens) {
    node = tree_->insert("", node, text, at, at + kPageTokens, cache, false, 1);
  }
  EXPECT_EQ(tree_->nodes(), kPages);
  EXPECT_EQ(tree_->tokens(), text.length());
  tree_->unpin(node, 1);
  EXPECT_EQ(matched(text), text.length());
  // Half a chain goes leaf by leaf, in one pass; the rest with the tree.
  PrefixTree half(layout_);
  node = nullptr;
  for (int64_t at = 0; at < text.length(); at += kPageTokens) {
    node = half.insert("", node, text, at, at + kPageTokens, cache, false, 1);
  }
  half.unpin(node, 1);
  half.release(1);
  EXPECT_EQ(half.nodes(), 0) << "nothing comes back, so all of it goes";
}

TEST_F(Tree, NodesAreBoundedButForThoseInUse) {
  start(kDense, 1 << 20, /*most_nodes=*/20);
  std::vector<Text> texts;
  for (int i = 0; i < 50; ++i) {
    texts.push_back(random_text(random_, 600));
    know(texts.back(), std::to_string(i % 7));
    EXPECT_LE(tree_->nodes(), 20);
  }
  EXPECT_EQ(matched(texts[49], "0"), 600);
  EXPECT_EQ(matched(texts[0], "0"), 0);
  Reader& long_one = reader(random_text(random_, 40 * kPageTokens));
  long_one.read(40 * kPageTokens);
  EXPECT_EQ(tree_->nodes(), 40);
  EXPECT_TRUE(long_one.right());
}

// Some hundred readers at a time whose texts branch off each other, in every order of coming,
// reading, leaving, and memory that runs short; beside them a record of all that was ever kept.
class RandomTree : public Tree {
 protected:
  struct Record {
    int64_t pins = 0;
    uint64_t owner = 0;
  };
  using Key = std::pair<std::string, std::vector<Token>>;

  static Key key(const Reader& r, int64_t end) {
    return {r.salt(), {r.text().tokens.begin(), r.text().tokens.begin() + end}};
  }
  int64_t longest_known(const std::string& salt, const Text& text) const {
    int64_t longest = 0;
    for (const auto& [known, record] : records_) {
      if (known.first != salt) continue;
      longest = std::max(longest, shared_beginning(text, TextView{known.second}));
    }
    return std::min(longest, text.length() - 1);
  }
  int64_t expected_pins() const {
    int64_t pages = 0;
    for (const auto& [known, record] : records_) {
      if (record.pins > 0 && record.owner == 0) pages += layout_.global_layers();
    }
    return pages;
  }
  // Full pages that this reader pinned since it came.
  void note(const Reader& r, int64_t from, int64_t to, bool new_pages) {
    for (int64_t end = from + kPageTokens; end <= to; end += kPageTokens) {
      Record& record = records_[key(r, end)];
      if (new_pages && record.pins == 0) record.owner = r.user();
      ++record.pins;
    }
  }

  void play(const CacheLayout& layout, uint32_t seed, bool rings_everywhere, bool evict) {
    start(layout);
    records_.clear();
    std::mt19937 random(seed);
    const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % n); };
    std::vector<Text> texts = {random_text(random, 300)};
    std::vector<std::pair<Reader*, int64_t>> active;  // and how far it was noted
    for (int i = 0; i < 400; ++i) {
      const int64_t what = below(10);
      if (what < 3 || active.empty()) {
        const Text& base = texts[static_cast<size_t>(below(static_cast<int64_t>(texts.size())))];
        const int64_t at = below(base.length() + 1);
        Text text = fork_at(base, at, at + 1 + below(900), random());
        if (text.length() < 2600) texts.push_back(text);
        const std::string salt(static_cast<size_t>(below(2)), 'x');
        const int64_t known = longest_known(salt, text);
        Reader& r = reader(text, salt);
        if (rings_everywhere && !evict) {
          EXPECT_EQ(r.matched(), known);
        } else {
          EXPECT_LE(r.matched(), known);
          if (!evict) {
            EXPECT_GE(r.matched(), layout.chunk_begin(known));
          }
        }
        EXPECT_TRUE(r.right());
        const int64_t full = r.matched() / kPageTokens * kPageTokens;
        note(r, 0, full, false);
        active.push_back({&r, full});
      } else {
        const size_t which = static_cast<size_t>(below(static_cast<int64_t>(active.size())));
        auto& [r, noted] = active[which];
        const int64_t live = rings_everywhere ? 0 : layout.chunk_begin(r->text().length() - 1);
        if (what < 8) {
          // In small steps, so that every page's ring is still there when the page is kept.
          for (int64_t n = below(900); n > 0; n -= 200) r->read(r->cache().length() + 200, live);
          EXPECT_TRUE(r->cache().length() < live || r->right());
          const int64_t full = r->kept() / kPageTokens * kPageTokens;
          if (full > noted) note(*r, noted, full, true);
          noted = std::max(noted, full);
        } else {
          for (int64_t end = kPageTokens; end <= noted; end += kPageTokens) {
            Record& record = records_[key(*r, end)];
            --record.pins;
            if (record.owner == r->user()) record.owner = 0;
          }
          r->leave(live);
          records_[key(*r, r->cache().length())];
          std::erase_if(readers_, [&, gone = r](const auto& one) { return one.get() == gone; });
          active.erase(active.begin() + static_cast<std::ptrdiff_t>(which));
        }
      }
      if (evict && below(4) == 0) tree_->release(below(30));
      ASSERT_EQ(tree_->pinned_pages(), expected_pins()) << "step " << i;
    }
    for (auto& [r, noted] : active) r->leave(r->text().length());
    readers_.clear();
    EXPECT_EQ(tree_->pinned_pages(), 0);
    tree_->release(PagePool::kNoLimit);
    EXPECT_EQ(tree_->nodes(), 0);
    EXPECT_EQ(tree_->tokens(), 0);
    EXPECT_EQ(pool_->pages(), 0);
  }

  std::map<Key, Record> records_;
};

TEST_F(RandomTree, AgreesWithARecordOfAllThatWasKept) {
  for (uint32_t seed = 1; seed <= 3; ++seed) {
    for (const CacheLayout& layout : {kOneGlobal, kTail, kTwoGlobal, kDense}) {
      play(layout, seed, /*rings_everywhere=*/true, /*evict=*/false);
    }
  }
}

TEST_F(RandomTree, AgreesWhereEarlyChunksHaveNoRings) {
  for (uint32_t seed = 11; seed <= 13; ++seed) {
    for (const CacheLayout& layout : {kOneGlobal, kTail, kTwoGlobal, kOddChunk}) {
      play(layout, seed, /*rings_everywhere=*/false, /*evict=*/false);
    }
  }
}

TEST_F(RandomTree, PinsBalanceAndNothingIsLostWhileMemoryRunsShort) {
  for (uint32_t seed = 21; seed <= 23; ++seed) {
    for (const CacheLayout& layout : {kOneGlobal, kTail, kTwoGlobal, kDense, kLocal, kOddChunk}) {
      play(layout, seed, /*rings_everywhere=*/seed % 2 == 0, /*evict=*/true);
    }
  }
}

}  // namespace
}  // namespace drover
