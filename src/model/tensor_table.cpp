#include "model/tensor_table.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "base/error.h"
#include "formats/huggingface.h"

namespace drover {
namespace {

using Layout = TensorSource::Layout;

// Where a tensor of a decoder layer is found in a Hugging Face checkpoint. The name follows
// "model.layers.N."; the layout may depend on the architecture.
struct LayerName {
  std::string_view gguf;
  std::string_view huggingface;
  Layout layout = Layout::kAsIs;
};

constexpr LayerName kEveryLayer[] = {
    {"attn_norm", "input_layernorm.weight"},    {"attn_q", "self_attn.q_proj.weight"},
    {"attn_k", "self_attn.k_proj.weight"},      {"attn_v", "self_attn.v_proj.weight"},
    {"attn_output", "self_attn.o_proj.weight"}, {"ffn_norm", "post_attention_layernorm.weight"},
};
constexpr LayerName kLlama4Dense[] = {
    {"ffn_gate", "feed_forward.gate_proj.weight"},
    {"ffn_up", "feed_forward.up_proj.weight"},
    {"ffn_down", "feed_forward.down_proj.weight"},
};
constexpr LayerName kLlamaDense[] = {
    {"ffn_gate", "mlp.gate_proj.weight"},
    {"ffn_up", "mlp.up_proj.weight"},
    {"ffn_down", "mlp.down_proj.weight"},
};
constexpr LayerName kMoe[] = {
    {"ffn_gate_inp", "feed_forward.router.weight"},
    {"ffn_gate_exps", "feed_forward.experts.gate_up_proj", Layout::kExperts},
    {"ffn_up_exps", "feed_forward.experts.gate_up_proj", Layout::kExperts},
    {"ffn_down_exps", "feed_forward.experts.down_proj", Layout::kExperts},
    {"ffn_gate_shexp", "feed_forward.shared_expert.gate_proj.weight"},
    {"ffn_up_shexp", "feed_forward.shared_expert.up_proj.weight"},
    {"ffn_down_shexp", "feed_forward.shared_expert.down_proj.weight"},
};

// Prefixes of the decoder's tensors, as the classes of the reference have written them.
constexpr std::string_view kPrefixes[] = {"language_model.model.", "model.language_model.",
                                          "model."};

}  // namespace

std::string layer_tensor(int64_t layer, std::string_view part) {
  return fmt::format("blk.{}.{}.weight", layer, part);
}

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

std::vector<ExpectedTensor> expected_tensors(const ModelConfig& c) {
  const int64_t D = c.hidden, F = c.expert_width, M = c.dense_width, E = c.experts;
  std::vector<ExpectedTensor> out = {{"token_embd.weight", {c.vocab, D}}};
  for (int64_t i = 0; i < c.layer_count(); ++i) {
    const auto add = [&](std::string_view part, std::vector<int64_t> shape) {
      out.push_back({layer_tensor(i, part), std::move(shape)});
    };
    add("attn_norm", {D});
    add("attn_q", {c.heads * c.head_dim, D});
    add("attn_k", {c.kv_heads * c.head_dim, D});
    add("attn_v", {c.kv_heads * c.head_dim, D});
    add("attn_output", {D, c.heads * c.head_dim});
    add("ffn_norm", {D});
    if (c.layers[i].moe) {
      add("ffn_gate_inp", {E, D});
      add("ffn_gate_exps", {E, F, D});
      add("ffn_up_exps", {E, F, D});
      add("ffn_down_exps", {E, D, F});
      add("ffn_gate_shexp", {F, D});
      add("ffn_up_shexp", {F, D});
      add("ffn_down_shexp", {D, F});
    } else {
      add("ffn_gate", {M, D});
      add("ffn_up", {M, D});
      add("ffn_down", {D, M});
    }
  }
  out.push_back({"output_norm.weight", {D}});
  if (!c.tied_embeddings) out.push_back({"output.weight", {c.vocab, D}});
  return out;
}

std::vector<TensorSource> decoder_tensors(const HuggingfaceFolder& folder, const ModelConfig& c) {
  std::string_view prefix;
  const NamedTensor* embedding = nullptr;
  for (const std::string_view candidate : kPrefixes) {
    embedding = folder.weights.find(std::string(candidate) + "embed_tokens.weight");
    prefix = candidate;
    if (embedding != nullptr) break;
  }
  if (embedding == nullptr) {
    throw_error(ErrorKind::kBadData, "{}: expected a tensor 'model.embed_tokens.weight', got none",
                folder.path.string());
  }

  // GGUF name -> name in the folder and layout.
  struct Found {
    std::string name;
    Layout layout;
  };
  std::unordered_map<std::string, Found> names;
  names["token_embd.weight"] = {std::string(prefix) + "embed_tokens.weight", Layout::kAsIs};
  names["output_norm.weight"] = {std::string(prefix) + "norm.weight", Layout::kAsIs};
  for (const std::string_view head : {"lm_head.weight", "language_model.lm_head.weight"}) {
    if (folder.weights.find(head) != nullptr)
      names["output.weight"] = {std::string(head), Layout::kAsIs};
  }
  const bool half_split = c.architecture == "llama";
  for (int64_t i = 0; i < c.layer_count(); ++i) {
    const auto add = [&](std::span<const LayerName> table) {
      for (const LayerName& name : table) {
        Layout layout = name.layout;
        if (half_split && (name.gguf == "attn_q" || name.gguf == "attn_k"))
          layout = Layout::kHalfSplit;
        names[layer_tensor(i, name.gguf)] = {
            fmt::format("{}layers.{}.{}", prefix, i, name.huggingface), layout};
      }
    };
    add(kEveryLayer);
    if (c.layers[i].moe) {
      add(kMoe);
    } else if (half_split) {
      add(kLlamaDense);
    } else {
      add(kLlama4Dense);
    }
  }

  std::vector<TensorSource> out;
  std::unordered_map<std::string_view, bool> used;
  for (ExpectedTensor& expected : expected_tensors(c)) {
    const auto found = names.find(expected.name);
    const NamedTensor* tensor =
        found == names.end() ? nullptr : folder.weights.find(found->second.name);
    const std::string name = found == names.end() ? "lm_head.weight" : found->second.name;
    if (tensor == nullptr) {
      throw_error(ErrorKind::kBadData, "{}: expected a tensor '{}' {}, got none",
                  folder.path.string(), name, shape_text(expected.shape));
    }
    TensorSource source{.name = expected.name,
                        .shape = expected.shape,
                        .from = tensor,
                        .layout = found->second.layout};
    std::vector<int64_t> stored = expected.shape;
    if (source.layout == Layout::kHalfSplit) source.heads = stored[0] / c.head_dim;
    if (source.layout == Layout::kExperts) {
      const bool fused = name.ends_with("gate_up_proj");
      stored = {stored[0], stored[2], stored[1] * (fused ? 2 : 1)};
      if (expected.name.find("ffn_up_exps") != std::string::npos)
        source.first_column = c.expert_width;
    }
    if (tensor->shape != stored) {
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
