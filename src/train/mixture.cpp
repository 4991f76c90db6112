#include "train/mixture.h"

#include <algorithm>

#include "base/error.h"
#include "train/random.h"

namespace drover {
namespace {

// Sources draw from (seed, index) too: numbers of the same seed would tie what an example is to
// where it comes from.
constexpr uint64_t kChoice = 0x6d697874757265;  // "mixture"

}  // namespace

ExampleMixture::ExampleMixture(std::span<const Source* const> sources,
                               std::span<const double> weights, uint64_t seed, int64_t length)
    : sources_(sources.begin(), sources.end()), seed_(seed), length_(length) {
  DROVER_CHECK(sources.size() == weights.size());
  double sum = 0;
  for (const double weight : weights) limits_.push_back(sum += weight);
  DROVER_CHECK(sum > 0);
}

size_t ExampleMixture::source_of(uint64_t index) const {
  const double at = Random(seed_ ^ kChoice, index).uniform() * limits_.back();
  const auto found = std::upper_bound(limits_.begin(), limits_.end() - 1, at);
  return static_cast<size_t>(found - limits_.begin());
}

DrawnExample ExampleMixture::draw(uint64_t index) const {
  DrawnExample out;
  out.source = source_of(index);
  const Source& source = *sources_[out.source];
  try {
    out.example = source.example(seed_, index, length_);
  } catch (const Error& error) {
    throw Error(error.kind(),
                fmt::format("source '{}': {}", printable(source.name()), error.message()),
                error.hint());
  }
  const auto tokens = static_cast<int64_t>(out.example.tokens.size());
  if (tokens < 2 || tokens > length_) {
    throw_error(ErrorKind::kBadData, "source '{}': example {}: expected 2 to {} tokens, got {}",
                printable(source.name()), index, length_, tokens);
  }
  return out;
}

MicroBatch ExampleStream::next(int64_t tokens) {
  MicroBatch out;
  for (int64_t room = tokens;;) {
    if (ahead_.empty()) {
      constexpr int64_t kAtOnce = 4;  // a thread: enough to even out pictures beside short texts
      ahead_.resize(static_cast<size_t>(kAtOnce * context_.threads.size()));
      context_.threads.run(static_cast<int64_t>(ahead_.size()), [&](int64_t i, int) {
        ahead_[static_cast<size_t>(i)] = mixture_.draw(index_ + static_cast<uint64_t>(i));
      });
    }
    DrawnExample& next = ahead_.front();
    room -= static_cast<int64_t>(next.example.tokens.size());
    if (room < 0 && !out.examples.empty()) return out;
    out.sources.push_back(next.source);
    out.examples.push_back(std::move(next.example));
    ahead_.pop_front();
    ++index_;
  }
}

}  // namespace drover
