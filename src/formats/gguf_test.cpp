#include "formats/gguf.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <fstream>

#include "tests/support/expect_error.h"
#include "tests/support/raw_gguf.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

using testing::expect_error;
using testing::RawGguf;
using testing::TempFolder;

const std::filesystem::path kData = "tests/data/formats";

// The fixtures' tensor bytes; see pattern() in tests/reference/formats_reference.py.
void expect_pattern(const NamedTensor& tensor, int64_t seed) {
  for (int64_t i = 0; i < tensor.bytes; ++i) {
    ASSERT_EQ(std::to_integer<int64_t>(tensor.data[i]), (i * 37 + seed * 11 + 5) % 256)
        << tensor.name << " byte " << i;
  }
}

TEST(TensorBytes, ExistForWholeBlocksBelow63Bits) {
  const auto bytes = [](DType type, std::vector<int64_t> shape) {
    return tensor_bytes(type, shape);
  };
  EXPECT_EQ(bytes(DType::kF32, {}), 4);
  EXPECT_EQ(bytes(DType::kF32, {2, 3}), 24);
  EXPECT_EQ(bytes(DType::kF32, {0, 3}), 0);
  EXPECT_EQ(bytes(DType::kQ4_K, {2, 512}), 2 * 2 * 144);
  EXPECT_EQ(bytes(DType::kI8, {INT64_MAX}), INT64_MAX);
  EXPECT_EQ(bytes(DType::kQ4_K, {2, 100}), std::nullopt);
  EXPECT_EQ(bytes(DType::kQ4_K, {}), std::nullopt);
  EXPECT_EQ(bytes(DType::kF32, {-1}), std::nullopt);
  EXPECT_EQ(bytes(DType::kF32, {-1, -1}), std::nullopt);
  EXPECT_EQ(bytes(DType::kF32, {int64_t{1} << 61}), std::nullopt) << "2^63 bytes";
  EXPECT_EQ(bytes(DType::kF32, {int64_t{1} << 62}), std::nullopt) << "2^64 bytes";
  EXPECT_EQ(bytes(DType::kQ4_0, {int64_t{1} << 31, int64_t{1} << 32}), std::nullopt)
      << "2^63 values";
  EXPECT_EQ(bytes(DType::kI8, {int64_t{1} << 32, int64_t{1} << 32}), std::nullopt) << "2^64 values";
}

TEST(Gguf, ReadsEveryValueThatThePythonWriterWrote) {
  const GgufFile file = GgufFile::open(kData / "tiny.gguf");
  EXPECT_EQ(file.version(), 3u);
  EXPECT_EQ(file.file_bytes(), std::filesystem::file_size(kData / "tiny.gguf"));
  EXPECT_EQ(file.required_string("general.architecture"), "llama4");
  EXPECT_EQ(file.required_unsigned("test.u8"), 200u);
  EXPECT_EQ(file.required_signed("test.i8"), -100);
  EXPECT_EQ(file.required_unsigned("test.u16"), 60000u);
  EXPECT_EQ(file.required_signed("test.i16"), -30000);
  EXPECT_EQ(file.required_unsigned("test.u32"), 4000000000u);
  EXPECT_EQ(file.required_signed("test.i32"), -2000000000);
  EXPECT_EQ(file.required_unsigned("test.u64"), UINT64_MAX);
  EXPECT_EQ(file.required_signed("test.i64"), INT64_MIN);
  EXPECT_EQ(file.required_float("test.f32"), static_cast<double>(1e-5f));
  EXPECT_EQ(file.required_float("test.f64"), 1e-300);
  EXPECT_TRUE(file.required_bool("test.true"));
  EXPECT_FALSE(file.required_bool("test.false"));
  EXPECT_EQ(file.required_string("test.text"), "na\u00efve \u7f8e \U0001f642");
  EXPECT_EQ(file.required_string_array("test.strings"),
            (std::vector<std::string_view>{"a", "", "b\u0120c"}));
  EXPECT_EQ(file.required_signed_array("test.i32s"), (std::vector<int64_t>{1, -2, 3}));
  EXPECT_EQ(file.required_signed_array("test.u32s"), (std::vector<int64_t>{1, 2, 4000000000}));
  EXPECT_EQ(file.required_float_array("test.f32s"), (std::vector<float>{0.5f, -1.25f}));
  EXPECT_EQ(file.required_bool_array("test.bools"), (std::vector<bool>{true, false, true}));
  ASSERT_TRUE(file.has("test.nested"));
  EXPECT_EQ(file.find("test.nested")->type_name(), "array of array");
}

