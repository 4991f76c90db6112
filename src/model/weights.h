// The weights of a decoder as read-only views, by the names of the paper. The views point into a
// mapped file or into memory that a Weights object owns; it must outlive them. Immutable after
// loading, so any number of threads may read.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/aligned.h"
#include "base/progress.h"
#include "formats/named_tensor.h"
#include "model/adapter.h"
#include "model/config.h"
#include "tensor/view.h"

namespace drover {

class GgufFile;
class HuggingfaceFolder;

// Sizes by letter: D hidden, H query heads, K kv heads, d head size, F width, E experts, V vocab.
struct LayerWeights {
  const float* attention_norm = nullptr;  // [D]
  WeightView wq;                          // [H*d, D]; rotation of adjacent pairs
  WeightView wk;                          // [K*d, D]
  WeightView wv;                          // [K*d, D]
  WeightView wo;                          // [D, H*d]

  const float* ffn_norm = nullptr;  // [D]
  WeightView gate;                  // [F, D]: the dense network, or the shared expert
  WeightView up;                    // [F, D]
  WeightView down;                  // [D, F]

  WeightView router;        // [E, D]; MoE layers only, as the three below
  ExpertsView expert_gate;  // [E, F, D]
  ExpertsView expert_up;    // [E, F, D]
  ExpertsView expert_down;  // [E, D, F]
};

struct Weights {
  WeightView embedding;  // [V, D]
  std::vector<LayerWeights> layers;
  const float* output_norm = nullptr;  // [D]
  WeightView output;                   // [V, D]; the embedding again when tied

  Adapter adapter;  // what is added to products with these; mostly nothing

  int64_t bytes = 0;  // of all tensors as they are multiplied with
  std::vector<AlignedArray<std::byte>> owned;
};

// Name in GGUF and shape to the tensor, checked.
using FindTensor =
    std::function<NamedTensor(const std::string& name, const std::vector<int64_t>& shape)>;

// From tensors wherever they are: views of matrices, copies of norms. Asks for each tensor once, in
// file order of GGUF.
Weights make_weights(const ModelConfig& config, const FindTensor& find);

// Views into the mapped file, which must outlive the result. Norms are widened into own memory.
// Every tensor that the configuration asks for must be there with its shape and a type that kernels
// multiply with; kBadData or kUnsupported names the one that is not.
Weights weights_from_gguf(const GgufFile& file, const ModelConfig& config);

// Plain matrices are viewed where they lie in the mapped safetensors. Two kinds are rearranged into
// own memory, keeping their element type: experts, which Hugging Face stores as [E, in, out], and
// the queries and keys of `llama` models, which it stores for the half-split rotation.
Weights weights_from_huggingface(const HuggingfaceFolder& folder, const ModelConfig& config,
                                 const Progress& progress = {});

}  // namespace drover
