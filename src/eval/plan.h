// What a model costs, by arithmetic: weights, cache, activations, and the time that this machine's
// limits allow. Nothing is loaded; a config.json alone is enough.
//
// Plain functions on plain data, thread-safe.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "eval/bench.h"
#include "kernels/limits/limits.h"
#include "model/config.h"
#include "model/quantize_mixture.h"
#include "model/vision_config.h"

namespace drover {

// What is reached of a machine's limits. From docs/performance.md, machine B.
inline constexpr double kPrefillEfficiency = 0.39;    // scout-4l.q4_k_m pp512, of the multipliers
inline constexpr double kDecodeEfficiency = 0.70;     // scout-4l.q4_k_m tg128, of the bandwidth
inline constexpr double kAttentionEfficiency = 0.58;  // long prompts, of the f32 rate

// The program, the tables of a vocabulary of 200,000 tokens, and what each thread works in.
inline constexpr int64_t kProgramBytes = int64_t{256} << 20;

struct PlannedTensor {
  std::string name;  // as GGUF has it
  std::vector<int64_t> shape;
  DType type = DType::kF32;

  int64_t values() const;
  int64_t bytes() const;
};

struct PlannedModel {
  ModelConfig config;
  std::optional<VisionConfig> vision;
  std::vector<PlannedTensor> tensors;  // the decoder's and the encoder's
  bool has_weights = false;            // false: from a configuration alone

  int64_t values() const;
  int64_t bytes() const;
  int64_t vision_bytes() const;  // of those, the encoder's
  std::map<DType, int64_t> bytes_by_type() const;
};

// A GGUF file or a Hugging Face folder with the types its tensors have; a folder without weights or
// a configuration file (*.json) with the type that it names (bf16 if it names none). Throws what
// the readers throw.
PlannedModel planned_model(const std::filesystem::path& path);

// The same model, written in a mixture.
PlannedModel in_mixture(PlannedModel model, const Mixture& mixture);

// The most that Decoder's and VisionEncoder's scratch takes, bytes: for batches of so many tokens,
// and for pictures if the model sees.
int64_t activation_bytes(const PlannedModel& model, int64_t batch);

// What one conversation of so many tokens keeps: whole pages, as KvCache takes them.
struct CacheBytes {
  int64_t global = 0;  // of layers that keep the whole past
  int64_t local = 0;   // of layers that keep one chunk
  int64_t all() const { return global + local; }
};
CacheBytes cache_bytes(const ModelConfig& config, DType type, int64_t context);

// The longest context, at most the model's own, whose cache takes at most `bytes`; 0 if none.
int64_t longest_context(const ModelConfig& config, DType type, int64_t bytes);

// What reading a prompt computes. Without dead work, nothing is computed of what no later token
// reads: after the keys and values of the last global layer, tokens outside the last chunk, or all
// but the last token where that layer is the last of all.
struct PrefillWork {
  PassWork weights;
  double attention = 0;  // multiply-adds, two operations each
};
PrefillWork prefill_work(const PlannedModel& model, int64_t tokens, int64_t batch, bool dead_work,
                         Isa isa);

// Seconds expected of a machine with these limits, at the efficiencies above. Nothing where a limit
// that matters is not known (0).
std::optional<double> prefill_seconds(const PlannedModel& model, int64_t tokens, int64_t batch,
                                      bool dead_work, const MachineLimits& limits);
// For one token after a past of so many. A token in the middle of its chunk.
std::optional<double> decode_seconds(const PlannedModel& model, int64_t past, DType cache_type,
                                     const MachineLimits& limits);

// What a conversation of `context` tokens needs in all, and what can be had in `memory`.
struct Demand {
  int64_t context = 0;
  DType cache_type = DType::kBF16;
  int64_t batch = 0;
  int64_t memory = 0;
};
int64_t needed_bytes(const PlannedModel& model, const Demand& demand);
// Conversations of that length that fit together; 0: not even one.
int64_t conversations(const PlannedModel& model, const Demand& demand);

// One way to make it fit: what to change, in flags and in words, and what is needed then.
struct Change {
  std::string flags;  // "--cache-type int8"
  std::string words;
  int64_t bytes = 0;
};
// What makes a demand fit that does not, the gentlest first; the last is the memory it takes.
std::vector<Change> changes_to_fit(const PlannedModel& model, const Demand& demand);

// Memory that a program may take here: the machine's, or less where its control group says so.
int64_t machine_memory();

}  // namespace drover
