// Low-rank adapters (LoRA) in folders as the Python package PEFT writes them: adapter_config.json
// and adapter_model.safetensors. What is read or written is in Drover's own layout. Free functions;
// nothing is kept.
// Source: Hu et al. 2021, arXiv 2106.09685.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "model/tensor_table.h"

namespace drover {

// One parameter of a model that an adapter can change.
struct AdapterTarget {
  // Its name in the reference's classes behind the prefix: "layers.0.self_attn.q_proj",
  // "layers.0.feed_forward.experts.gate_up_proj", "lm_head".
  std::string module;
  // The same by the names of GGUF: one, or gate and up of experts, which are one parameter there.
  std::vector<std::string> tensors;
  int64_t matrices = 1;  // as many as experts
  int64_t rows = 0;      // of all tensors together
  int64_t cols = 0;
  TensorSource::Layout layout = TensorSource::Layout::kAsIs;

  bool has_experts() const { return layout == TensorSource::Layout::kExperts; }
};

// Every linear map of the decoder that PEFT can wrap: attention, dense and shared networks,
// experts, and the output matrix unless it is the embedding too. The router is none: its module in
// transformers gives more than a product.
std::vector<AdapterTarget> adapter_targets(const ModelConfig& config);

// Each matrix W of the target becomes W + scale * B A. Owns its memory.
struct LowRank {
  AdapterTarget target;
  int64_t rank = 0;
  float scale = 1;
  std::vector<float> a = {};  // [matrices, rank, cols]
  std::vector<float> b = {};  // [matrices, rows, rank], rows in GGUF's order
};

// The adapters of a folder, in the order of adapter_targets(). rank_pattern counts as the file's
// shapes do; alpha_pattern may hold names, with or without what stands before them, and no other
// expressions. Experts are read in both forms that PEFT has had (write_peft).
//
// kNotFound without the files; kBadData for a module that this model does not have or that has
// another shape in it; kUnsupported for what is no plain LoRA of the decoder: DoRA, biases, whole
// modules, embeddings, eyes, initialisations that change the model they belong to.
std::vector<LowRank> read_peft(const std::filesystem::path& folder, const ModelConfig& config);

// What an adapter's configuration says, the same for all targets.
struct PeftNotes {
  int64_t rank = 0;
  double alpha = 0;             // scale = alpha / rank
  std::string base_model = {};  // where the model is, for PEFT; may be empty
  bool multimodal = false;      // the model's class is Llama4ForConditionalGeneration
};

// Writes a folder that PEFT loads onto the model in transformers. All of `adapters` must have the
// notes' rank. Experts are in the form of PEFT 0.19.1 and later, which takes the last axis of
// [E, in, out] for the input. type: f32, f16 or bf16. Each file is the old or the new one.
void write_peft(std::span<const LowRank> adapters, const PeftNotes& notes,
                const ModelConfig& config, const std::filesystem::path& folder,
                DType type = DType::kF32);

}  // namespace drover