TEST(Gguf, ReadsEveryTensorThatThePythonWriterWrote) {
  const GgufFile file = GgufFile::open(kData / "tiny.gguf");
  ASSERT_EQ(file.tensors().size(), 16u);
  for (size_t i = 0; i < 16; ++i) {
    const NamedTensor& tensor = file.tensors()[i];
    EXPECT_EQ(tensor.name, fmt::format("t.{}", dtype_name(tensor.type)));
    EXPECT_EQ(tensor.shape,
              i % 2 == 0 ? (std::vector<int64_t>{3, 256}) : (std::vector<int64_t>{2, 1, 512}));
    EXPECT_EQ(tensor.bytes, (i % 2 == 0 ? 3 : 4) * row_bytes(tensor.type, 256));
    expect_pattern(tensor, static_cast<int64_t>(i));
    EXPECT_EQ(file.find_tensor(tensor.name), &tensor);
  }
  EXPECT_EQ(file.find_tensor("t.q9_9"), nullptr);
  EXPECT_EQ(file.find_tensor(""), nullptr);
}

TEST(Gguf, ViewsStayValidWhenTheFileObjectMoves) {
  GgufFile first = GgufFile::open(kData / "tiny.gguf");
  const std::string_view name = first.tensors()[3].name;
  const GgufFile second = std::move(first);
  EXPECT_EQ(second.find_tensor(name)->name.data(), name.data());
}

TEST(Gguf, NumbersConvertWhereTheyFitAndErrorsNameKeyAndTypes) {
  const GgufFile file = GgufFile::open(kData / "tiny.gguf");
  EXPECT_EQ(file.signed_value("test.u8"), 200);
  EXPECT_EQ(file.float_value("test.i8"), -100.0);
  EXPECT_EQ(file.bool_array("test.i32s"), (std::vector<bool>{true, true, true}));
  EXPECT_EQ(file.float_array("test.i32s"), (std::vector<float>{1, -2, 3}));
  EXPECT_EQ(file.unsigned_value("absent"), std::nullopt);
  EXPECT_EQ(file.string_array("absent"), std::nullopt);
  const auto bad = ErrorKind::kBadData;
  expect_error(bad, "missing key absent", [&] { file.required_unsigned("absent"); });
  expect_error(bad, "tiny.gguf: key test.i8: expected an unsigned integer, got i8 (-100)",
               [&] { file.unsigned_value("test.i8"); });
  expect_error(bad, "key test.u64: expected a signed integer, got u64 (18446744073709551615)",
               [&] { file.signed_value("test.u64"); });
  expect_error(bad, "key test.f32: expected an unsigned integer, got f32 (1e-05)",
               [&] { file.unsigned_value("test.f32"); });
  expect_error(bad, "key test.text: expected a number, got string",
               [&] { file.float_value("test.text"); });
  expect_error(bad, "key test.u8: expected a bool, got u8 (200)",
               [&] { file.bool_value("test.u8"); });
  expect_error(bad, "key test.u8: expected a string, got u8",
               [&] { file.string_value("test.u8"); });
  expect_error(bad,
               "key test.strings: expected an array of integers, got array of string (3 x string)",
               [&] { file.signed_array("test.strings"); });
  expect_error(bad, "key test.i32s: expected an array of strings, got array of i32",
               [&] { file.string_array("test.i32s"); });
  expect_error(bad, "key test.f32s: expected an array of bools",
               [&] { file.bool_array("test.f32s"); });
  expect_error(bad, "key test.u8: expected an array of numbers",
               [&] { file.float_array("test.u8"); });
}

