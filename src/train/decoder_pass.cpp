#include "train/decoder_pass.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "base/huge_pages.h"
#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rounding/rounding.h"
#include "kernels/swiglu/swiglu.h"
#include "kernels/transpose/transpose.h"

namespace drover {
namespace {

// Rows whose logits' gradients are there at a time: 8 MB of bf16 at a vocabulary of 4,096.
constexpr int64_t kReadOutRows = 1024;

// So many logits of a few rows, 1 MB, stay in the second-level cache. Of more they would not, and
// then it is better to read the weights less often.
constexpr int64_t kNarrowVocabulary = 4096, kFewRows = 64;

// Rows that a thread takes through several operations: of 512 values 0.5 MB, of which three stay in
// the second-level cache, and enough for the weights that come by.
constexpr int64_t kPanelRows = 256;

// Of a feed-forward network, whose wide values of so many rows stay there too.
constexpr int64_t kPieceRows = 192;

MatrixView rows_of(AlignedArray<float>& array, int64_t first, int64_t rows, int64_t cols) {
  return {array.data() + first * cols, rows, cols, cols};
}

MatrixView all_of(AlignedArray<float>& array, int64_t rows, int64_t cols) {
  reserve_huge(array, static_cast<size_t>(rows * cols));
  return rows_of(array, 0, rows, cols);
}

int64_t panels(int64_t rows) { return (rows + kPanelRows - 1) / kPanelRows; }

MatrixView part_of(MatrixView x, int64_t first, int64_t rows) {
  return {x.row(first), rows, x.cols, x.stride};
}

// So many rows cut in nearly equal pieces, none in two panels of dW.
std::vector<RowSpan> pieces_of(int64_t rows, int64_t most) {
  std::vector<RowSpan> out;
  const RowPanels panels(rows);
  for (int64_t panel = 0; panel < panels.count(); ++panel) {
    const int64_t in_panel = panels.rows(panel), count = (in_panel + most - 1) / most;
    const int64_t each = on_lines((in_panel + count - 1) / count);
    for (int64_t t = 0; t < in_panel; t += each) {
      out.push_back({panels.first(panel) + t, std::min(each, in_panel - t)});
    }
  }
  return out;
}

// In lanes that a compiler may take for those of a vector.
float dot(const float* a, const float* b, int64_t n) {
  constexpr int64_t kLanes = 16;
  float lanes[kLanes] = {}, sum = 0;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
  }
  for (; i < n; ++i) sum += a[i] * b[i];
  for (const float lane : lanes) sum += lane;
  return sum;
}

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// The gradient of a vector's values, or null while it is frozen.
float* gradient_of(Parameter& vector) { return vector.taught ? vector.gradient.data() : nullptr; }

}  // namespace

DecoderPass::DecoderPass(Context& context, Parameters& parameters, const PassOptions& options)
    : context_(context),
      parameters_(parameters),
      config_(parameters.config()),
      options_(options),
      maps_(context),
      kept_(static_cast<size_t>(config_.layer_count() + 1)),
      selection_bias_(static_cast<size_t>(config_.layer_count() * config_.experts)) {
  for (int worker = 0; worker < context.threads.size(); ++worker) {
    workers_.emplace_back(context.isa);
  }
}

void DecoderPass::Turned::resize(GradientForm form, int64_t rows, int64_t hidden, int64_t width) {
  f.resize(form, rows, hidden);
  inner.resize(form, rows, width);
  dgate.resize(form, rows, width);
  dup.resize(form, rows, width);
  dout.resize(form, rows, hidden);
}

template <typename Body>
void DecoderPass::in_panels(int64_t rows, const Body& body) {
  context_.threads.run(panels(rows), [&](int64_t panel, int worker) {
    const int64_t first = panel * kPanelRows;
    body(first, std::min(kPanelRows, rows - first), workers_[static_cast<size_t>(worker)]);
  });
}

PassReport DecoderPass::forward(const TrainingBatch& batch, ConstMatrixView seen, float scale) {
  tokens_ = batch.rows();
  scale_ = scale;
  weight_ = batch.weight();
  report_ = {};
  report_.weight = weight_;
  report_.expert_tokens.resize(static_cast<size_t>(config_.layer_count() * config_.experts));
  fill_rotations(batch);
  embed(batch, seen);
  for (int64_t layer = 0; layer < config_.layer_count(); ++layer) {
    attention_block(batch, layer);
    feed_forward_block(layer);
  }
  read_out(batch);
  const auto moe = std::count_if(config_.layers.begin(), config_.layers.end(),
                                 [](const LayerConfig& layer) { return layer.moe; });
  if (moe > 0) report_.balance /= static_cast<double>(moe);
  return report_;
}

