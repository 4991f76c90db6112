#include "kernels/attention/page_choice.h"

#include <algorithm>
#include <limits>

#include "kernels/attention/task_list.h"
#include "kernels/math/exp.h"

namespace drover {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// What the rest weighs is rounded up by this, for all roundings on the way: of exponentials, of
// sums, and of scores too small for a relative error.
constexpr float kMargin = 1.0f + 0x1p-12f;

// Pages are ranked by their largest possible score in steps of 1/32, 128 in all, and within a step
// by their number: a sort in two passes, and no page is far from its place.
constexpr float kStepsPerUnit = 32.0f;
constexpr int kSteps = 4096;

// A walk looks at a quarter of the pages at most. If more are needed, their keys are not worth
// reading twice to find out how many.
constexpr int64_t kWalkShare = 4;
constexpr int64_t kFirstRound = 8;

// Spans whose bounds are looked at in one go: some tens of microseconds.
constexpr int64_t kSpansAtOnce = 16;

// Sum and maximum of the weights of a row.
struct Mass {
  float maximum, sum;
};

// As the contract merges pages, with the e^x of math/exp.h.
void merge(Mass& all, const Mass& page) {
  const float maximum = page.maximum > all.maximum ? page.maximum : all.maximum;
  all.sum = page.sum * exp_of(page.maximum - maximum) + all.sum * exp_of(all.maximum - maximum);
  all.maximum = maximum;
}

class Choosing {
 public:
  explicit Choosing(ChoosingToken& token)
      : token_(token),
        rows_(token.task.group),
        last_(token.task.end_page - 1),
        spans_((last_ + kSpanPages - 1) / kSpanPages),
        is_needed_(may_leave_out(*token.choice, token.task.end_page)) {
    if (!is_needed_) return;
    bounds_.resize(static_cast<size_t>(rows_ * stride()));
    seeds_ = {0, static_cast<int32_t>(last_)};
  }

  bool is_needed() const { return is_needed_; }
  bool is_done() const { return is_done_; }
  int64_t rows() const { return rows_; }
  int64_t spans() const { return spans_; }
  const AttentionTask& task() const { return token_.task; }

  // Bounds of the scores on all pages of these spans.
  PageBoundTask bounds_of(int64_t first_span, int64_t end_span) {
    return {.type = token_.task.type,
            .q = token_.task.q,
            .bounds = token_.bounds,
            .head_offset = token_.bounds_offset,
            .head_dim = token_.task.head_dim,
            .rows = rows_,
            .first_span = first_span,
            .end_span = end_span,
            .out = bounds_.data(),
            .stride = stride()};
  }

  // The pages to look at next: first the first one and the newest, then by rank.
  std::span<const int32_t> next() {
    if (order_.empty()) return seeds_;
    const int64_t ranked = std::ssize(order_);
    const int64_t round = std::min({std::max(walked_, kFirstRound), walk_end() - walked_,
                                    needed_ - walked_, ranked - walked_});
    return std::span(order_).subspan(static_cast<size_t>(walked_), static_cast<size_t>(round));
  }
  // Where to leave what is seen there, rows() masses for each page.
  float* seen() {
    seen_.resize(next().size() * static_cast<size_t>(rows_) * 2);
    return seen_.data();
  }

  // Goes on, when bounds and what next() asked for are there.
  void step() {
    if (order_.empty()) {
      for (int64_t row = 0; row < rows_; ++row) mass_.push_back(seen_at(0, row));
      for (int64_t row = 0; row < rows_; ++row) merge(mass_[row], seen_at(1, row));
      rank();
      if (token_.choice->mode == PageChoice::Mode::kBudget) {
        return finish(std::min(std::max<int64_t>(token_.choice->pages - 2, 0), std::ssize(order_)));
      }
    } else {
      const int64_t round = std::ssize(next());
      for (int64_t i = 0; i < round; ++i) {
        for (int64_t row = 0; row < rows_; ++row) merge(mass_[row], seen_at(i, row));
        ++walked_;
        if (needed() == walked_) return finish(walked_);
      }
    }
    needed_ = needed();
    if (needed_ == walked_ || walked_ >= walk_end()) finish(needed_);
  }

 private:
  int64_t stride() const { return spans_ * kSpanPages; }
  int64_t walk_end() const { return (std::ssize(order_) + kWalkShare - 1) / kWalkShare; }
  Mass seen_at(int64_t page, int64_t row) const {
    const float* mass = seen_.data() + (page * rows_ + row) * 2;
    return {mass[0], mass[1]};
  }
  float& rest(int64_t row, int64_t walked) { return rest_[row * (last_ + 1) + walked]; }

