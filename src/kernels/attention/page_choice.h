// Internal to attention: which pages of its past a token visits, where it need not visit all.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/context.h"

namespace drover {

// A token and the query heads that share one kv head, on their way to a choice of pages.
struct ChoosingToken {
  AttentionTask task;  // of one token, with all pages to visit
  const PageChoice* choice = nullptr;
  const std::byte* const* bounds = nullptr;
  int64_t bounds_offset = 0;  // where the kv head begins in a span's bounds
  PageVisits* visits = nullptr;

  // The choice: pages in ascending order, none if all are visited; and for each row what the others
  // weigh at most, `rest` times e^reference. Here weights are sums of e^score.
  std::vector<int32_t> pages;
  std::vector<float> rest, reference;

  // What is left certainly, at least, of the mass of all pages in each row, the smallest of them.
  // mass: maximum and sum of each row, as attend() leaves them.
  float kept(const float* mass) const;
};

// False if the choice is all of so many pages.
inline bool may_leave_out(const PageChoice& choice, int64_t pages) {
  return pages > 2 && (choice.mode == PageChoice::Mode::kBounded || choice.pages < pages);
}

// Memory that choosing takes for a token, roughly.
inline int64_t choosing_bytes(const AttentionTask& task) {
  return task.end_page * (task.group * 8 + 12);
}

// Makes the choices of all tokens, whose pages before the last one have bounds.
void choose_pages(Context& context, const AttentionFunctions& functions,
                  std::span<ChoosingToken> tokens);

}  // namespace drover
