#include "model/weights.h"

#include "base/error.h"
#include "formats/gguf.h"
#include "formats/huggingface.h"
#include "model/tensor_table.h"
#include "tensor/dequantize.h"

namespace drover {
namespace {

void check_multiplies(const std::string& source, std::string_view name, DType type) {
  if (!dtype_info(type).is_weight) {
    throw_error(ErrorKind::kUnsupported, "{}: tensor '{}': expected a weight type, got {}", source,
                printable(name), dtype_name(type));
  }
}

}  // namespace

Weights make_weights(const ModelConfig& c, const FindTensor& find) {
  Weights weights;
  const auto get = [&](const std::string& name, std::vector<int64_t> shape) {
    NamedTensor tensor = find(name, shape);
    weights.bytes += tensor.bytes;
    return tensor;
  };
  const auto matrix = [&](const std::string& name, int64_t rows, int64_t cols) {
    const NamedTensor t = get(name, {rows, cols});
    return WeightView{t.data, t.type, rows, cols};
  };
  const auto expert_matrices = [&](const std::string& name, int64_t rows, int64_t cols) {
    const NamedTensor t = get(name, {c.experts, rows, cols});
    return ExpertsView{t.data, t.type, c.experts, rows, cols};
  };
  const auto norm = [&](const std::string& name) {
    const NamedTensor t = get(name, {c.hidden});
    AlignedArray<std::byte> copy(static_cast<size_t>(c.hidden) * sizeof(float));
    float* values = reinterpret_cast<float*>(copy.data());
    dequantize_row(t.type, t.data, {values, static_cast<size_t>(c.hidden)});
    weights.owned.push_back(std::move(copy));
    return static_cast<const float*>(values);
  };

  weights.embedding = matrix("token_embd.weight", c.vocab, c.hidden);
  for (int64_t i = 0; i < c.layer_count(); ++i) {
    const auto name = [&](std::string_view part) { return layer_tensor(i, part); };
    const bool moe = c.layers[i].moe;
    const int64_t width = moe ? c.expert_width : c.dense_width;
    LayerWeights w;
    w.attention_norm = norm(name("attn_norm"));
    w.wq = matrix(name("attn_q"), c.heads * c.head_dim, c.hidden);
    w.wk = matrix(name("attn_k"), c.kv_heads * c.head_dim, c.hidden);
    w.wv = matrix(name("attn_v"), c.kv_heads * c.head_dim, c.hidden);
    w.wo = matrix(name("attn_output"), c.hidden, c.heads * c.head_dim);
    w.ffn_norm = norm(name("ffn_norm"));
    w.gate = matrix(name(moe ? "ffn_gate_shexp" : "ffn_gate"), width, c.hidden);
    w.up = matrix(name(moe ? "ffn_up_shexp" : "ffn_up"), width, c.hidden);
    w.down = matrix(name(moe ? "ffn_down_shexp" : "ffn_down"), c.hidden, width);
    if (moe) {
      w.router = matrix(name("ffn_gate_inp"), c.experts, c.hidden);
      w.expert_gate = expert_matrices(name("ffn_gate_exps"), width, c.hidden);
      w.expert_up = expert_matrices(name("ffn_up_exps"), width, c.hidden);
      w.expert_down = expert_matrices(name("ffn_down_exps"), c.hidden, width);
    }
    weights.layers.push_back(w);
  }
  weights.output_norm = norm("output_norm.weight");
  weights.output =
      c.tied_embeddings ? weights.embedding : matrix("output.weight", c.vocab, c.hidden);
  return weights;
}

Weights weights_from_gguf(const GgufFile& file, const ModelConfig& config) {
  std::unordered_map<std::string_view, bool> used;
  Weights weights = make_weights(config, [&](const std::string& name, const std::vector<int64_t>& shape) {
    const NamedTensor* tensor = file.find_tensor(name);
    if (tensor == nullptr) {
      throw_error(ErrorKind::kBadData, "{}: expected a tensor '{}' {}, got none", file.path(), name,
                  shape_text(shape));
    }
    if (tensor->shape != shape) {
      throw_error(ErrorKind::kBadData, "{}: tensor '{}': expected {}, got {}", file.path(), name,
                  shape_text(shape), shape_text(tensor->shape));
    }
    check_multiplies(file.path(), name, tensor->type);
    used[tensor->name] = true;
    return *tensor;
  });
  for (const NamedTensor& tensor : file.tensors()) {
    if (tensor.name.starts_with("blk.") && !used.contains(tensor.name)) {
      throw_error(ErrorKind::kUnsupported, "{}: tensor '{}' has no place in a {} decoder",
                  file.path(), printable(tensor.name), config.architecture);
    }
  }
  return weights;
}

Weights weights_from_huggingface(const HuggingfaceFolder& folder, const ModelConfig& config,
                                 const Progress& progress) {
  std::unordered_map<std::string, TensorSource> sources;
  uint64_t total = 0, done = 0;
  for (TensorSource& source : decoder_tensors(folder, config)) {
    check_multiplies(folder.path.string(), source.from->name, source.from->type);
    if (source.layout != TensorSource::Layout::kAsIs) {
      total += source.matrices() * source.rows() * row_bytes(source.from->type, source.cols());
    }
    sources.emplace(source.name, std::move(source));
  }
  std::vector<AlignedArray<std::byte>> rearranged;
  Weights weights = make_weights(config, [&](const std::string& name, const std::vector<int64_t>&) {
    const TensorSource& source = sources.at(name);
    NamedTensor tensor = *source.from;
    if (source.layout == TensorSource::Layout::kAsIs) return tensor;
    const int64_t matrix_bytes = source.rows() * row_bytes(tensor.type, source.cols());
    tensor.shape = source.shape;
    tensor.bytes = source.matrices() * matrix_bytes;
    AlignedArray<std::byte> memory(static_cast<size_t>(tensor.bytes));
    for (int64_t m = 0; m < source.matrices(); ++m) {
      read_rows(source, m, 0, source.rows(), memory.data() + m * matrix_bytes);
      done += static_cast<uint64_t>(matrix_bytes);
      if (progress) progress(done, total);
    }
    tensor.data = memory.data();
    rearranged.push_back(std::move(memory));
    return tensor;
  });
  for (auto& memory : rearranged) weights.owned.push_back(std::move(memory));
  return weights;
}

}  // namespace drover
