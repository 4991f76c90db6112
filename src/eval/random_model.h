// Models of random weights in the shapes that speed is measured on, so that anyone can repeat the
// figures, here and in other programs that read GGUF. They say nothing sensible; they cost what a
// trained model of the shape costs: activations keep their size through all layers, and tokens
// spread over the experts.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string_view>

#include "base/progress.h"
#include "kernels/context.h"
#include "model/config.h"
#include "model/quantize_mixture.h"
#include "model/vision_config.h"

namespace drover {

// A decoder, a vision encoder, or both.
struct RandomShape {
  std::optional<ModelConfig> config;
  std::optional<VisionConfig> vision;
};

// The shape of that name; kUsage names those that there are:
//   edge-moe           16 layers of width 1024, every one 16 experts top-1 beside a shared one
//   edge-dense         a dense llama with 4.1 times its active parameters, as 70B is to 17B
//   edge-dense-active  a dense llama with its active parameters
//   scout-4l, maverick-4l   the released dimensions, cut to 4 layers
//   memory             L L L G of width 256, chunks of 512, made for 10M tokens
//   memory-8k          the same with chunks of 8,192
//   memory-12l         12 such layers, three of them global
//   vision             the released vision encoder alone, for a decoder of width 5120
//   tiny               edge-moe in miniature, for trials
//   tiny-vision        the same with a vision encoder in the file
RandomShape random_shape(std::string_view name);
std::string_view random_shape_names();

// Writes a model of this shape as GGUF. Every matrix has the type that the mixture gives it; the
// router is random in f32, norms are one and biases zero. The vocabulary is made up: the 256 bytes,
// words of growing length with their merges, and the special tokens of Llama 4. The same shape,
// mixture and seed give the same file on any machine and any number of threads. Memory stays at
// some tens of MB. Progress counts bytes. The file appears when it is whole; throws what
// GgufWriter::write throws.
void write_random_model(Context& context, const RandomShape& shape, const Mixture& mixture,
                        uint64_t seed, const std::filesystem::path& path,
                        const Progress& progress = {});

}  // namespace drover
