#include "train/checkpoint.h"

#include <gtest/gtest.h>

#include <fstream>
#include <vector>

#include "base/file_writer.h"
#include "base/mapped_file.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

using testing::expect_error;
using testing::TempFolder;

Digest digest_of(std::string_view text) { return sha256(std::as_bytes(std::span(text))); }

TrainingCursor some_cursor() {
  TrainingCursor out;
  out.step = 12;
  out.stage = 1;
  out.stage_step = 3;
  out.example = (uint64_t{1} << 60) + 7;
  out.evaluated = 10;
  out.optimizer_steps = 12;
  out.tokens = 98304;
  out.seconds = 0.1 + 0.2;
  out.scores = {{1.0 / 3, 2.0 / 7, 0}, {0, 0, 0}};
  return out;
}

struct Arrays {
  std::vector<float> a = {1, -0.0f, 3.25f}, b = {7e-45f};
  std::vector<float> none;
  std::vector<NamedFloats> named() { return {{"a", a}, {"none", none}, {"b", b}}; }
};

class Checkpoint : public ::testing::Test {
 protected:
  void SetUp() override {
    Arrays arrays;
    write_checkpoint(path_, digest_, some_cursor(), arrays.named());
    bytes_ = read_file(path_, 1 << 20);
  }
  // What reading these bytes throws, and whether the arrays stayed as they were.
  void expect_refusal(const std::string& bytes, const std::string& what) {
    write_file(path_, bytes);
    Arrays into{.a = {9, 9, 9}, .b = {9}, .none = {}};
    try {
      read_checkpoint(path_, digest_, into.named());
      ADD_FAILURE() << what << ": expected an Error, got none";
    } catch (const Error& error) {
      EXPECT_TRUE(error.kind() == ErrorKind::kBadData || error.kind() == ErrorKind::kUnsupported)
          << what << ": " << error.what();
    }
    EXPECT_EQ(into.a, std::vector<float>(3, 9)) << what;
  }

  TempFolder folder_{TempFolder::fast_parent()};
  std::filesystem::path path_ = checkpoint_path(folder_.path(), 12);
  Digest digest_ = digest_of("recipe");
  std::string bytes_;
};

TEST_F(Checkpoint, GivesBackEveryBit) {
  Arrays into{.a = {0, 0, 0}, .b = {0}, .none = {}};
  const TrainingCursor cursor = read_checkpoint(path_, digest_, into.named());
  EXPECT_EQ(cursor, some_cursor());
  EXPECT_EQ(cursor.seconds, 0.1 + 0.2);
  EXPECT_EQ(cursor.scores[0].loss, 2.0 / 7);
  EXPECT_EQ(into.a, Arrays().a);
  EXPECT_TRUE(std::signbit(into.a[1]));
  EXPECT_EQ(into.b, Arrays().b);
}

TEST_F(Checkpoint, FindsEveryFlippedByte) {
  for (size_t i = 0; i < bytes_.size(); ++i) {
    std::string damaged = bytes_;
    damaged[i] = static_cast<char>(damaged[i] ^ (1 << (i % 8)));
    expect_refusal(damaged, fmt::format("byte {}", i));
  }
}

TEST_F(Checkpoint, FindsEveryCutAndWhatIsTooMuch) {
  for (size_t size = 0; size < bytes_.size(); ++size) {
    expect_refusal(bytes_.substr(0, size), fmt::format("{} bytes", size));
  }
  expect_refusal(bytes_ + '\0', "a byte more");
}

TEST_F(Checkpoint, BelongsToOneRecipeAndItsArrays) {
  Arrays into;
  expect_error(ErrorKind::kUnsupported, "expected a checkpoint of this recipe",
               [&] { read_checkpoint(path_, digest_of("another"), into.named()); });
  into.a.push_back(1);
  expect_error(ErrorKind::kBadData, "expected 'a' of 4 floats, got 'a' of 3",
               [&] { read_checkpoint(path_, digest_, into.named()); });
  Arrays renamed;
  auto named = renamed.named();
  named[2].name = "c";
  expect_error(ErrorKind::kBadData, "expected 'c' of 1 floats, got 'b' of 1",
               [&] { read_checkpoint(path_, digest_, named); });
  named.pop_back();
  expect_error(ErrorKind::kBadData, "expected a list of 2 arrays",
               [&] { read_checkpoint(path_, digest_, named); });
}

TEST_F(Checkpoint, AreListedNewestFirst) {
  for (const int64_t step : {9, 1200, 100}) write_file(checkpoint_path(folder_.path(), step), "x");
  write_file(folder_ / "metrics.jsonl", "");
  write_file(folder_ / "step-00000100.checkpoint.other", "");
  // More digits than the name has room for, and names that somebody else gave.
  write_file(checkpoint_path(folder_.path(), 1'000'000'000), "x");
  for (const char* other : {"best", "", "-1", "12a"}) {
    write_file(folder_ / fmt::format("step-{}.checkpoint", other), "x");
  }
  const auto at = [&](int64_t step) { return checkpoint_path(folder_.path(), step); };
  EXPECT_EQ(
      checkpoints_in(folder_.path()),
      (std::vector<std::filesystem::path>{at(1'000'000'000), at(1200), at(100), at(12), at(9)}));
  EXPECT_TRUE(checkpoints_in(folder_ / "nowhere").empty());
}

TEST_F(Checkpoint, LeavesNothingUnfinishedBehind) {
  const auto partial = path_.string() + ".partial";
  std::ofstream(partial) << "half";
  const auto other = folder_.write("step-best.checkpoint.partial", "somebody else's");
  remove_unfinished(folder_.path());
  EXPECT_TRUE(std::filesystem::exists(other));
  EXPECT_FALSE(std::filesystem::exists(partial));
  EXPECT_TRUE(std::filesystem::exists(path_));
}

}  // namespace
}  // namespace drover
