// Which examples a training sees, in which order, and how they fill its passes.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <vector>

#include "kernels/context.h"
#include "train/example.h"

namespace drover {

struct DrawnExample {
  size_t source = 0;  // of the mixture's
  Example example;
};

// Examples of several sources by weight. Example `index` is a function of seed, length and index
// alone. The sources must outlive it; thread-safe.
class ExampleMixture {
 public:
  // weights: of the sources in order, at least one above 0. length: the most tokens of an example.
  ExampleMixture(std::span<const Source* const> sources, std::span<const double> weights,
                 uint64_t seed, int64_t length);

  size_t source_of(uint64_t index) const;
  // Throws what the source throws, with its name before it; kBadData for an example of less than
  // two tokens or more than `length`.
  DrawnExample draw(uint64_t index) const;

 private:
  std::vector<const Source*> sources_;
  std::vector<double> limits_;  // running sums of weights, the last is their total
  uint64_t seed_;
  int64_t length_;
};

// One pass of a step: examples that lie beside each other.
struct MicroBatch {
  std::vector<size_t> sources;  // of each example
  std::vector<Example> examples;
};

// Takes examples of a mixture in order. They are made a few at a time on all threads.
class ExampleStream {
 public:
  // Begins with example `index`. The mixture must outlive it.
  ExampleStream(Context& context, const ExampleMixture& mixture, uint64_t index)
      : context_(context), mixture_(mixture), index_(index) {}

  // The next examples that fit into a pass of `tokens`, at least one.
  MicroBatch next(int64_t tokens);
  // What comes next: a stream that begins there gives the same from then on.
  uint64_t index() const { return index_; }

 private:
  Context& context_;
  const ExampleMixture& mixture_;
  uint64_t index_;
  std::deque<DrawnExample> ahead_;  // from index_ on
};

}  // namespace drover
