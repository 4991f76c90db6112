#include "formats/gguf_writer.h"

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

using testing::expect_error;
using testing::TempFolder;

constexpr size_t kReadAll = size_t{1} << 30;

// Gives each tensor of an open file, in pieces of `piece` bytes.
TensorProducer producer_of(const GgufFile& file, size_t piece) {
  return [&file, piece](size_t i, const TensorSink& sink) {
    const NamedTensor& tensor = file.tensors()[i];
    std::span<const std::byte> left(tensor.data, static_cast<size_t>(tensor.bytes));
    while (!left.empty()) {
      const size_t n = std::min(piece, left.size());
      sink(left.first(n));
      left = left.subspan(n);
    }
  };
}

TEST(GgufWriter, WritesTheBytesOfThePythonWriter) {
  const std::filesystem::path fixture = "tests/data/formats/tiny.gguf";
  const GgufFile file = GgufFile::open(fixture);
  const TempFolder folder;
  for (const size_t piece : {1, 7, 1 << 20}) {
    GgufWriter writer;
    writer.copy_metadata(file);
    for (const NamedTensor& t : file.tensors())
      writer.add_tensor(std::string(t.name), t.type, t.shape);
    writer.write(folder / "a.gguf", producer_of(file, piece));
    EXPECT_EQ(read_file(folder / "a.gguf", kReadAll), read_file(fixture, kReadAll)) << piece;
    EXPECT_FALSE(std::filesystem::exists(folder / "a.gguf.partial"));
  }
}

TEST(GgufWriter, WritesTheBytesOfThePythonWriterFromValuesToo) {
  GgufWriter writer;
  writer.set("general.architecture", "llama4");
  writer.set("test.u8", uint8_t{200});
  writer.set("test.i8", int8_t{-100});
  writer.set("test.u16", uint16_t{60000});
  writer.set("test.i16", int16_t{-30000});
  writer.set("test.u32", 4000000000u);
  writer.set("test.i32", -2000000000);
  writer.set("test.f32", 1e-5f);
  writer.set("test.u64", UINT64_MAX);
  writer.set("test.i64", INT64_MIN);
  writer.set("test.f64", 1e-300);
  writer.set("test.true", true);
  writer.set("test.false", false);
  writer.set("test.text", "na\u00efve \u7f8e \U0001f642");
  writer.set("test.strings", std::vector<std::string>{"a", "", "b\u0120c"});
  writer.set("test.i32s", std::vector<int32_t>{1, -2, 3});
  writer.set("test.u32s", std::vector<uint32_t>{1, 2, 4000000000u});
  writer.set("test.f32s", std::vector<float>{0.5f, -1.25f});
  writer.set("test.bools", std::vector<bool>{true, false, true});
  const TempFolder folder;
  writer.write(folder / "a.gguf", {});
  const std::string ours = read_file(folder / "a.gguf", kReadAll);
  const std::string theirs = read_file("tests/data/formats/tiny.gguf", kReadAll);
  // Behind the counts up to the key that the writer has no value for.
  const size_t begin = 4 + 4 + 8 + 8;
  const size_t end = theirs.find("test.nested") - 8;
  EXPECT_EQ(ours.substr(begin, end - begin), theirs.substr(begin, end - begin));
}

TEST(GgufWriter, ALargeTensorArrivesWholeInPiecesOfAnySize) {
  // Small pieces are gathered in a buffer of 1 MB and large ones are not: mix them around that
  // size.
  std::vector<std::byte> data(5 << 20);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i * 2654435761u >> 13);
  const std::vector<size_t> sizes = {1, 1 << 20, 700'000, 700'000, 3, (1 << 20) + 1, 5};
  GgufWriter writer;
  writer.set("names", std::vector<std::string_view>{"a", "bc"});
  writer.add_tensor("t", DType::kI8, {static_cast<int64_t>(data.size())});
  const TempFolder folder;
  writer.write(folder / "a.gguf", [&](size_t, const TensorSink& sink) {
    std::span<const std::byte> left = data;
    for (size_t i = 0; !left.empty(); ++i) {
      const size_t n = std::min(sizes[i % sizes.size()], left.size());
      sink(left.first(n));
      left = left.subspan(n);
    }
  });
  const GgufFile file = GgufFile::open(folder / "a.gguf");
  EXPECT_EQ(file.required_string_array("names"), (std::vector<std::string_view>{"a", "bc"}));
  EXPECT_EQ(std::memcmp(file.tensors()[0].data, data.data(), data.size()), 0);
}

TEST(GgufWriter, AKeySetAgainKeepsItsPlaceAndARemovedOneIsGone) {
  GgufWriter writer;
  writer.set("a", 1u);
  writer.set("b", 2u);
  writer.set("c", 3u);
  writer.remove("b");
  writer.remove("absent");
  writer.set("c", "three");
  writer.set("a", 4u);
  writer.set("b", std::string_view("two"));
  const TempFolder folder;
  writer.write(folder / "a.gguf", {});
  const GgufFile file = GgufFile::open(folder / "a.gguf");
  ASSERT_EQ(file.metadata().size(), 3u);
  EXPECT_EQ(file.metadata()[0].value.preview(), "4");
  EXPECT_EQ(file.metadata()[1].value.preview(), "\"three\"");
  EXPECT_EQ(file.metadata()[2].value.preview(), "\"two\"");
}