TEST(Gguf, MetadataCanBeListedInFileOrder) {
  const GgufFile file = GgufFile::open(kData / "tiny.gguf");
  ASSERT_EQ(file.metadata().size(), 20u);
  EXPECT_EQ(file.metadata().front().key, "general.architecture");
  EXPECT_EQ(file.metadata().front().value.preview(), "\"llama4\"");
  EXPECT_EQ(file.metadata()[1].value.type_name(), "u8");
  EXPECT_EQ(file.metadata()[1].value.preview(), "200");
  EXPECT_EQ(file.find("test.f32")->preview(), "1e-05");
  EXPECT_EQ(file.find("test.true")->preview(), "true");
  EXPECT_EQ(file.find("test.strings")->preview(), "3 x string");
}

// --- Split sets ---------------------------------------------------------------------------------

std::string part_name(int number) { return fmt::format("split-{:05}-of-00003.gguf", number); }

TEST(GgufSplit, AnyPartOpensTheWholeSet) {
  for (int number = 1; number <= 3; ++number) {
    const GgufFile file = GgufFile::open(kData / part_name(number));
    EXPECT_EQ(file.path(), kData / part_name(1));
    EXPECT_EQ(file.files().size(), 3u);
    EXPECT_EQ(file.file_bytes(), 416u + 448u + 320u);
    EXPECT_EQ(file.required_unsigned("llama4.block_count"), 3u);
    ASSERT_EQ(file.tensors().size(), 5u);
    for (int i = 0; i < 5; ++i) {
      const NamedTensor* tensor = file.find_tensor(fmt::format("blk.{}.weight", i));
      ASSERT_NE(tensor, nullptr) << i;
      EXPECT_EQ(tensor->shape, (std::vector<int64_t>{i + 1, 8}));
      expect_pattern(*tensor, i);
    }
  }
}

// A copy of the set in a folder of its own, with parts under other names.
void copy_parts(const TempFolder& folder,
                std::initializer_list<std::pair<int, std::string>> parts) {
  for (const auto& [number, name] : parts) {
    std::filesystem::copy_file(kData / part_name(number), folder / name);
  }
}

TEST(GgufSplit, AMissingPartIsNamed) {
  TempFolder folder;
  copy_parts(folder, {{1, part_name(1)}, {3, part_name(3)}});
  expect_error(ErrorKind::kNotFound,
               "split-00002-of-00003.gguf: part 2 of 3 of the model is missing",
               [&] { GgufFile::open(folder / part_name(3)); });
}

TEST(GgufSplit, ARepeatedPartIsRefused) {
  TempFolder folder;
  copy_parts(folder, {{1, part_name(1)}, {1, part_name(2)}, {3, part_name(3)}});
  expect_error(ErrorKind::kBadData, "expected part 2 of 3 by its name, got part 1 of 3",
               [&] { GgufFile::open(folder / part_name(1)); });
}

TEST(GgufSplit, ARenamedPartIsRefused) {
  TempFolder folder;
  copy_parts(folder, {{1, "model.gguf"}, {2, "x-00001-of-00001.gguf"}});
  expect_error(ErrorKind::kBadData, "expected a name that ends in -0000i-of-0000N.gguf",
               [&] { GgufFile::open(folder / "model.gguf"); });
  expect_error(ErrorKind::kBadData, "expected part 1 of 1 by its name, got part 2 of 3",
               [&] { GgufFile::open(folder / "x-00001-of-00001.gguf"); });
}

TEST(GgufSplit, APartWithoutSplitKeysIsRefused) {
  TempFolder folder;
  folder.write("m-00001-of-00002.gguf", RawGguf(3, 0, 1).u32_key("a", 1).bytes());
  expect_error(ErrorKind::kBadData, "expected key split.no to be a number, got none",
               [&] { GgufFile::open(folder / "m-00001-of-00002.gguf"); });
}

