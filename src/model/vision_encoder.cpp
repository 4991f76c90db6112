#include "model/vision_encoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "kernels/bias/bias.h"
#include "kernels/gelu/gelu.h"
#include "kernels/layer_norm/layer_norm.h"

namespace drover {
namespace {

// Tiles that go through together: enough rows to unpack weights for, and activations of some 200 MB
// at the released sizes.
constexpr int64_t kTilesTogether = 4;

}  // namespace

VisionEncoder::VisionEncoder(Context& context, const Vision& vision)
    : context_(context), config_(vision.config), weights_(vision.weights) {
  const VisionConfig& c = config_;
  std::vector<float> frequencies;
  const int64_t half = c.head_dim() / 2;  // as many pairs for x and y together
  for (int64_t m = 0; m < half / 2; ++m) {
    const float exponent = static_cast<float>(2 * m) / static_cast<float>(half);
    frequencies.push_back(1.0f / std::pow(static_cast<float>(c.rope_theta), exponent));
  }
  rope_.fill_2d(c.side(), frequencies);
  for (int colour = 0; colour < 3; ++colour) {
    for (int x = 0; x < 256; ++x) {
      normal_[colour][x] = (static_cast<float>(x) / 255.0f - c.mean[colour]) / c.std[colour];
    }
  }
}

bool VisionEncoder::encode(std::span<const uint8_t* const> tiles, MatrixView out,
                           const std::function<bool(int64_t, int64_t)>& between_layers) {
  const VisionConfig& c = config_;
  const int64_t count = static_cast<int64_t>(tiles.size());
  DROVER_CHECK(out.rows == count * c.tile_tokens() && out.cols == c.embedding);
  for (int64_t first = 0; first < count; first += tiles_) {
    tiles_ = std::min(kTilesTogether, count - first);
    take_patches(tiles.subspan(static_cast<size_t>(first), static_cast<size_t>(tiles_)));
    embed();
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

void VisionEncoder::linear(ConstMatrixView x, std::initializer_list<Map> maps) {
  std::vector<MatmulJob> jobs;
  bool quantized = false;
  for (const auto& [w, out] : maps) {
    const bool takes_int8 = is_quantized(w.type) && !rounds(w.type);
    quantized = quantized || takes_int8;
    jobs.push_back({.x = x,
                    .x8 = takes_int8 ? &int8_ : nullptr,
                    .x8_row = 0,
                    .w = w,
                    .out = out,
                    .rounded = rounds(w.type)});
  }
  if (quantized) quantize_rows(context_, x, int8_);
  matmul(context_, jobs);
}

void VisionEncoder::add_to_stream(ConstMatrixView x, const float* bias) {
  const MatrixView h = rows(h_, x.rows, x.cols);
  context_.threads.run(x.rows, [&](int64_t t, int) {
    for (int64_t i = 0; i < x.cols; ++i) h.row(t)[i] += x.row(t)[i] + bias[i];
  });
}

// Cuts tiles into patches, row by row; the values of one are colour by colour (spec 5.1).
void VisionEncoder::take_patches(std::span<const uint8_t* const> tiles) {
  const VisionConfig& c = config_;
  const int64_t side = c.side(), p = c.patch, size = c.tiles.size;
  patches_.reserve_discarding(static_cast<size_t>(tiles_ * c.patches() * c.patch_values()));
  context_.threads.run(tiles_ * c.patches(), [&](int64_t patch, int) {
    const int64_t n = patch % c.patches(), y0 = n / side * p, x0 = n % side * p;
    const uint8_t* tile = tiles[static_cast<size_t>(patch / c.patches())];
    float* to = patches_.data() + patch * c.patch_values();
    for (int colour = 0; colour < 3; ++colour) {
      for (int64_t y = y0; y < y0 + p; ++y) {
        const uint8_t* from = tile + (y * size + x0) * 3 + colour;
        for (int64_t x = 0; x < p; ++x) *to++ = normal_[colour][from[3 * x]];
      }
    }
  });
}

// h = norm([patches, class] + positions), spec 5.2.
void VisionEncoder::embed() {
  const VisionConfig& c = config_;
  const int64_t W = c.hidden, all = tiles_ * c.rows();
  h_.reserve_discarding(static_cast<size_t>(all * W));
  std::vector<MatmulJob> jobs;
  const ConstMatrixView patches = rows(patches_, tiles_ * c.patches(), c.patch_values());
  for (int64_t tile = 0; tile < tiles_; ++tile) {
    const int64_t first = tile * c.patches();
    jobs.push_back({{patches.row(first), c.patches(), patches.cols, patches.stride},
                    nullptr,
                    0,
                    weights_.patch_embedding,
                    {h_.data() + tile * c.rows() * W, c.patches(), W, W}});
  }
  matmul(context_, jobs);
  const MatrixView h = rows(h_, all, W);
  context_.threads.run(all, [&](int64_t t, int) {
    const int64_t n = t % c.rows();
    const float* position = weights_.position_embedding + n * W;
    if (n == c.patches()) std::copy_n(weights_.class_embedding, W, h.row(t));
    for (int64_t i = 0; i < W; ++i) h.row(t)[i] += position[i];
  });
  layer_norm(context_, h, h, weights_.pre_norm.weight, weights_.pre_norm.bias, c.norm_eps);
}

// h += Wo attention(Wq a, Wk a, Wv a),  a = norm(h); every row of a tile sees every other.
void VisionEncoder::attention_block(const VisionLayerWeights& w) {
  const VisionConfig& c = config_;
  const int64_t W = c.hidden, S = c.rows(), all = tiles_ * S;
  for (auto* array : {&normed_, &q_, &k_, &v_, &mixed_}) {
    array->reserve_discarding(static_cast<size_t>(all * W));
  }
  const MatrixView a = rows(normed_, all, W), q = rows(q_, all, W), k = rows(k_, all, W);
  const MatrixView v = rows(v_, all, W), mixed = rows(mixed_, all, W);
  layer_norm(context_, a, rows(h_, all, W), w.attention_norm.weight, w.attention_norm.bias,
             c.norm_eps);
  linear(a, {{w.wq.weight, q}, {w.wk.weight, k}, {w.wv.weight, v}});
  add_bias(context_, q, w.wq.bias);
  add_bias(context_, k, w.wk.bias);
  add_bias(context_, v, w.wv.bias);

  const bool rounded = rounds(w.wq.weight.type);
  KvPages pages{nullptr, rounded ? DType::kBF16 : DType::kF32, c.heads, c.head_dim()};
  const int64_t per_tile = (S + kPageTokens - 1) / kPageTokens;
  pages_.reserve_discarding(static_cast<size_t>(tiles_ * per_tile * pages.page_bytes()));
  page_table_.clear();
  for (int64_t p = 0; p < tiles_ * per_tile; ++p) {
    page_table_.push_back(pages_.data() + p * pages.page_bytes());
  }
  std::vector<KvStoreJob> stores;
  std::vector<AttentionJob> jobs;
  for (int64_t tile = 0; tile < tiles_; ++tile) {
    const auto of_tile = [&](MatrixView m) { return MatrixView{m.row(tile * S), S, W, W}; };
    pages.pages = page_table_.data() + tile * per_tile;
    rope(context_, of_tile(q), rope_);
    rope(context_, of_tile(k), rope_);
    stores.push_back({pages, 0, of_tile(k), of_tile(v)});
    jobs.push_back({.q = of_tile(q),
                    .pages = pages,
                    .first = 0,
                    .out = of_tile(mixed),
                    .causal = false,
                    .rounded = rounded});
  }
  store_kv(context_, stores);
  attention(context_, jobs);

  linear(mixed, {{w.wo.weight, a}});
  add_to_stream(a, w.wo.bias);
}

// h += fc2 gelu(fc1 m),  m = norm(h)
void VisionEncoder::feed_forward_block(const VisionLayerWeights& w) {
  const VisionConfig& c = config_;
  const int64_t W = c.hidden, all = tiles_ * c.rows();
  inner_.reserve_discarding(static_cast<size_t>(all * c.width));
  const MatrixView m = rows(normed_, all, W), inner = rows(inner_, all, c.width);
  layer_norm(context_, m, rows(h_, all, W), w.ffn_norm.weight, w.ffn_norm.bias, c.norm_eps);
  linear(m, {{w.fc1.weight, inner}});
  gelu_bias(context_, inner, w.fc1.bias);
  linear(inner, {{w.fc2.weight, m}});
  add_to_stream(m, w.fc2.bias);
}

// s x s patches become one row, and the class token is dropped (spec 5.5); then the adapter, GELU
// after both of its layers, and the projector (5.6).
void VisionEncoder::read_out(MatrixView out) {
  const VisionConfig& c = config_;
  const int64_t W = c.hidden, s = c.shuffle, side = c.side() / s, tokens = tiles_ * c.tile_tokens();
  const MatrixView h = rows(h_, tiles_ * c.rows(), W);
  layer_norm(context_, h, h, weights_.post_norm.weight, weights_.post_norm.bias, c.norm_eps);
  joined_.reserve_discarding(static_cast<size_t>(tokens * c.joined()));
  adapted_.reserve_discarding(static_cast<size_t>(2 * tokens * c.adapter));
  const MatrixView joined = rows(joined_, tokens, c.joined());
  context_.threads.run(tokens, [&](int64_t t, int) {
    const int64_t tile = t / c.tile_tokens(), i = t % c.tile_tokens() / side, j = t % side;
    for (int64_t dy = 0; dy < s; ++dy) {
      // The s patches of a row stand side by side.
      const float* from = h.row(tile * c.rows() + (s * i + dy) * c.side() + s * j);
      std::copy_n(from, s * W, joined.row(t) + dy * s * W);
    }
  });
  const MatrixView first = rows(adapted_, tokens, c.adapter);
  const MatrixView second{first.data + tokens * c.adapter, tokens, c.adapter, c.adapter};
  linear(joined, {{weights_.adapter_fc1, first}});
  gelu(context_, first);
  linear(first, {{weights_.adapter_fc2, second}});
  gelu(context_, second);
  linear(second, {{weights_.projector, out}});
}

}  // namespace drover
