#include "train/turned_rows.h"

#include <algorithm>

#include "base/error.h"
#include "base/huge_pages.h"
#include "kernels/transpose/transpose.h"

namespace drover {
namespace {

constexpr int64_t kMostRows = 576;  // of a panel

int64_t pieces(int64_t total, int64_t each) { return (total + each - 1) / each; }

// What put() of `rows` rows from `first` on writes.
struct Place {
  Place(const RowPanels& panels, int64_t first, int64_t rows)
      : panel(first / panels.each()), at(first % panels.each()) {
    const bool ends = at + rows == panels.rows(panel);
    DROVER_CHECK(at % 32 == 0 && (ends || (rows % 32 == 0 && at + rows < panels.rows(panel))));
    length = ends ? panels.length(panel) - at : rows;
  }
  int64_t panel, at;
  int64_t length;  // with the panel's zeros
};

}  // namespace

RowPanels::RowPanels(int64_t rows)
    : rows_(rows), each_(rows > 0 ? on_lines(pieces(rows, pieces(rows, kMostRows))) : 0) {}

int64_t RowPanels::rows(int64_t panel) const { return std::min(each_, rows_ - first(panel)); }

int64_t RowPanels::length(int64_t panel) const { return on_lines(rows(panel)); }

GradientForm::GradientForm(Isa isa, const Parameter& w)
    : type(w.rounds() ? DType::kBF16 : DType::kF32),
      in_unit(w.rounds() && takes_rounded(isa, DType::kBF16)) {}

void TurnedInput::resize(GradientForm form, int64_t rows, int64_t cols) {
  panels_ = RowPanels(rows);
  type_ = form.type;
  in_unit_ = form.in_unit;
  cols_ = cols;
  const auto count = static_cast<size_t>(panels_.count() * strips());
  while (data_.size() < count) data_.emplace_back();
  for (size_t i = 0; i < count; ++i) {
    const int64_t panel = static_cast<int64_t>(i) / strips();
    const int64_t width = strip_cols(static_cast<int64_t>(i) % strips());
    const int64_t length = panels_.length(panel);
    if (in_unit_) {
      data_[i].rounded.resize(width, length);
    } else {
      reserve_huge(data_[i].plain, static_cast<size_t>(width * row_bytes(type_, length)));
    }
  }
}

void TurnedInput::put(Context& context, int64_t first, ConstMatrixView x, bool past_caches) {
  const Place place(panels_, first, x.rows);
  for (int64_t strip = 0; strip < strips(); ++strip) {
    Strip& to = data_[static_cast<size_t>(place.panel * strips() + strip)];
    const ConstMatrixView part{x.data + strip * kStrip, x.rows, strip_cols(strip), x.stride};
    if (in_unit_) {
      transpose(context, part, to.rounded, place.at, place.length, past_caches);
    } else {
      transpose(context, part, type_, to.plain.data() + row_bytes(type_, place.at), place.length,
                panels_.length(place.panel), past_caches);
    }
  }
}

void TurnedOutput::resize(GradientForm form, int64_t rows, int64_t cols) {
  panels_ = RowPanels(rows);
  type_ = form.in_unit ? DType::kBF16 : DType::kF32;
  cols_ = cols;
  panel_bytes_ = cols * row_bytes(type_, panels_.each());
  reserve_huge(data_, static_cast<size_t>(panels_.count() * panel_bytes_));
}

void TurnedOutput::put(Context& context, int64_t first, ConstMatrixView dy, bool past_caches) {
  const Place place(panels_, first, dy.rows);
  std::byte* to = data_.data() + place.panel * panel_bytes_ + row_bytes(type_, place.at);
  transpose(context, dy, type_, to, place.length, panels_.length(place.panel), past_caches);
}

void add_product(Context& context, const TurnedOutput& dy, const TurnedInput& x, int64_t panel,
                 int64_t first, int64_t count, int64_t strip, MatrixView out) {
  const int64_t length = dy.panels_.length(panel), width = x.strip_cols(strip);
  const TurnedInput::Strip& from = x.data_[static_cast<size_t>(panel * x.strips() + strip)];
  const std::byte* rows =
      dy.data_.data() + panel * dy.panel_bytes_ + first * row_bytes(dy.type_, length);
  MatmulJob job;
  if (x.in_unit_) {
    job.x = {nullptr, width, length, length};
    job.x16 = &from.rounded;
    job.w = {rows, dy.type_, count, length};
    job.turned = true;
  } else {
    job.x = {reinterpret_cast<const float*>(rows), count, length, length};
    job.w = {from.plain.data(), x.type_, width, length};
  }
  job.out = out;
  job.end.add = true;
  job.rounded = x.type_ == DType::kBF16;
  matmul(context, {&job, 1});
}

}  // namespace drover
