#include "formats/safetensors.h"

#include <gtest/gtest.h>

#include <chrono>

#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

using testing::expect_error;
using testing::TempFolder;

const std::filesystem::path kData = "tests/data/formats";
constexpr size_t kReadAll = size_t{1} << 30;

// The fixtures' tensor bytes; see pattern() in tests/reference/formats_reference.py.
void expect_pattern(const NamedTensor& tensor, int64_t seed) {
  for (int64_t i = 0; i < tensor.bytes; ++i) {
    ASSERT_EQ(std::to_integer<int64_t>(tensor.data[i]), (i * 37 + seed * 11 + 5) % 256)
        << tensor.name << " byte " << i;
  }
}

// A file of this header and so many bytes of data.
std::string file_bytes(std::string_view header, size_t data) {
  const uint64_t length = header.size();
  std::string out(reinterpret_cast<const char*>(&length), sizeof(length));
  out += header;
  out.append(data, '\0');
  return out;
}

void expect_refused(ErrorKind kind, std::string_view words, const std::string& bytes) {
  const TempFolder folder;
  const auto path = folder.write("a.safetensors", bytes);
  expect_error(kind, words, [&] { SafetensorsFile::open(path); });
}
void expect_bad(std::string_view words, std::string_view header, size_t data) {
  expect_refused(ErrorKind::kBadData, words, file_bytes(header, data));
}

TEST(Safetensors, ReadsEveryTensorThatThePythonWriterWrote) {
  const SafetensorsFile file = SafetensorsFile::open(kData / "tiny.safetensors");
  EXPECT_EQ(file.metadata(), (SafetensorsMetadata{{"format", "pt"}}));
  const std::vector<std::pair<DType, std::vector<int64_t>>> expected = {
      {DType::kF64, {}},        {DType::kF32, {0, 4}}, {DType::kF16, {3}}, {DType::kBF16, {2, 3}},
      {DType::kI64, {1, 2, 3}}, {DType::kI32, {5}},    {DType::kI16, {7}}, {DType::kI8, {3, 1}}};
  ASSERT_EQ(file.tensors().size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    const auto& [type, shape] = expected[i];
    const NamedTensor* tensor = file.find(fmt::format("t.{}", dtype_name(type)));
    ASSERT_NE(tensor, nullptr) << dtype_name(type);
    EXPECT_EQ(tensor->type, type);
    EXPECT_EQ(tensor->shape, shape);
    EXPECT_EQ(tensor->bytes, tensor_bytes(type, shape));
    expect_pattern(*tensor, static_cast<int64_t>(i));
  }
  EXPECT_EQ(file.find("t.f8"), nullptr);
}

TEST(Safetensors, WritesTheBytesOfThePythonWriter) {
  const SafetensorsFile file = SafetensorsFile::open(kData / "tiny.safetensors");
  // Given in another order than the one on disk.
  std::vector<const NamedTensor*> order;
  for (const NamedTensor& tensor : file.tensors()) order.insert(order.begin(), &tensor);
  std::vector<TensorSpec> specs;
  for (const NamedTensor* t : order) specs.push_back({std::string(t->name), t->type, t->shape});
  const TempFolder folder;
  uint64_t last = 0;
  write_safetensors(
      folder / "a.safetensors", specs, file.metadata(),
      [&](size_t i, const TensorSink& sink) {
        sink({order[i]->data, static_cast<size_t>(order[i]->bytes)});
      },
      [&](uint64_t done, uint64_t) { last = done; });
  EXPECT_EQ(read_file(folder / "a.safetensors", kReadAll),
            read_file(kData / "tiny.safetensors", kReadAll));
  EXPECT_EQ(last, 8u + 6 + 12 + 48 + 20 + 14 + 3);
}