void DecoderPass::backward(const TrainingBatch& batch, MatrixView dseen) {
  DROVER_CHECK(batch.rows() == tokens_ && scale_ != 0);
  for (int64_t layer = config_.layer_count() - 1; layer >= 0; --layer) {
    feed_forward_block_backward(layer);
    attention_block_backward(batch, layer);
  }
  embed_backward(batch, dseen);
}

void DecoderPass::fill_rotations(const TrainingBatch& batch) {
  const auto any = [&](bool chunked) {
    return std::any_of(config_.layers.begin(), config_.layers.end(),
                       [&](const LayerConfig& l) { return l.rope && l.chunked == chunked; });
  };
  if (any(/*chunked=*/false)) rope_absolute_.fill(batch.positions, config_.rope_frequencies);
  if (any(/*chunked=*/true)) {
    std::vector<int64_t> in_chunk = batch.positions;
    for (int64_t& p : in_chunk) p %= config_.chunk;
    rope_in_chunk_.fill(in_chunk, config_.rope_frequencies);
  }
}

// h[0] = the tokens' embeddings, or what is seen where a picture stands.
void DecoderPass::embed(const TrainingBatch& batch, ConstMatrixView seen) {
  const int64_t D = config_.hidden;
  const MatrixView h = all_of(kept_[0].h, tokens_, D);
  Parameter& table = *parameters_.embedding;
  context_.threads.run(tokens_, [&](int64_t t, int) {
    std::copy_n(table.matrix(0) + batch.tokens[static_cast<size_t>(t)] * D, D, h.row(t));
  });
  const bool has_eyes = seen.data != nullptr;
  DROVER_CHECK(batch.patch_rows.empty() ||
               (has_eyes && seen.rows == static_cast<int64_t>(batch.patch_rows.size())));
  for (size_t i = 0; i < batch.patch_rows.size(); ++i) {
    std::copy_n(seen.row(static_cast<int64_t>(i)), D, h.row(batch.patch_rows[i]));
  }
}

void DecoderPass::embed_backward(const TrainingBatch& batch, MatrixView dseen) {
  const int64_t D = config_.hidden;
  const MatrixView dh = rows_of(dh_, 0, tokens_, D);
  std::vector<uint8_t> is_patch(static_cast<size_t>(tokens_));
  for (size_t i = 0; i < batch.patch_rows.size(); ++i) {
    is_patch[static_cast<size_t>(batch.patch_rows[i])] = 1;
    if (dseen.data != nullptr) {
      std::copy_n(dh.row(batch.patch_rows[i]), D, dseen.row(static_cast<int64_t>(i)));
    }
  }
  if (!parameters_.embedding->taught) return;
  // Rows of one token add up in order: threads share columns, not rows.
  constexpr int64_t kColumns = 64;
  float* gradient = parameters_.embedding->gradient.data();
  context_.threads.run((D + kColumns - 1) / kColumns, [&](int64_t task, int) {
    const int64_t first = task * kColumns, end = std::min(D, first + kColumns);
    for (int64_t t = 0; t < tokens_; ++t) {
      if (is_patch[static_cast<size_t>(t)]) continue;
      float* to = gradient + batch.tokens[static_cast<size_t>(t)] * D;
      for (int64_t i = first; i < end; ++i) to[i] += dh.row(t)[i];
    }
  });
}

PackedAttention DecoderPass::how_to_attend(const TrainingBatch& batch,
                                           const LayerConfig& layer) const {
  const bool biased = !layer.chunked && !batch.key_bias.empty();
  return {.heads = config_.heads,
          .kv_heads = config_.kv_heads,
          .head_dim = config_.head_dim,
          .spans = layer.chunked ? batch.chunks : batch.documents,
          .key_bias = biased ? batch.key_bias.data() : nullptr,
          .rounded = parameters_.precision() == Precision::kBF16};
}

// Queries of layers without positions grow with theirs; so do their gradients. q: of the rows from
// `first` on.
void DecoderPass::tune(const TrainingBatch& batch, const LayerConfig& layer, int64_t first,
                       MatrixView q) const {
  if (layer.rope || !config_.temperature_tuning) return;
  for (int64_t t = 0; t < q.rows; ++t) {
    const float scale =
        query_temperature(config_, batch.temperature_positions[static_cast<size_t>(first + t)]);
    for (int64_t i = 0; i < q.cols; ++i) q.row(t)[i] *= scale;
  }
}

const RopeTable& DecoderPass::rotations(const LayerConfig& layer) const {
  return layer.chunked ? rope_in_chunk_ : rope_absolute_;
}

