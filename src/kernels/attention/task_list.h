// Internal to attention: pieces of work of known cost, handed to the threads.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/attention/attention_task.h"
#include "kernels/context.h"

namespace drover {

// In units of page_cost: some 5 microseconds of work. Handing out a task costs a tenth of one.
inline constexpr int64_t kSmallestTask = 100'000;

// Roughly the multiply-adds of one page for these rows, and what reading it costs in their place.
inline int64_t page_cost(int64_t rows, int64_t d) { return kPageTokens * d * (rows + 6) / 8; }

// Consecutive pieces of work, put together into tasks that are worth handing out.
class TaskList {
 public:
  void add(int64_t cost) {
    if (cost_ == 0) firsts_.push_back(pieces_);
    ++pieces_;
    cost_ += cost;
    if (cost_ >= kSmallestTask) cost_ = 0;
  }
  template <typename Body>
  void run(Context& context, const Body& body) const {
    const int64_t tasks = static_cast<int64_t>(firsts_.size());
    context.threads.run(tasks, [&](int64_t task, int worker) {
      const int64_t end = task + 1 < tasks ? firsts_[task + 1] : pieces_;
      for (int64_t piece = firsts_[task]; piece < end; ++piece) body(piece, worker);
    });
  }

 private:
  std::vector<int64_t> firsts_;
  int64_t pieces_ = 0;
  int64_t cost_ = 0;  // of the task at the end of the list
};

}  // namespace drover
