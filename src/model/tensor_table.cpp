#include "model/tensor_table.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "base/error.h"
#include "formats/huggingface.h"

namespace drover {

using Layout = TensorSource::Layout;

std::string layer_tensor(int64_t layer, std::string_view part) {
  return fmt::format("blk.{}.{}.weight", layer, part);
}

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

std::vector<int64_t> ExpectedTensor::huggingface_shape() const {
  if (layout != Layout::kExperts) return shape;
  // Gate and up are one tensor.
  const int64_t joined = huggingface.ends_with("gate_up_proj") ? 2 : 1;
  return {shape[0], shape[2], joined * shape[1]};
}

std::vector<ExpectedTensor> expected_tensors(const ModelConfig& c) {
  const int64_t D = c.hidden, F = c.expert_width, M = c.dense_width, E = c.experts;
  const bool llama = c.architecture == "llama";
  const Layout rotated = llama ? Layout::kHalfSplit : Layout::kAsIs;
  std::vector<ExpectedTensor> out = {{"token_embd.weight", {c.vocab, D}, "embed_tokens.weight"}};
  for (int64_t i = 0; i < c.layer_count(); ++i) {
    const auto add = [&](std::string_view part, std::vector<int64_t> shape, std::string_view other,
                         Layout layout = Layout::kAsIs) {
      out.push_back(
          {layer_tensor(i, part), std::move(shape), fmt::format("layers.{}.{}", i, other), layout});
    };
    add("attn_norm", {D}, "input_layernorm.weight");
    add("attn_q", {c.heads * c.head_dim, D}, "self_attn.q_proj.weight", rotated);
    add("attn_k", {c.kv_heads * c.head_dim, D}, "self_attn.k_proj.weight", rotated);
    add("attn_v", {c.kv_heads * c.head_dim, D}, "self_attn.v_proj.weight");
    add("attn_output", {D, c.heads * c.head_dim}, "self_attn.o_proj.weight");
    add("ffn_norm", {D}, "post_attention_layernorm.weight");
    if (c.layers[i].moe) {
      add("ffn_gate_inp", {E, D}, "feed_forward.router.weight");
      add("ffn_gate_exps", {E, F, D}, "feed_forward.experts.gate_up_proj", Layout::kExperts);
      add("ffn_up_exps", {E, F, D}, "feed_forward.experts.gate_up_proj", Layout::kExperts);
      add("ffn_down_exps", {E, D, F}, "feed_forward.experts.down_proj", Layout::kExperts);
      add("ffn_gate_shexp", {F, D}, "feed_forward.shared_expert.gate_proj.weight");
      add("ffn_up_shexp", {F, D}, "feed_forward.shared_expert.up_proj.weight");
      add("ffn_down_shexp", {D, F}, "feed_forward.shared_expert.down_proj.weight");
    } else {
      const std::string network = llama ? "mlp." : "feed_forward.";
      add("ffn_gate", {M, D}, network + "gate_proj.weight");
      add("ffn_up", {M, D}, network + "up_proj.weight");
      add("ffn_down", {D, M}, network + "down_proj.weight");
    }
  }
  out.push_back({"output_norm.weight", {D}, "norm.weight"});
  if (!c.tied_embeddings) {
    out.push_back({std::string(kOutputTensor), {c.vocab, D}, "lm_head.weight"});
  }
  return out;
}

std::vector<TensorSource> decoder_tensors(const HuggingfaceFolder& folder, const ModelConfig& c) {
  std::string_view prefix;
  const NamedTensor* embedding = nullptr;
  for (const std::string_view candidate : kDecoderPrefixes) {
    embedding = folder.weights.find(std::string(candidate) + "embed_tokens.weight");
    prefix = candidate;
    if (embedding != nullptr) break;
  }
  if (embedding == nullptr) {
    throw_error(ErrorKind::kBadData, "{}: expected a tensor 'model.embed_tokens.weight', got none",
                folder.path.string());
  }

  std::vector<TensorSource> out;
  std::unordered_map<std::string_view, bool> used;
  for (const ExpectedTensor& expected : expected_tensors(c)) {
    std::string name = std::string(prefix) + expected.huggingface;
    if (expected.name == kOutputTensor) {
      name = expected.huggingface;
      const std::string inside = "language_model." + name;
      if (folder.weights.find(inside) != nullptr) name = inside;
    }
    const NamedTensor* tensor = folder.weights.find(name);
    if (tensor == nullptr) {
      throw_error(ErrorKind::kBadData, "{}: expected a tensor '{}' {}, got none",
                  folder.path.string(), name, shape_text(expected.shape));
    }
    TensorSource source{
        .name = expected.name, .shape = expected.shape, .from = tensor, .layout = expected.layout};
    if (source.layout == Layout::kHalfSplit) source.heads = source.shape[0] / c.head_dim;
    if (source.name.ends_with("ffn_up_exps.weight")) source.first_column = c.expert_width;
    if (const auto stored = expected.huggingface_shape(); tensor->shape != stored) {
      throw_error(ErrorKind::kBadData, "{}: tensor '{}': expected {}, got {}", folder.path.string(),
                  name, shape_text(stored), shape_text(tensor->shape));
    }
    used[tensor->name] = true;
    out.push_back(std::move(source));
  }

  for (const NamedTensor& tensor : folder.weights.tensors()) {
    const std::string_view name = tensor.name;
    const bool of_layer =
        name.starts_with(prefix) && name.substr(prefix.size()).starts_with("layers.");
    if (of_layer && !used.contains(name) && !name.ends_with("rotary_emb.inv_freq")) {
      throw Error(ErrorKind::kUnsupported,
                  fmt::format("{}: tensor '{}' has no place in a {} decoder", folder.path.string(),
                              printable(name), c.architecture),
                  "the configuration may not describe these weights");
    }
  }
  return out;
}

void read_rows(const TensorSource& source, int64_t index, int64_t first, int64_t count,
               std::byte* out) {
  const int64_t rows = source.rows(), cols = source.cols();
  const int64_t element = dtype_info(source.from->type).block_bytes;
  const std::byte* data = source.from->data;
  switch (source.layout) {
    case Layout::kAsIs: {
      const int64_t bytes = row_bytes(source.from->type, cols);
      std::memcpy(out, data + (index * rows + first) * bytes, count * bytes);
      return;
    }
    case Layout::kHalfSplit: {
      // Row (head, 2k + s) here is row (head, s d/2 + k) there.
      const int64_t d = rows / source.heads;
      for (int64_t r = first; r < first + count; ++r, out += cols * element) {
        const int64_t from = r / d * d + (r % 2) * (d / 2) + r % d / 2;
        std::memcpy(out, data + from * cols * element, cols * element);
      }
      return;
    }
    case Layout::kExperts: {
      // The expert is stored [cols, stride] and wanted [rows, cols]: a transpose, in squares that
      // keep both sides in the cache.
      const int64_t stride = source.from->shape[2];
      const std::byte* expert = data + index * cols * stride * element;
      constexpr int64_t kSquare = 32;
      for (int64_t r0 = 0; r0 < count; r0 += kSquare) {
        for (int64_t c0 = 0; c0 < cols; c0 += kSquare) {
          for (int64_t c = c0; c < std::min(c0 + kSquare, cols); ++c) {
            for (int64_t r = r0; r < std::min(r0 + kSquare, count); ++r) {
              std::memcpy(out + (r * cols + c) * element,
                          expert + (c * stride + source.first_column + first + r) * element,
                          element);
            }
          }
        }
      }
      return;
    }
  }
}

}  // namespace drover