// middle = h + Wo attention(Wq a, Wk a, Wv a),  a = norm(h)
void DecoderPass::attention_block(const TrainingBatch& batch, int64_t index) {
  const ModelConfig& c = config_;
  const LayerConfig& layer = c.layers[static_cast<size_t>(index)];
  const TaughtLayer& w = parameters_.layers[static_cast<size_t>(index)];
  Kept& kept = kept_[static_cast<size_t>(index)];
  const int64_t T = tokens_, D = c.hidden, Q = c.heads * c.head_dim, K = c.kv_heads * c.head_dim;
  const MatrixView h = rows_of(kept.h, 0, T, D), normed = all_of(kept.normed, T, D);
  const MatrixView q = all_of(kept.q, T, Q), k = all_of(kept.k, T, K), v = all_of(kept.v, T, K);
  const MatrixView mixed = all_of(kept.mixed, T, Q), middle = all_of(kept.middle, T, D);
  const MatrixView of_q = all_of(kept.inverse_q, T, c.heads);
  const MatrixView of_k = all_of(kept.inverse_k, T, c.kv_heads);

  in_panels(T, [&](int64_t first, int64_t rows, Worker& worker) {
    const auto of = [&](MatrixView x) { return part_of(x, first, rows); };
    rms_norm(worker.context, of(normed), of(h), w.attention_norm->value.data(), c.norm_eps);
    const LinearForward inputs[] = {{.w = w.wq, .x = of(normed), .y = of(q)},
                                    {.w = w.wk, .x = of(normed), .y = of(k)},
                                    {.w = w.wv, .x = of(normed), .y = of(v)}};
    worker.maps.forward(inputs);
    if (layer.rope) {
      rope(worker.context, {of(q), of(k)}, rotations(layer), first);
      if (c.qk_norm) {
        rms_norm_heads(worker.context, of(q), c.head_dim, c.norm_eps, of(of_q));
        rms_norm_heads(worker.context, of(k), c.head_dim, c.norm_eps, of(of_k));
      }
    }
    tune(batch, layer, first, of(q));
  });
  packed_attention(context_, how_to_attend(batch, layer), mixed, all_of(kept.log_sums, T, c.heads),
                   q, k, v);

  in_panels(T, [&](int64_t first, int64_t rows, Worker& worker) {
    std::copy_n(h.row(first), rows * D, middle.row(first));
    const LinearForward output[] = {{.w = w.wo,
                                     .x = part_of(mixed, first, rows),
                                     .y = part_of(middle, first, rows),
                                     .add = true}};
    worker.maps.forward(output);
  });
}

// dh comes in as the gradient of middle and becomes that of h.
void DecoderPass::attention_block_backward(const TrainingBatch& batch, int64_t index) {
  const ModelConfig& c = config_;
  const LayerConfig& layer = c.layers[static_cast<size_t>(index)];
  const TaughtLayer& w = parameters_.layers[static_cast<size_t>(index)];
  Kept& kept = kept_[static_cast<size_t>(index)];
  const int64_t T = tokens_, D = c.hidden, Q = c.heads * c.head_dim, K = c.kv_heads * c.head_dim;
  const MatrixView dh = rows_of(dh_, 0, T, D), dnormed = all_of(dnormed_, T, D);
  const MatrixView q = rows_of(kept.q, 0, T, Q), k = rows_of(kept.k, 0, T, K);
  const MatrixView v = rows_of(kept.v, 0, T, K), mixed = rows_of(kept.mixed, 0, T, Q);
  const MatrixView normed = rows_of(kept.normed, 0, T, D);
  const MatrixView dq = all_of(dq_, T, Q), dk = all_of(dk_, T, K), dv = all_of(dv_, T, K);
  const MatrixView dmixed = all_of(dmixed_, T, Q);
  const MatrixView of_q = rows_of(kept.inverse_q, 0, T, c.heads);
  const MatrixView of_k = rows_of(kept.inverse_k, 0, T, c.kv_heads);

  const LinearBackward output = {.w = w.wo, .x = mixed, .dy = dh, .dx = dmixed};
  maps_.pass_back({&output, 1});
  packed_attention_backward(context_, how_to_attend(batch, layer), dq, dk, dv, dmixed, mixed,
                            rows_of(kept.log_sums, 0, T, c.heads), q, k, v);
  const LinearBackward maps[] = {output,
                                 {.w = w.wq, .x = normed, .dy = dq, .dx = dnormed},
                                 {.w = w.wk, .x = normed, .dy = dk, .dx = dnormed, .add = true},
                                 {.w = w.wv, .x = normed, .dy = dv, .dx = dnormed, .add = true}};
  in_panels(T, [&](int64_t first, int64_t rows, Worker& worker) {
    const auto of = [&](MatrixView x) { return part_of(x, first, rows); };
    tune(batch, layer, first, of(dq));
    if (layer.rope) {
      if (c.qk_norm) {  // q and k are what their norm made: they are tuned in other layers
        rms_norm_heads_backward(worker.context, of(dq), of(q), of(of_q), c.head_dim);
        rms_norm_heads_backward(worker.context, of(dk), of(k), of(of_k), c.head_dim);
      }
      rope_backward(worker.context, {of(dq), of(dk)}, rotations(layer), first);
    }
    const LinearBackward inputs[] = {
        {.w = w.wq, .x = of(normed), .dy = of(dq), .dx = of(dnormed)},
        {.w = w.wk, .x = of(normed), .dy = of(dk), .dx = of(dnormed), .add = true},
        {.w = w.wv, .x = of(normed), .dy = of(dv), .dx = of(dnormed), .add = true}};
    worker.maps.pass_back(inputs);
  });
  maps_.add_gradients(maps);
  rms_norm_backward(context_, dh, gradient_of(*w.attention_norm), dnormed, rows_of(kept.h, 0, T, D),
                    w.attention_norm->value.data(), c.norm_eps);
}

