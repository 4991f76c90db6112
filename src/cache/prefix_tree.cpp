#include "cache/prefix_tree.h"

#include <algorithm>

#include "base/error.h"

namespace drover {
namespace {

// One step of a hash; contents are always compared, so it need only spread.
uint64_t mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
  return hash ^ (hash >> 32);
}

}  // namespace

// Tokens of one page, and the pictures that reach into it, counted from its first token.
struct PrefixTree::Piece {
  std::vector<Token> tokens;
  std::vector<PlacedPicture> pictures;
  uint64_t hash = 0;

  Piece(TextView text, int64_t begin, int64_t end) {
    const auto from = text.tokens.subspan(static_cast<size_t>(begin));
    const auto mine = from.first(static_cast<size_t>(end - begin));
    tokens.assign(mine.begin(), mine.end());
    for (const PlacedPicture& p : text.pictures) {
      if (p.end > begin && p.first < end)
        pictures.push_back({p.first - begin, p.end - begin, p.hash});
    }
    for (const Token token : tokens) hash = mix(hash, static_cast<uint64_t>(token));
    for (const PlacedPicture& p : pictures) {
      hash = mix(hash, static_cast<uint64_t>(p.first));
      for (const uint8_t byte : p.hash) hash = mix(hash, byte);
    }
  }

  TextView view() const { return {tokens, pictures}; }
  int64_t length() const { return static_cast<int64_t>(tokens.size()); }
  bool operator==(const Piece& other) const {
    return hash == other.hash && tokens == other.tokens && pictures == other.pictures;
  }
};

struct PrefixTree::Node {
  Node* parent = nullptr;
  const std::string* salt = nullptr;
  std::unordered_multimap<uint64_t, std::unique_ptr<Node>> children;  // by the piece's hash
  std::shared_ptr<const Piece> piece;
  int64_t begin = 0;
  std::vector<PageRef> global, local;
  int64_t pins = 0;
  uint64_t owner = 0;  // the user who counts these pages as its own; 0: none
  std::list<Node*>::iterator place;
  bool indexed = false;  // stands in chunks_, under this hash
  uint64_t chunk_hash = 0;

  int64_t end() const { return begin + piece->length(); }
  bool is_root() const { return parent == nullptr; }
  int64_t counted() const {
    return pins > 0 && owner == 0 ? static_cast<int64_t>(global.size()) : 0;
  }
  Node* child(const Piece& wanted) const {
    const auto [first, last] = children.equal_range(wanted.hash);
    for (auto at = first; at != last; ++at) {
      if (*at->second->piece == wanted) return at->second.get();
    }
    return nullptr;
  }
};

PrefixTree::PrefixTree(CacheLayout layout, int64_t most_nodes)
    : layout_(std::move(layout)),
      stand_alone_(layout_.global_layers() == 1 && layout_.chunk > 0 &&
                   layout_.chunk % kPageTokens == 0),
      most_nodes_(most_nodes) {}

PrefixTree::~PrefixTree() {
  // Leaf by leaf: a long text is a long chain, too long for a destructor that calls itself.
  while (!recent_.empty()) remove(recent_.back());
}

PrefixTree::Node* PrefixTree::root(std::string_view salt) {
  auto [at, is_new] = roots_.try_emplace(std::string(salt));
  if (is_new) {
    at->second = std::make_unique<Node>();
    at->second->salt = &at->first;
  }
  return at->second.get();
}

void PrefixTree::touch(Node* node) {
  for (; !node->is_root(); node = node->parent) {
    recent_.splice(recent_.begin(), recent_, node->place);
  }
}

PrefixTree::Match PrefixTree::match(std::string_view salt, TextView text, int64_t most) {
  return find(salt, text, most, /*to_go_on=*/true);
}

PrefixTree::Match PrefixTree::longest(std::string_view salt, TextView text, int64_t most) {
  return find(salt, text, most, /*to_go_on=*/false);
}

PrefixTree::Match PrefixTree::find(std::string_view salt, TextView text, int64_t most,
                                   bool to_go_on) {
  const auto root = roots_.find(std::string(salt));
  if (root == roots_.end()) return {};
  Node* node = root->second.get();
  int64_t at = 0;
  while (at + kPageTokens <= most) {
    Node* next = node->child(Piece(text, at, at + kPageTokens));
    if (next == nullptr) break;
    node = next;
    at += kPageTokens;
  }
  // Inside a chunk the rings of all its tokens must be there; else it goes on where it begins.
  const auto usable = [&](const Node* last, int64_t length) {
    const int64_t border = layout_.chunk_begin(length);
    if (layout_.chunk == 0 || length == border || !to_go_on) return length;
    bool there = layout_.chunk % kPageTokens == 0;
    for (const Node* n = last; there && !n->is_root() && n->begin >= border; n = n->parent) {
      there = !n->local.empty();
    }
    return there ? length : border;
  };
  Match out{node, 0, usable(node, at)};
  // Of what follows a part may be known.
  if (at < most) {
    const Piece rest(text, at, std::min(at + kPageTokens, most));
    for (const auto& [hash, child] : node->children) {
      const int64_t same = shared_beginning(rest.view(), child->piece->view());
      const int64_t length = usable(child.get(), at + same);
      // Of two that are as long the one that still has its rings.
      const bool longer = length > out.length ||
                          (length == out.length && out.node != node && out.node->local.empty());
      if (same > 0 && longer) out = {child.get(), 0, length};
    }
  }
  while (!out.node->is_root() && out.node->begin >= out.length) out.node = out.node->parent;
  if (out.length == 0) return {};
  out.partial = out.length - out.node->begin;
  touch(out.node);
  return out;
}

