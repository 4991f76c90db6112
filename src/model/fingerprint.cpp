#include "model/fingerprint.h"

#include <array>
#include <bit>
#include <span>

#include "base/mapped_file.h"

namespace drover {
namespace {

constexpr int64_t kBlockBytes = 4096;
constexpr int64_t kBlocks = 32;

// Every value comes with its name before it, so that neither a shift nor an absent one goes unseen.
class Print {
 public:
  explicit Print(std::string_view kind) { hash_.update_text(kind); }

  void number(std::string_view name, int64_t value) {
    hash_.update_text(name);
    hash_.update_number(value);
  }
  void real(std::string_view name, double value) { number(name, std::bit_cast<int64_t>(value)); }
  void text(std::string_view name, std::string_view value) {
    hash_.update_text(name);
    hash_.update_text(value);
  }

  void data(std::string_view name, const std::byte* data, int64_t bytes) {
    number(name, bytes);
    if (bytes <= kBlocks * kBlockBytes) {
      hash_.update({data, static_cast<size_t>(bytes)});
      return;
    }
    // The disk is asked for all of them at once: one after the other they would take seconds.
    std::array<std::span<const std::byte>, kBlocks> blocks;
    for (int64_t i = 0; i < kBlocks; ++i) {
      // last * i / 31, without overflow
      const int64_t last = bytes - kBlockBytes;
      const int64_t at = last / (kBlocks - 1) * i + last % (kBlocks - 1) * i / (kBlocks - 1);
      blocks[static_cast<size_t>(i)] = {data + at, static_cast<size_t>(kBlockBytes)};
    }
    for (const auto& block : blocks) MappedFile::will_need(block);
    for (const auto& block : blocks) hash_.update(block);
  }
  void floats(std::string_view name, const float* values, int64_t count) {
    data(name, reinterpret_cast<const std::byte*>(values),
         values == nullptr ? 0 : count * static_cast<int64_t>(sizeof(float)));
  }
  void matrices(std::string_view name, const std::byte* from, DType type, int64_t experts,
                int64_t rows, int64_t cols) {
    if (from == nullptr) return number(name, -1);
    text(name, dtype_name(type));
    for (const int64_t size : {experts, rows, cols}) hash_.update_number(size);
    data("data", from, experts * rows * row_bytes(type, cols));
  }
  void matrix(std::string_view name, const WeightView& w) {
    matrices(name, w.data, w.type, 1, w.rows, w.cols);
  }
  void experts(std::string_view name, const ExpertsView& w) {
    matrices(name, w.data, w.type, w.experts, w.rows, w.cols);
  }

  Digest finish() { return hash_.finish(); }

