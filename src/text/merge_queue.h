// The pairs of a long piece that wait to be joined: smallest rank first, then smallest position.
// Many positions share a rank, and while one rank is worked off hardly ever a smaller one appears:
// so positions lie in one list for each rank, sorted once when its turn comes, and the heap holds
// only the ranks. (A heap of all pairs took three times as long on 10 MB: every step of it missed
// the cache.) For one thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <queue>
#include <unordered_map>
#include <vector>

namespace drover {

// The rank of a pair that may not be joined; never pushed.
inline constexpr uint32_t kNoMerge = std::numeric_limits<uint32_t>::max();

class MergeQueue {
 public:
  void push(uint32_t rank, uint32_t position) {
    List& list = list_of(rank, pushed_);
    if (list.open) {
      list.late.push(position);
    } else {
      if (list.positions.empty()) ranks_.push(rank);
      list.positions.push_back(position);
    }
  }

  // Takes the smallest; false when there is none.
  bool pop(uint32_t& rank, uint32_t& position) {
    if (ranks_.empty()) return false;
    rank = ranks_.top();
    List& list = list_of(rank, popped_);
    auto& [positions, next, open, late] = list;
    if (!open && !std::is_sorted(positions.begin(), positions.end())) {
      std::sort(positions.begin(), positions.end());
    }
    open = true;
    if (!late.empty() && (next == positions.size() || late.top() < positions[next])) {
      position = late.top();
      late.pop();
    } else {
      position = positions[next++];
    }
    if (next == positions.size() && late.empty()) {
      lists_.erase(rank);
      ranks_.pop();
      popped_ = {};
      if (pushed_.rank == rank) pushed_ = {};
    }
    return true;
  }

 private:
  template <typename T>
  using Heap = std::priority_queue<T, std::vector<T>, std::greater<T>>;

  struct List {
    std::vector<uint32_t> positions;
    size_t next = 0;      // those before it are taken
    bool open = false;    // its turn has come, positions are sorted
    Heap<uint32_t> late;  // what came after that
  };
  struct Recent {
    uint32_t rank = kNoMerge;
    List* list = nullptr;
  };

  // Neighbouring calls mostly ask for the same list.
  List& list_of(uint32_t rank, Recent& recent) {
    if (rank != recent.rank) recent = {rank, &lists_[rank]};
    return *recent.list;
  }

  std::unordered_map<uint32_t, List> lists_;
  Heap<uint32_t> ranks_;  // of the lists, none of which is empty
  Recent pushed_, popped_;
};

}  // namespace drover
