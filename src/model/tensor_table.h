// The tensors of a checkpoint by one set of names, the names of GGUF (spec section 9.3), whatever
// format they come from. Loading and converting both read from here.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "formats/named_tensor.h"
#include "model/config.h"

namespace drover {

class HuggingfaceFolder;

// One tensor by its GGUF name, and how its values lie in the file.
struct TensorSource {
  enum class Layout {
    kAsIs,       // as GGUF has it
    kHalfSplit,  // rows of each head ordered for the half-split rotation; GGUF has adjacent pairs
    kExperts,    // [E, in, out]; GGUF has [E, out, in], and gate and up apart
  };

  std::string name;
  std::vector<int64_t> shape;  // row-major, as GGUF has it: [out, in] or [E, out, in] or [D]
  const NamedTensor* from = nullptr;
  Layout layout = Layout::kAsIs;
  int64_t heads = 0;         // kHalfSplit
  int64_t first_column = 0;  // kExperts: where the output rows begin on the last axis

  int64_t matrices() const {  // of rows() rows each
    int64_t n = 1;
    for (size_t i = 0; i + 2 < shape.size(); ++i) n *= shape[i];
    return n;
  }
  int64_t rows() const { return shape.size() == 1 ? 1 : shape[shape.size() - 2]; }
  int64_t cols() const { return shape.back(); }
};

// Copies rows [first, first + count) of matrix `index` in GGUF's order, elements or blocks as they
// are in the file. out: count * row_bytes. Blocks only where the layout is kAsIs. Thread-safe.
void read_rows(const TensorSource& source, int64_t index, int64_t first, int64_t count,
               std::byte* out);

// Every tensor of the decoder in a Hugging Face folder, in file order of GGUF. Vision tensors are
// left out. Throws kBadData for one that is missing or has another shape than the configuration
// says, kUnsupported for a decoder tensor that has no place in the family (a bias, say).
std::vector<TensorSource> decoder_tensors(const HuggingfaceFolder& folder,
                                          const ModelConfig& config);

// What the decoder needs: GGUF name and row-major shape of each tensor, in file order, and where it
// stands in a Hugging Face checkpoint. The contract between configuration and weights, in one
// place.
struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape;
  // What follows the prefix of its class ("model." for one), but of the output matrix, which stands
  // beside the decoder there.
  std::string huggingface;
  TensorSource::Layout layout = TensorSource::Layout::kAsIs;

  // As it is stored there.
  std::vector<int64_t> huggingface_shape() const;
};
std::vector<ExpectedTensor> expected_tensors(const ModelConfig& config);

inline constexpr std::string_view kOutputTensor = "output.weight";  // of GGUF

// Prefixes of the decoder's tensors, as the classes of the reference have written them.
inline constexpr std::string_view kDecoderPrefixes[] = {"language_model.model.",
                                                        "model.language_model.", "model."};

// "blk.3.attn_q.weight"
std::string layer_tensor(int64_t layer, std::string_view part);

std::string shape_text(const std::vector<int64_t>& shape);  // "[16, 5120]"

}  // namespace drover
