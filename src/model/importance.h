// How much each input of a linear map matters: the mean square of the activations that meet a
// column of its weights, found by running a text through the model. Rounding errors of columns that
// meet large activations cost more, so quantisers weigh them by it.
//
// The file is the "imatrix" of llama.cpp in its GGUF form, so that both programs can use either's:
// for each map two f32 tensors, NAME.in_sum2 [E, cols], sums of squares, and NAME.counts [E, 1],
// how many rows were summed; E is 1, or the number of experts.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace drover {

struct InputStatistics {
  int64_t cols = 0;
  std::vector<double> square_sums;  // [E, cols]
  std::vector<double> counts;       // [E], rows summed

  int64_t matrices() const { return static_cast<int64_t>(counts.size()); }
  // Enough rows that the means mean something: of n samples of a normal distribution the mean
  // square is off by sqrt(2 / n), a quarter for 32.
  static constexpr double kFewRows = 32;
  bool enough(int64_t matrix) const;
  // out: [cols], what errors in the columns of one matrix weigh: the mean square of the inputs, but
  // at least a thousandth of the matrix's average. Another text may use what this one did not.
  // Only if enough().
  void weights(int64_t matrix, std::span<float> out) const;
};

// A plain value that owns its memory.
struct Importance {
  std::map<std::string, InputStatistics, std::less<>> maps;  // by GGUF name of the weights
  std::string source;                                        // where it came from: for messages
  std::string dataset;  // the text it was made with, as the file names it; may be empty
  int64_t windows = 0;  // of text that were read
  int64_t context = 0;  // tokens of a window

  // Throws kBadData, naming file and tensor, for numbers that are no sums of squares or counts and
  // for shapes that do not go together; kUnsupported for a GGUF file that is something else.
  static Importance load(const std::filesystem::path& path);

  // A sentence for every layer with experts that saw too little, and one if whole maps did.
  std::vector<std::string> gaps() const;

  // The file appears under its name when it is whole. Sums are rounded to f32.
  void save(const std::filesystem::path& path) const;
};

}  // namespace drover
