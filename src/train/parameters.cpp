#include "train/parameters.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/huge_pages.h"
#include "kernels/matmul/matmul.h"
#include "kernels/rounding/rounding.h"
#include "kernels/transpose/transpose.h"
#include "model/tensor_table.h"
#include "tensor/dequantize.h"
#include "tensor/float16.h"
#include "train/random.h"

namespace drover {
namespace {

using Kind = Parameter::Kind;

Kind kind_of(const std::string& name, const std::vector<int64_t>& shape) {
  if (name == "token_embd.weight" || name == "v.position_embd.weight") return Kind::kEmbedding;
  if (name == "output.weight") return Kind::kOutput;
  if (name.find("ffn_gate_inp") != std::string::npos) return Kind::kRouter;
  return shape.size() == 1 ? Kind::kVector : Kind::kMatrix;
}

// Whether products take it in the precision at hand. The rest stays in f32: the router, whose
// choices should not hang on rounding, and the patch embedding, which every reader of such models
// multiplies in f32.
bool may_round(const Parameter& p) {
  return (p.kind == Kind::kMatrix && p.name != "v.patch_embd.weight") || p.kind == Kind::kOutput ||
         p.name == "token_embd.weight";
}

// Whether a gradient goes through it to what it reads; pixels want none.
bool is_passed(const Parameter& p) { return may_round(p) || p.kind == Kind::kRouter; }

// What of a tensor's bytes products of each kind read.
const std::byte* bytes_of(const AlignedArray<float>& values) {
  return reinterpret_cast<const std::byte*>(values.data());
}

// A slice of the values: enough for two threads to share, and few enough to have several each.
constexpr int64_t kSlice = 1 << 15;

}  // namespace

WeightView Parameter::view(int64_t i) const {
  const bool rounded = working.size() > 0;
  const DType type = rounded ? DType::kBF16 : DType::kF32;
  const std::byte* data = rounded ? working.data() : bytes_of(value);
  return {data + i * rows * row_bytes(type, cols), type, rows, cols};
}

WeightView Parameter::transposed_view(int64_t i) const {
  const DType type = working.size() > 0 ? DType::kBF16 : DType::kF32;
  return {transposed.data() + i * cols * row_bytes(type, rows), type, cols, rows};
}

void Parameter::reserve_copies(Isa isa, bool rounds) {
  if (rounds && takes_rounded(isa, DType::kF32)) {
    packed.resize(static_cast<size_t>(matrices));
    packed_transposed.resize(static_cast<size_t>(matrices));
    for (RoundedRows& each : packed) each.resize(rows, cols);
    for (RoundedRows& each : packed_transposed) each.resize(cols, rows);
    return;
  }
  if (rounds) reserve_huge(working, static_cast<size_t>(2 * size()));
  const DType type = rounds ? DType::kBF16 : DType::kF32;
  reserve_huge(transposed, static_cast<size_t>(matrices * cols * row_bytes(type, rows)));
}

void Parameter::copy(Context& context, int64_t m) {
  const ConstMatrixView from{matrix(m), rows, cols, cols};
  if (!packed.empty()) {
    constexpr int64_t kGroup = RoundedRows::kGroup;
    RoundedRows& to = packed[static_cast<size_t>(m)];
    context.threads.run((rows + kGroup - 1) / kGroup, [&](int64_t group, int) {
      const int64_t first = group * kGroup;
      to.put(first, {from.row(first), std::min(kGroup, rows - first), cols, cols});
    });
    transpose(context, from, packed_transposed[static_cast<size_t>(m)], 0, rows);
    return;
  }
  const DType type = rounds() ? DType::kBF16 : DType::kF32;
  if (rounds()) {
    round_to_bf16(context, from, reinterpret_cast<bf16*>(working.data()) + m * rows * cols);
  }
  transpose(context, from, type, transposed.data() + m * cols * row_bytes(type, rows));
}

Parameters::Parameters(const ModelConfig& config, std::optional<VisionConfig> vision_config,
                       Precision precision)
    : config_(config), vision_config_(std::move(vision_config)), precision_(precision) {
  const auto add = [this](const ExpectedTensor& tensor) {
    const std::vector<int64_t>& shape = tensor.shape;
    Parameter& p = all_.emplace_back();
    p.name = tensor.name;
    p.kind = kind_of(tensor.name, shape);
    p.matrices = shape.size() == 3 ? shape[0] : 1;
    p.rows = shape.size() == 1 ? 1 : shape[shape.size() - 2];
    p.cols = shape.back();
    reserve_huge(p.value, static_cast<size_t>(p.size()));
  };
  for (const ExpectedTensor& tensor : expected_tensors(config_)) add(tensor);
  if (vision_config_) {
    for (const ExpectedTensor& tensor : expected_vision_tensors(*vision_config_)) add(tensor);
  }

  const auto get = [this](const std::string& name) { return find(name); };
  embedding = get("token_embd.weight");
  for (int64_t i = 0; i < config_.layer_count(); ++i) {
    const auto part = [&](std::string_view name) { return get(layer_tensor(i, name)); };
    const bool moe = config_.layers[static_cast<size_t>(i)].moe;
    TaughtLayer layer{.attention_norm = part("attn_norm"),
                      .wq = part("attn_q"),
                      .wk = part("attn_k"),
                      .wv = part("attn_v"),
                      .wo = part("attn_output"),
                      .ffn_norm = part("ffn_norm"),
                      .gate = part(moe ? "ffn_gate_shexp" : "ffn_gate"),
                      .up = part(moe ? "ffn_up_shexp" : "ffn_up"),
                      .down = part(moe ? "ffn_down_shexp" : "ffn_down")};
    if (moe) {
      layer.router = part("ffn_gate_inp");
      layer.expert_gate = part("ffn_gate_exps");
      layer.expert_up = part("ffn_up_exps");
      layer.expert_down = part("ffn_down_exps");
    }
    layers.push_back(layer);
  }
  output_norm = get("output_norm.weight");
  output = config_.tied_embeddings ? embedding : get("output.weight");
  if (!vision_config_) return;

  const auto map = [&](const std::string& name) {
    return TaughtMap{get(name + ".weight"), get(name + ".bias")};
  };
  vision.patch_embedding = get("v.patch_embd.weight");
  vision.class_embedding = get("v.class_embd");
  vision.position_embedding = get("v.position_embd.weight");
  vision.pre_norm = map("v.pre_ln");
  for (int64_t i = 0; i < vision_config_->layer_count; ++i) {
    const std::string name = fmt::format("v.blk.{}.", i);
    vision.layers.push_back({.attention_norm = map(name + "ln1"),
                             .wq = map(name + "attn_q"),
                             .wk = map(name + "attn_k"),
                             .wv = map(name + "attn_v"),
                             .wo = map(name + "attn_out"),
                             .ffn_norm = map(name + "ln2"),
                             .fc1 = map(name + "ffn_up"),
                             .fc2 = map(name + "ffn_down")});
  }
  vision.post_norm = map("v.post_ln");
  vision.adapter_fc1 = get("mm.model.mlp.1.weight");
  vision.adapter_fc2 = get("mm.model.mlp.2.weight");
  vision.projector = get("mm.model.fc.weight");
}

Parameter* Parameters::find(std::string_view name) {
  const auto found =
      std::find_if(all_.begin(), all_.end(), [&](const Parameter& p) { return p.name == name; });
  return found == all_.end() ? nullptr : &*found;
}

int64_t Parameters::copy_bytes() const {
  const bool packs = precision_ == Precision::kBF16 && takes_rounded(detect_isa(), DType::kF32);
  int64_t out = 0;
  for (const Parameter& p : all_) {
    if (!is_passed(p)) continue;
    // In bf16 there are two of a matrix, in f32 the values serve and its transpose is a copy.
    if (packs && may_round(p)) {
      out += p.matrices * (RoundedRows::bytes(p.rows, p.cols) + RoundedRows::bytes(p.cols, p.rows));
    } else {
      out += 4 * p.size();
    }
  }
  return out;
}

void Parameters::refresh(Context& context) {
  std::vector<Parameter*> all;
  for (Parameter& p : all_) all.push_back(&p);
  refresh(context, all);
}

void Parameters::refresh(Context& context, std::span<Parameter* const> changed) {
  struct Matrix {
    Parameter* p;
    int64_t index;
  };
  std::vector<Matrix> matrices;
  int64_t values = 0;
  for (Parameter* const each : changed) {
    Parameter& p = *each;
    if (!is_passed(p)) continue;
    p.reserve_copies(context.isa, precision_ == Precision::kBF16 && may_round(p));
    for (int64_t m = 0; m < p.matrices; ++m) matrices.push_back({&p, m});
    values += p.size();
  }
  // A thread does a matrix by itself; all do those that the others would wait for.
  const int threads = context.threads.size();
  const auto large = std::partition(matrices.begin(), matrices.end(), [&](const Matrix& matrix) {
    return matrix.p->rows * matrix.p->cols * 2 * threads < values;
  });
  std::deque<Context> alone;
  for (int worker = 0; worker < threads; ++worker) alone.emplace_back(/*threads=*/1, context.isa);
  context.threads.run(large - matrices.begin(), [&](int64_t i, int worker) {
    const Matrix& matrix = matrices[static_cast<size_t>(i)];
    matrix.p->copy(alone[static_cast<size_t>(worker)], matrix.index);
  });
  for (auto matrix = large; matrix != matrices.end(); ++matrix) {
    matrix->p->copy(context, matrix->index);
  }
}

void Parameters::clear_gradients(Context& context) {
  struct Slice {
    float* first;
    int64_t count;
  };
  std::vector<Slice> slices;
  for (Parameter& p : all_) {
    if (!p.taught) continue;
    reserve_huge(p.gradient, static_cast<size_t>(p.size()));
    for (int64_t i = 0; i < p.size(); i += kSlice) {
      slices.push_back({p.gradient.data() + i, std::min(kSlice, p.size() - i)});
    }
  }
  context.threads.run(static_cast<int64_t>(slices.size()), [&](int64_t i, int) {
    std::fill_n(slices[static_cast<size_t>(i)].first, slices[static_cast<size_t>(i)].count, 0.0f);
  });
}

void Parameters::freeze(Parameter& parameter, bool frozen) {
  parameter.taught = !frozen;
  if (frozen) parameter.gradient = {};
}

namespace {

FindTensor finder(const std::deque<Parameter>& all) {
  return [&all](const std::string& name, const std::vector<int64_t>& shape) {
    const auto p = std::find_if(all.begin(), all.end(),
                                [&](const Parameter& each) { return each.name == name; });
    DROVER_CHECK(p != all.end());
    const WeightView view = p->view();
    return NamedTensor{.name = p->name,
                       .type = view.type,
                       .shape = shape,
                       .data = view.data,
                       .bytes = p->matrices * view.bytes()};
  };
}

}  // namespace

std::optional<Vision> Parameters::eyes() const {
  if (!vision_config_) return std::nullopt;
  return make_vision(*vision_config_, finder(all_));
}

void initialize(Parameters& parameters, const Initialization& how) {
  const ModelConfig& config = parameters.config();
  const double residual = 1.0 / std::sqrt(2.0 * static_cast<double>(config.layer_count()));
  uint64_t number = 0;
  for (Parameter& p : parameters.all()) {
    Random random(how.seed, number++);
    const bool is_eye = is_vision_tensor(p.name);
    const bool is_bias = p.name.ends_with(".bias");
    if (p.kind == Kind::kVector && p.name != "v.class_embd") {
      std::fill_n(p.value.data(), p.size(), is_bias ? 0.0f : 1.0f);
      continue;
    }
    double deviation = 1.0 / std::sqrt(static_cast<double>(p.cols));
    if (p.kind == Kind::kEmbedding || p.kind == Kind::kVector) {
      deviation = is_eye ? 0.02 : static_cast<double>(how.embedding);
    }
    const bool writes_residual = p.name.find("attn_out") != std::string::npos ||
                                 p.name.find("ffn_down") != std::string::npos;
    if (writes_residual) {
      deviation *=
          is_eye
              ? 1.0 / std::sqrt(2.0 * static_cast<double>(parameters.vision_config()->layer_count))
              : residual;
    }
    for (int64_t i = 0; i < p.size(); ++i) {
      p.value[static_cast<size_t>(i)] = static_cast<float>(deviation * random.normal());
    }
    if (&p != parameters.embedding) continue;
    for (int64_t row = 0; row < p.rows; ++row) {
      std::fill_n(p.matrix(0) + row * p.cols, how.constant_components, how.constant);
    }
  }
}

void load_values(Context& context, Parameters& parameters, const Model& model) {
  const auto differs = [&](std::string_view what) {
    throw_error(ErrorKind::kUnsupported, "{}: expected a model of the same {}",
                model.path().string(), what);
  };
  const ModelConfig& ours = parameters.config();
  const ModelConfig& theirs = model.config();
  if (ours.vocab != theirs.vocab) differs("vocabulary");
  if (ours.hidden != theirs.hidden || ours.heads != theirs.heads ||
      ours.kv_heads != theirs.kv_heads || ours.head_dim != theirs.head_dim ||
      ours.dense_width != theirs.dense_width || ours.expert_width != theirs.expert_width ||
      ours.experts != theirs.experts || ours.layers != theirs.layers ||
      ours.tied_embeddings != theirs.tied_embeddings) {
    differs("shape");
  }
  if (parameters.vision_config().has_value() != model.has_vision()) differs("eyes");

  const auto matrix = [&](Parameter* to, WeightView from, int64_t index = 0) {
    if (to->rows != from.rows || to->cols != from.cols) differs("shape: " + to->name);
    context.threads.run(from.rows, [&](int64_t row, int) {
      dequantize_row(from.type, from.row(row),
                     {to->matrix(index) + row * to->cols, static_cast<size_t>(to->cols)});
    });
  };
  const auto experts = [&](Parameter* to, const ExpertsView& from) {
    if (to->matrices != from.experts) differs("shape: " + to->name);
    for (int64_t e = 0; e < from.experts; ++e) matrix(to, from.expert(e), e);
  };
  const auto vector = [](Parameter* to, const float* from) {
    std::copy_n(from, to->size(), to->value.data());
  };
  const Weights& w = model.weights();
  matrix(parameters.embedding, w.embedding);
  for (size_t i = 0; i < parameters.layers.size(); ++i) {
    const TaughtLayer& to = parameters.layers[i];
    const LayerWeights& from = w.layers[i];
    vector(to.attention_norm, from.attention_norm);
    matrix(to.wq, from.wq);
    matrix(to.wk, from.wk);
    matrix(to.wv, from.wv);
    matrix(to.wo, from.wo);
    vector(to.ffn_norm, from.ffn_norm);
    matrix(to.gate, from.gate);
    matrix(to.up, from.up);
    matrix(to.down, from.down);
    if (to.router == nullptr) continue;
    matrix(to.router, from.router);
    experts(to.expert_gate, from.expert_gate);
    experts(to.expert_up, from.expert_up);
    experts(to.expert_down, from.expert_down);
  }
  vector(parameters.output_norm, w.output_norm);
  if (!ours.tied_embeddings) matrix(parameters.output, w.output);
  if (!model.has_vision()) return;

  const VisionWeights& eyes = model.vision().weights;
  TaughtVision& taught = parameters.vision;
  if (taught.layers.size() != eyes.layers.size()) differs("eyes");
  const auto norm = [&](const TaughtMap& to, const LayerNormWeights& from) {
    vector(to.weight, from.weight);
    vector(to.bias, from.bias);
  };
  const auto map = [&](const TaughtMap& to, const BiasedMap& from) {
    matrix(to.weight, from.weight);
    vector(to.bias, from.bias);
  };
  matrix(taught.patch_embedding, eyes.patch_embedding);
  vector(taught.class_embedding, eyes.class_embedding);
  vector(taught.position_embedding, eyes.position_embedding);
  norm(taught.pre_norm, eyes.pre_norm);
  for (size_t i = 0; i < eyes.layers.size(); ++i) {
    const TaughtVisionLayer& to = taught.layers[i];
    const VisionLayerWeights& from = eyes.layers[i];
    norm(to.attention_norm, from.attention_norm);
    map(to.wq, from.wq);
    map(to.wk, from.wk);
    map(to.wv, from.wv);
    map(to.wo, from.wo);
    norm(to.ffn_norm, from.ffn_norm);
    map(to.fc1, from.fc1);
    map(to.fc2, from.fc2);
  }
  norm(taught.post_norm, eyes.post_norm);
  matrix(taught.adapter_fc1, eyes.adapter_fc1);
  matrix(taught.adapter_fc2, eyes.adapter_fc2);
  matrix(taught.projector, eyes.projector);
}

}  // namespace drover