std::string part_bytes(uint32_t number, std::string_view tensor, uint32_t total) {
  return RawGguf(3, 1, 3)
      .u32_key("split.no", number)
      .u32_key("split.count", 2)
      .u32_key("split.tensors.count", total)
      .tensor(tensor, {8}, 0, 0)
      .data(32)
      .bytes();
}

TEST(GgufSplit, TensorsOfAllPartsAreCountedAndDiffer) {
  TempFolder folder;
  folder.write("m-00001-of-00002.gguf", part_bytes(0, "a", 3));
  folder.write("m-00002-of-00002.gguf", part_bytes(1, "b", 3));
  expect_error(ErrorKind::kBadData, "expected 3 tensors in all parts, got 2",
               [&] { GgufFile::open(folder / "m-00001-of-00002.gguf"); });
  folder.write("m-00001-of-00002.gguf", part_bytes(0, "a", 2));
  EXPECT_EQ(GgufFile::open(folder / "m-00001-of-00002.gguf").tensors().size(), 2u);
  folder.write("m-00002-of-00002.gguf", part_bytes(1, "a", 2));
  expect_error(ErrorKind::kBadData, "tensor a: expected once, got twice",
               [&] { GgufFile::open(folder / "m-00001-of-00002.gguf"); });
}

// --- Refusals -----------------------------------------------------------------------------------

void expect_refused(ErrorKind kind, std::string_view words, const std::string& bytes) {
  const TempFolder folder;
  const auto path = folder.write("a.gguf", bytes);
  expect_error(kind, words, [&] { GgufFile::open(path); });
}
void expect_bad(std::string_view words, const RawGguf& raw) {
  expect_refused(ErrorKind::kBadData, words, raw.bytes());
}

TEST(GgufRefusal, OtherFilesAreNotGguf) {
  const auto bad = ErrorKind::kBadData;
  expect_refused(bad, "magic at byte 0: expected 4 bytes, got 0", "");
  expect_refused(bad, "expected a GGUF file (magic \"GGUF\"), got \"ggml\"", "ggml....");
  expect_refused(bad, "git lfs pull",
                 "version https://git-lfs.github.com/spec/v1\noid sha256:00\n");
  expect_refused(ErrorKind::kUnsupported, "a big-endian GGUF file", std::string("GGUF\0\0\0\3", 8));
  expect_refused(ErrorKind::kUnsupported, "a big-endian GGUF file", "FUGG....");
  expect_error(ErrorKind::kNotFound, "no-such.gguf", [] { GgufFile::open("no-such.gguf"); });
}

TEST(GgufRefusal, VersionsThatDifferInLayout) {
  expect_refused(ErrorKind::kUnsupported, "expected GGUF version 2 or 3, got 1",
                 RawGguf(1, 0, 0).bytes());
  expect_refused(ErrorKind::kUnsupported, "expected GGUF version 2 or 3, got 4",
                 RawGguf(4, 0, 0).bytes());
  expect_refused(ErrorKind::kUnsupported, "expected GGUF version 2 or 3, got 0",
                 RawGguf(0, 0, 0).bytes());
  TempFolder folder;
  EXPECT_EQ(GgufFile::open(folder.write("a.gguf", RawGguf(2, 0, 0).bytes())).version(), 2u);
}

TEST(GgufRefusal, CountsThatTheFileCannotHold) {
  for (const uint64_t count : {uint64_t{1}, uint64_t{1} << 31, uint64_t{1} << 63, UINT64_MAX}) {
    expect_bad("expected at most 0 keys in the 0 bytes that follow", RawGguf(3, 0, count));
    expect_bad("expected at most 0 tensors in the 0 bytes that follow", RawGguf(3, count, 0));
  }
  RawGguf many(3, 0, GgufFile::kMaxKeys + 1);
  many.data(14 * (GgufFile::kMaxKeys + 1));
  expect_refused(ErrorKind::kLimit, "expected at most 262144 keys, got 262145", many.bytes());
  RawGguf tensors(3, GgufFile::kMaxTensors + 1, 0);
  tensors.data(33 * (GgufFile::kMaxTensors + 1));
  expect_refused(ErrorKind::kLimit, "expected at most 262144 tensors, got 262145", tensors.bytes());
}

