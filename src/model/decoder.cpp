#include "model/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "kernels/attention/attention.h"
#include "kernels/math/exp.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/swiglu/swiglu.h"
#include "tensor/dequantize.h"

namespace drover {
namespace {

MatrixView rows_of(AlignedArray<float>& array, int64_t first, int64_t rows, int64_t cols) {
  return {array.data() + first * cols, rows, cols, cols};
}

// x += y, row by row.
void add(Context& context, MatrixView x, ConstMatrixView y) {
  context.threads.run(x.rows, [&](int64_t t, int) {
    float* to = x.row(t);
    const float* from = y.row(t);
    for (int64_t i = 0; i < x.cols; ++i) to[i] += from[i];
  });
}

bool any_quantized(std::initializer_list<DType> types) {
  return std::any_of(types.begin(), types.end(), is_quantized);
}

}  // namespace

Decoder::Decoder(Context& context, const ModelConfig& config, const Weights& weights,
                 Shortcuts shortcuts)
    : context_(context),
      config_(config),
      weights_(weights),
      shortcuts_(shortcuts),
      tail_(config.cache_layout(DType::kF32).tail()),
      expert_tokens_(static_cast<size_t>(config.layer_count() * config.experts)) {}

bool Decoder::forward(std::span<const SequenceSlice> slices, MatrixView logits,
                      const std::function<bool(int64_t)>& between_layers) {
  plan(slices);
  if (tokens_ == 0) return true;
  embed(slices);
  for (const SequenceSlice& slice : slices) slice.cache->begin_store();
  for (int64_t layer = 0; layer < config_.layer_count() && tokens_ > 0; ++layer) {
    if (layer > 0 && between_layers && !between_layers(layer)) return false;
    attention_block(slices, layer);
    if (tokens_ > 0) feed_forward_block(layer);
  }
  read_out(slices, logits);
  for (const SequenceSlice& slice : slices) {
    slice.cache->advance(static_cast<int64_t>(slice.tokens.size()), live_from(slice));
  }
  return true;
}

MatmulJob Decoder::job(ConstMatrixView x, int64_t first, WeightView w, MatrixView out) const {
  if (observer_ != nullptr) observer_->see(w, x);
  return {x, is_quantized(w.type) ? &int8_ : nullptr, first, w, out};
}

void Decoder::multiply_all(std::span<const MatmulJob> jobs) {
  matmul(context_, jobs);
  weights_.adapter.add(context_, jobs, adapted_);
}

// Checks the slices, takes cache memory, and cuts each slice at chunk borders. A chunked layer runs
// wave after wave: the ring of a sequence must give up one chunk before it can hold the next.
void Decoder::plan(std::span<const SequenceSlice> slices) {
  tokens_ = 0;
  kept_.clear();
  positions_.clear();
  waves_.clear();
  for (size_t slice_index = 0; slice_index < slices.size(); ++slice_index) {
    const SequenceSlice& slice = slices[slice_index];
    for (const Token token : slice.tokens) {
      if (token < 0 || token >= config_.vocab) {
        throw_error(ErrorKind::kBadData, "token: expected 0 to {}, got {}", config_.vocab - 1,
                    token);
      }
    }
    const int64_t count = static_cast<int64_t>(slice.tokens.size());
    DROVER_CHECK(slice.logits >= 0 && slice.wanted() <= count);
    DROVER_CHECK(slice.states.rows == 0 || slice.states.cols == config_.hidden);
    DROVER_CHECK(slice.embeddings.empty() || slice.embeddings.size() == slice.tokens.size());
    slice.cache->reserve(count);
    kept_.push_back(count);
    int64_t position = slice.cache->length();
    const int64_t end = position + count;
    // A token whose tail is needed must find that of its chunk before it.
    DROVER_CHECK(slice.cache->ring_complete() ||
                 end - needed_in_tail(slice) >= config_.chunk * (position / config_.chunk + 1) ||
                 needed_in_tail(slice) == 0);
    for (size_t wave = 0; position < end; ++wave) {
      const int64_t border =
          config_.chunk > 0 ? (position / config_.chunk + 1) * config_.chunk : end;
      const int64_t n = std::min(border, end) - position;
      if (wave == waves_.size()) waves_.emplace_back();
      waves_[wave].push_back({slice_index, slice.cache, tokens_, n, position});
      for (int64_t i = 0; i < n; ++i) positions_.push_back(position + i);
      tokens_ += n;
      position += n;
    }
  }
  reserve_activations();
  fill_rotations();
}

void Decoder::reserve_activations() {
  const ModelConfig& c = config_;
  const int64_t copies = tokens_ * (1 + c.experts_used);
  const int64_t width = std::max(tokens_ * c.dense_width, copies * c.expert_width);
  h_.reserve_discarding(tokens_ * c.hidden);
  normed_.reserve_discarding(copies * c.hidden);
  q_.reserve_discarding(tokens_ * c.heads * c.head_dim);
  k_.reserve_discarding(tokens_ * c.kv_heads * c.head_dim);
  v_.reserve_discarding(tokens_ * c.kv_heads * c.head_dim);
  mixed_.reserve_discarding(tokens_ * c.heads * c.head_dim);
  gate_.reserve_discarding(width);
  up_.reserve_discarding(width);
  out_.reserve_discarding(copies * c.hidden);
  router_.reserve_discarding(tokens_ * c.experts);
}

void Decoder::fill_rotations() {
  const ModelConfig& c = config_;
  const auto any_rope_layer = [&](bool chunked) {
    return std::any_of(c.layers.begin(), c.layers.end(), [&](const LayerConfig& layer) {
      return layer.rope && layer.chunked == chunked;
    });
  };
  if (any_rope_layer(/*chunked=*/false)) rope_absolute_.fill(positions_, c.rope_frequencies);
  if (any_rope_layer(/*chunked=*/true)) {
    // Only differences of positions matter inside a chunk. Taken modulo the chunk they stay small,
    // where float32 angles are exact enough at any length of context.
    std::vector<int64_t> in_chunk = positions_;
    for (int64_t& p : in_chunk) p %= shortcuts_.positions_in_chunk ? c.chunk : INT64_MAX;
    rope_in_chunk_.fill(in_chunk, c.rope_frequencies);
  }
}

// From this position on all layers are computed: where a chunk begins.
int64_t Decoder::live_from(const SequenceSlice& slice) const {
  if (!shortcuts_.dead_prefill || config_.chunk == 0) return 0;
  return slice.live / config_.chunk * config_.chunk;
}

// How many of a slice's last tokens the tail of the layers is computed for.
int64_t Decoder::needed_in_tail(const SequenceSlice& slice) const {
  const int64_t count = static_cast<int64_t>(slice.tokens.size());
  const int64_t end = slice.cache->length() + count;
  return std::max(slice.wanted(), std::clamp<int64_t>(end - live_from(slice), 0, count));
}

// How many of a slice's last tokens are needed once this layer has their keys and values.
int64_t Decoder::needed_after_keys(const SequenceSlice& slice, int64_t layer) const {
  if (!shortcuts_.dead_prefill || layer + 1 < tail_) {
    return static_cast<int64_t>(slice.tokens.size());
  }
  return layer + 1 == config_.layer_count() ? slice.wanted() : needed_in_tail(slice);
}

// Drops the rows of tokens that are not needed any more: of slice s all but its last needed[s].
void Decoder::keep_rows(std::span<const SequenceSlice> slices, std::span<const int64_t> needed) {
  const int64_t hidden = config_.hidden;
  std::vector<int64_t> first_row;
  int64_t from = 0, to = 0;
  for (size_t s = 0; s < slices.size(); ++s) {
    first_row.push_back(to);
    from += kept_[s] - needed[s];
    for (int64_t i = 0; i < needed[s]; ++i, ++from, ++to) {
      std::memmove(h_.data() + to * hidden, h_.data() + from * hidden, hidden * sizeof(float));
      std::memmove(normed_.data() + to * hidden, normed_.data() + from * hidden,
                   hidden * sizeof(float));
      positions_[to] = positions_[from];
    }
  }
  tokens_ = to;
  positions_.resize(static_cast<size_t>(to));
  kept_.assign(needed.begin(), needed.end());
  for (std::vector<Segment>& wave : waves_) {
    for (Segment& segment : wave) {
      const SequenceSlice& slice = slices[segment.slice];
      const int64_t end = segment.position + segment.count;
      const int64_t first =
          slice.cache->length() + static_cast<int64_t>(slice.tokens.size()) - needed[segment.slice];
      segment.position = std::max(segment.position, first);
      segment.count = end - segment.position;
      segment.row = first_row[segment.slice] + segment.position - first;
    }
    std::erase_if(wave, [](const Segment& segment) { return segment.count <= 0; });
  }
  fill_rotations();
}

void Decoder::embed(std::span<const SequenceSlice> slices) {
  const WeightView& table = weights_.embedding;
  int64_t row = 0;
  for (const SequenceSlice& slice : slices) {
    for (size_t i = 0; i < slice.tokens.size(); ++i) {
      float* h = h_.data() + row++ * config_.hidden;
      if (!slice.embeddings.empty() && slice.embeddings[i] != nullptr) {
        std::copy_n(slice.embeddings[i], config_.hidden, h);
      } else {
        dequantize_row(table.type, table.row(slice.tokens[i]),
                       {h, static_cast<size_t>(config_.hidden)});
      }
    }
  }
}

// h += Wo attention(Wq a, Wk a, Wv a),  a = norm(h)
void Decoder::attention_block(std::span<const SequenceSlice> slices, int64_t index) {
  const ModelConfig& c = config_;
  const LayerConfig& layer = c.layers[index];
  const LayerWeights& w = weights_.layers[index];
  const MatrixView k = rows_of(k_, 0, tokens_, c.kv_heads * c.head_dim);
  const MatrixView v = rows_of(v_, 0, tokens_, c.kv_heads * c.head_dim);
  std::vector<int64_t> needed;
  for (const SequenceSlice& slice : slices) needed.push_back(needed_after_keys(slice, index));
  const bool all = needed == kept_;

  // What is about to be multiplied, of the rows at hand.
  const auto normed = [&] { return rows_of(normed_, 0, tokens_, c.hidden); };
  const auto queries = [&] { return rows_of(q_, 0, tokens_, c.heads * c.head_dim); };
  const auto project = [&](std::initializer_list<std::pair<const WeightView*, MatrixView>> maps) {
    bool quantized = false;
    for (const auto& [map, out] : maps) quantized = quantized || is_quantized(map->type);
    if (quantized) quantize_rows(context_, normed(), int8_);
    std::vector<MatmulJob> jobs;
    for (const auto& [map, out] : maps) jobs.push_back(job(normed(), 0, *map, out));
    multiply_all(jobs);
  };
  const auto rotate = [&](MatrixView x) {
    if (!layer.rope) return;
    rope(context_, {x}, layer.chunked ? rope_in_chunk_ : rope_absolute_);
    if (c.qk_norm) rms_norm_heads(context_, x, c.head_dim, c.norm_eps);
  };

  rms_norm(context_, normed(), rows_of(h_, 0, tokens_, c.hidden), w.attention_norm, c.norm_eps);
  if (all) {
    project({{&w.wq, queries()}, {&w.wk, k}, {&w.wv, v}});
    rotate(k);
    rotate(queries());
    tune(layer, queries());
    store_and_attend(slices, index, waves_, k, v);
  } else {
    project({{&w.wk, k}, {&w.wv, v}});
    rotate(k);
    const Waves stored = waves_;
    keep_rows(slices, needed);
    if (tokens_ > 0) {
      project({{&w.wq, queries()}});
      rotate(queries());
      tune(layer, queries());
    }
    store_and_attend(slices, index, stored, k, v);
    if (tokens_ == 0) return;
  }

  const MatrixView mixed = rows_of(mixed_, 0, tokens_, c.heads * c.head_dim);
  const MatrixView out = rows_of(out_, 0, tokens_, c.hidden);
  if (is_quantized(w.wo.type)) quantize_rows(context_, mixed, int8_);
  const MatmulJob output[] = {job(mixed, 0, w.wo, out)};
  multiply_all(output);
  add(context_, rows_of(h_, 0, tokens_, c.hidden), out);
}

// Queries of layers without positions grow with theirs.
void Decoder::tune(const LayerConfig& layer, MatrixView q) {
  if (layer.rope || !config_.temperature_tuning) return;
  context_.threads.run(q.rows, [&](int64_t t, int) {
    const float scale = query_temperature(config_, positions_[t]);
    for (int64_t i = 0; i < q.cols; ++i) q.row(t)[i] *= scale;
  });
}

// Stores keys and values, whose rows `stored` tells, and lets the rows of the batch attend, in an
// order that each kind of layer allows: wave after wave in a ring, all at once elsewhere.
void Decoder::store_and_attend(std::span<const SequenceSlice> slices, int64_t index,
                               const Waves& stored, MatrixView k, MatrixView v) {
  const ModelConfig& c = config_;
  const int64_t q_cols = c.heads * c.head_dim;
  const bool choosing = choice_.has_value() && !c.layers[index].chunked;
  std::vector<KvStoreJob> stores;
  std::vector<BoundKeysJob> bounds;
  std::vector<AttentionJob> jobs;
  std::vector<PageVisits> visits;
  const auto run = [&](std::span<const Segment> attending) {
    store_kv(context_, stores);
    if (choosing) bound_keys(context_, bounds);
    visits.resize(attending.size());
    for (size_t i = 0; i < attending.size(); ++i) {
      const Segment& s = attending[i];
      jobs.push_back({rows_of(q_, s.row, s.count, q_cols), s.cache->pages(index),
                      s.cache->slot(index, s.position), rows_of(mixed_, s.row, s.count, q_cols)});
      if (!choosing) continue;
      jobs.back().choice = &*choice_;
      jobs.back().visits = &visits[i];
    }
    attention(context_, jobs);
    for (size_t i = 0; choosing && i < attending.size(); ++i) {
      PageVisits* sum = slices[attending[i].slice].visits;
      if (sum == nullptr) continue;
      sum->visited += visits[i].visited;
      sum->seen += visits[i].seen;
      sum->kept = std::min(sum->kept, visits[i].kept);
    }
    stores.clear();
    jobs.clear();
  };
  std::vector<Segment> attending;
  for (size_t wave = 0; wave < stored.size(); ++wave) {
    for (const Segment& s : stored[wave]) {
      stores.push_back({s.cache->pages(index),
                        s.cache->slot(index, s.position),
                        {k.row(s.row), s.count, k.cols, k.stride},
                        {v.row(s.row), s.count, v.cols, v.stride}});
      if (choosing) bounds.push_back(s.cache->bounds_to_make(index, s.position + s.count));
    }
    if (c.layers[index].chunked) {
      run(waves_[wave]);
    } else {
      attending.insert(attending.end(), waves_[wave].begin(), waves_[wave].end());
    }
  }
  if (!c.layers[index].chunked) run(attending);
}

// h += shared(f) + sum over chosen experts e of expert_e(sigmoid(l_e) f),  f = norm(h)
//
// A dense layer is the same with its one network as the shared part and no expert. All rows that
// some network works on stand in one matrix: the T normed tokens, then the gated copies that
// route() made, grouped by expert. So each network is one job over consecutive rows.
void Decoder::feed_forward_block(int64_t index) {
  const ModelConfig& c = config_;
  const LayerWeights& w = weights_.layers[index];
  const bool moe = c.layers[index].moe;
  const MatrixView h = rows_of(h_, 0, tokens_, c.hidden);
  rms_norm(context_, rows_of(normed_, 0, tokens_, c.hidden), h, w.ffn_norm, c.norm_eps);
  if (moe) route(w);

  const int64_t experts = moe ? c.experts : 0;
  const int64_t chosen = moe ? c.experts_used : 0;
  const int64_t rows = tokens_ * (1 + chosen);
  const int64_t width = moe ? c.expert_width : c.dense_width;
  const MatrixView f = rows_of(normed_, 0, rows, c.hidden);
  const MatrixView gate = rows_of(gate_, 0, rows, width);
  const MatrixView up = rows_of(up_, 0, rows, width);
  const MatrixView out = rows_of(out_, 0, rows, c.hidden);
  std::vector<MatmulJob> jobs;
  // One network's product: rows [first, first + n) of x times its weights.
  const auto multiply = [&](MatrixView x, int64_t first, int64_t n, WeightView weight,
                            MatrixView y) {
    if (n == 0) return;
    jobs.push_back(job({x.row(first), n, x.cols, x.stride}, first, weight,
                       {y.row(first), n, y.cols, y.stride}));
  };
  const auto expert_rows = [&](int64_t e) { return expert_first_[e + 1] - expert_first_[e]; };
  for (int64_t e = 0; e < experts; ++e) expert_tokens_[index * experts + e] += expert_rows(e);

  if (any_quantized({w.gate.type, w.up.type, w.expert_gate.type, w.expert_up.type})) {
    quantize_rows(context_, f, int8_);
  }
  multiply(f, 0, tokens_, w.gate, gate);
  multiply(f, 0, tokens_, w.up, up);
  for (int64_t e = 0; e < experts; ++e) {
    multiply(f, tokens_ + expert_first_[e], expert_rows(e), w.expert_gate.expert(e), gate);
    multiply(f, tokens_ + expert_first_[e], expert_rows(e), w.expert_up.expert(e), up);
  }
  multiply_all(jobs);
  swiglu(context_, gate, up);

  jobs.clear();
  if (any_quantized({w.down.type, w.expert_down.type})) quantize_rows(context_, gate, int8_);
  multiply(gate, 0, tokens_, w.down, out);
  for (int64_t e = 0; e < experts; ++e) {
    multiply(gate, tokens_ + expert_first_[e], expert_rows(e), w.expert_down.expert(e), out);
  }
  multiply_all(jobs);

  context_.threads.run(tokens_, [&](int64_t t, int) {
    float* sum = out.row(t);
    for (int64_t j = 0; j < chosen; ++j) {
      const float* part = out.row(tokens_ + slots_[t * chosen + j]);
      for (int64_t i = 0; i < c.hidden; ++i) sum[i] += part[i];
    }
    for (int64_t i = 0; i < c.hidden; ++i) h.row(t)[i] += sum[i];
  });
}

// Chooses each token's experts and lays out their inputs: row T + slot of normed_ becomes
// sigmoid(l_e) f, slots of one expert consecutive and in order of token. Spec section 3.1; of equal
// router logits the expert of lowest index wins.
void Decoder::route(const LayerWeights& w) {
  const int64_t experts = config_.experts, chosen = config_.experts_used, hidden = config_.hidden;
  const MatrixView f = rows_of(normed_, 0, tokens_, hidden);
  const MatrixView logits = rows_of(router_, 0, tokens_, experts);
  if (is_quantized(w.router.type)) quantize_rows(context_, f, int8_);
  const MatmulJob scores[] = {job(f, 0, w.router, logits)};
  multiply_all(scores);

  ranked_.resize(experts);
  chosen_.resize(tokens_ * chosen);
  expert_first_.assign(experts + 1, 0);
  for (int64_t t = 0; t < tokens_; ++t) {
    const auto mine = chosen_.begin() + t * chosen;
    std::iota(ranked_.begin(), ranked_.end(), 0);
    // A NaN counts as the smallest of all, so that there is an order.
    const auto score = [&](int64_t e) {
      const float l = logits.row(t)[e];
      return std::isnan(l) ? -std::numeric_limits<float>::infinity() : l;
    };
    std::partial_sort(
        ranked_.begin(), ranked_.begin() + chosen, ranked_.end(),
        [&](int64_t a, int64_t b) { return score(a) != score(b) ? score(a) > score(b) : a < b; });
    std::copy_n(ranked_.begin(), chosen, mine);
    std::sort(mine, mine + chosen);  // the order in which their outputs are summed
    for (int64_t j = 0; j < chosen; ++j) ++expert_first_[mine[j] + 1];
  }
  for (int64_t e = 0; e < experts; ++e) expert_first_[e + 1] += expert_first_[e];

  slots_.resize(tokens_ * chosen);
  std::vector<int64_t> next(expert_first_.begin(), expert_first_.end() - 1);
  for (int64_t i = 0; i < tokens_ * chosen; ++i) slots_[i] = next[chosen_[i]]++;

  context_.threads.run(tokens_ * chosen, [&](int64_t i, int) {
    const int64_t t = i / chosen;
    const float gate = 1.0f / (1.0f + exp_of(-logits.row(t)[chosen_[i]]));
    const float* from = f.row(t);
    float* to = normed_.data() + (tokens_ + slots_[i]) * hidden;
    for (int64_t k = 0; k < hidden; ++k) to[k] = gate * from[k];
  });
}

// logits = output(norm(h)), and states = norm(h), for the last tokens of each slice that ask for
// them.
void Decoder::read_out(std::span<const SequenceSlice> slices, MatrixView logits) {
  int64_t wanted = 0, end = 0;
  for (size_t s = 0; s < slices.size(); ++s) {
    end += kept_[s];
    if (const MatrixView states = slices[s].states; states.rows > 0) {
      rms_norm(context_, states, rows_of(h_, end - states.rows, states.rows, config_.hidden),
               weights_.output_norm, config_.norm_eps);
    }
    for (int64_t row = end - slices[s].logits; row < end; ++row) {
      std::copy_n(h_.data() + row * config_.hidden, config_.hidden,
                  out_.data() + wanted++ * config_.hidden);
    }
  }
  DROVER_CHECK(logits.rows == wanted && (wanted == 0 || logits.cols == config_.vocab));
  if (wanted == 0) return;
  const MatrixView last = rows_of(normed_, 0, wanted, config_.hidden);
  rms_norm(context_, last, rows_of(out_, 0, wanted, config_.hidden), weights_.output_norm,
           config_.norm_eps);
  if (is_quantized(weights_.output.type)) quantize_rows(context_, last, int8_);
  const MatmulJob output[] = {job(last, 0, weights_.output, logits)};
  multiply_all(output);
}

}  // namespace drover