TEST(Safetensors, WhatTheFormatDoesNotHaveIsNotWritten) {
  const TempFolder folder;
  const auto write = [&](std::vector<TensorSpec> specs) {
    write_safetensors(folder / "a.safetensors", specs, {}, [](size_t, const TensorSink&) {});
  };
  expect_error(ErrorKind::kUnsupported, "tensor t: safetensors has no type q8_0", [&] {
    write({{"t", DType::kQ8_0, {32}}});
  });
  expect_error(ErrorKind::kInternal, "tensor t: added twice", [&] {
    write({{"t", DType::kF32, {0}}, {"t", DType::kF32, {0}}});
  });
  expect_error(ErrorKind::kInternal, "tensor t: impossible shape", [&] {
    write({{"t", DType::kF32, {-1}}});
  });
  expect_error(ErrorKind::kInternal, "expected 4 bytes to write, got 0", [&] {
    write({{"t", DType::kF32, {1}}});
  });
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(Safetensors, EscapedNamesAndTrailingSpacesAreRead) {
  const TempFolder folder;
  const auto path = folder.write(
      "a.safetensors",
      file_bytes(R"({"a\n\u00e9\"":{"shape":[ 2 ],"data_offsets":[0,8],"dtype":"F32"},)"
                 R"("__metadata__":{}}  )",
                 8));
  SafetensorsFile first = SafetensorsFile::open(path);
  const SafetensorsFile file = std::move(first);  // short names must survive the move
  ASSERT_EQ(file.tensors().size(), 1u);
  EXPECT_EQ(file.tensors()[0].name, "a\n\u00e9\"");
  EXPECT_EQ(file.find("a\n\u00e9\""), &file.tensors()[0]);
}

// --- Refusals -----------------------------------------------------------------------------------

TEST(SafetensorsRefusal, HeadersOfImpossibleLength) {
  expect_refused(ErrorKind::kBadData, "header length at byte 0: expected 8 bytes, got 7",
                 "1234567");
  expect_refused(ErrorKind::kBadData, "header at byte 8: expected 3 bytes, got 2",
                 file_bytes("{} ", 0).substr(0, 10));
  std::string huge = file_bytes("{}", 0);
  huge[3] = 6;  // 6 * 2^24 + 2 bytes
  expect_refused(ErrorKind::kLimit, "expected a header of at most 100000000 bytes, got 100663298",
                 huge);
  huge[7] = '\xff';
  expect_refused(ErrorKind::kLimit, "expected a header of at most 100000000 bytes", huge);
}

TEST(SafetensorsRefusal, HeadersThatAreNotTheJsonOfTheFormat) {
  expect_bad("at byte 0: expected JSON, got a fault", "", 0);
  expect_bad("expected an object, got an array", "[]", 0);
  expect_bad("expected an object", "3", 0);
  expect_bad("at byte 2: expected the end of the JSON text, got more", "{}{}", 0);
  expect_bad("expected JSON, got a fault", "{\"a\":", 0);
  expect_bad("expected JSON, got a fault", "{\"\xff\":{}}", 0);
  expect_bad("key a: expected an object", R"({"a":1})", 0);
  expect_bad("key a: expected an object, got an array", R"({"a":[]})", 0);
  expect_bad("key x: expected dtype, shape or data_offsets", R"({"a":{"x":1}})", 0);
  expect_bad("key dtype: expected a plain value, got an array", R"({"a":{"dtype":[]}})", 0);
  expect_bad("key dtype: expected a string", R"({"a":{"dtype":3}})", 0);
  expect_bad("key shape: expected an array", R"({"a":{"shape":3}})", 0);
  expect_bad("key shape: expected a plain value, got an object", R"({"a":{"shape":{}}})", 0);
  expect_bad("key shape: expected a plain value, got an array", R"({"a":{"shape":[[]]}})", 0);
  expect_bad("__metadata__: key k: expected a string", R"({"__metadata__":{"k":1}})", 0);
  expect_bad("__metadata__: key k: expected a plain value", R"({"__metadata__":{"k":{}}})", 0);
  for (const char* number : {"-1", "1.0", "1e2", "9223372036854775808", "\"1\"", "null", "true"}) {
    expect_bad(
        "tensor a: key shape: expected integers from 0 to 2^63 - 1",
        fmt::format(R"({{"a":{{"dtype":"F32","shape":[{}],"data_offsets":[0,4]}}}})", number), 4);
  }
  // A hundred thousand brackets: refused at the second, long before any recursion could matter.
  expect_bad("expected a plain value", R"({"a":{"shape":)" + std::string(100000, '['), 0);
}