TEST(GgufRefusal, LengthsThatLeaveTheFile) {
  expect_bad("key at byte 24: expected 1 to 65535 bytes, got 0",
             RawGguf(3, 0, 1).number(uint64_t{0}).data(64));
  expect_bad("key at byte 24: expected 1 to 65535 bytes, got 18446744073709551615",
             RawGguf(3, 0, 1).number(UINT64_MAX).data(64));
  expect_bad("key at byte 32: expected 60000 bytes, got 96 (end of file)",
             RawGguf(3, 0, 1).number(uint64_t{60000}).data(96));
  expect_bad("string at byte 45: expected 18446744073709551615 bytes",
             RawGguf(3, 0, 1).text("a").number(uint32_t{8}).number(UINT64_MAX).data(64));
  expect_bad("value at byte 49: expected 18446744073709551615 bytes",
             RawGguf(3, 0, 1).array_key("a", 10, uint64_t{1} << 61).data(64));
  expect_bad("end of file", RawGguf(3, 0, 1).array_key("a", 8, uint64_t{1} << 61).data(64));
  expect_bad("tensor name at byte 24: expected 1 to 127 bytes, got 128",
             RawGguf(3, 1, 0).tensor(std::string(128, 'x'), {1}, 0, 0).data(64));
  expect_bad("tensor name at byte 24: expected 1 to 127 bytes, got 0",
             RawGguf(3, 1, 0).tensor("", {1}, 0, 0).data(64));
}

TEST(GgufRefusal, ValuesOfNoType) {
  expect_bad("key a: expected a value type from 0 to 12, got 13",
             RawGguf(3, 0, 1).text("a").number(uint32_t{13}).data(64));
  expect_bad("key a: expected a value type from 0 to 12, got 4294967295",
             RawGguf(3, 0, 1).array_key("a", UINT32_MAX, 1).data(64));
  expect_bad("key a: expected a bool of 0 or 1, got 2",
             RawGguf(3, 0, 1).text("a").number(uint32_t{7}).number(uint8_t{2}));
}

TEST(GgufRefusal, ArraysNestedTooDeep) {
  RawGguf four(3, 0, 1), five(3, 0, 1);
  four.array_key("a", 9, 1);
  five.array_key("a", 9, 1);
  for (int depth = 2; depth <= 3; ++depth) four.number(uint32_t{9}).number(uint64_t{1});
  for (int depth = 2; depth <= 4; ++depth) five.number(uint32_t{9}).number(uint64_t{1});
  four.number(uint32_t{0}).number(uint64_t{1}).number(uint8_t{7});
  five.number(uint32_t{0}).number(uint64_t{1}).number(uint8_t{7});
  TempFolder folder;
  EXPECT_TRUE(GgufFile::open(folder.write("a.gguf", four.bytes())).has("a"));
  expect_refused(ErrorKind::kLimit, "key a: expected at most 4 arrays within each other",
                 five.bytes());
}

TEST(GgufRefusal, NamesGivenTwice) {
  expect_bad("key a: expected once, got twice",
             RawGguf(3, 0, 3).u32_key("a", 1).u32_key("b", 1).u32_key("a", 2));
  expect_bad("tensor t: expected once, got twice", RawGguf(3, 3, 0)
                                                       .tensor("t", {8}, 0, 0)
                                                       .tensor("s", {8}, 0, 32)
                                                       .tensor("t", {8}, 0, 64)
                                                       .data(96));
}

