// What conversations had read, kept for those that begin alike.
//
// A tree of pages: a node is up to kPageTokens consecutive tokens of a text, with the pages that
// hold what was made of them, and its parent is what stands before them. A text finds the longest
// beginning that is known, to the token, and shares its pages; KvCache copies the last one when it
// writes on. Nodes are told apart by their tokens and by the pictures that these stand for, word by
// word and not by a hash alone; texts with different salts never meet.
//
// Pages of chunked layers are kept too where they are there, since going on inside a chunk needs
// them; without them a text goes on where its chunk begins, where rings are empty.
//
// With one global layer nothing that a chunk leaves behind depends on what stands before it. Then a
// whole chunk that is known from any text is shared at any place where a chunk begins.
//
// Whoever uses a beginning pins it; the rest gives way, the longest unused first, when pages are
// wanted. One thread at a time uses a tree.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "cache/kv_cache.h"
#include "cache/text_view.h"

namespace drover {

class PrefixTree {
 public:
  // A place in the tree that keeps what lies before it; see pin().
  struct Node;

  // Some 100 MB of nodes, and 67 million tokens.
  static constexpr int64_t kMostNodes = int64_t{1} << 18;

  // Holds at most so many nodes beside those that are pinned.
  explicit PrefixTree(CacheLayout layout, int64_t most_nodes = kMostNodes);
  ~PrefixTree();
  PrefixTree(const PrefixTree&) = delete;
  PrefixTree& operator=(const PrefixTree&) = delete;

  // The longest known beginning of text.tokens[0, most).
  struct Match {
    Node* node = nullptr;  // the last one, of which `partial` tokens are shared
    int64_t partial = 0;
    int64_t length = 0;  // tokens that a cache can take over
  };
  Match match(std::string_view salt, TextView text, int64_t most);
  // The same where nobody goes on: inside a chunk whose rings are lost too.
  Match longest(std::string_view salt, TextView text, int64_t most);

  // Keeps all up to this node from giving way, once more for each call. Null: nothing.
  void pin(Node* node);
  // Undoes a pin of this user, who stands at `node` now: insert() moves pins forward.
  void unpin(Node* node, uint64_t user);
  // The same for this node alone; returns its parent, where the pin stands now, or null.
  Node* step_back(Node* node);

  // Puts what was matched into an empty cache: match.length tokens.
  void fill(const Match& match, KvCache& cache) const;

  // The node of text [begin, end) after `parent` (null: the root of this salt), with the pages of
  // `cache`, in which its length is at least `end`; begin is a multiple of kPageTokens and
  // end - begin at most that. What is known already stays as it is, and the cache shares its pages
  // from now on: two that read the same need no more pages than one. `rings`: with the pages of
  // chunked layers, if the cache has them. The user's pin moves from `parent` to the node, which it
  // returns.
  Node* insert(std::string_view salt, Node* parent, TextView text, int64_t begin, int64_t end,
               KvCache& cache, bool rings, uint64_t user);

  // With one global layer and chunks of whole pages: if the chunk of text that begins at `begin` is
  // known from anywhere, appends it to `cache`, whose length is `begin`, and to the tree after
  // `parent`; returns its last node, with the user's pin moved to it. Else null.
  Node* adopt_chunk(std::string_view salt, Node* parent, TextView text, int64_t begin,
                    KvCache& cache, uint64_t user);
  // Whether it would find the chunk.
  bool knows_chunk(std::string_view salt, TextView text, int64_t begin) const;
  bool chunks_stand_alone() const { return stand_alone_; }

  // Gives up what nobody uses, the longest unused first, until `wanted` pages of the pools are
  // free or nothing is left; returns how many pages came back. Where that is not enough, the tree
  // also leaves the pages of rings that caches share with it to these, who then need no copies.
  int64_t release(int64_t wanted);

  // Pages of global layers that pins hold and that are no user's own: those that a user put in, or
  // came upon when nobody held them, count as that user's.
  int64_t pinned_pages() const { return pinned_pages_; }
  int64_t nodes() const { return static_cast<int64_t>(recent_.size()); }
  int64_t tokens() const { return tokens_; }

 private:
  struct Piece;

  Match find(std::string_view salt, TextView text, int64_t most, bool to_go_on);

  Node* root(std::string_view salt);
  // The child of this piece, or a new one; pinned by the user, who holds a pin of the parent.
  Node* add(Node* parent, std::shared_ptr<const Piece> piece, std::vector<PageRef> global,
            std::vector<PageRef> local, uint64_t user);
  // Drops a root that is empty then, unless it is this one.
  void remove(Node* leaf, const Node* wanted_root = nullptr);
  void touch(Node* node);
  void index_chunk(Node* last);
  void unindex(Node* last);
  Node* find_chunk(const std::string* salt,
                   std::span<const std::shared_ptr<const Piece>> pieces) const;
  Node* chunk_at(std::string_view salt, TextView text, int64_t begin) const;

  const CacheLayout layout_;
  const bool stand_alone_;
  const int64_t most_nodes_;
  std::unordered_map<std::string, std::unique_ptr<Node>> roots_;  // by salt
  // Without roots, those used last first; a parent always before its children.
  std::list<Node*> recent_;
  std::unordered_multimap<uint64_t, Node*> chunks_;  // the last node of each, by content
  int64_t pinned_pages_ = 0;
  int64_t tokens_ = 0;
};

}  // namespace drover