std::vector<DecoderPass::Share> DecoderPass::shares(int64_t index) {
  const TaughtLayer& w = parameters_.layers[static_cast<size_t>(index)];
  const bool moe = config_.layers[static_cast<size_t>(index)].moe;
  while (turned_.size() < static_cast<size_t>(1 + (moe ? config_.experts : 0))) {
    turned_.emplace_back();  // and kept: a dense layer needs fewer than the next
  }
  std::vector<Share> out = {{0, tokens_, w.gate, w.up, w.down, 0, &turned_[0]}};
  if (!moe) return out;
  const std::vector<int64_t>& first = kept_[static_cast<size_t>(index)].first;
  for (int64_t e = 0; e < config_.experts; ++e) {
    const int64_t begin = first[static_cast<size_t>(e)], end = first[static_cast<size_t>(e + 1)];
    out.push_back({tokens_ + begin, end - begin, w.expert_gate, w.expert_up, w.expert_down, e,
                   &turned_[static_cast<size_t>(1 + e)]});
  }
  return out;
}

template <typename Body>
void DecoderPass::in_shares(std::span<const Share> shares, const Body& body) {
  std::vector<Piece> pieces;
  for (const Share& share : shares) {
    for (const RowSpan& rows : pieces_of(share.rows, kPieceRows)) {
      pieces.push_back({&share, rows.first, rows.count});
    }
  }
  context_.threads.run(static_cast<int64_t>(pieces.size()), [&](int64_t i, int worker) {
    body(pieces[static_cast<size_t>(i)], workers_[static_cast<size_t>(worker)]);
  });
}

// gate = Wg f,  up = Wu f,  in the worker's memory
void DecoderPass::widen(const Share& share, ConstMatrixView f, int64_t width, Worker& worker) {
  const LinearForward maps[] = {
      {.w = share.gate, .index = share.index, .x = f, .y = all_of(worker.gate, f.rows, width)},
      {.w = share.up, .index = share.index, .x = f, .y = all_of(worker.up, f.rows, width)}};
  worker.maps.forward(maps);
}

