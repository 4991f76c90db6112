// What is taught: the tensors of a model in f32, their gradients, and the copies that products
// take. By the names of GGUF, in file order.
//
// A Parameters object owns all of it. One thread at a time changes it.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/aligned.h"
#include "kernels/context.h"
#include "kernels/matmul/rounded_rows.h"
#include "model/config.h"
#include "model/model.h"
#include "model/vision_config.h"
#include "model/weights.h"

namespace drover {

// What products of a pass are made in: bf16 copies of weights, and activations rounded to bf16
// where that is faster; or f32, slower and to be compared with others.
enum class Precision { kF32, kBF16 };

struct Parameter {
  // Optimizers treat them differently: Muon is for kMatrix alone.
  enum class Kind { kMatrix, kEmbedding, kOutput, kRouter, kVector };

  std::string name;  // "blk.3.attn_q.weight"
  Kind kind = Kind::kMatrix;
  int64_t matrices = 1;  // of rows x cols each: as many as experts
  int64_t rows = 0;      // 1 for a vector
  int64_t cols = 0;
  bool taught = true;  // frozen otherwise: no gradient is made

  AlignedArray<float> value;     // [matrices, rows, cols]
  AlignedArray<float> gradient;  // the same; no memory while it is not taught
  // Made of value by Parameters::refresh(), for products and for their gradients. Without the first
  // value serves: with kF32, and for vectors, routers and the patch embedding always. Vectors and
  // the patch embedding, whose input is not taught, have neither.
  AlignedArray<std::byte> working;     // [matrices, rows, cols] in bf16
  AlignedArray<std::byte> transposed;  // [matrices, cols, rows] in the type of what serves
  // In place of both where the matrix unit multiplies bf16, in its form: [matrices] of [rows, cols]
  // and of [cols, rows].
  std::vector<RoundedRows> packed, packed_transposed;

  int64_t size() const { return matrices * rows * cols; }
  bool rounds() const { return working.size() > 0 || !packed.empty(); }
  float* matrix(int64_t i) { return value.data() + i * rows * cols; }
  MatrixView gradient_of(int64_t i) {
    return {gradient.data() + i * rows * cols, rows, cols, cols};
  }
  // What a forward product takes, and what its gradient does, unless they are packed.
  WeightView view(int64_t i = 0) const;
  WeightView transposed_view(int64_t i = 0) const;

  // Memory for the copies, in bf16 or not, and those of one matrix.
  void reserve_copies(Isa isa, bool rounds);
  void copy(Context& context, int64_t matrix);
};

struct TaughtLayer {
  Parameter* attention_norm = nullptr;  // [D]
  Parameter *wq = nullptr, *wk = nullptr, *wv = nullptr, *wo = nullptr;
  Parameter* ffn_norm = nullptr;                              // [D]
  Parameter *gate = nullptr, *up = nullptr, *down = nullptr;  // dense, or shared expert
  Parameter* router = nullptr;                                // MoE layers only
  Parameter *expert_gate = nullptr, *expert_up = nullptr, *expert_down = nullptr;
};

struct TaughtMap {
  Parameter* weight = nullptr;
  Parameter* bias = nullptr;
};

struct TaughtVisionLayer {
  TaughtMap attention_norm, wq, wk, wv, wo, ffn_norm, fc1, fc2;
};

struct TaughtVision {
  Parameter *patch_embedding = nullptr, *class_embedding = nullptr, *position_embedding = nullptr;
  TaughtMap pre_norm, post_norm;
  std::vector<TaughtVisionLayer> layers;
  Parameter *adapter_fc1 = nullptr, *adapter_fc2 = nullptr, *projector = nullptr;
};

class Parameters {
 public:
  // All tensors of the model, values not set, all taught.
  Parameters(const ModelConfig& config, std::optional<VisionConfig> vision, Precision precision);
  Parameters(const Parameters&) = delete;
  Parameters& operator=(const Parameters&) = delete;

  const ModelConfig& config() const { return config_; }
  const std::optional<VisionConfig>& vision_config() const { return vision_config_; }
  Precision precision() const { return precision_; }

  std::deque<Parameter>& all() { return all_; }
  const std::deque<Parameter>& all() const { return all_; }
  Parameter* find(std::string_view name);  // null if there is none

  // By the names of the paper.
  Parameter* embedding = nullptr;  // [V, D]
  std::vector<TaughtLayer> layers;
  Parameter* output_norm = nullptr;  // [D]
  Parameter* output = nullptr;       // [V, D]; the embedding again when tied
  TaughtVision vision;               // null pointers where the model has no eyes

  // The copies that products take, after values changed. Of frozen ones too.
  void refresh(Context& context);
  // Of these, which are some of all(): the others' values are as they were at the last call.
  void refresh(Context& context, std::span<Parameter* const> changed);
  // Sets every gradient to zero; takes memory for those of taught parameters.
  void clear_gradients(Context& context);
  // No gradient, and no memory for one, from now on (or again).
  void freeze(Parameter& parameter, bool frozen = true);

  // Bytes of those copies, made or not, as this processor takes them.
  int64_t copy_bytes() const;
  // Views of what refresh() made, for a VisionEncoder that tries the model out; nothing without
  // eyes. They stay good until this object goes; with kBF16 matrices are bf16.
  std::optional<Vision> eyes() const;

 private:
  ModelConfig config_;
  std::optional<VisionConfig> vision_config_;
  Precision precision_;
  std::deque<Parameter> all_;
};

// How a model begins. Matrices are normal with deviation 1 / sqrt(cols), those that write to the
// residual stream (attn_output, ffn_down and the experts') divided by sqrt(2 L); embeddings have
// deviation `embedding`; norms are one, biases and position embeddings zero but for those of
// vision, which have deviation 0.02.
struct Initialization {
  uint64_t seed = 0;
  float embedding = 0.02f;
  // So many components of every embedding start at `constant`: heads that attend by position alone
  // need something to hold on to where there are no biases (research/needle-pilot).
  int64_t constant_components = 0;
  float constant = 1.0f;
};
// The same values on any machine and number of threads.
void initialize(Parameters& parameters, const Initialization& how);

// The values of a model that is there, dequantised. kUnsupported names what differs in shape.
void load_values(Context& context, Parameters& parameters, const Model& model);

}  // namespace drover
