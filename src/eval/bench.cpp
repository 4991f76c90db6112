#include "eval/bench.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <limits>
#include <random>
#include <string>
#include <unordered_set>

#include "base/error.h"
#include "engine/engine.h"
#include "kernels/matmul/matmul.h"

namespace drover {

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

std::string_view BenchTest::name() const {
  if (tiles > 0) return "tiles";
  if (generate == 0) return "pp";
  return prompt == 0 ? "tg" : "pg";
}

void PassWork::operator+=(const PassWork& other) {
  bytes += other.bytes;
  int8_products += other.int8_products;
  float_products += other.float_products;
  bf16_products += other.bf16_products;
}

void PassWork::multiply(Isa isa, const WeightView& w, double rows, bool rounded) {
  const double products = rows * static_cast<double>(w.rows) * static_cast<double>(w.cols);
  if (const int each = matrix_unit_products(isa, w.type, rounded)) {
    bf16_products += each * products;
  } else {
    (is_quantized(w.type) ? int8_products : float_products) += products;
  }
}

double PassWork::least_seconds(const MachineLimits& limits) const {
  double computing = 2 * int8_products / limits.int8_rate + 2 * float_products / limits.float_rate;
  if (bf16_products > 0) computing += 2 * bf16_products / limits.bf16_rate;
  return std::max(bytes / limits.bandwidth, computing);
}

// Adds up what the decoder multiplies.
class Bencher::WorkObserver : public InputObserver {
 public:
  explicit WorkObserver(Isa isa) : isa_(isa) {}
  void see(WeightView w, ConstMatrixView x) override {
    if (x.rows == 0) return;
    // A matrix that several sequences meet apart is read once all the same.
    if (seen_.insert(w.data).second) work_.bytes += static_cast<double>(w.bytes());
    work_.multiply(isa_, w, static_cast<double>(x.rows), /*rounded=*/false);
  }
  const PassWork& work() const { return work_; }