// The next layer's h = middle + shared(f) + sum over chosen experts e of expert_e(sigmoid(l_e) f),
// f = norm(middle). Rows as in model/decoder.cpp: the T normed tokens, then their gated copies by
// expert.
void DecoderPass::feed_forward_block(int64_t index) {
  const ModelConfig& c = config_;
  const bool moe = c.layers[static_cast<size_t>(index)].moe;
  const TaughtLayer& w = parameters_.layers[static_cast<size_t>(index)];
  Kept& kept = kept_[static_cast<size_t>(index)];
  const int64_t T = tokens_, D = c.hidden, F = moe ? c.expert_width : c.dense_width;
  const int64_t chosen = moe ? c.experts_used : 0, rows = T * (1 + chosen);
  const MatrixView middle = rows_of(kept.middle, 0, T, D), f = all_of(kept.f, T, D);
  const MatrixView out = all_of(out_, rows, D);
  if (moe) all_of(kept.router, T, c.experts);
  kept.chosen.resize(static_cast<size_t>(T * chosen));
  expert_shares_.resize(static_cast<size_t>(panels(T) * c.experts));
  in_panels(T, [&](int64_t first, int64_t count, Worker& worker) {
    const MatrixView normed = part_of(f, first, count);
    rms_norm(worker.context, normed, part_of(middle, first, count), w.ffn_norm->value.data(),
             c.norm_eps);
    if (moe) choose(index, first, normed, worker);
  });
  if (moe) route(index);

  const bool keeps = keeps_wide() && scale_ != 0;
  if (keeps) {
    reserve_huge(kept.gate, static_cast<size_t>(rows * F));
    reserve_huge(kept.up, static_cast<size_t>(rows * F));
  }
  in_shares(shares(index), [&](const Piece& piece, Worker& worker) {
    const Share& share = *piece.share;
    const int64_t first = share.first + piece.first;
    const MatrixView inner = all_of(worker.inner, piece.rows, F);
    widen(share, input_of(index, piece, worker), F, worker);
    if (keeps) {
      const MatrixView gate = all_of(worker.gate, piece.rows, F);
      round_to_bf16(worker.context, gate, kept.gate.data() + first * F);
      round_to_bf16(worker.context, all_of(worker.up, piece.rows, F), kept.up.data() + first * F);
    }
    swiglu(worker.context, inner, all_of(worker.gate, piece.rows, F),
           all_of(worker.up, piece.rows, F));
    const LinearForward down = {
        .w = share.down, .index = share.index, .x = inner, .y = part_of(out, first, piece.rows)};
    worker.maps.forward({&down, 1});
  });

  const MatrixView next = all_of(kept_[static_cast<size_t>(index + 1)].h, T, D);
  context_.threads.run(T, [&](int64_t t, int) {
    const float* shared = out.row(t);
    float* to = next.row(t);
    for (int64_t i = 0; i < D; ++i) to[i] = middle.row(t)[i] + shared[i];
    for (int64_t j = 0; j < chosen; ++j) {
      const float* part = out.row(T + kept.slots[static_cast<size_t>(t * chosen + j)]);
      for (int64_t i = 0; i < D; ++i) to[i] += part[i];
    }
  });
}

// The experts of a panel of tokens, as Decoder::route chooses them, and the sums over it of
// softmax(router logits).
void DecoderPass::choose(int64_t index, int64_t first, ConstMatrixView f, Worker& worker) {
  const int64_t E = config_.experts, chosen = config_.experts_used;
  Kept& kept = kept_[static_cast<size_t>(index)];
  const MatrixView logits = rows_of(kept.router, first, f.rows, E);
  const LinearForward scores = {
      .w = parameters_.layers[static_cast<size_t>(index)].router, .x = f, .y = logits};
  worker.maps.forward({&scores, 1});

  const float* bias = selection_bias_.data() + index * E;
  double* shares = expert_shares_.data() + first / kPanelRows * E;
  std::fill_n(shares, E, 0.0);
  std::vector<int64_t> ranked(static_cast<size_t>(E));
  std::vector<double> powers(static_cast<size_t>(E));
  for (int64_t t = 0; t < f.rows; ++t) {
    const float* l = logits.row(t);
    const double most = *std::max_element(l, l + E);
    double sum = 0;
    for (int64_t e = 0; e < E; ++e) sum += powers[static_cast<size_t>(e)] = std::exp(l[e] - most);
    for (int64_t e = 0; e < E; ++e) shares[e] += powers[static_cast<size_t>(e)] / sum;
    const auto score = [&](int64_t e) {
      const float biased = l[e] + bias[e];
      return std::isnan(biased) ? -std::numeric_limits<float>::infinity() : biased;
    };
    std::iota(ranked.begin(), ranked.end(), 0);
    std::partial_sort(
        ranked.begin(), ranked.begin() + chosen, ranked.end(),
        [&](int64_t a, int64_t b) { return score(a) != score(b) ? score(a) > score(b) : a < b; });
    const auto mine = kept.chosen.begin() + (first + t) * chosen;
    std::copy_n(ranked.begin(), chosen, mine);
    std::sort(mine, mine + chosen);
  }
}

// Gives every choice its slot, experts ascending, and reports how even they are.
void DecoderPass::route(int64_t index) {
  const int64_t T = tokens_, E = config_.experts, chosen = config_.experts_used;
  Kept& kept = kept_[static_cast<size_t>(index)];
  kept.choices.resize(kept.chosen.size());
  kept.slots.resize(kept.chosen.size());
  kept.first.assign(static_cast<size_t>(E + 1), 0);
  for (const int64_t e : kept.chosen) ++kept.first[static_cast<size_t>(e + 1)];
  for (int64_t e = 0; e < E; ++e) {
    const int64_t count = kept.first[static_cast<size_t>(e + 1)];
    double share = 0;
    for (int64_t panel = 0; panel < panels(T); ++panel) {
      share += expert_shares_[static_cast<size_t>(panel * E + e)] / static_cast<double>(T);
    }
    report_.balance += static_cast<double>(E) * share * static_cast<double>(count) /
                       static_cast<double>(T * chosen);
    report_.expert_tokens[static_cast<size_t>(index * E + e)] += count;
    kept.first[static_cast<size_t>(e + 1)] += kept.first[static_cast<size_t>(e)];
  }
  std::vector<int64_t> next(kept.first.begin(), kept.first.end() - 1);
  for (size_t i = 0; i < kept.slots.size(); ++i) {
    kept.slots[i] = next[static_cast<size_t>(kept.chosen[i])]++;
    kept.choices[static_cast<size_t>(kept.slots[i])] = static_cast<int64_t>(i);
  }
}

