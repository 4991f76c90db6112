// Writes a Hugging Face folder as one GGUF file that maps: for Drover, and for other readers of the
// format as far as they know the configuration (spec sections 9.2 and 9.3).
#pragma once

#include <filesystem>

#include "base/progress.h"
#include "formats/huggingface.h"
#include "kernels/context.h"
#include "tensor/dtype.h"

namespace drover {

// Tensors of two and three dimensions get `type`, except the router; norms and the router stay f32.
// A row that is no whole number of blocks gets the next type up that fits: a K-quant falls back to
// a 32-value format of at least its bits, and that to f16. Rows are converted on all threads, a
// slice at a time: memory stays at one matrix (of one expert), whatever the model's size.
// The file appears under its name when it is whole. Progress counts bytes written.
void export_gguf(Context& context, const HuggingfaceFolder& folder,
                 const std::filesystem::path& out, DType type, const Progress& progress = {});

}  // namespace drover