TEST(SafetensorsRefusal, KeysGivenTwice) {
  const std::string tensor = R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  const std::string next = R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})";
  expect_bad("tensor a: expected once, got twice", R"({"a":)" + tensor + R"(,"a":)" + next + "}",
             8);
  expect_bad("key __metadata__: expected once, got twice",
             R"({"__metadata__":{},"__metadata__":{}})", 0);
  expect_bad("__metadata__: key k: expected once, got twice",
             R"({"__metadata__":{"k":"1","k":"2"}})", 0);
  expect_bad("key dtype: expected once, got twice", R"({"a":{"dtype":"F32","dtype":"F32"}})", 0);
  expect_bad("key shape: expected once, got twice", R"({"a":{"shape":[],"shape":[]}})", 0);
  expect_bad("key data_offsets: expected once, got twice",
             R"({"a":{"data_offsets":[0,0],"data_offsets":[0,0]}})", 0);
}

TEST(SafetensorsRefusal, TensorsWithoutAllTheirFields) {
  expect_bad("tensor a: missing key dtype", R"({"a":{"shape":[1],"data_offsets":[0,4]}})", 4);
  expect_bad("tensor a: missing key shape", R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", 4);
  expect_bad("tensor a: missing key data_offsets", R"({"a":{"dtype":"F32","shape":[1]}})", 4);
  expect_bad("key data_offsets: expected two numbers", R"({"a":{"data_offsets":[0]}})", 4);
  expect_bad("key data_offsets: expected two numbers, got more",
             R"({"a":{"data_offsets":[0,4,8]}})", 4);
}

TEST(SafetensorsRefusal, ElementTypesThatDroverDoesNotHave) {
  for (const char* type :
       {"F8_E4M3", "F8_E5M2", "U8", "BOOL", "U16", "U32", "U64", "F4", "f32", ""}) {
    expect_refused(
        ErrorKind::kUnsupported, fmt::format("tensor a: element type {} is not supported", type),
        file_bytes(
            fmt::format(R"({{"a":{{"dtype":"{}","shape":[1],"data_offsets":[0,1]}}}})", type), 1));
  }
}

std::string header_of(std::string_view shape, std::string_view offsets) {
  return fmt::format(R"({{"a":{{"dtype":"F32","shape":[{}],"data_offsets":[{}]}}}})", shape,
                     offsets);
}

TEST(SafetensorsRefusal, SizesThatDoNotAgree) {
  expect_bad("tensor a: expected 8 bytes (F32 of [2]), got data_offsets [0, 4]",
             header_of("2", "0,4"), 4);
  expect_bad("expected 8 bytes (F32 of [2]), got data_offsets [8, 0]", header_of("2", "8,0"), 8);
  expect_bad("expected a size below 2^63", header_of("4294967296,4294967296", "0,0"), 0);
  expect_bad("expected a size below 2^63", header_of("4611686018427387904", "0,0"), 0);
  expect_bad("expected a size below 2^63",
             header_of("0,4611686018427387904,4611686018427387904", "0,0"), 0);
  expect_refused(ErrorKind::kLimit, "tensor a: expected at most 8 dimensions",
                 file_bytes(header_of("1,1,1,1,1,1,1,1,1", "0,4"), 4));
}

TEST(SafetensorsRefusal, DataThatIsNotCoveredExactlyOnce) {
  const auto two = [](std::string_view first, std::string_view second) {
    return fmt::format(R"({{"b":{{"dtype":"I8","shape":[4],"data_offsets":[{}]}},)"
                       R"("a":{{"dtype":"I8","shape":[4],"data_offsets":[{}]}}}})",
                       second, first);
  };
  const TempFolder folder;
  const auto path = folder.write("a.safetensors", file_bytes(two("0,4", "4,8"), 8));
  EXPECT_EQ(SafetensorsFile::open(path).tensors()[1].name, "b");
  expect_bad("tensor b: expected its data at byte 4, got 3 (an overlap)", two("0,4", "3,7"), 7);
  expect_bad("expected its data at byte 4, got 0 (an overlap)", two("0,4", "0,4"), 4);
  expect_bad("tensor b: expected its data at byte 4, got 5 (a hole)", two("0,4", "5,9"), 9);
  expect_bad("tensor a: expected its data at byte 0, got 1 (a hole)", two("1,5", "5,9"), 9);
  expect_bad("tensor b: expected data up to byte 8, got a data section of 7 bytes",
             two("0,4", "4,8"), 7);
  expect_bad("expected 8 bytes of data, got 9", two("0,4", "4,8"), 9);
  expect_bad("expected 0 bytes of data, got 1", "{}", 1);
}

TEST(SafetensorsRefusal, AFileCutShortAnywhere) {
  const TempFolder folder;
  const std::string bytes = read_file(kData / "tiny.safetensors", kReadAll);
  for (size_t length = 0; length < bytes.size(); ++length) {
    const auto path = folder.write("a.safetensors", std::string_view(bytes).substr(0, length));
    try {
      SafetensorsFile::open(path);
      ADD_FAILURE() << "opened with " << length << " of " << bytes.size() << " bytes";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kBadData) << length << ": " << error.what();
    }
  }
}