// f of a piece's rows: of the normed tokens, or copies of those that chose the expert, each times
// its gate, in the worker's memory.
MatrixView DecoderPass::input_of(int64_t index, const Piece& piece, Worker& worker) {
  const int64_t D = config_.hidden, E = config_.experts, chosen = config_.experts_used;
  Kept& kept = kept_[static_cast<size_t>(index)];
  if (piece.share->first < tokens_) return rows_of(kept.f, piece.first, piece.rows, D);
  const MatrixView out = all_of(worker.f, piece.rows, D);
  for (int64_t r = 0; r < piece.rows; ++r) {
    const int64_t slot = piece.share->first - tokens_ + piece.first + r;
    const int64_t choice = kept.choices[static_cast<size_t>(slot)], t = choice / chosen;
    const float* logits = kept.router.data() + t * E;
    const float gate = sigmoid(logits[kept.chosen[static_cast<size_t>(choice)]]);
    const float* f = kept.f.data() + t * D;
    for (int64_t k = 0; k < D; ++k) out.row(r)[k] = gate * f[k];
  }
  return out;
}

// The gradient of what the piece's rows give, from that of the tokens that they belong to.
MatrixView DecoderPass::output_gradient_of(int64_t index, const Piece& piece, Worker& worker) {
  const int64_t D = config_.hidden, chosen = config_.experts_used;
  if (piece.share->first < tokens_) return rows_of(dh_, piece.first, piece.rows, D);
  const MatrixView out = all_of(worker.dout, piece.rows, D);
  const int64_t* choices =
      kept_[static_cast<size_t>(index)].choices.data() + piece.share->first - tokens_ + piece.first;
  for (int64_t r = 0; r < piece.rows; ++r) {
    std::copy_n(dh_.data() + choices[r] / chosen * D, D, out.row(r));
  }
  return out;
}

// dh comes in as the gradient of the next layer's h and becomes that of middle.
void DecoderPass::feed_forward_block_backward(int64_t index) {
  const ModelConfig& c = config_;
  const bool moe = c.layers[static_cast<size_t>(index)].moe;
  const TaughtLayer& w = parameters_.layers[static_cast<size_t>(index)];
  Kept& kept = kept_[static_cast<size_t>(index)];
  const int64_t T = tokens_, D = c.hidden, F = moe ? c.expert_width : c.dense_width;
  const int64_t chosen = moe ? c.experts_used : 0, rows = T * (1 + chosen);
  const MatrixView dh = rows_of(dh_, 0, T, D), df = all_of(dnormed_, rows, D);

  const std::vector<Share> networks = shares(index);
  const auto is_taught = [](const Share& share) {
    return share.gate->taught || share.up->taught || share.down->taught;
  };
  for (const Share& share : networks) {
    if (!is_taught(share)) continue;
    share.turned->resize(GradientForm(context_.isa, *share.gate), share.rows, D, F);
  }
  in_shares(networks, [&](const Piece& piece, Worker& worker) {
    const Share& share = *piece.share;
    Turned& turned = *share.turned;
    const MatrixView f = input_of(index, piece, worker);
    const MatrixView dy = output_gradient_of(index, piece, worker);
    const MatrixView df_here = part_of(df, share.first + piece.first, piece.rows);
    const MatrixView gate = all_of(worker.gate, piece.rows, F);
    const MatrixView up = all_of(worker.up, piece.rows, F);
    const MatrixView inner = all_of(worker.inner, piece.rows, F);
    if (keeps_wide()) {
      const int64_t first = (share.first + piece.first) * F;
      widen_bf16(worker.context, kept.gate.data() + first, gate);
      widen_bf16(worker.context, kept.up.data() + first, up);
    } else {
      widen(share, f, F, worker);
    }
    const LinearBackward down = {
        .w = share.down, .index = share.index, .x = inner, .dy = dy, .dx = inner};
    worker.maps.pass_back({&down, 1});
    swiglu_backward(worker.context, /*dgate=*/gate, /*dup=*/up, /*out=*/inner, inner, gate, up);
    const LinearBackward in[] = {
        {.w = share.gate, .index = share.index, .x = f, .dy = gate, .dx = df_here},
        {.w = share.up, .index = share.index, .x = f, .dy = up, .dx = df_here, .add = true}};
    worker.maps.pass_back(in);
    if (!is_taught(share)) return;
    const auto put = [&](auto& to, ConstMatrixView from) {
      to.put(worker.context, piece.first, from, /*past_caches=*/true);
    };
    put(turned.f, f);
    put(turned.inner, inner);
    put(turned.dgate, gate);
    put(turned.dup, up);
    put(turned.dout, dy);
  });
  std::vector<LinearBackward> maps;
  for (const Share& share : networks) {
    if (!is_taught(share)) continue;
    const auto add = [&](Parameter* w, const TurnedInput& x, const TurnedOutput& dy) {
      LinearBackward& map = maps.emplace_back();
      map.w = w, map.index = share.index, map.turned_x = &x, map.turned_dy = &dy;
    };
    const Turned& turned = *share.turned;
    add(share.down, turned.inner, turned.dout);
    add(share.gate, turned.f, turned.dgate);
    add(share.up, turned.f, turned.dup);
  }
  maps_.add_gradients(maps);
  if (moe) route_backward(index);
  rms_norm_backward(context_, dh, gradient_of(*w.ffn_norm), rows_of(dnormed_, 0, T, D),
                    rows_of(kept.middle, 0, T, D), w.ffn_norm->value.data(), c.norm_eps);
}