void PrefixTree::pin(Node* node) {
  for (; node != nullptr && !node->is_root(); node = node->parent) {
    pinned_pages_ -= node->counted();
    ++node->pins;
    pinned_pages_ += node->counted();
  }
}

void PrefixTree::unpin(Node* node, uint64_t user) {
  for (; node != nullptr && !node->is_root(); node = node->parent) {
    pinned_pages_ -= node->counted();
    --node->pins;
    if (node->owner == user) node->owner = 0;
    pinned_pages_ += node->counted();
    recent_.splice(recent_.begin(), recent_, node->place);
  }
}

PrefixTree::Node* PrefixTree::step_back(Node* node) {
  pinned_pages_ -= node->counted();
  --node->pins;
  pinned_pages_ += node->counted();
  return node->parent->is_root() ? nullptr : node->parent;
}

void PrefixTree::fill(const Match& match, KvCache& cache) const {
  std::vector<const Node*> path;
  for (const Node* n = match.node; n != nullptr && !n->is_root(); n = n->parent) path.push_back(n);
  // Rings matter where the text goes on inside a chunk.
  const int64_t border = layout_.chunk_begin(match.length);
  const bool rings = layout_.chunk > 0 && match.length > border;
  for (auto n = path.rbegin(); n != path.rend(); ++n) {
    const int64_t tokens = *n == match.node ? match.partial : kPageTokens;
    std::span<const PageRef> local;
    if (rings && (*n)->begin >= border) local = (*n)->local;
    cache.adopt((*n)->global, local, tokens);
  }
  DROVER_CHECK(cache.length() == match.length);
}

PrefixTree::Node* PrefixTree::add(Node* parent, std::shared_ptr<const Piece> piece,
                                  std::vector<PageRef> global, std::vector<PageRef> local,
                                  uint64_t user) {
  Node* node = parent->child(*piece);
  if (node == nullptr) {
    // What a partly filled page held is all in this one, but for its rings.
    for (auto at = parent->children.begin(); at != parent->children.end(); ++at) {
      Node* old = at->second.get();
      if (old->pins == 0 && old->children.empty() && (old->local.empty() || !local.empty()) &&
          shared_beginning(old->piece->view(), piece->view()) == old->piece->length()) {
        remove(old, parent);
        break;
      }
    }
    if (nodes() >= most_nodes_) {
      for (auto at = recent_.end(); at != recent_.begin();) {
        Node* old = *--at;
        if (old->pins > 0 || !old->children.empty() || old == parent) continue;
        remove(old, parent);
        break;
      }
    }
    auto made = std::make_unique<Node>();
    node = made.get();
    node->parent = parent;
    node->salt = parent->salt;
    node->begin = parent->is_root() ? 0 : parent->end();
    node->piece = std::move(piece);
    node->global = std::move(global);
    node->owner = user;
    node->place =
        recent_.insert(parent->is_root() ? recent_.begin() : std::next(parent->place), node);
    tokens_ += node->piece->length();
    parent->children.emplace(node->piece->hash, std::move(made));
  }
  if (node->local.empty()) node->local = std::move(local);
  // Nobody counts it: else the pin would make it one more than all were promised.
  if (node->pins == 0) node->owner = user;
  pinned_pages_ -= node->counted();
  ++node->pins;
  pinned_pages_ += node->counted();
  return node;
}

void PrefixTree::remove(Node* leaf, const Node* wanted_root) {
  DROVER_CHECK(leaf->children.empty());
  unindex(leaf);
  pinned_pages_ -= leaf->counted();
  tokens_ -= leaf->piece->length();
  recent_.erase(leaf->place);
  Node* parent = leaf->parent;
  auto& siblings = parent->children;
  const auto [first, last] = siblings.equal_range(leaf->piece->hash);
  siblings.erase(
      std::find_if(first, last, [&](const auto& at) { return at.second.get() == leaf; }));
  if (parent->is_root() && siblings.empty() && parent != wanted_root) {
    roots_.erase(roots_.find(*parent->salt));
  }
}

