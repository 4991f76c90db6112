// A training on disk: what it takes to go on as if it had never stopped.
//
// One file, published atomically, bound to what is trained by a digest, and checked whole before
// anything is taken from it:
//   "DRCKPT01"
//   u64 bytes of the head, u32 CRC32C of the head
//   the head, JSON: digest, cursor, and for each array its name, its floats and their CRC32C
//   the arrays one after the other, f32, little-endian
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/sha256.h"
#include "train/optimizer.h"

namespace drover {

// Sums over rows of one source, with older steps counting less and less.
struct RunningScore {
  double weight = 0;
  double loss = 0;
  double correct = 0;

  double accuracy() const { return weight > 0 ? correct / weight : 0; }
};

// Where a training stands, between two steps.
struct TrainingCursor {
  int64_t step = 0;        // steps done
  int64_t stage = 0;       // the one that comes now; as many as there are when all is done
  int64_t stage_step = 0;  // steps done in it
  uint64_t example = 0;    // the next one
  int64_t evaluated = 0;   // the step after which held-out examples were last asked
  int64_t optimizer_steps = 0;
  int64_t tokens = 0;                // learnt from
  double seconds = 0;                // spent on steps
  std::vector<RunningScore> scores;  // of each source in the recipe's order, since the stage began

  bool operator==(const TrainingCursor&) const;
};

// Throws kCannotWrite, for one when the disk is full; what was under the name before is then still
// there.
void write_checkpoint(const std::filesystem::path& path, const Digest& digest,
                      const TrainingCursor& cursor, std::span<const NamedFloats> arrays);

// Fills arrays of the same names and sizes, and gives the cursor. Throws kBadData for a file that
// is damaged or holds other arrays, kUnsupported for one of another training; the arrays are as
// they were then.
TrainingCursor read_checkpoint(const std::filesystem::path& path, const Digest& digest,
                               std::span<const NamedFloats> arrays);

// FOLDER/step-00001200.checkpoint
std::filesystem::path checkpoint_path(const std::filesystem::path& folder, int64_t step);
// Those in the folder, the newest first; none if there is no folder. Other names that look alike,
// step-best.checkpoint, are left alone.
std::vector<std::filesystem::path> checkpoints_in(const std::filesystem::path& folder);
// Removes what was left of checkpoints when writing them was cut short.
void remove_unfinished(const std::filesystem::path& folder);

}  // namespace drover