// A copy is g f with g = sigmoid(l_e): its gradient dc gives g dc to f, and g (1 - g) dc . f to the
// router's logit l_e, beside what the auxiliary losses say of all logits.
void DecoderPass::route_backward(int64_t index) {
  const ModelConfig& c = config_;
  const int64_t T = tokens_, D = c.hidden, E = c.experts, chosen = c.experts_used;
  const TaughtLayer& w = parameters_.layers[static_cast<size_t>(index)];
  Kept& kept = kept_[static_cast<size_t>(index)];
  const MatrixView f = rows_of(kept.f, 0, T, D), df = rows_of(dnormed_, 0, T * (1 + chosen), D);
  const MatrixView logits = rows_of(kept.router, 0, T, E), dlogits = all_of(drouter_, T, E);
  std::vector<float> share(static_cast<size_t>(E));  // of choices that fell on each expert
  for (int64_t e = 0; e < E; ++e) {
    const int64_t count =
        kept.first[static_cast<size_t>(e + 1)] - kept.first[static_cast<size_t>(e)];
    share[static_cast<size_t>(e)] = static_cast<float>(count) / static_cast<float>(T * chosen);
  }
  const float per_token = scale_ * static_cast<float>(weight_) / static_cast<float>(T);
  const float balance = options_.balance * static_cast<float>(E) * per_token;
  const float z = 2.0f * options_.router_z * per_token;
  context_.threads.run(T, [&](int64_t t, int) {
    const float* l = logits.row(t);
    float* d = dlogits.row(t);
    const float most = *std::max_element(l, l + E);
    float sum = 0, mean_share = 0;
    for (int64_t e = 0; e < E; ++e) sum += d[e] = std::exp(l[e] - most);
    for (int64_t e = 0; e < E; ++e) {
      d[e] /= sum;  // softmax
      mean_share += d[e] * share[static_cast<size_t>(e)];
    }
    const float log_sum = most + std::log(sum);
    for (int64_t e = 0; e < E; ++e) {
      d[e] *= balance * (share[static_cast<size_t>(e)] - mean_share) + z * log_sum;
    }
    // A product over the few columns of E would mostly be sums across lanes.
    float* const df_t = df.row(t);
    const auto add = [&](float scale, const float* row) {
      for (int64_t k = 0; k < D; ++k) df_t[k] += scale * row[k];
    };
    for (int64_t j = 0; j < chosen; ++j) {
      const size_t i = static_cast<size_t>(t * chosen + j);
      const float* dcopy = df.row(T + kept.slots[i]);
      const float gate = sigmoid(l[kept.chosen[i]]);
      add(gate, dcopy);
      d[kept.chosen[i]] += gate * (1.0f - gate) * dot(dcopy, f.row(t), D);
    }
    for (int64_t e = 0; e < E; ++e) add(d[e], w.router->matrix(0) + e * D);
  });
  const LinearBackward scores = {.w = w.router, .x = f, .dy = dlogits, .dx = {}};
  maps_.add_gradients({&scores, 1});
}