TEST(SafetensorsLimits, ALargeHeaderIsReadInLinearTime) {
  const TempFolder folder;
  const auto header = [](size_t tensors) {
    std::string out = "{";
    for (size_t i = 0; i < tensors; ++i) {
      out += fmt::format(R"({}"{}":{{"dtype":"I8","shape":[1],"data_offsets":[{},{}]}})",
                         i == 0 ? "" : ",", i, i, i + 1);
    }
    return out + "}";
  };
  constexpr size_t kMany = SafetensorsFile::kMaxTensors;
  const auto path = folder.write("a.safetensors", file_bytes(header(kMany), kMany));
  const auto start = std::chrono::steady_clock::now();
  EXPECT_NE(SafetensorsFile::open(path).find("262143"), nullptr);
  // It takes well under a second; comparing each name with each other would take minutes.
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30));
  expect_refused(ErrorKind::kLimit, "expected at most 262144 tensors, got more",
                 file_bytes(header(kMany + 1), kMany + 1));
}

TEST(SafetensorsLimits, MetadataIsBounded) {
  std::string header = R"({"__metadata__":{)";
  for (size_t i = 0; i <= SafetensorsFile::kMaxMetadata; ++i) {
    header += fmt::format(R"({}"{}":"")", i == 0 ? "" : ",", i);
  }
  expect_refused(ErrorKind::kLimit, "__metadata__: expected at most 65536 keys, got more",
                 file_bytes(header + "}}", 0));
  expect_refused(ErrorKind::kLimit, "expected keys up to 65536",
                 file_bytes("{\"" + std::string(70000, 'x') + "\":{}}", 0));
  expect_refused(ErrorKind::kLimit, "strings up to 16777216 bytes",
                 file_bytes(R"({"__metadata__":{"a":")" + std::string(17 << 20, 'x') + "\"}}", 0));
}

// --- Sets ---------------------------------------------------------------------------------------

TEST(SafetensorsSet, ReadsTheTensorsOfTheIndexFromTheirShards) {
  for (const auto& path : {kData / "sharded", kData / "sharded" / "model.safetensors.index.json"}) {
    const SafetensorsSet set = SafetensorsSet::open(path);
    EXPECT_EQ(set.files().size(), 2u);
    EXPECT_EQ(set.file_bytes(), 616u);
    EXPECT_EQ(set.metadata(), (SafetensorsMetadata{{"format", "pt"}}));
    ASSERT_EQ(set.tensors().size(), 4u);
    for (int shard = 1; shard <= 2; ++shard) {
      for (int i = 0; i < 2; ++i) {
        const NamedTensor* tensor =
            set.find(fmt::format("model.layers.{}.shard{}.weight", i, shard));
        ASSERT_NE(tensor, nullptr);
        EXPECT_EQ(tensor->shape, (std::vector<int64_t>{2, 4}));
        expect_pattern(*tensor, 2 * shard + i);
      }
    }
    EXPECT_EQ(set.find("rope.freqs"), nullptr) << "not in the index";
  }
}