  // Puts the pages between the first and the newest in order, and sums up from the last of them
  // what they weigh at most.
  void rank() {
    std::vector<float> most(static_cast<size_t>(last_), -kInfinity);
    reference_.resize(static_cast<size_t>(rows_));
    for (int64_t row = 0; row < rows_; ++row) {
      float* bound = bounds_.data() + row * stride();
      float& reference = reference_[row] = mass_[row].maximum;
      for (int64_t p = 1; p < last_; ++p) {
        // A bound that is no number is one of keys or queries that are none: it bounds nothing.
        if (!(bound[p] < kInfinity)) bound[p] = kInfinity;
        if (bound[p] < kInfinity && bound[p] > reference) reference = bound[p];
      }
      for (int64_t p = 1; p < last_; ++p) {
        most[p] = std::max(most[p], bound[p] - mass_[row].maximum);
        bound[p] = bound[p] < kInfinity ? kPageTokens * exp_of(bound[p] - reference) : kInfinity;
      }
    }
    float best = -kInfinity;
    for (const float x : most) best = x < kInfinity ? std::max(best, x) : best;
    const auto step_of = [&](float x) {
      if (!(x < kInfinity)) return 0;
      const float below = (best - x) * kStepsPerUnit;
      return below < kSteps - 2 ? static_cast<int>(below) + 1 : kSteps - 1;
    };
    std::vector<int32_t> places(kSteps + 1);
    for (int64_t p = 1; p < last_; ++p) ++places[step_of(most[p]) + 1];
    for (int i = 0; i < kSteps; ++i) places[i + 1] += places[i];
    order_.resize(static_cast<size_t>(last_ - 1));
    for (int64_t p = 1; p < last_; ++p) {
      order_[places[step_of(most[p])]++] = static_cast<int32_t>(p);
    }

    rest_.resize(static_cast<size_t>(rows_ * (last_ + 1)));
    for (int64_t row = 0; row < rows_; ++row) {
      const float* weight = bounds_.data() + row * stride();
      double sum = 0;
      for (int64_t i = last_ - 1; i-- > 0;) {
        sum += weight[order_[i]];
        rest(row, i) = static_cast<float>(sum) * kMargin;
      }
    }
  }

  // How many pages of the order leave a rest that is small enough, for what is known of the mass.
  int64_t needed() {
    int64_t most = walked_;
    for (int64_t row = 0; row < rows_; ++row) {
      const float below = mass_[row].maximum - reference_[row];
      // Exponentials end at -87: beyond, and for what is no number, all pages are needed.
      const float epsilon = token_.choice->epsilon;
      const float limit =
          below >= -87.0f ? epsilon * mass_[row].sum * exp_of(below) / (1.0f - epsilon) : 0.0f;
      const float* begin = &rest(row, most);
      const float* end = &rest(row, std::ssize(order_));
      most += std::partition_point(begin, end, [&](float r) { return !(r <= limit); }) - begin;
    }
    return most;
  }

  void finish(int64_t count) {
    is_done_ = true;
    token_.pages.assign(order_.begin(), order_.begin() + count);
    token_.pages.insert(token_.pages.end(), seeds_.begin(), seeds_.end());
    std::sort(token_.pages.begin(), token_.pages.end());
    for (int64_t row = 0; row < rows_; ++row) token_.rest.push_back(rest(row, count));
    token_.reference = reference_;
  }

  ChoosingToken& token_;
  const int64_t rows_;
  const int64_t last_;   // the newest page; bounds are those of the pages before it
  const int64_t spans_;  // that have such pages
  const bool is_needed_;
  bool is_done_ = false;
  std::vector<float> bounds_;     // [rows, stride] of scores, then of weights relative to reference
  std::vector<float> reference_;  // the largest of a row's scores and bounds
  std::vector<Mass> mass_;        // of each row, on what was looked at
  std::vector<int32_t> seeds_, order_;
  std::vector<float> rest_;  // [rows, pages of the order walked], zero at the end
  std::vector<float> seen_;
  int64_t walked_ = 0;
  int64_t needed_ = 0;
};

}  // namespace

float ChoosingToken::kept(const float* mass) const {
  float smallest = 1.0f;
  for (size_t row = 0; row < rest.size(); ++row) {
    if (rest[row] == 0.0f) continue;
    const float below = mass[2 * row] - reference[row];
    const float sum = below >= -87.0f ? mass[2 * row + 1] * exp_of(below) : 0.0f;
    const float kept = sum / (sum + rest[row]);
    if (!(kept > 0)) return 0.0f;  // nothing is known of what is no number
    smallest = kept < smallest ? kept : smallest;
  }
  return smallest;
}

void choose_pages(Context& context, const AttentionFunctions& functions,
                  std::span<ChoosingToken> tokens) {
  std::vector<Choosing> choosing;
  for (ChoosingToken& token : tokens) {
    Choosing one(token);
    if (one.is_needed()) choosing.push_back(std::move(one));
  }
  size_t scratch = 0;
  std::vector<PageBoundTask> bounds;
  TaskList bound_tasks;
  for (Choosing& one : choosing) {
    const AttentionTask& task = one.task();
    scratch = std::max(scratch,
                       static_cast<size_t>(attention_scratch(one.rows(), task.layout.padded_dim)));
    for (int64_t span = 0; span < one.spans(); span += kSpansAtOnce) {
      const int64_t end = std::min(span + kSpansAtOnce, one.spans());
      bounds.push_back(one.bounds_of(span, end));
      bound_tasks.add((end - span) * kSpanPages * task.head_dim * (one.rows() + 2) / 4);
    }
  }
  bound_tasks.run(context, [&](int64_t i, int) { functions.bound_pages(bounds[i]); });

  std::vector<Choosing*> walking;
  for (Choosing& one : choosing) walking.push_back(&one);
  while (!walking.empty()) {
    std::vector<AttentionTask> looks;
    TaskList look_tasks, steps;
    for (Choosing* one : walking) {
      const auto pages = one->next();
      AttentionTask look = one->task();
      look.chosen = pages.data();
      look.parts = one->seen();
      for (int64_t k = 0; k < std::ssize(pages); ++k) {
        look.first_page = k;
        look.end_page = k + 1;
        looks.push_back(look);
        look_tasks.add(page_cost(one->rows(), look.head_dim) / 2);
      }
      steps.add(kSmallestTask);
    }
    look_tasks.run(context, [&](int64_t i, int worker) {
      AttentionTask look = looks[static_cast<size_t>(i)];
      look.scratch = context.scratch<float>(worker, scratch);
      functions.peek(look);
    });
    steps.run(context, [&](int64_t i, int) { walking[static_cast<size_t>(i)]->step(); });
    std::erase_if(walking, [](const Choosing* one) { return one->is_done(); });
  }
}

}  // namespace drover