TEST(GgufRefusal, AlignmentsThatAreNone) {
  for (const uint32_t alignment : {0u, 1u, 3u, 4u, 24u, 0x80000000u, 0xffffffffu}) {
    expect_bad("general.alignment: expected a power of two from 8 to 1073741824",
               RawGguf(3, 0, 1).u32_key("general.alignment", alignment));
  }
  expect_bad(
      "got u64 1099511627776",
      RawGguf(3, 0, 1).text("general.alignment").number(uint32_t{10}).number(uint64_t{1} << 40));
  expect_bad("got string \"x\"", RawGguf(3, 0, 1).text_key("general.alignment", "x"));
  TempFolder folder;
  const auto raw =
      RawGguf(3, 1, 1).u32_key("general.alignment", 8).tensor("t", {2}, 0, 8).data(16, 8);
  EXPECT_EQ(GgufFile::open(folder.write("a.gguf", raw.bytes())).tensors()[0].bytes, 8);
}

TEST(GgufRefusal, TensorsOfImpossibleShape) {
  expect_bad("tensor t: expected 1 to 4 dimensions, got 0",
             RawGguf(3, 1, 0).tensor("t", {}, 0, 0).data(64));
  expect_bad("tensor t: expected 1 to 4 dimensions, got 5",
             RawGguf(3, 1, 0).tensor("t", {1, 1, 1, 1, 1}, 0, 0).data(64));
  expect_bad("tensor t: expected dimension 1 to be 1 to 2^63 - 1, got 0",
             RawGguf(3, 1, 0).tensor("t", {8, 0}, 0, 0).data(64));
  expect_bad("expected dimension 0 to be 1 to 2^63 - 1, got 9223372036854775808",
             RawGguf(3, 1, 0).tensor("t", {uint64_t{1} << 63}, 0, 0).data(64));
  // 2^62 floats are 2^64 bytes; 2^32 squared is 2^64 values; 2^62 bytes fit but the file does not.
  expect_bad("a size below 2^63", RawGguf(3, 1, 0).tensor("t", {uint64_t{1} << 62}, 0, 0).data(64));
  expect_bad("a size below 2^63",
             RawGguf(3, 1, 0).tensor("t", {1ull << 32, 1ull << 32}, 24, 0).data(64));
  expect_bad(
      "expected 4611686018427387904 bytes at byte 0 of the data section, got a section of 64",
      RawGguf(3, 1, 0).tensor("t", {uint64_t{1} << 62}, 24, 0).data(64));
  expect_bad(
      "expected rows in whole blocks of 32 values and a size below 2^63, got q8_0 of [2, 33]",
      RawGguf(3, 1, 0).tensor("t", {33, 2}, 8, 0).data(128));
}

TEST(GgufRefusal, TensorTypesThatDroverDoesNotRead) {
  expect_refused(ErrorKind::kUnsupported, "tensor t: type iq2_xxs (16) is not supported",
                 RawGguf(3, 1, 0).tensor("t", {256}, 16, 0).data(128).bytes());
  expect_refused(ErrorKind::kUnsupported, "type undefined (4000000000)",
                 RawGguf(3, 1, 0).tensor("t", {256}, 4000000000u, 0).data(128).bytes());
}

TEST(GgufRefusal, TensorsOutOfPlace) {
  expect_bad("tensor t: expected an offset that is a multiple of 32, got 16",
             RawGguf(3, 1, 0).tensor("t", {8}, 0, 16).data(64));
  expect_bad(
      "tensor t: expected 32 bytes at byte 64 of the data section, got a section of 64 bytes",
      RawGguf(3, 1, 0).tensor("t", {8}, 0, 64).data(64));
  expect_bad("tensor t: expected 32 bytes at byte 18446744073709551584",
             RawGguf(3, 1, 0).tensor("t", {8}, 0, ~uint64_t{31}).data(64));
  expect_bad("tensors a and b overlap at byte 32 of the data section",
             RawGguf(3, 2, 0).tensor("b", {8}, 0, 32).tensor("a", {16}, 0, 0).data(96));
  expect_bad("overlap at byte 0",
             RawGguf(3, 2, 0).tensor("a", {8}, 0, 0).tensor("b", {8}, 0, 0).data(96));
}