TEST(GgufWriter, CopiedMetadataLeavesOutWhatDescribesTheOldFile) {
  const GgufFile split = GgufFile::open("tests/data/formats/split-00001-of-00003.gguf");
  GgufWriter writer;
  writer.copy_metadata(split, [](std::string_view key) { return key != "llama4.block_count"; });
  for (const NamedTensor& t : split.tensors())
    writer.add_tensor(std::string(t.name), t.type, t.shape);
  const TempFolder folder;
  writer.write(folder / "whole.gguf", producer_of(split, 100));
  const GgufFile whole = GgufFile::open(folder / "whole.gguf");
  ASSERT_EQ(whole.metadata().size(), 1u);
  EXPECT_EQ(whole.required_string("general.architecture"), "llama4");
  ASSERT_EQ(whole.tensors().size(), 5u);
  for (const NamedTensor& t : split.tensors()) {
    const NamedTensor* copy = whole.find_tensor(t.name);
    ASSERT_NE(copy, nullptr) << t.name;
    EXPECT_EQ(std::memcmp(copy->data, t.data, static_cast<size_t>(t.bytes)), 0) << t.name;
  }
}

TEST(GgufWriter, ProgressCountsTheBytesOfTheTensors) {
  GgufWriter writer;
  writer.add_tensor("a", DType::kF32, {2, 3});
  writer.add_tensor("b", DType::kI8, {5});
  const TempFolder folder;
  std::vector<uint64_t> done;
  writer.write(
      folder / "a.gguf",
      [&](size_t i, const TensorSink& sink) { sink(std::vector<std::byte>(i == 0 ? 24 : 5)); },
      [&](uint64_t now, uint64_t total) {
        EXPECT_EQ(total, 29u);
        done.push_back(now);
      });
  EXPECT_EQ(done, (std::vector<uint64_t>{24, 29}));
}

TEST(GgufWriter, AFailureLeavesTheOldFileAndNothingElse) {
  const TempFolder folder;
  folder.write("a.gguf", "old");
  GgufWriter writer;
  writer.add_tensor("t", DType::kF32, {100});
  const auto write = [&](size_t bytes) {
    writer.write(folder / "a.gguf",
                 [&](size_t, const TensorSink& sink) { sink(std::vector<std::byte>(bytes)); });
  };
  expect_error(ErrorKind::kInternal, "tensor t: expected 400 bytes to write, got 399",
               [&] { write(399); });
  expect_error(ErrorKind::kInternal, "tensor t: expected 400 bytes to write, got more",
               [&] { write(401); });
  expect_error(ErrorKind::kCancelled, "stop", [&] {
    writer.write(folder / "a.gguf",
                 [](size_t, const TensorSink&) { throw_error(ErrorKind::kCancelled, "stop"); });
  });
  EXPECT_EQ(read_file(folder / "a.gguf", 10), "old");
  EXPECT_FALSE(std::filesystem::exists(folder / "a.gguf.partial"));
  write(400);
  EXPECT_EQ(GgufFile::open(folder / "a.gguf").tensors().size(), 1u);
}

TEST(GgufWriter, AFullDiskIsATypedError) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "no /dev/full here";
  const TempFolder folder;
  std::filesystem::create_symlink("/dev/full", folder / "a.gguf.partial");
  GgufWriter writer;
  writer.add_tensor("t", DType::kI8, {1 << 21});
  expect_error(
      ErrorKind::kCannotWrite, "a.gguf.partial: cannot write: No space left on device", [&] {
        writer.write(folder / "a.gguf",
                     [](size_t, const TensorSink& sink) { sink(std::vector<std::byte>(1 << 21)); });
      });
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  expect_error(ErrorKind::kNotFound, "no/such/a.gguf.partial: cannot create",
               [&] { writer.write("no/such/a.gguf", {}); });
}

TEST(GgufWriter, TensorsThatTheFormatDoesNotHaveAreRefused) {
  GgufWriter writer;
  writer.add_tensor(std::string(63, 'x'), DType::kQ4_K, {2, 256});
  expect_error(ErrorKind::kLimit, "expected a name of 1 to 63 bytes, got 64",
               [&] { writer.add_tensor(std::string(64, 'x'), DType::kF32, {1}); });
  expect_error(ErrorKind::kLimit, "expected 1 to 4 dimensions, got 5", [&] {
    writer.add_tensor("a", DType::kF32, {1, 1, 1, 1, 1});
  });
  expect_error(ErrorKind::kInternal, "q4_k cannot have the shape [255]",
               [&] { writer.add_tensor("a", DType::kQ4_K, {255}); });
  expect_error(ErrorKind::kInternal, "f32 cannot have the shape [0]",
               [&] { writer.add_tensor("a", DType::kF32, {0}); });
  expect_error(ErrorKind::kInternal, "added twice",
               [&] { writer.add_tensor(std::string(63, 'x'), DType::kF32, {1}); });
  expect_error(ErrorKind::kLimit, "expected 1 to 65535 bytes, got 0", [&] { writer.set("", 1u); });
  expect_error(ErrorKind::kInternal, "the writer aligns to 32",
               [&] { writer.set("general.alignment", 64u); });
}

}  // namespace
}  // namespace drover