// The loss of rows that count, and the gradient of the last h. A row of logits is longer than
// anything else: a thread takes a few from the product to their gradient, and dW is made of as many
// as memory is there for.
void DecoderPass::read_out(const TrainingBatch& batch) {
  const ModelConfig& c = config_;
  const int64_t T = tokens_, D = c.hidden, V = c.vocab, L = c.layer_count();
  AlignedArray<float>& h = kept_[static_cast<size_t>(L)].h;
  const bool learns = scale_ != 0;
  losses_.assign(static_cast<size_t>(T), 0.0f);
  hits_.assign(static_cast<size_t>(T), 0);
  if (learns) {  // rows that do not count
    const MatrixView dh = all_of(dh_, T, D);
    in_panels(T, [&](int64_t first, int64_t count, Worker&) {
      std::fill_n(dh.row(first), count * D, 0.0f);
    });
  }

  std::vector<int64_t> rows;
  for (int64_t t = 0; t < T; ++t) {
    if (batch.weights[static_cast<size_t>(t)] != 0) rows.push_back(t);
  }
  for (size_t begin = 0; begin < rows.size(); begin += kReadOutRows) {
    const int64_t n = std::min<int64_t>(kReadOutRows, static_cast<int64_t>(rows.size() - begin));
    const int64_t* const at = rows.data() + begin;
    const MatrixView last = all_of(out_, 3 * n, D);
    const MatrixView taken{last.row(0), n, D, D}, normed{last.row(n), n, D, D};
    const MatrixView dtaken{last.row(2 * n), n, D, D}, dnormed = all_of(dnormed_, n, D);
    const bool is_taught = learns && parameters_.output->taught;
    if (is_taught) {
      const GradientForm form(context_.isa, *parameters_.output);
      turned_normed_.resize(form, n, D);
      turned_dlogits_.resize(form, n, V);
    }
    std::vector<Token> targets(static_cast<size_t>(n)), best(static_cast<size_t>(n));
    std::vector<float> weights(static_cast<size_t>(n)), losses(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) {
      targets[static_cast<size_t>(i)] = batch.targets[static_cast<size_t>(at[i])];
      weights[static_cast<size_t>(i)] = scale_ * batch.weights[static_cast<size_t>(at[i])];
    }
    const std::vector<RowSpan> pieces =
        pieces_of(n, V <= kNarrowVocabulary ? kFewRows : kPanelRows);
    context_.threads.run(static_cast<int64_t>(pieces.size()), [&](int64_t piece, int index) {
      const auto [first, count] = pieces[static_cast<size_t>(piece)];
      const auto of = [&, first = first, count = count](auto& values) {
        return std::span(values).subspan(static_cast<size_t>(first), static_cast<size_t>(count));
      };
      Worker& worker = workers_[static_cast<size_t>(index)];
      const MatrixView x = part_of(normed, first, count), logits = all_of(worker.logits, count, V);
      for (int64_t i = first; i < first + count; ++i) {
        std::copy_n(h.data() + at[i] * D, D, taken.row(i));
      }
      rms_norm(worker.context, x, part_of(taken, first, count),
               parameters_.output_norm->value.data(), c.norm_eps);
      const LinearForward output = {.w = parameters_.output, .x = x, .y = logits};
      worker.maps.forward({&output, 1});
      cross_entropy(worker.context, logits, of(targets), of(weights), of(losses), of(best));
      if (!learns) return;
      const LinearBackward back = {
          .w = parameters_.output, .x = x, .dy = logits, .dx = part_of(dnormed, first, count)};
      worker.maps.pass_back({&back, 1});
      if (!is_taught) return;
      turned_normed_.put(worker.context, first, x, /*past_caches=*/true);
      turned_dlogits_.put(worker.context, first, logits, /*past_caches=*/true);
    });
    for (int64_t i = 0; i < n; ++i) {
      const double weight = batch.weights[static_cast<size_t>(at[i])];
      losses_[static_cast<size_t>(at[i])] = losses[static_cast<size_t>(i)];
      report_.loss += weight * losses[static_cast<size_t>(i)];
      const bool hit = best[static_cast<size_t>(i)] == targets[static_cast<size_t>(i)];
      hits_[static_cast<size_t>(at[i])] = hit ? 1 : 0;
      if (hit) report_.correct += weight;
    }
    if (!learns) continue;
    if (is_taught) {
      LinearBackward map;
      map.w = parameters_.output;
      map.turned_x = &turned_normed_, map.turned_dy = &turned_dlogits_;
      maps_.add_gradients({&map, 1});
    }
    in_panels(n, [&](int64_t first, int64_t count, Worker&) {
      std::fill_n(dtaken.row(first), count * D, 0.0f);
    });
    rms_norm_backward(context_, dtaken, gradient_of(*parameters_.output_norm), dnormed, taken,
                      parameters_.output_norm->value.data(), c.norm_eps);
    in_panels(n, [&](int64_t first, int64_t count, Worker&) {
      for (int64_t i = first; i < first + count; ++i) {
        std::copy_n(dtaken.row(i), D, dh_.data() + at[i] * D);
      }
    });
  }
}

}  // namespace drover
