// What is known of a training: what each step came to, and the file metrics.jsonl that keeps it, a
// JSON object a line.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace drover {

struct SourceScore {
  std::string name;
  double weight = 0;   // of the tokens that were to be learnt
  double loss = 0;     // summed, in nats
  double correct = 0;  // weight of those whose best token was the right one
};

struct StepReport {
  int64_t step = 0;   // the first is 1
  int64_t left = 0;   // planned after it
  int64_t stage = 0;  // the first is 1
  double loss = 0;    // mean over weights, auxiliary losses apart
  double balance = 0;
  double rate = 0;  // what rates were multiplied by
  double gradient_norm = 0;
  int64_t tokens = 0;
  double seconds = 0;
  std::vector<SourceScore> sources;          // all of the recipe; of weight 0 without examples
  std::vector<std::vector<double>> experts;  // shares of each expert, by MoE layer

  // The busiest expert of any layer beside the mean: 1 is even.
  double crowding() const;
};

// Of held-out examples, after a step.
struct HeldOutReport {
  int64_t step = 0;
  std::vector<SourceScore> sources;
};

// Lines go to the file at once.
class MetricsFile {
 public:
  // Keeps what stands there of steps up to `step`, of held-out examples up to `evaluated`, and cuts
  // off what follows, whatever it is. kBadData for a line before that which is none; kUsage while
  // another training writes there; what opening and writing throw.
  MetricsFile(const std::filesystem::path& path, int64_t step, int64_t evaluated);
  ~MetricsFile();
  MetricsFile(const MetricsFile&) = delete;
  MetricsFile& operator=(const MetricsFile&) = delete;

  void add(const StepReport& report);
  void add(const HeldOutReport& report);
  // So that a checkpoint never knows of lines that a power failure could take back.
  void flush_to_disk();

 private:
  void append(std::string line);

  std::string path_;
  int fd_ = -1;
};

}  // namespace drover