PrefixTree::Node* PrefixTree::insert(std::string_view salt, Node* parent, TextView text,
                                     int64_t begin, int64_t end, KvCache& cache, bool rings,
                                     uint64_t user) {
  DROVER_CHECK(begin % kPageTokens == 0 && begin < end && end - begin <= kPageTokens &&
               end <= cache.length());
  if (parent == nullptr) parent = root(salt);
  DROVER_CHECK(begin == (parent->is_root() ? 0 : parent->end()));
  auto piece = std::make_shared<const Piece>(text, begin, end);
  rings = rings && layout_.chunk > 0 && layout_.chunk % kPageTokens == 0 && cache.ring_holds(begin);
  // Part of a page that is known further than that has nothing to add.
  if (end - begin < kPageTokens) {
    for (const auto& [hash, child] : parent->children) {
      if (child->piece->length() > piece->length() &&
          shared_beginning(child->piece->view(), piece->view()) == piece->length() &&
          (!child->local.empty() || !rings)) {
        return parent->is_root() ? nullptr : parent;
      }
    }
  }
  std::vector<PageRef> local;
  if (rings) local = cache.local_pages(begin);
  Node* node = add(parent, std::move(piece), cache.global_pages(begin), std::move(local), user);
  cache.share_global(begin, node->global);
  if (stand_alone_ && node->end() % layout_.chunk == 0) index_chunk(node);
  return node;
}

PrefixTree::Node* PrefixTree::find_chunk(
    const std::string* salt, std::span<const std::shared_ptr<const Piece>> pieces) const {
  uint64_t hash = 0;
  for (const auto& piece : pieces) hash = mix(hash, piece->hash);
  const auto [first, last] = chunks_.equal_range(hash);
  for (auto at = first; at != last; ++at) {
    Node* node = at->second;
    if (node->salt != salt) continue;
    const bool same = std::all_of(pieces.rbegin(), pieces.rend(), [&](const auto& piece) {
      const bool equal = *node->piece == *piece;
      node = node->parent;
      return equal;
    });
    if (same) return at->second;
  }
  return nullptr;
}

PrefixTree::Node* PrefixTree::chunk_at(std::string_view salt, TextView text, int64_t begin) const {
  const auto root = roots_.find(std::string(salt));
  if (!stand_alone_ || root == roots_.end()) return nullptr;
  std::vector<std::shared_ptr<const Piece>> pieces;
  for (int64_t at = begin; at < begin + layout_.chunk; at += kPageTokens) {
    pieces.push_back(std::make_shared<const Piece>(text, at, at + kPageTokens));
  }
  return find_chunk(root->second->salt, pieces);
}

bool PrefixTree::knows_chunk(std::string_view salt, TextView text, int64_t begin) const {
  return chunk_at(salt, text, begin) != nullptr;
}

void PrefixTree::index_chunk(Node* last) {
  std::vector<std::shared_ptr<const Piece>> pieces;
  for (Node* n = last; static_cast<int64_t>(pieces.size()) < layout_.chunk / kPageTokens;
       n = n->parent) {
    pieces.insert(pieces.begin(), n->piece);
  }
  if (last->indexed || find_chunk(last->salt, pieces) != nullptr) return;
  last->chunk_hash = 0;
  for (const auto& piece : pieces) last->chunk_hash = mix(last->chunk_hash, piece->hash);
  last->indexed = true;
  chunks_.emplace(last->chunk_hash, last);
}

void PrefixTree::unindex(Node* last) {
  if (!last->indexed) return;
  const auto [first, end] = chunks_.equal_range(last->chunk_hash);
  chunks_.erase(std::find_if(first, end, [&](const auto& at) { return at.second == last; }));
  last->indexed = false;
}

PrefixTree::Node* PrefixTree::adopt_chunk(std::string_view salt, Node* parent, TextView text,
                                          int64_t begin, KvCache& cache, uint64_t user) {
  Node* known = chunk_at(salt, text, begin);
  if (known == nullptr) return nullptr;
  DROVER_CHECK(begin == cache.length() && begin % layout_.chunk == 0);
  if (parent == nullptr) parent = root(salt);
  // Adding may drop nodes: first all that is wanted of the known ones.
  std::vector<std::pair<std::shared_ptr<const Piece>, std::vector<PageRef>>> pages;
  for (Node* n = known; static_cast<int64_t>(pages.size()) < layout_.chunk / kPageTokens;
       n = n->parent) {
    pages.emplace_back(n->piece, n->global);
  }
  // Who comes next finds the chunk where it was used last.
  unindex(known);
  for (auto page = pages.rbegin(); page != pages.rend(); ++page) {
    parent = add(parent, page->first, page->second, {}, user);
    cache.adopt(parent->global, {}, kPageTokens);
  }
  index_chunk(parent);
  return parent;
}

int64_t PrefixTree::release(int64_t wanted) {
  const auto own = [](const std::vector<PageRef>& pages) {
    return std::count_if(pages.begin(), pages.end(),
                         [](const PageRef& page) { return page.use_count() == 1; });
  };
  int64_t freed = 0;
  for (auto at = recent_.end(); at != recent_.begin() && freed < wanted;) {
    Node* node = *--at;
    // Rings that nobody goes on with.
    if (!node->local.empty() && own(node->local) == static_cast<int64_t>(node->local.size())) {
      freed += own(node->local);
      node->local.clear();
    }
    if (node->pins > 0 || !node->children.empty()) continue;
    freed += own(node->global);
    ++at;
    remove(node);
  }
  if (freed < wanted) {
    for (Node* node : recent_) node->local.clear();
  }
  return freed;
}

}  // namespace drover