TEST(SafetensorsSet, OneFileIsASetToo) {
  const SafetensorsSet set = SafetensorsSet::open(kData / "tiny.safetensors");
  EXPECT_EQ(set.tensors().size(), 8u);
  EXPECT_NE(set.find("t.bf16"), nullptr);
  const SafetensorsSet none;
  EXPECT_TRUE(none.tensors().empty());
  EXPECT_TRUE(none.metadata().empty());
  EXPECT_EQ(none.find("t.bf16"), nullptr);
}

// A set whose index says where tensor t lies.
std::filesystem::path write_index(const TempFolder& folder, std::string_view shard) {
  return folder.write("model.safetensors.index.json",
                      fmt::format(R"({{"weight_map":{{"t":"{}"}}}})", shard));
}

TEST(SafetensorsSet, AnIndexMayNotLeadOutOfItsFolder) {
  const TempFolder folder;
  std::filesystem::create_directory(folder / "sub");
  const std::string bytes =
      file_bytes(R"({"t":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}})", 1);
  folder.write("inside.safetensors", bytes);
  folder.write("sub/outside.safetensors", bytes);
  EXPECT_EQ(SafetensorsSet::open(write_index(folder, "inside.safetensors")).tensors().size(), 1u);
  for (const std::string& name :
       {std::string("../inside.safetensors"), std::string("sub/outside.safetensors"),
        std::string("./inside.safetensors"), (folder / "inside.safetensors").string(),
        std::string(".."), std::string("."), std::string(""),
        std::string("..\\\\inside.safetensors"), std::string("inside.safetensors\\u0000")}) {
    expect_error(ErrorKind::kBadData, "expected a plain file name for a shard",
                 [&] { SafetensorsSet::open(write_index(folder, name)); });
  }
  std::filesystem::create_symlink(folder / "sub" / "outside.safetensors", folder / "link");
  expect_error(ErrorKind::kBadData,
               "expected shard link to lie in the folder of the index, got a link to",
               [&] { SafetensorsSet::open(write_index(folder, "link")); });
  std::filesystem::create_symlink("inside.safetensors", folder / "near");
  EXPECT_EQ(SafetensorsSet::open(write_index(folder, "near")).tensors().size(), 1u);
}

TEST(SafetensorsSet, LinksOfTheDownloadCacheAreFollowed) {
  const TempFolder model;
  std::filesystem::create_directories(model / "snapshots/rev");
  std::filesystem::create_directories(model / "blobs");
  model.write("blobs/abc",
              file_bytes(R"({"t":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}})", 1));
  std::filesystem::create_symlink("../../blobs/abc", model / "snapshots/rev/a.safetensors");
  const auto index = model.write("snapshots/rev/model.safetensors.index.json",
                                 R"({"weight_map":{"t":"a.safetensors"}})");
  EXPECT_EQ(SafetensorsSet::open(index).tensors().size(), 1u);
}

TEST(SafetensorsSet, AnIndexThatDoesNotMatchItsShardsIsRefused) {
  const TempFolder folder;
  folder.write("a.safetensors", file_bytes("{}", 0));
  expect_error(ErrorKind::kBadData,
               "expected tensor t in shard a.safetensors, which does not have it",
               [&] { SafetensorsSet::open(write_index(folder, "a.safetensors")); });
  expect_error(ErrorKind::kNotFound, "shard b.safetensors is missing",
               [&] { SafetensorsSet::open(write_index(folder, "b.safetensors")); });
  const auto index = [&](std::string_view text) {
    const auto path = folder.write("model.safetensors.index.json", text);
    return [path] { SafetensorsSet::open(path); };
  };
  expect_error(ErrorKind::kBadData, "missing key weight_map", index("{}"));
  expect_error(ErrorKind::kBadData, "key weight_map: expected an object, got 3",
               index(R"({"weight_map":3})"));
  expect_error(ErrorKind::kBadData,
               "index.json: weight_map: key t: expected a string, got an array",
               index(R"({"weight_map":{"t":[]}})"));
  expect_error(ErrorKind::kBadData, "key t: expected once, got twice",
               index(R"({"weight_map":{"t":"a.safetensors","t":"a.safetensors"}})"));
}

}  // namespace
}  // namespace drover
