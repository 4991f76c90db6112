// The weights of a vision encoder as read-only views, by the names of spec section 5. As Weights:
// they point into a mapped file, or into memory that the object owns, for all that is no matrix.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/aligned.h"
#include "model/tensor_table.h"
#include "model/vision_config.h"
#include "model/weights.h"
#include "tensor/view.h"

namespace drover {

// A linear map with its bias, or a layer norm's two vectors.
struct BiasedMap {
  WeightView weight;
  const float* bias = nullptr;
};
struct LayerNormWeights {
  const float* weight = nullptr;
  const float* bias = nullptr;
};

// Sizes by letter: W hidden, F width, A adapter, D embedding, n patches of a tile, p patch, s
// shuffle.
struct VisionLayerWeights {
  LayerNormWeights attention_norm;  // [W]
  BiasedMap wq, wk, wv, wo;         // [W, W]
  LayerNormWeights ffn_norm;        // [W]
  BiasedMap fc1;                    // [F, W]
  BiasedMap fc2;                    // [W, F]
};

struct VisionWeights {
  WeightView patch_embedding;                 // [W, 3 p p], in f32
  const float* class_embedding = nullptr;     // [W]
  const float* position_embedding = nullptr;  // [n + 1, W], the class token's last
  LayerNormWeights pre_norm;                  // [W]
  std::vector<VisionLayerWeights> layers;
  LayerNormWeights post_norm;  // [W]
  WeightView adapter_fc1;      // [A, s s W]
  WeightView adapter_fc2;      // [A, A]
  WeightView projector;        // [D, A]

  int64_t bytes = 0;  // of all tensors as they are multiplied with
  std::vector<AlignedArray<float>> owned;
};

// Eyes: what is to be computed, and with what.
struct Vision {
  VisionConfig config;
  VisionWeights weights;
};

// From tensors wherever they are: views of matrices, copies of all else.
Vision make_vision(const VisionConfig& config, const FindTensor& find);

// From a file for vision alone or a whole model; nothing if there is no vision in it. Every tensor
// must be there with its shape, and none beside them; kBadData or kUnsupported names the one that
// is wrong. `embedding` is the decoder's hidden size. The file or folder must outlive the result.
std::optional<Vision> vision_from_gguf(const GgufFile& file, std::optional<int64_t> embedding);
std::optional<Vision> vision_from_huggingface(const HuggingfaceFolder& folder, int64_t embedding);

// The tensors of a folder's vision encoder by the names of GGUF, in file order.
std::vector<TensorSource> vision_tensors(const HuggingfaceFolder& folder,
                                         const VisionConfig& config);

// What an encoder needs, as expected_tensors() of the decoder; its names in Hugging Face's
// checkpoints are whole.
std::vector<ExpectedTensor> expected_vision_tensors(const VisionConfig& config);

// True for the name of a tensor of a vision encoder in a GGUF file.
bool is_vision_tensor(std::string_view name);

}  // namespace drover
