// Which type each tensor of a model is written in. A mixture is a name that people know ("q4_k_m")
// and the rules behind it: most matrices get one type, those whose rounding hurts more get a better
// one. Names, rules and file numbers are those of llama.cpp (src/llama-quant.cpp), so that a name
// means the same file in both programs.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "model/config.h"
#include "tensor/dtype.h"

namespace drover {

struct Mixture {
  std::string_view name;  // "q4_k_m"; lives as long as the program
  DType base;             // what most matrices get
  uint32_t file_type;     // general.file_type
  bool pure = false;      // every matrix gets `base`, and the rules rest

  constexpr Mixture(std::string_view name, DType base, uint32_t file_type)
      : name(name), base(base), file_type(file_type) {}
  // Every matrix in one type. The type's name as a mixture may mean more: "q4_0" keeps the output
  // matrix in q6_k.
  Mixture(DType type);  // NOLINT(google-explicit-constructor): a type is the simplest mixture
};

// The mixture of that name, upper or lower case; nothing if there is none. "q3_k", "q4_k" and
// "q5_k" are the _m ones.
std::optional<Mixture> mixture_from_name(std::string_view name);

// "f32, f16, ..., or q2_k_s": every name, for help and messages.
std::string mixture_names();

// True for tensors that a mixture leaves alone: norms and all else of one dimension, the router,
// the patch and position embeddings of a vision encoder, and whatever is no weight matrix
// (rope_freqs).
bool stays_float(std::string_view tensor, std::span<const int64_t> shape);

// The type of one tensor, by GGUF name and row-major shape, in a model of this configuration; f32
// if it stays float. The matrices of a vision encoder, which is small beside its decoder, get q8_0
// in a mixture that quantises. `has_importance` says whether an importance matrix steers the
// rounding: some mixtures protect other tensors then. The type fits the shape (see fitting_type).
DType mixture_type(const Mixture& mixture, const ModelConfig& config, std::string_view tensor,
                   std::span<const int64_t> shape, bool has_importance = false);

// `type` if rows of `cols` values are a whole number of its blocks; else the 32-value format that
// stands in for it (q2_k, q3_k: q4_0; q4_k: q5_0; q5_k: q5_1; q6_k: q8_0; iq4_xs: iq4_nl), or f16
// where that does not fit either.
DType fitting_type(DType type, int64_t cols);

}  // namespace drover
