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

// Tiles of a group: 260 rows of Edge, whose widest activations are 0.8 MB each.
constexpr int64_t kGroupTiles = 4;

// Of matrices that lie in one piece.
void copy(MatrixView to, ConstMatrixView from) {
  std::copy_n(from.data, from.rows * from.cols, to.data);
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
      all_(context),
      adapter_{vision_.adapter_fc1, vision_.adapter_fc2, vision_.projector} {
  for (int worker = 0; worker < context.threads.size(); ++worker) {
    workers_.emplace_back(context.isa);
  }
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
  prepare();
  embed(tiles);
  in_groups([&](const Group& g) {
    for (int64_t layer = 0; layer < c.layer_count; ++layer) {
      attention_forward(g, layer);
      feed_forward(g, layer);
    }
  });
  read_out(out);
}

void VisionPass::prepare() {
  for (Kept& a : kept_) {
    hidden(a.h);
    if (kept_.size() > 1 && &a == &kept_.back()) break;
    for (AlignedArray<float>* memory : {&a.normed, &a.q, &a.k, &a.v, &a.mixed, &a.middle, &a.f}) {
      hidden(*memory);
    }
    inner(a.inner);
    inner(a.active);
    matrix(a.log_sums, rows_, config_.heads);
  }
}

void VisionPass::in_groups(const std::function<void(const Group&)>& body) {
  // Too few for all threads to have something to do.
  if (groups() < 2 * context_.threads.size()) return body({all_, 0, rows_});
  const int64_t rows = kGroupTiles * config_.rows();
  context_.threads.run(groups(), [&](int64_t i, int worker) {
    body({workers_[static_cast<size_t>(worker)], i * rows, std::min(rows, rows_ - i * rows)});
  });
}

void VisionPass::backward(ConstMatrixView dout) {
  DROVER_CHECK(dout.rows == tokens_ && dout.cols == config_.embedding);
  if (tokens_ == 0 || lowest_ > map_part(2) || !read_out_backward(dout)) return;
  for (AlignedArray<float>* memory : {&dmiddle_, &dbefore_, &dq_, &dk_, &dv_}) hidden(*memory);
  inner(dinner_);
  for (auto& sums : norm_sums_) matrix(sums, groups() * 2, config_.hidden);
  for (int64_t layer = config_.layer_count - 1; layer >= 0; --layer) {
    const bool with_attention = goes_below(feed_part(layer));
    in_groups([&](const Group& g) {
      feed_backward(g, layer);
      if (with_attention) attention_backward(g, layer);
    });
    add_gradients(layer, with_attention);
    if (!with_attention || !goes_below(attention_part(layer))) return;
    std::swap(dh_, dbefore_);
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
void VisionPass::attention_forward(const Group& g, int64_t layer) {
  const TaughtVisionLayer& w = vision_.layers[static_cast<size_t>(layer)];
  Kept& a = kept(layer);
  const auto of = [&](AlignedArray<float>& memory) { return rows_of(g, hidden(memory)); };
  const MatrixView h = of(a.h), normed = of(a.normed), middle = of(a.middle);
  const MatrixView q = of(a.q), k = of(a.k), v = of(a.v), mixed = of(a.mixed);
  Context& context = g.worker.context;
  layer_norm(context, normed, h, w.attention_norm.weight->value.data(),
             w.attention_norm.bias->value.data(), config_.norm_eps);
  const LinearForward in[] = {forward_of(w.wq, normed, q), forward_of(w.wk, normed, k),
                              forward_of(w.wv, normed, v)};
  g.worker.maps.forward(in);
  rope(context, {q, k}, rope_);
  packed_attention(context, attention(g), mixed,
                   rows_of(g, matrix(a.log_sums, rows_, config_.heads)), q, k, v);
  copy(middle, h);
  const LinearForward out = forward_of(w.wo, mixed, middle, /*add=*/true);
  g.worker.maps.forward({&out, 1});
}

// From the gradient of middle to that of h.
void VisionPass::attention_backward(const Group& g, int64_t layer) {
  const TaughtVisionLayer& w = vision_.layers[static_cast<size_t>(layer)];
  Kept& a = kept(layer);
  const auto of = [&](AlignedArray<float>& memory) { return rows_of(g, hidden(memory)); };
  const MatrixView dmiddle = of(dmiddle_), dh = of(dbefore_), mixed = of(a.mixed);
  const MatrixView normed = of(a.normed), dq = of(dq_), dk = of(dk_), dv = of(dv_);
  const MatrixView dmixed = matrix(g.worker.dmixed, g.rows, config_.hidden);
  const MatrixView dnormed = matrix(g.worker.dnormed, g.rows, config_.hidden);
  Context& context = g.worker.context;
  const LinearBackward out = backward_of(w.wo, mixed, dmiddle, dmixed);
  g.worker.maps.pass_back({&out, 1});
  packed_attention_backward(context, attention(g), dq, dk, dv, dmixed, mixed,
                            rows_of(g, matrix(a.log_sums, rows_, config_.heads)), of(a.q), of(a.k),
                            of(a.v));
  rope_backward(context, {dq, dk}, rope_);
  const LinearBackward in[] = {backward_of(w.wq, normed, dq, dnormed),
                               backward_of(w.wk, normed, dk, dnormed, /*add=*/true),
                               backward_of(w.wv, normed, dv, dnormed, /*add=*/true)};
  g.worker.maps.pass_back(in);
  copy(dh, dmiddle);
  norm_backward(g, kAttentionNorm, w.attention_norm, dh, dnormed, of(a.h));
}

// The next h = middle + fc2 gelu(fc1 f),  f = norm(middle)
void VisionPass::feed_forward(const Group& g, int64_t layer) {
  const TaughtVisionLayer& w = vision_.layers[static_cast<size_t>(layer)];
  Kept& a = kept(layer);
  const auto of = [&](AlignedArray<float>& memory) { return rows_of(g, hidden(memory)); };
  const MatrixView middle = of(a.middle), f = of(a.f), next = of(kept(layer + 1).h);
  const MatrixView before = rows_of(g, inner(a.inner)), active = rows_of(g, inner(a.active));
  layer_norm(g.worker.context, f, middle, w.ffn_norm.weight->value.data(),
             w.ffn_norm.bias->value.data(), config_.norm_eps);
  const LinearForward fc1 = forward_of(w.fc1, f, before);
  g.worker.maps.forward({&fc1, 1});
  gelu(g.worker.context, active, before);
  copy(next, middle);
  const LinearForward fc2 = forward_of(w.fc2, active, next, /*add=*/true);
  g.worker.maps.forward({&fc2, 1});
}

// From the gradient of the next h to that of middle.
void VisionPass::feed_backward(const Group& g, int64_t layer) {
  const TaughtVisionLayer& w = vision_.layers[static_cast<size_t>(layer)];
  Kept& a = kept(layer);
  const MatrixView dh = rows_of(g, hidden(dh_)), dmiddle = rows_of(g, hidden(dmiddle_));
  const MatrixView dinner = rows_of(g, inner(dinner_)), before = rows_of(g, inner(a.inner));
  const MatrixView df = matrix(g.worker.dnormed, g.rows, config_.hidden);
  const LinearBackward fc2 = backward_of(w.fc2, rows_of(g, inner(a.active)), dh, dinner);
  g.worker.maps.pass_back({&fc2, 1});
  gelu_backward(g.worker.context, dinner, dinner, before);
  const LinearBackward fc1 = backward_of(w.fc1, rows_of(g, hidden(a.f)), dinner, df);
  g.worker.maps.pass_back({&fc1, 1});
  copy(dmiddle, dh);
  norm_backward(g, kFfnNorm, w.ffn_norm, dmiddle, df, rows_of(g, hidden(a.middle)));
}

// What the gradients of the layer's rows, all of which are there, say of its weights.
void VisionPass::add_gradients(int64_t layer, bool with_attention) {
  const TaughtVisionLayer& w = vision_.layers[static_cast<size_t>(layer)];
  Kept& a = kept(layer);
  const MatrixView normed = hidden(a.normed);
  const LinearBackward maps[] = {backward_of(w.fc1, hidden(a.f), inner(dinner_), {}),
                                 backward_of(w.fc2, inner(a.active), hidden(dh_), {}),
                                 backward_of(w.wo, hidden(a.mixed), hidden(dmiddle_), {}),
                                 backward_of(w.wq, normed, hidden(dq_), {}),
                                 backward_of(w.wk, normed, hidden(dk_), {}),
                                 backward_of(w.wv, normed, hidden(dv_), {})};
  maps_.add_gradients({maps, with_attention ? std::size(maps) : 2});
  add_norm_sums(kFfnNorm, w.ffn_norm);
  if (with_attention) add_norm_sums(kAttentionNorm, w.attention_norm);
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

int64_t VisionPass::groups() const {
  const int64_t rows = kGroupTiles * config_.rows();
  return (rows_ + rows - 1) / rows;
}

void VisionPass::norm_backward(const Group& g, WhichNorm which, const TaughtMap& w, MatrixView dx,
                               ConstMatrixView dy, ConstMatrixView x) {
  const int64_t W = config_.hidden, each = kGroupTiles * config_.rows();
  for (int64_t t = 0; t < g.rows; t += each) {
    const int64_t rows = std::min(each, g.rows - t);
    float* sums = nullptr;
    if (taught(w)) {
      sums = norm_sums_[which].data() + (g.first + t) / each * 2 * W;
      std::fill_n(sums, 2 * W, 0.0f);
    }
    layer_norm_backward(g.worker.context, {dx.row(t), rows, W, W}, sums,
                        sums == nullptr ? nullptr : sums + W, {dy.row(t), rows, W, W},
                        {x.row(t), rows, W, W}, w.weight->value.data(), config_.norm_eps);
  }
}

void VisionPass::add_norm_sums(WhichNorm which, const TaughtMap& w) {
  const int64_t W = config_.hidden;
  const float* sums = norm_sums_[which].data();
  for (int64_t group = 0; group < groups(); ++group) {
    for (Parameter* p : {w.weight, w.bias}) {
      for (int64_t i = 0; p->taught && i < W; ++i) p->gradient[static_cast<size_t>(i)] += sums[i];
      sums += W;
    }
  }
}

PackedAttention VisionPass::attention(const Group& g) const {
  return {.heads = config_.heads,
          .kv_heads = config_.heads,
          .head_dim = config_.head_dim(),
          // Counted from the group's first row they are the first tiles.
          .spans = {tiles_.data(), static_cast<size_t>(g.rows / config_.rows())},
          .causal = false,
          .rounded = precision_ == Precision::kBF16};
}

MatrixView VisionPass::rows_of(const Group& g, MatrixView x) const {
  return {x.row(g.first), g.rows, x.cols, x.stride};
}

MatrixView VisionPass::hidden(AlignedArray<float>& memory) const {
  return matrix(memory, rows_, config_.hidden);
}

MatrixView VisionPass::inner(AlignedArray<float>& memory) const {
  return matrix(memory, rows_, config_.width);
}

}  // namespace drover