 private:
  Sha256 hash_;
};

void add(Print& print, const ModelConfig& c) {
  print.text("architecture", c.architecture);
  print.number("vocab", c.vocab);
  print.number("hidden", c.hidden);
  print.number("heads", c.heads);
  print.number("kv_heads", c.kv_heads);
  print.number("head_dim", c.head_dim);
  print.number("dense_width", c.dense_width);
  print.number("expert_width", c.expert_width);
  print.number("experts", c.experts);
  print.number("experts_used", c.experts_used);
  print.real("norm_eps", c.norm_eps);
  print.number("layers", c.layer_count());
  for (const LayerConfig& layer : c.layers) {
    print.number("layer", layer.rope * 4 + layer.chunked * 2 + layer.moe);
  }
  print.number("chunk", c.chunk);
  print.number("qk_norm", c.qk_norm);
  print.number("temperature_tuning", c.temperature_tuning);
  if (c.temperature_tuning) {
    print.real("floor_scale", c.floor_scale);
    print.real("attn_scale", c.attn_scale);
  }
  // Base and scaling are in these.
  print.floats("rope_frequencies", c.rope_frequencies.data(), std::ssize(c.rope_frequencies));
}

void add(Print& print, const ModelConfig& c, const Weights& w) {
  print.matrix("embedding", w.embedding);
  for (const LayerWeights& layer : w.layers) {
    print.floats("attention_norm", layer.attention_norm, c.hidden);
    print.matrix("wq", layer.wq);
    print.matrix("wk", layer.wk);
    print.matrix("wv", layer.wv);
    print.matrix("wo", layer.wo);
    print.floats("ffn_norm", layer.ffn_norm, c.hidden);
    print.matrix("gate", layer.gate);
    print.matrix("up", layer.up);
    print.matrix("down", layer.down);
    print.matrix("router", layer.router);
    print.experts("expert_gate", layer.expert_gate);
    print.experts("expert_up", layer.expert_up);
    print.experts("expert_down", layer.expert_down);
  }
  print.floats("output_norm", w.output_norm, c.hidden);
  print.matrix("output", w.output);
  for (const auto& [tensor, factors] : w.adapter.factors()) {
    print.text("adapted", tensor);
    print.experts("a", factors.a);
    print.experts("b", factors.b);
  }
}

void add(Print& print, const VisionConfig& c) {
  print.number("tile", c.tiles.size);
  print.number("max_tiles", c.tiles.max_tiles);
  print.number("fill_canvas", c.tiles.fill_canvas);
  print.floats("mean", c.mean, 3);
  print.floats("std", c.std, 3);
  print.number("patch", c.patch);
  print.number("hidden", c.hidden);
  print.number("heads", c.heads);
  print.number("width", c.width);
  print.number("layers", c.layer_count);
  print.number("shuffle", c.shuffle);
  print.number("adapter", c.adapter);
  print.number("embedding", c.embedding);
  print.real("norm_eps", c.norm_eps);
  print.real("rope_theta", c.rope_theta);
  print.number("patch_token", c.patch_token.value_or(-1));
}

void add(Print& print, const VisionConfig& c, const VisionWeights& w) {
  const auto map = [&](std::string_view name, const BiasedMap& m) {
    print.matrix(name, m.weight);
    print.floats("bias", m.bias, m.weight.rows);
  };
  const auto norm = [&](std::string_view name, const LayerNormWeights& n) {
    print.floats(name, n.weight, c.hidden);
    print.floats("bias", n.bias, c.hidden);
  };
  print.matrix("patch_embedding", w.patch_embedding);
  print.floats("class_embedding", w.class_embedding, c.hidden);
  print.floats("position_embedding", w.position_embedding, c.rows() * c.hidden);
  norm("pre_norm", w.pre_norm);
  for (const VisionLayerWeights& layer : w.layers) {
    norm("attention_norm", layer.attention_norm);
    map("wq", layer.wq);
    map("wk", layer.wk);
    map("wv", layer.wv);
    map("wo", layer.wo);
    norm("ffn_norm", layer.ffn_norm);
    map("fc1", layer.fc1);
    map("fc2", layer.fc2);
  }
  norm("post_norm", w.post_norm);
  print.matrix("adapter_fc1", w.adapter_fc1);
  print.matrix("adapter_fc2", w.adapter_fc2);
  print.matrix("projector", w.projector);
}

}  // namespace

Digest fingerprint(const ModelConfig& config, const Weights& weights, const Vision* vision) {
  Print print("drover model 1");
  add(print, config);
  add(print, config, weights);
  print.number("vision", vision != nullptr);
  if (vision != nullptr) {
    add(print, vision->config);
    add(print, vision->config, vision->weights);
  }
  return print.finish();
}

Digest fingerprint(const Model& model) {
  return fingerprint(model.config(), model.weights(),
                     model.has_vision() ? &model.vision() : nullptr);
}

Digest fingerprint(const Vocabulary& vocabulary) {
  Print print("drover tokenizer 1");
  print.text("pre", pre_tokenizer_name(vocabulary.pre));
  print.number("ignore_merges", vocabulary.ignore_merges);
  print.number("add_bos", vocabulary.add_bos);
  print.number("bos", vocabulary.bos.value_or(-1));
  print.number("eos", vocabulary.eos.value_or(-1));
  print.number("pad", vocabulary.pad.value_or(-1));
  print.number("tokens", std::ssize(vocabulary.tokens));
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    print.text("", vocabulary.tokens[i]);
    print.number("", static_cast<int64_t>(vocabulary.kinds[i]));
  }
  print.number("merges", std::ssize(vocabulary.merges));
  for (const auto& [left, right] : vocabulary.merges) {
    print.number("", left);
    print.number("", right);
  }
  return print.finish();
}

}  // namespace drover
