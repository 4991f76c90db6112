#include "train/vision_pass.h"

#include <algorithm>

#include "base/error.h"
#include "base/huge_pages.h"
#include "kernels/gelu/gelu.h"
#include "kernels/layer_norm/layer_norm.h"
#include "model/vision_rows.h"

namespace drover {
namespace {

MatrixView matrix(AlignedArray<float>& memory, int64_t rows, int64_t cols) {
  reserve_huge(memory, static_cast<size_t>(rows * cols));
  return {memory.data(), rows, cols, cols};
}

void copy(Context& context, MatrixView to, ConstMatrixView from) {
  context.threads.run(to.rows,
                      [&](int64_t t, int) { std::copy_n(from.row(t), to.cols, to.row(t)); });
}

bool taught(const Parameter* p) { return p->taught; }
bool taught(const TaughtMap& map) { return map.weight->taught || map.bias->taught; }

// Null for a frozen parameter.
float* gradient(Parameter* p) { return p->taught ? p->gradient.data() : nullptr; }

LinearForward forward_of(const TaughtMap& w, ConstMatrixView x, MatrixView y, bool add = false) {
  return {.w = w.weight, .x = x, .y = y, .add = add, .bias = w.bias};
}

LinearBackward backward_of(const TaughtMap& w, ConstMatrixView x, ConstMatrixView dy, MatrixView dx,
                           bool add = false) {
  return {.w = w.weight, .x = x, .dy = dy, .dx = dx, .add = add, .bias = w.bias};
}

// For a gradient that a norm's is added to.
void clear(MatrixView x) { std::fill_n(x.data, x.rows * x.cols, 0.0f); }

}  // namespace

VisionPass::VisionPass(Context& context, Parameters& parameters)
    : context_(context),
      vision_(parameters.vision),
      config_(parameters.vision_config().value()),
      precision_(parameters.precision()),
      maps_(context),
      adapter_{vision_.adapter_fc1, vision_.adapter_fc2, vision_.projector} {
  rope_.fill_2d(config_.side(), patch_frequencies(config_));
}

void VisionPass::forward(std::span<const uint8_t* const> tiles, MatrixView out) {
  const VisionConfig& c = config_;
  const int64_t count = static_cast<int64_t>(tiles.size());
  DROVER_CHECK(out.rows == count * c.tile_tokens() && out.cols == c.embedding);
  rows_ = count * c.rows();
  tokens_ = out.rows;
  lowest_ = lowest_taught_part();
  first_kept_ = std::clamp<int64_t>((lowest_ - 1) / 2, 0, c.layer_count);
  kept_.resize(static_cast<size_t>(c.layer_count - first_kept_ + 1));
  tiles_.clear();
  for (int64_t tile = 0; tile < count; ++tile) tiles_.push_back({tile * c.rows(), c.rows()});
  if (count == 0) return;
  embed(tiles);
  for (int64_t layer = 0; layer < c.layer_count; ++layer) {
    attention_forward(layer);
    feed_forward(layer);
  }
  read_out(out);
}

void VisionPass::backward(ConstMatrixView dout) {
  DROVER_CHECK(dout.rows == tokens_ && dout.cols == config_.embedding);
  if (tokens_ == 0 || lowest_ > map_part(2) || !read_out_backward(dout)) return;
  for (int64_t layer = config_.layer_count - 1; layer >= 0; --layer) {
    feed_backward(layer);
    if (!goes_below(feed_part(layer))) return;
    attention_backward(layer);
    if (!goes_below(attention_part(layer))) return;
  }
  embed_backward();
}

int64_t VisionPass::lowest_taught_part() const {
  const TaughtVision& v = vision_;
  if (taught(v.patch_embedding) || taught(v.class_embedding) || taught(v.position_embedding) ||
      taught(v.pre_norm)) {
    return 0;
  }
  for (int64_t layer = 0; layer < config_.layer_count; ++layer) {
    const TaughtVisionLayer& w = v.layers[static_cast<size_t>(layer)];
    if (taught(w.attention_norm) || taught(w.wq) || taught(w.wk) || taught(w.wv) || taught(w.wo)) {
      return attention_part(layer);
    }
    if (taught(w.ffn_norm) || taught(w.fc1) || taught(w.fc2)) return feed_part(layer);
  }
  if (taught(v.post_norm)) return post_norm_part();
  int64_t map = 0;
  while (map < 3 && !taught(adapter_[map])) ++map;
  return map_part(map);
}

// h = norm([patches, class] + positions), spec 5.2. The class token goes through the product as a
// patch of zeros, which gives the patch embedding no gradient.
void VisionPass::embed(std::span<const uint8_t* const> tiles) {
  const int64_t W = config_.hidden, S = config_.rows();
  const MatrixView patches = matrix(patches_, rows_, config_.patch_values());
  take_patches(context_, config_, tiles, patches);
  const MatrixView embedded = hidden(embedded_);
  const LinearForward map = forward_of({vision_.patch_embedding}, patches, embedded);
  maps_.forward({&map, 1});
  context_.threads.run(rows_, [&](int64_t t, int) {
    const int64_t place = t % S;
    float* row = embedded.row(t);
    const float* position = vision_.position_embedding->value.data() + place * W;
    if (place == S - 1) std::copy_n(vision_.class_embedding->value.data(), W, row);
    for (int64_t i = 0; i < W; ++i) row[i] += position[i];
  });
  norm(vision_.pre_norm, hidden(kept(0).h), embedded);
}

void VisionPass::embed_backward() {
  const int64_t W = config_.hidden, S = config_.rows();
  const MatrixView dembedded = hidden(dnormed_);
  clear(dembedded);
  norm_backward(vision_.pre_norm, dembedded, hidden(dh_), hidden(embedded_));
  const MatrixView patches = matrix(patches_, rows_, config_.patch_values());
  const LinearBackward map = backward_of({vision_.patch_embedding}, patches, dembedded, /*dx=*/{});
  maps_.backward({&map, 1});
  // The sum over tiles of each place, in order.
  float* const dclass = gradient(vision_.class_embedding);
  float* const dposition = gradient(vision_.position_embedding);
  context_.threads.run(S, [&](int64_t place, int) {
    for (float* to :
         {dposition ? dposition + place * W : nullptr, place == S - 1 ? dclass : nullptr}) {
      if (to == nullptr) continue;
      for (int64_t t = place; t < rows_; t += S) {
        for (int64_t i = 0; i < W; ++i) to[i] += dembedded.row(t)[i];
      }
    }
  });
}

// middle = h + Wo attention(Wq a, Wk a, Wv a),  a = norm(h); every row of a tile sees every other.
void VisionPass::attention_forward(int64_t layer) {
  const TaughtVisionLayer& w = vision_.layers[static_cast<size_t>(layer)];
  Kept& a = kept(layer);
  const MatrixView h = hidden(a.h), normed = hidden(a.normed), middle = hidden(a.middle);
  const MatrixView q = hidden(a.q), k = hidden(a.k), v = hidden(a.v), mixed = hidden(a.mixed);
  norm(w.attention_norm, normed, h);
  const LinearForward in[] = {forward_of(w.wq, normed, q), forward_of(w.wk, normed, k),
                              forward_of(w.wv, normed, v)};
  maps_.forward(in);
  rope(context_, {q, k}, rope_);
  packed_attention(context_, attention(), mixed, matrix(a.log_sums, rows_, config_.heads), q, k, v);
  copy(context_, middle, h);
  const LinearForward out = forward_of(w.wo, mixed, middle, /*add=*/true);
  maps_.forward({&out, 1});
}

// dh: the gradient of middle; becomes that of h.
void VisionPass::attention_backward(int64_t layer) {
  const TaughtVisionLayer& w = vision_.layers[static_cast<size_t>(layer)];
  Kept& a = kept(layer);
  const MatrixView dh = hidden(dh_), mixed = hidden(a.mixed), normed = hidden(a.normed);
  const MatrixView dmixed = hidden(dmixed_), dnormed = hidden(dnormed_);
  const LinearBackward out = backward_of(w.wo, mixed, dh, dmixed);
  maps_.backward({&out, 1});
  const MatrixView dq = hidden(dq_), dk = hidden(dk_), dv = hidden(dv_);
  packed_attention_backward(context_, attention(), dq, dk, dv, dmixed, mixed,
                            matrix(a.log_sums, rows_, config_.heads), hidden(a.q), hidden(a.k),
                            hidden(a.v));
  rope_backward(context_, {dq, dk}, rope_);
  const LinearBackward in[] = {backward_of(w.wq, normed, dq, dnormed),
                               backward_of(w.wk, normed, dk, dnormed, /*add=*/true),
                               backward_of(w.wv, normed, dv, dnormed, /*add=*/true)};
  maps_.backward(in);
  norm_backward(w.attention_norm, dh, dnormed, hidden(a.h));
}

// The next h = middle + fc2 gelu(fc1 f),  f = norm(middle)
void VisionPass::feed_forward(int64_t layer) {
  const TaughtVisionLayer& w = vision_.layers[static_cast<size_t>(layer)];
  Kept& a = kept(layer);
  const MatrixView middle = hidden(a.middle), f = hidden(a.f), next = hidden(kept(layer + 1).h);
  const MatrixView before = inner(a.inner), active = inner(a.active);
  norm(w.ffn_norm, f, middle);
  const LinearForward fc1 = forward_of(w.fc1, f, before);
  maps_.forward({&fc1, 1});
  gelu(context_, active, before);
  copy(context_, next, middle);
  const LinearForward fc2 = forward_of(w.fc2, active, next, /*add=*/true);
  maps_.forward({&fc2, 1});
}

// dh: the gradient of the next h; becomes that of middle.
void VisionPass::feed_backward(int64_t layer) {
  const TaughtVisionLayer& w = vision_.layers[static_cast<size_t>(layer)];
  Kept& a = kept(layer);
  const MatrixView dh = hidden(dh_), dinner = inner(dinner_), df = hidden(dnormed_);
  const LinearBackward fc2 = backward_of(w.fc2, inner(a.active), dh, dinner);
  maps_.backward({&fc2, 1});
  gelu_backward(context_, dinner, dinner, inner(a.inner));
  const LinearBackward fc1 = backward_of(w.fc1, hidden(a.f), dinner, df);
  maps_.backward({&fc1, 1});
  norm_backward(w.ffn_norm, dh, df, hidden(a.middle));
}

// Patches joined to tokens, then the adapter, GELU after both of its maps, and the projector (5.5,
// 5.6).
void VisionPass::read_out(MatrixView out) {
  const MatrixView finished = hidden(finished_);
  norm(vision_.post_norm, finished, hidden(kept(config_.layer_count).h));
  join_patches(context_, config_, matrix(kept_maps_[0].x, tokens_, config_.joined()), finished);
  for (size_t i = 0; i < 3; ++i) {
    const bool last = i == 2;
    const Parameter& w = *adapter_[i];
    const MatrixView x = matrix(kept_maps_[i].x, tokens_, w.cols);
    const MatrixView y = last ? out : matrix(kept_maps_[i + 1].before, tokens_, w.rows);
    const LinearForward map = forward_of({adapter_[i]}, x, y);
    maps_.forward({&map, 1});
    if (!last) gelu(context_, matrix(kept_maps_[i + 1].x, tokens_, w.rows), y);
  }
}

bool VisionPass::read_out_backward(ConstMatrixView dout) {
  ConstMatrixView dy = dout;
  for (int64_t i = 2; i >= 0; --i) {
    const Parameter& w = *adapter_[i];
    KeptMap& a = kept_maps_[i];
    const bool below = goes_below(map_part(i));
    MatrixView dx;
    if (below) dx = matrix(dmaps_[i], tokens_, w.cols);
    const LinearBackward map = backward_of({adapter_[i]}, matrix(a.x, tokens_, w.cols), dy, dx);
    maps_.backward({&map, 1});
    if (!below) return false;
    if (i > 0) gelu_backward(context_, dx, dx, matrix(a.before, tokens_, w.cols));
    dy = dx;
  }
  const MatrixView dfinished = hidden(dnormed_), dh = hidden(dh_);
  clear(dh);
  join_patches_backward(context_, config_, dfinished, dy);
  norm_backward(vision_.post_norm, dh, dfinished, hidden(kept(config_.layer_count).h));
  return goes_below(post_norm_part());
}

void VisionPass::norm(const TaughtMap& w, MatrixView out, ConstMatrixView x) {
  layer_norm(context_, out, x, w.weight->value.data(), w.bias->value.data(), config_.norm_eps);
}

void VisionPass::norm_backward(const TaughtMap& w, MatrixView dx, ConstMatrixView dy,
                               ConstMatrixView x) {
  float* dweight = gradient(w.weight);
  float* dbias = gradient(w.bias);
  // Both or none: what one of them would be goes nowhere.
  if ((dweight == nullptr) != (dbias == nullptr)) {
    const MatrixView nowhere = matrix(nowhere_, 1, config_.hidden);
    clear(nowhere);
    (dweight == nullptr ? dweight : dbias) = nowhere.data;
  }
  layer_norm_backward(context_, dx, dweight, dbias, dy, x, w.weight->value.data(),
                      config_.norm_eps);
}

PackedAttention VisionPass::attention() const {
  return {.heads = config_.heads,
          .kv_heads = config_.heads,
          .head_dim = config_.head_dim(),
          .spans = tiles_,
          .causal = false,
          .rounded = precision_ == Precision::kBF16};
}

MatrixView VisionPass::hidden(AlignedArray<float>& memory) const {
  return matrix(memory, rows_, config_.hidden);
}

MatrixView VisionPass::inner(AlignedArray<float>& memory) const {
  return matrix(memory, rows_, config_.width);
}

}  // namespace drover