TEST(GgufRefusal, AFileCutShortAnywhereInItsTablesOrData) {
  const TempFolder folder;
  const auto raw = RawGguf(3, 2, 2)
                       .text_key("general.architecture", "llama4")
                       .array_key("a", 5, 3)
                       .raw("123412341234")
                       .tensor("t", {8, 2}, 0, 0)
                       .tensor("u", {32}, 8, 64)
                       .data(64 + 34);
  EXPECT_EQ(GgufFile::open(folder.write("a.gguf", raw.bytes())).tensors().size(), 2u);
  for (size_t length = 0; length < raw.bytes().size(); ++length) {
    const auto path = folder.write("a.gguf", std::string_view(raw.bytes()).substr(0, length));
    try {
      GgufFile::open(path);
      ADD_FAILURE() << "opened with " << length << " of " << raw.bytes().size() << " bytes";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kBadData) << length << ": " << error.what();
    }
  }
}

TEST(GgufLimits, ALargeTableIsReadInLinearTime) {
  const TempFolder folder;
  RawGguf raw(3, GgufFile::kMaxTensors, GgufFile::kMaxKeys);
  for (uint64_t i = 0; i < GgufFile::kMaxKeys; ++i) raw.u32_key(std::to_string(i), 1);
  for (uint64_t i = 0; i < GgufFile::kMaxTensors; ++i)
    raw.tensor(std::to_string(i), {8}, 0, 32 * i);
  raw.data(32 * GgufFile::kMaxTensors);
  const auto path = folder.write("a.gguf", raw.bytes());
  const auto start = std::chrono::steady_clock::now();
  const GgufFile file = GgufFile::open(path);
  EXPECT_EQ(file.required_unsigned("77777"), 1u);
  EXPECT_NE(file.find_tensor("262143"), nullptr);
  // It takes about half a second; comparing each name with each other would take minutes.
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30));
}

TEST(GgufLimits, ATensorBeyondATerabyteIsReadWhereItLies) {
  const TempFolder folder;
  constexpr uint64_t kOffset = uint64_t{1} << 40;
  RawGguf raw(3, 2, 0);
  raw.tensor("first", {8}, 24, 0).tensor("last", {8}, 24, kOffset).data(8);
  const auto path = folder.write("a.gguf", raw.bytes());
  std::error_code fault;
  std::filesystem::resize_file(path, raw.bytes().size() + kOffset, fault);
  if (fault) GTEST_SKIP() << "no file of a terabyte here: " << fault.message();
  std::fstream(path, std::ios::in | std::ios::out | std::ios::binary).seekp(-8, std::ios::end)
      << "Llama 4!";
  const GgufFile file = GgufFile::open(path);
  EXPECT_EQ(std::memcmp(file.find_tensor("last")->data, "Llama 4!", 8), 0);
  std::filesystem::resize_file(path, raw.bytes().size() + kOffset - 1);
  expect_error(ErrorKind::kBadData, "tensor last: expected 8 bytes at byte 1099511627776",
               [&] { GgufFile::open(path); });
}

TEST(GgufLimits, AnArrayTooLargeToUnpackIsRefusedByItsGetterOnly) {
  const TempFolder folder;
  RawGguf raw(3, 0, 1);
  raw.array_key("a", 0, GgufFile::kMaxElements + 1).data(GgufFile::kMaxElements + 64);
  const GgufFile file = GgufFile::open(folder.write("a.gguf", raw.bytes()));
  EXPECT_EQ(file.find("a")->preview(), "4194305 x u8");
  expect_error(ErrorKind::kLimit, "key a: expected at most 4194304 elements, got 4194305",
               [&] { file.signed_array("a"); });
}

}  // namespace
}  // namespace drover
