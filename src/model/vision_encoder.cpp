#include "model/vision_encoder.h"

#include <algorithm>

#include "base/error.h"
#include "base/huge_pages.h"
#include "kernels/layer_norm/layer_norm.h"
#include "model/vision_rows.h"

namespace drover {
namespace {

// Tiles that go through together: enough rows to unpack weights for, and activations of some 200 MB
// at the released sizes.
constexpr int64_t kTilesTogether = 4;

}  // namespace

VisionEncoder::VisionEncoder(Context& context, const Vision& vision)
    : context_(context), config_(vision.config), weights_(vision.weights) {
  rope_.fill_2d(config_.side(), patch_frequencies(config_));
}

bool VisionEncoder::encode(std::span<const uint8_t* const> tiles, MatrixView out,
                           const std::function<bool(int64_t, int64_t)>& between_layers) {
  const VisionConfig& c = config_;
  const int64_t count = static_cast<int64_t>(tiles.size());
  DROVER_CHECK(out.rows == count * c.tile_tokens() && out.cols == c.embedding);
  for (int64_t first = 0; first < count; first += tiles_) {
    tiles_ = std::min(kTilesTogether, count - first);
    embed(tiles.subspan(static_cast<size_t>(first), static_cast<size_t>(tiles_)));
    for (int64_t layer = 0; layer < c.layer_count; ++layer) {
      attention_block(weights_.layers[static_cast<size_t>(layer)]);
      feed_forward_block(weights_.layers[static_cast<size_t>(layer)]);
      const int64_t done = first * c.layer_count + (layer + 1) * tiles_;
      if (between_layers && !between_layers(done, count * c.layer_count)) return false;
    }
    read_out({out.row(first * c.tile_tokens()), tiles_ * c.tile_tokens(), out.cols, out.stride});
  }
  return true;
}

void VisionEncoder::Activation::resize(int64_t rows, int64_t cols, bool rounded) {
  rows_ = rows;
  cols_ = cols;
  is_rounded_ = rounded;
  if (rounded) {
    rounded_.resize(rows, cols);
  } else {
    reserve_huge(floats_, static_cast<size_t>(rows * cols));
  }
}

void VisionEncoder::norm(const LayerNormWeights& w, Activation& out, bool rounded) {
  const ConstMatrixView h = h_.floats();
  out.resize(h.rows, h.cols, rounded);
  if (rounded) {
    layer_norm(context_, out.rounded(), h, w.weight, w.bias, config_.norm_eps);
  } else {
    layer_norm(context_, out.floats(), h, w.weight, w.bias, config_.norm_eps);
  }
}

void VisionEncoder::linear(Activation& x, std::initializer_list<Map> maps) {
  std::vector<MatmulJob> jobs;
  bool quantized = false;
  for (const auto& [w, out, then] : maps) {
    const bool takes_int8 = is_quantized(w.weight.type) && !rounds(w);
    quantized = quantized || takes_int8;
    jobs.push_back({.x = x.floats(),
                    .x8 = takes_int8 ? &int8_ : nullptr,
                    .x8_row = 0,
                    .w = w.weight,
                    .out = out.floats,
                    .end = {.bias = w.bias, .gelu = then == Then::kGelu, .add = then == Then::kAdd},
                    .rounded = rounds(w),
                    .x16 = x.is_rounded() ? &x.rounded() : nullptr,
                    .out16 = out.rounded});
  }
  if (quantized) quantize_rows(context_, x.floats(), int8_);
  matmul(context_, jobs);
}

// h = norm([patches, class] + positions), spec 5.2. The class token goes through the product as a
// patch of zeros, so that all tiles are one matrix.
void VisionEncoder::embed(std::span<const uint8_t* const> tiles) {
  const VisionConfig& c = config_;
  const int64_t W = c.hidden, n = c.patches(), all = tiles_ * c.rows();
  patches_.resize(all, c.patch_values());
  take_patches(context_, c, tiles, patches_.floats());
  h_.resize(all, W);
  const MatrixView h = h_.floats();
  const MatmulJob job{.x = patches_.floats(), .w = weights_.patch_embedding, .out = h};
  matmul(context_, {&job, 1});
  context_.threads.run(all, [&](int64_t t, int) {
    const int64_t place = t % c.rows();
    const float* position = weights_.position_embedding + place * W;
    if (place == n) std::copy_n(weights_.class_embedding, W, h.row(t));
    for (int64_t i = 0; i < W; ++i) h.row(t)[i] += position[i];
  });
  layer_norm(context_, h, h, weights_.pre_norm.weight, weights_.pre_norm.bias, c.norm_eps);
}

// h += Wo attention(Wq a, Wk a, Wv a),  a = norm(h); every row of a tile sees every other.
void VisionEncoder::attention_block(const VisionLayerWeights& w) {
  const VisionConfig& c = config_;
  const int64_t W = c.hidden, S = c.rows();
  norm(w.attention_norm, normed_, /*rounded=*/rounds(w.wq) && rounds(w.wk) && rounds(w.wv));
  for (Activation* a : {&q_, &k_, &v_, &mixed_}) a->resize(tiles_ * S, W);
  linear(normed_, {{w.wq, q_}, {w.wk, k_}, {w.wv, v_}});
  rope(context_, {q_.floats(), k_.floats()}, rope_);

  const bool rounded = rounds(w.wq);
  KvPages pages{nullptr, rounded ? DType::kBF16 : DType::kF32, c.heads, c.head_dim()};
  const int64_t per_tile = (S + kPageTokens - 1) / kPageTokens;
  reserve_huge(pages_, static_cast<size_t>(tiles_ * per_tile * pages.page_bytes()));
  page_table_.clear();
  for (int64_t p = 0; p < tiles_ * per_tile; ++p) {
    page_table_.push_back(pages_.data() + p * pages.page_bytes());
  }
  std::vector<KvStoreJob> stores;
  std::vector<AttentionJob> jobs;
  for (int64_t tile = 0; tile < tiles_; ++tile) {
    const auto of_tile = [&](Activation& a) {
      return MatrixView{a.floats().row(tile * S), S, W, W};
    };
    pages.pages = page_table_.data() + tile * per_tile;
    stores.push_back({pages, 0, of_tile(k_), of_tile(v_)});
    jobs.push_back({.q = of_tile(q_),
                    .pages = pages,
                    .first = 0,
                    .out = of_tile(mixed_),
                    .causal = false,
                    .rounded = rounded});
  }
  store_kv(context_, stores);
  attention(context_, jobs);

  linear(mixed_, {{w.wo, h_, Then::kAdd}});
}

// h += fc2 gelu(fc1 m),  m = norm(h)
void VisionEncoder::feed_forward_block(const VisionLayerWeights& w) {
  norm(w.ffn_norm, normed_, /*rounded=*/rounds(w.fc1));
  inner_.resize(h_.rows(), config_.width, /*rounded=*/rounds(w.fc1) && rounds(w.fc2));
  linear(normed_, {{w.fc1, inner_, Then::kGelu}});
  linear(inner_, {{w.fc2, h_, Then::kAdd}});
}

// s x s patches become one row, and the class token is dropped (spec 5.5); then the adapter, GELU
// after both of its layers, and the projector (5.6).
void VisionEncoder::read_out(MatrixView out) {
  const VisionConfig& c = config_;
  const int64_t tokens = tiles_ * c.tile_tokens();
  const MatrixView h = h_.floats();
  layer_norm(context_, h, h, weights_.post_norm.weight, weights_.post_norm.bias, c.norm_eps);
  joined_.resize(tokens, c.joined());
  join_patches(context_, c, joined_.floats(), h);
  const BiasedMap fc1{weights_.adapter_fc1}, fc2{weights_.adapter_fc2};
  const BiasedMap projector{weights_.projector};
  auto& [first, second] = adapted_;
  first.resize(tokens, c.adapter, /*rounded=*/rounds(fc1) && rounds(fc2));
  second.resize(tokens, c.adapter, /*rounded=*/rounds(fc2) && rounds(projector));
  linear(joined_, {{fc1, first, Then::kGelu}});
  linear(first, {{fc2, second, Then::kGelu}});
  linear(second, {{projector, out}});
}

}  // namespace drover