 private:
  Isa isa_;
  PassWork work_;
  std::unordered_set<const std::byte*> seen_;
};

Bencher::Bencher(Context& context, const Model& model, const BenchSettings& settings)
    : isa_(context.isa),
      model_(model),
      settings_(settings),
      layout_(model.config().cache_layout(choose_cache_type(model, settings.cache_type))),
      decoder_(context, model.config(), model.weights()) {
  if (settings.batch < 1) {
    throw_error(ErrorKind::kUsage, "batch: expected at least 1 token, got {}", settings.batch);
  }
}

// The text of a sequence is a function of its number and the seed, so a cache that holds a longer
// text of the sequence holds every shorter one.
std::span<const Token> Bencher::tokens(int64_t sequence, int64_t first, int64_t count) {
  while (static_cast<int64_t>(texts_.size()) <= sequence) texts_.emplace_back();
  std::vector<Token>& text = texts_[static_cast<size_t>(sequence)];
  if (static_cast<int64_t>(text.size()) < first + count) {
    std::mt19937_64 random(settings_.seed + 1000003 * static_cast<uint64_t>(sequence));
    random.discard(text.size());
    const auto vocab = static_cast<uint64_t>(model_.config().vocab);
    while (static_cast<int64_t>(text.size()) < first + count) {
      text.push_back(static_cast<Token>(random() % vocab));
    }
  }
  return std::span<const Token>(text).subspan(static_cast<size_t>(first),
                                              static_cast<size_t>(count));
}

void Bencher::bring_to_depth(const BenchTest& test, const std::function<void()>& tick) {
  // A cache promises room for the model's whole context and takes memory as tokens come.
  while (static_cast<int64_t>(caches_.size()) < test.parallel) {
    caches_.emplace_back(layout_, model_.config().context);
  }
  for (int64_t s = 0; s < test.parallel; ++s) {
    KvCache& cache = caches_[static_cast<size_t>(s)];
    // The rings of local layers may have moved on to a later chunk; then what is left is the text
    // up to a border, and the rest is computed again.
    int64_t at = cache.rewind(test.depth);
    while (at < test.depth) {
      if (tick) tick();
      const int64_t n = std::min(settings_.batch, test.depth - at);
      SequenceSlice slice{&cache, tokens(s, at, n), /*logits=*/0, /*live=*/test.depth};
      pass({&slice, 1}, nullptr);
      at += n;
    }
  }
}

// Bytes of the keys and values that the next `count` tokens of a sequence attend to, themselves
// included.
double Bencher::past_bytes(const KvCache& cache, int64_t count) const {
  const int64_t first = cache.length(), end = first + count;
  const double position_bytes =
      2.0 * static_cast<double>(layout_.kv_heads * row_bytes(layout_.type, layout_.head_dim));
  double positions = 0;
  for (const bool chunked : layout_.chunked) {
    const int64_t begin = chunked ? first / layout_.chunk * layout_.chunk : 0;
    positions += static_cast<double>(end - begin);
  }
  return positions * position_bytes;
}

void Bencher::pass(std::span<SequenceSlice> slices, std::vector<PassWork>* passes) {
  const int64_t vocab = model_.config().vocab;
  int64_t rows = 0;
  PassWork work;
  for (const SequenceSlice& slice : slices) {
    const auto count = static_cast<int64_t>(slice.tokens.size());
    rows += slice.logits;
    work.bytes += past_bytes(*slice.cache, count);
    work.bytes += static_cast<double>(count * model_.weights().embedding.row_stride());
  }
  if (logits_.size() < static_cast<size_t>(rows * vocab)) {
    logits_.resize(static_cast<size_t>(rows * vocab));
  }
  const MatrixView logits{logits_.data(), rows, vocab, vocab};
  if (passes == nullptr) {
    decoder_.forward(slices, logits);
    return;
  }
  WorkObserver observer(isa_);
  decoder_.observe(&observer);
  try {
    decoder_.forward(slices, logits);
  } catch (...) {
    decoder_.observe(nullptr);
    throw;
  }
  decoder_.observe(nullptr);
  work += observer.work();
  passes->push_back(work);
}

double Bencher::run(const BenchTest& test, const std::function<void()>& tick,
                    std::vector<PassWork>* passes) {
  // Random numbers are drawn before the clock starts.
  for (int64_t s = 0; s < test.parallel; ++s) {
    tokens(s, 0, test.depth + test.prompt + test.generate);
  }
  std::vector<SequenceSlice> slices(static_cast<size_t>(test.parallel));
  const auto start = std::chrono::steady_clock::now();
  for (int64_t done = 0; done < test.prompt;) {
    if (tick) tick();
    const int64_t share = std::max<int64_t>(1, settings_.batch / test.parallel);
    const int64_t n = std::min(share, test.prompt - done);
    for (int64_t s = 0; s < test.parallel; ++s) {
      // As any prompt is read: of what its last chunk does not look at, no more than is needed.
      slices[s] = {&caches_[s], tokens(s, test.depth + done, n), done + n == test.prompt ? 1 : 0,
                   test.depth + test.prompt - 1};
    }
    pass(slices, passes);
    done += n;
  }
  for (int64_t done = 0; done < test.generate; ++done) {
    if (tick) tick();
    for (int64_t s = 0; s < test.parallel; ++s) {
      slices[s] = {&caches_[s], tokens(s, test.depth + test.prompt + done, 1), 1};
    }
    pass(slices, passes);
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::vector<PassWork> Bencher::warm_up(const BenchTest& test, const std::function<void()>& tick) {
  const int64_t room = model_.config().context;
  if (test.depth < 0 || test.prompt < 0 || test.generate < 0 || test.tokens() < 1 ||
      test.parallel < 1) {
    throw_error(ErrorKind::kUsage,
                "test: expected sizes of at least 0 and something to do, got prompt {}, generate "
                "{}, depth {}, parallel {}",
                test.prompt, test.generate, test.depth, test.parallel);
  }
  if (test.depth > room || test.prompt + test.generate > room - test.depth) {
    throw Error(ErrorKind::kLimit,
                fmt::format("test: expected at most the model's context of {} tokens, got {} + {} "
                            "+ {}",
                            room, test.depth, test.prompt, test.generate),
                "choose a smaller --depth, --prompt or --generate");
  }
  std::vector<PassWork> passes;
  bring_to_depth(test, tick);
  run(test, tick, &passes);
  return passes;
}

double Bencher::seconds(const BenchTest& test, const std::function<void()>& tick) {
  bring_to_depth(test, tick);
  return run(test, tick, nullptr);
}

VisionBencher::VisionBencher(Context& context, const Vision& vision, int64_t tiles, uint64_t seed)
    : isa_(context.isa), vision_(vision), encoder_(context, vision) {
  const VisionConfig& c = vision.config;
  if (tiles < 1 || tiles > 1024) {
    throw_error(ErrorKind::kUsage, "tiles: expected 1 to 1024, got {}", tiles);
  }
  const int64_t bytes = c.tiles.size * c.tiles.size * 3;
  pixels_.resize(static_cast<size_t>(tiles * bytes));
  std::mt19937_64 random(seed);
  for (uint8_t& byte : pixels_) byte = static_cast<uint8_t>(random() & 255);
  for (int64_t t = 0; t < tiles; ++t) tiles_.push_back(pixels_.data() + t * bytes);
  out_.resize(static_cast<size_t>(tiles * c.tile_tokens() * c.embedding));
}

double VisionBencher::seconds(const std::function<void()>& tick) {
  const VisionConfig& c = vision_.config;
  const int64_t rows = static_cast<int64_t>(tiles_.size()) * c.tile_tokens();
  const auto start = std::chrono::steady_clock::now();
  encoder_.encode(tiles_, {out_.data(), rows, c.embedding, c.embedding}, [&](int64_t, int64_t) {
    if (tick) tick();
    return true;
  });
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

PassWork VisionBencher::work() const {
  const VisionConfig& c = vision_.config;
  const VisionWeights& w = vision_.weights;
  PassWork work{.bytes = static_cast<double>(w.bytes)};
  const auto add = [&](const WeightView& matrix, int64_t rows) {
    // As the encoder asks for it.
    const bool rounded = matrix.type != DType::kF32;
    work.multiply(isa_, matrix, static_cast<double>(tiles_.size() * rows), rounded);
  };
  add(w.patch_embedding, c.patches());
  for (const VisionLayerWeights& layer : w.layers) {
    for (const BiasedMap* map :
         {&layer.wq, &layer.wk, &layer.wv, &layer.wo, &layer.fc1, &layer.fc2}) {
      add(map->weight, c.rows());
    }
  }
  for (const WeightView* matrix : {&w.adapter_fc1, &w.adapter_fc2, &w.projector}) {
    add(*matrix, c.tile_tokens());
  }
  return work;
}

BenchResult summarise(const BenchTest& test, std::span<const double> seconds,
                      std::span<const PassWork> passes, const MachineLimits& limits) {
  DROVER_CHECK(!seconds.empty());
  const double tokens = static_cast<double>(test.tokens());
  std::vector<double> rates;
  for (const double s : seconds) rates.push_back(tokens / s);
  BenchResult result{.test = test, .threads = limits.threads};
  result.tokens_per_second = median(rates);
  const auto [slowest, fastest] = std::minmax_element(rates.begin(), rates.end());
  result.spread = (*fastest - *slowest) / result.tokens_per_second;
  PassWork all;
  double least = 0;
  for (const PassWork& pass : passes) {
    all += pass;
    least += pass.least_seconds(limits);
  }
  const double middle = tokens / result.tokens_per_second;
  result.bytes_per_second = all.bytes / middle;
  result.fraction_of_limit = least / middle;
  double moving = 0;
  for (const PassWork& pass : passes) {
    const double bytes_only = pass.bytes / limits.bandwidth;
    if (bytes_only >= pass.least_seconds(limits)) moving += bytes_only;
  }
  result.bandwidth_bound = moving > least / 2;
  return result;
}

int64_t anonymous_memory() {
  std::ifstream status("/proc/self/status");
  int64_t resident = 0, mapped = 0;
  for (std::string key; status >> key; status.ignore(std::numeric_limits<int>::max(), '\n')) {
    if (key == "VmRSS:") status >> resident;
    if (key == "RssFile:") status >> mapped;
  }
  return (resident - mapped) * 1024;
}

}  // namespace drover
