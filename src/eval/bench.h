// How fast a model runs here: prompts, generation, both, after a depth of context, and many
// sequences at once; beside the least time that the machine's measured limits allow.
//
// A run is timed between calls of the decoder alone: loading, filling the cache up to the depth and
// one run to warm up stand outside. Tokens are random and seeded, the same in every repeat, so
// every repeat does the same work.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/progress.h"
#include "engine/engine.h"
#include "kernels/context.h"
#include "kernels/limits/limits.h"
#include "model/decoder.h"
#include "model/model.h"
#include "model/vision_encoder.h"

namespace drover {

// One thing to measure: `parallel` sequences, each with a cache of `depth` tokens, read `prompt`
// tokens (logits for the last only) and then `generate` more, one token of every sequence a pass.
struct BenchTest {
  int64_t prompt = 0;
  int64_t generate = 0;
  int64_t depth = 0;
  int64_t parallel = 1;
  int64_t tiles = 0;  // of a vision encoder instead, and then nothing of the above

  // Of a tiles' test, the tiles.
  int64_t tokens() const { return tiles > 0 ? tiles : (prompt + generate) * parallel; }
  // "pp" for prompts, "tg" for generation, "pg" for both; "tiles".
  std::string_view name() const;
};

struct BenchSettings {
  int64_t batch = kDefaultBatch;
  std::optional<DType> cache_type = std::nullopt;  // as in EngineOptions
  uint64_t seed = 1;
};

// What the decoder must move and compute for one pass, a call of Decoder::forward.
//   bytes: once, every weight matrix that some token of the pass is multiplied with (of the experts
//     those that were chosen; the output matrix where logits are wanted), every embedding row that
//     is looked up, and every key and value that some token of the pass attends to. What stays in
//     caches in between and what is written is not counted.
//   products: multiply-adds of tokens and those matrices; attention's are not counted.
struct PassWork {
  double bytes = 0;
  double int8_products = 0;   // with quantised weights
  double float_products = 0;  // with the others
  double bf16_products = 0;   // on the matrix unit, by which `rounded` and bf16 weights go, the
                              // latter twice (kernels/matmul/matmul.h)

  // Adds the products of `rows` rows with w.
  void multiply(Isa isa, const WeightView& w, double rows, bool rounded);
  void operator+=(const PassWork& other);
  // The least time that the machine's limits allow for one pass: the larger of moving and
  // computing, as if both overlapped perfectly.
  double least_seconds(const MachineLimits& limits) const;
};

// Runs tests on one model. Caches are kept between tests and rewound, or filled on, where that is
// exact. Context and model must outlive it. One thread at a time.
class Bencher {
 public:
  // Throws kUsage for settings that make no sense.
  Bencher(Context& context, const Model& model, const BenchSettings& settings = {});

  // Fills the caches up to the test's depth and runs it once. Returns the work of each pass.
  // `tick`, if given, is called between passes and may throw to cancel.
  std::vector<PassWork> warm_up(const BenchTest& test, const std::function<void()>& tick = {});

  // Brings the caches to the depth and runs the test; returns the seconds of the run alone.
  double seconds(const BenchTest& test, const std::function<void()>& tick = {});

 private:
  class WorkObserver;

  void bring_to_depth(const BenchTest& test, const std::function<void()>& tick);
  double run(const BenchTest& test, const std::function<void()>& tick,
             std::vector<PassWork>* passes);
  void pass(std::span<SequenceSlice> slices, std::vector<PassWork>* passes);
  std::span<const Token> tokens(int64_t sequence, int64_t first, int64_t count);
  double past_bytes(const KvCache& cache, int64_t count) const;

  Isa isa_;
  const Model& model_;
  BenchSettings settings_;
  CacheLayout layout_;
  Decoder decoder_;
  std::vector<KvCache> caches_;
  std::vector<std::vector<Token>> texts_;  // per sequence, as far as it was asked for
  std::vector<float> logits_;
};

// The same for a vision encoder: some tiles of random pixels at once.
class VisionBencher {
 public:
  // `context` and `vision` must outlive it. tiles: at least 1, else kUsage.
  VisionBencher(Context& context, const Vision& vision, int64_t tiles, uint64_t seed = 1);

  // Encodes the tiles; returns the seconds. `tick` is called after every layer and may throw.
  double seconds(const std::function<void()>& tick = {});
  // Every matrix is read once; the products of attention are not counted, as for the decoder.
  PassWork work() const;

 private:
  Isa isa_;
  const Vision& vision_;
  VisionEncoder encoder_;
  std::vector<uint8_t> pixels_;
  std::vector<const uint8_t*> tiles_;
  std::vector<float> out_;
};

struct BenchResult {
  BenchTest test;
  int threads = 0;
  double tokens_per_second = 0;  // median of the repeats
  double spread = 0;             // (fastest - slowest) / median
  double bytes_per_second = 0;   // PassWork::bytes of all passes, per second of the median
  double fraction_of_limit = 0;  // least_seconds of all passes / seconds of the median
  bool bandwidth_bound = false;  // most of the least time is moving, not computing
};

// Of at least one value.
double median(std::vector<double> values);

// The result of a test from the seconds of its repeats, at least one.
BenchResult summarise(const BenchTest& test, std::span<const double> seconds,
                      std::span<const PassWork> passes, const MachineLimits& limits);

// Resident memory of this process that is not backed by files (VmRSS - RssFile), bytes; 0 if the
// system does not say.
int64_t anonymous_memory();

}  // namespace drover
