// Damaged files, thousands of each format, and large ones. Each must give a typed Error or open
// with every view inside the file, within a second of processor time and the file's size and 64 MB
// of memory. A mutant follows from its seed; to look at one alone:  DROVER_MUTANT=SEED
// formats_mutants_test
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <map>

#include "formats/gguf.h"
#include "formats/json.h"
#include "formats/safetensors.h"
#include "formats/tiktoken.h"
#include "tests/support/counting_new.h"
#include "tests/support/mutate.h"
#include "tests/support/raw_gguf.h"
#include "tests/support/temp_folder.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace drover {
namespace {

using testing::live_bytes;
using testing::Mutator;
using testing::peak_bytes;
using testing::RawGguf;
using testing::TempFolder;

constexpr size_t kMemory = size_t{64} << 20;
constexpr double kSeconds = 1.0;

// --- Running ------------------------------------------------------------------------------------

// For the last words of a process that a mutant kills.
volatile uint64_t current_seed = 0;

void print_seed() {
  char text[64];
  const int n = std::snprintf(text, sizeof(text), "died with mutant seed %llu\n",
                              static_cast<unsigned long long>(current_seed));
  if (::write(STDERR_FILENO, text, static_cast<size_t>(n)) < 0) return;
}

void print_seed_on_death() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_set_death_callback(print_seed);
#else
  for (const int number : {SIGSEGV, SIGBUS, SIGABRT, SIGFPE}) {
    ::signal(number, [](int caught) {
      print_seed();
      ::signal(caught, SIG_DFL);
      ::raise(caught);
    });
  }
#endif
}

// Touches what a view claims, so that a bad one is a fault and not luck.
volatile unsigned char touched;
void touch(const void* data, size_t bytes) {
  if (bytes == 0) return;
  const auto* at = static_cast<const unsigned char*>(data);
  touched = at[0];
  touched = at[bytes - 1];
}
void touch(std::string_view text) { touch(text.data(), text.size()); }

bool inside(std::span<const std::byte> whole, const void* data, int64_t bytes) {
  const auto* at = static_cast<const std::byte*>(data);
  return bytes >= 0 && at >= whole.data() &&
         static_cast<size_t>(bytes) <= static_cast<size_t>(whole.data() + whole.size() - at);
}

// Runs `body` for the seeds 0 to count - 1. It prepares a mutant and gives its size and what to do
// with it; that throws an Error, says what is wrong, or gives "".
struct Mutant {
  size_t bytes;
  std::function<std::string()> open;
};
void run_mutants(uint64_t count, const std::function<Mutant(uint64_t seed)>& prepare) {
  print_seed_on_death();
  uint64_t first = 0;
  if (const char* one = std::getenv("DROVER_MUTANT")) {
    first = std::strtoull(one, nullptr, 10);
    count = first + 1;
  }
  uint64_t opened = 0;
  size_t most_memory = 0;
  std::map<std::string, uint64_t> refused;  // by kind
  for (uint64_t seed = first; seed < count; ++seed) {
    current_seed = seed;
    const Mutant mutant = prepare(seed);
    const size_t before = live_bytes;
    testing::reset_peak();
    const std::clock_t start = std::clock();
    std::string problem;
    try {
      problem = mutant.open();
      ++opened;
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::kInternal) problem = error.what();
      ++refused[std::string(error_kind_name(error.kind()))];
    } catch (const std::exception& other) {
      problem = std::string("not an Error: ") + other.what();
    }
    const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    const size_t memory = peak_bytes - before;
    most_memory = std::max(most_memory, memory);
    EXPECT_EQ(problem, "") << "mutant seed " << seed;
    EXPECT_LT(seconds, kSeconds) << "mutant seed " << seed;
    EXPECT_LE(memory, mutant.bytes + kMemory) << "mutant seed " << seed;
  }
  std::printf("  %llu mutants: %llu opened", static_cast<unsigned long long>(count - first),
              static_cast<unsigned long long>(opened));
  for (const auto& [kind, n] : refused)
    std::printf(", %llu %s", static_cast<unsigned long long>(n), kind.c_str());
  std::printf("; most memory %zu KB\n", most_memory / 1024);
  if (count - first < 1000) return;
  // Mutants that all fail at the first byte, or that all open, would test nothing.
  EXPECT_GT(opened, count / 50);
  EXPECT_GT(refused["bad_data"], count / 50);
}

// --- GGUF ---------------------------------------------------------------------------------------

const std::vector<std::string> kNames = {"a",
                                         "b",
                                         "general.architecture",
                                         "general.alignment",
                                         "split.count",
                                         "blk.0.attn_q.weight",
                                         "tokenizer.ggml.tokens",
                                         "x"};

void add_nested_array(RawGguf& raw, Mutator& mutator, uint64_t depth) {
  if (depth > 0) {
    const uint64_t count = mutator.below(3);
    raw.number(uint32_t{9}).number(count);
    for (uint64_t i = 0; i < count; ++i) add_nested_array(raw, mutator, depth - 1);
  } else {
    raw.number(uint32_t{5}).number(uint64_t{1}).number(int32_t{7});
  }
}

void add_key(RawGguf& raw, Mutator& mutator, size_t i) {
  // Mostly a name of its own, so that not every file has a key twice.
  const std::string name = mutator.one_in(12) ? mutator.pick(kNames) : fmt::format("key.{}", i);
  switch (mutator.below(8)) {
    case 0:
      raw.text(name).number(uint32_t{10}).number(mutator.number());
      break;
    case 1:
      raw.u32_key(name, mutator.one_in(2) ? 32 : static_cast<uint32_t>(mutator.number()));
      break;
    case 2: {
      const uint64_t count = mutator.below(20);
      raw.array_key(name, 8, count);
      for (uint64_t k = 0; k < count; ++k) raw.text(std::string(mutator.below(5), 's'));
      break;
    }
    case 3: {
      const uint64_t count = mutator.below(20);
      raw.array_key(name, 6, count);
      for (uint64_t k = 0; k < count; ++k) raw.number(0.5f);
      break;
    }
    case 4:
      raw.text(name).number(uint32_t{9});
      add_nested_array(raw, mutator, mutator.below(7));
      break;
    case 5:
      raw.text(name)
          .number(uint32_t{7})
          .number(static_cast<uint8_t>(mutator.below(20) == 0 ? 2 : 1));
      break;
    default:
      raw.text_key(name, std::string(mutator.below(100), 'v'));
  }
}

std::string gguf_mutant(uint64_t seed) {
  Mutator mutator(seed);
  const uint64_t keys = mutator.below(8), tensors = mutator.below(6);
  RawGguf raw(2 + static_cast<uint32_t>(mutator.below(2)), tensors, keys);
  for (uint64_t i = 0; i < keys; ++i) add_key(raw, mutator, i);
  uint64_t data = 0;
  for (uint64_t i = 0; i < tensors; ++i) {
    static const std::vector<uint32_t> kTypes = {0, 0, 1, 8, 12, 14, 24, 30, 30, 16, 99};
    const uint32_t type = mutator.one_in(20) ? mutator.pick(kTypes) : kTypes[mutator.below(9)];
    const uint64_t rows = mutator.one_in(40) ? mutator.number() : 1 + mutator.below(3);
    const uint64_t cols = mutator.one_in(40) ? mutator.number() : 256;
    const uint64_t offset = mutator.one_in(40) ? mutator.number() : data;
    raw.tensor(mutator.one_in(20) ? "blk.0" : fmt::format("t.{}", i), {cols, rows}, type, offset);
    if (const auto known = dtype_from_gguf(type)) {
      data += static_cast<uint64_t>(row_bytes(*known, 256)) * (rows % 4);
      data = (data + 31) / 32 * 32;
    }
  }
  raw.data(mutator.one_in(20) ? data / 2 : data);

  std::string bytes = raw.bytes();
  // The first seeds cut the file at each byte of its tables in turn.
  if (seed < 2000) return bytes.substr(0, seed % (raw.header_bytes() + 1));
  if (mutator.one_in(2)) {
    const RawGguf::Field& field = mutator.pick(raw.fields());
    mutator.set_number(bytes, field.offset, field.width);
  }
  if (mutator.one_in(3)) mutator.damage(bytes, 0, raw.header_bytes());
  return bytes;
}

template <typename Getter>
void call(Getter getter) {
  try {
    getter();
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kInternal) throw;
  }
}

std::string use(const GgufFile& file) {
  const auto bytes = file.files().front().bytes();
  for (const NamedTensor& t : file.tensors()) {
    if (!inside(bytes, t.data, t.bytes)) return "a tensor leaves the file";
    if (!inside(bytes, t.name.data(), static_cast<int64_t>(t.name.size())))
      return "a name leaves the file";
    if (file.find_tensor(t.name) != &t) return "a tensor is not found";
    if (t.bytes <= 0) return "a tensor is empty";
    touch(t.data, static_cast<size_t>(t.bytes));
    touch(t.name);
  }
  for (const GgufEntry& entry : file.metadata()) {
    if (file.find(entry.key) != &entry.value) return "a key is not found";
    const auto encoded = entry.value.encoded();
    if (!inside(bytes, encoded.data(), static_cast<int64_t>(encoded.size())))
      return "a value leaves the file";
    touch(entry.value.preview());
    call([&] { file.unsigned_value(entry.key); });
    call([&] { file.signed_value(entry.key); });
    call([&] { file.float_value(entry.key); });
    call([&] { file.bool_value(entry.key); });
    call([&] { touch(file.required_string(entry.key)); });
    call([&] {
      for (const std::string_view text : file.required_string_array(entry.key)) touch(text);
    });
    call([&] { file.signed_array(entry.key); });
    call([&] { file.float_array(entry.key); });
    call([&] { file.bool_array(entry.key); });
  }
  return "";
}

TEST(GgufMutants, GiveATypedErrorOrViewsInsideTheFile) {
  const TempFolder folder(TempFolder::fast_parent());
  run_mutants(20'000, [&](uint64_t seed) {
    const std::string bytes = gguf_mutant(seed);
    const auto path = folder.write("m.gguf", bytes);
    return Mutant{bytes.size(), [path] { return use(GgufFile::open(path)); }};
  });
}

// --- safetensors --------------------------------------------------------------------------------

std::string json_number(Mutator& mutator) {
  static const std::vector<std::string> kNumbers = {
      "-1", "-0", "1.0", "1e5", "1e999", "null", "\"1\"", "[]", "{}", "18446744073709551616"};
  return mutator.one_in(4) ? mutator.pick(kNumbers) : std::to_string(mutator.number());
}

// The members of a tensor's object: right, or nearly.
std::string tensor_fields(Mutator& mutator, uint64_t& data) {
  static const std::vector<std::string> kTypes = {"F32",  "F16", "BF16", "I8", "F32",
                                                  "BF16", "F64", "I64",  "U8", "F8_E4M3"};
  static const std::map<std::string, uint64_t> kSizes = {{"F32", 4}, {"F16", 2},    {"BF16", 2},
                                                         {"I8", 1},  {"F64", 8},    {"I64", 8},
                                                         {"U8", 1},  {"F8_E4M3", 1}};
  const std::string& type = mutator.one_in(20) ? mutator.pick(kTypes) : kTypes[mutator.below(8)];
  uint64_t bytes = kSizes.at(type);
  std::string shape;
  for (uint64_t rank = mutator.below(4); rank-- > 0;) {
    const uint64_t size = mutator.below(5);
    bytes *= size;
    shape += (shape.empty() ? "" : ",") +
             (mutator.one_in(40) ? json_number(mutator) : std::to_string(size));
  }
  const uint64_t begin = mutator.one_in(40) ? data + 1 - mutator.below(3) : data;
  data += bytes;
  const std::string end = mutator.one_in(40) ? json_number(mutator) : std::to_string(data);
  std::string out =
      fmt::format(R"("dtype":"{}","shape":[{}],"data_offsets":[{},{}])", type, shape, begin, end);
  if (mutator.one_in(60)) out += R"(,"shape":[1])";
  if (mutator.one_in(60)) out += R"(,"strides":[1])";
  return out;
}

std::string safetensors_mutant(uint64_t seed) {
  Mutator mutator(seed);
  std::string header = "{";
  uint64_t data = 0;
  const auto add = [&](std::string_view name, std::string_view value) {
    if (header.size() > 1) header += ',';
    header += fmt::format("\"{}\":{}", name, value);
  };
  if (mutator.one_in(2))
    add("__metadata__", mutator.one_in(20) ? R"({"a":1})" : R"({"format":"pt","a":"\u00e9"})");
  const uint64_t tensors = mutator.below(6);
  for (uint64_t i = 0; i < tensors; ++i) {
    const std::string name = mutator.one_in(20) ? mutator.pick(kNames) : fmt::format("t.{}\\n", i);
    add(name, "{" + tensor_fields(mutator, data) + "}");
  }
  if (mutator.one_in(60))
    add("deep", std::string(mutator.below(100'000), mutator.one_in(2) ? '[' : '{'));
  header += '}';
  header.append(mutator.below(9), ' ');
  const uint64_t length = header.size();
  std::string bytes(reinterpret_cast<const char*>(&length), sizeof(length));
  bytes += header;
  bytes.append(mutator.one_in(40) ? data + 1 : data, '\1');

  if (seed < 2000) return bytes.substr(0, seed % (8 + header.size() + 1));
  if (mutator.one_in(8)) mutator.set_number(bytes, 0, 8);
  if (mutator.one_in(3)) mutator.damage(bytes, 8, 8 + header.size());
  return bytes;
}

std::string use(std::span<const SafetensorsFile> files, std::span<const NamedTensor> tensors,
                size_t file_bytes) {
  for (const NamedTensor& t : tensors) {
    if (t.bytes < 0 || static_cast<size_t>(t.bytes) > file_bytes)
      return "a tensor is larger than its file";
    touch(t.data, static_cast<size_t>(t.bytes));
    touch(t.name);
  }
  for (const SafetensorsFile& file : files) {
    // A file's tensors cover its data section: back to back, up to its last byte.
    const std::byte* end = nullptr;
    for (const NamedTensor& t : file.tensors()) {
      if (end != nullptr && t.data != end) return "tensors do not stand back to back";
      end = t.data + t.bytes;
      if (file.find(t.name) != &t) return "a tensor is not found";
    }
  }
  return "";
}

TEST(SafetensorsMutants, GiveATypedErrorOrViewsInsideTheFile) {
  const TempFolder folder(TempFolder::fast_parent());
  run_mutants(20'000, [&](uint64_t seed) {
    const std::string bytes = safetensors_mutant(seed);
    const auto path = folder.write("m.safetensors", bytes);
    return Mutant{bytes.size(), [path] {
                    const SafetensorsFile file = SafetensorsFile::open(path);
                    return use({&file, 1}, file.tensors(), file.file_bytes());
                  }};
  });
}

TEST(SafetensorsMutants, OfAnIndexNeverLeadOutOfItsFolder) {
  const TempFolder parent(TempFolder::fast_parent());
  std::filesystem::create_directory(parent / "model");
  const auto shard = [](std::string_view name) {
    const std::string header =
        fmt::format(R"({{"{}":{{"dtype":"I8","shape":[1],"data_offsets":[0,1]}}}})", name);
    const uint64_t length = header.size();
    return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + header + "\1";
  };
  parent.write("model/a.safetensors", shard("t.a"));
  parent.write("model/b.safetensors", shard("t.b"));
  parent.write("outside.safetensors", shard("t.a"));
  std::filesystem::create_symlink("../outside.safetensors", parent / "model/link");
  const std::vector<std::string> names = {"../outside.safetensors",
                                          "link",
                                          "..",
                                          ".",
                                          "",
                                          "/etc/passwd",
                                          "a.safetensors/../../outside.safetensors",
                                          "c.safetensors",
                                          "model.safetensors.index.json",
                                          (parent / "outside.safetensors").string()};
  const std::string home = std::filesystem::canonical(parent / "model").string();
  run_mutants(5'000, [&](uint64_t seed) {
    Mutator mutator(seed);
    const auto name = [&](std::string_view right) {
      return mutator.one_in(4) ? mutator.pick(names) : std::string(right);
    };
    std::string index =
        fmt::format(R"({{"metadata":{{"total_size":2}},"weight_map":{{"t.a":"{}","t.b":"{}"}}}})",
                    name("a.safetensors"), name("b.safetensors"));
    if (mutator.one_in(3)) mutator.damage(index, 0, index.size());
    const auto path = parent.write("model/model.safetensors.index.json", index);
    return Mutant{
        index.size(), [path, home]() -> std::string {
          const SafetensorsSet set = SafetensorsSet::open(path);
          for (const SafetensorsFile& file : set.files()) {
            if (!std::filesystem::canonical(file.path()).string().starts_with(home + "/")) {
              return "opened " + file.path();
            }
          }
          return use(set.files(), set.tensors(), set.file_bytes());
        }};
  });
}

// --- JSON and tiktoken --------------------------------------------------------------------------

TEST(JsonMutants, GiveATypedErrorOrADocument) {
  const std::string base =
      R"({"model_type":"llama4","text_config":{"hidden_size":5120,)"
      R"("rope_scaling":{"factor":16.0,"x":null},)"
      R"("no_rope_layers":[1,1,1,0],"ok":true,"eps":1e-05},"eos_token_id":[200001,200007,200008],)"
      R"("s":"\u00e9\n\"x"})";
  run_mutants(20'000, [&](uint64_t seed) {
    Mutator mutator(seed);
    std::string text = seed < base.size() ? base.substr(0, seed) : base;
    for (uint64_t n = mutator.below(4); n-- > 0;) mutator.damage(text, 0, text.size());
    if (mutator.one_in(50))
      text.insert(mutator.below(text.size() + 1), mutator.below(10'000),
                  mutator.one_in(2) ? '[' : '9');
    const size_t bytes = text.size();
    return Mutant{bytes, [text] {
                    touch(boost::json::serialize(parse_json(text, "mutant")));
                    return std::string();
                  }};
  });
}

TEST(TiktokenMutants, GiveATypedErrorOrTokensByRank) {
  const TempFolder folder(TempFolder::fast_parent());
  run_mutants(5'000, [&](uint64_t seed) {
    Mutator mutator(seed);
    std::string text = "YQ== 0\nYWI= 1\nYWJj 2\nAP+/+w== 3\n//79/Pv6 4\n";
    if (seed < text.size()) text.resize(seed);
    for (uint64_t n = mutator.below(3); n-- > 0;) mutator.damage(text, 0, text.size());
    const auto path = folder.write("tokenizer.model", text);
    return Mutant{text.size(), [path]() -> std::string {
                    for (const std::string& token : read_tiktoken(path)) {
                      if (token.empty()) return "a rank has no token";
                    }
                    return "";
                  }};
  });
}

// --- Large inputs -------------------------------------------------------------------------------

// The small mutants cannot show what a reader takes at its worst: these are built to take much.
void expect_bounded(const char* what, std::string_view bytes, const std::function<void()>& open) {
  const size_t before = live_bytes;
  testing::reset_peak();
  try {
    open();
  } catch (const Error& error) {
    EXPECT_NE(error.kind(), ErrorKind::kInternal) << what << ": " << error.what();
    std::printf("  %s: %s\n", what, error.what());
  }
  const size_t memory = peak_bytes - before;
  std::printf("  %s: %zu MB of file, %zu MB of memory\n", what, bytes.size() >> 20, memory >> 20);
  EXPECT_LE(memory, bytes.size() + kMemory) << what;
}

TEST(LargeInputs, TakeAtMostTheirSizeAnd64MegabytesOfMemory) {
  const TempFolder folder;
  {
    RawGguf raw(3, GgufFile::kMaxTensors, GgufFile::kMaxKeys);
    for (uint64_t i = 0; i < GgufFile::kMaxKeys; ++i)
      raw.text(fmt::format("{:x}", i)).raw({"\0\0\0\0\0", 5});
    for (uint64_t i = 0; i < GgufFile::kMaxTensors; ++i)
      raw.tensor(fmt::format("{:x}", i), {1}, 24, 32 * i);
    raw.data(32 * GgufFile::kMaxTensors);
    const auto path = folder.write("a.gguf", raw.bytes());
    expect_bounded("GGUF tables", raw.bytes(), [&] { GgufFile::open(path); });
  }
  {
    RawGguf raw(3, 0, 1);
    raw.array_key("a", 8, GgufFile::kMaxElements).data(8 * GgufFile::kMaxElements);
    const auto path = folder.write("a.gguf", raw.bytes());
    expect_bounded("GGUF strings", raw.bytes(),
                   [&] { GgufFile::open(path).required_string_array("a"); });
  }
  const auto safetensors = [&](const char* what, std::string_view header, size_t data) {
    const uint64_t length = header.size();
    std::string bytes(reinterpret_cast<const char*>(&length), sizeof(length));
    bytes += header;
    bytes.append(data, '\0');
    const auto path = folder.write("a.safetensors", bytes);
    expect_bounded(what, bytes, [&] { SafetensorsFile::open(path); });
  };
  std::string header = "{";
  for (size_t i = 0; i < SafetensorsFile::kMaxTensors; ++i) {
    header += fmt::format(R"({}"{:x}":{{"dtype":"I8","shape":[0],"data_offsets":[0,0]}})",
                          i == 0 ? "" : ",", i);
  }
  safetensors("safetensors tensors", header + "}", 0);
  header = R"({"__metadata__":{)";
  for (size_t i = 0; i < SafetensorsFile::kMaxMetadata; ++i) {
    header += fmt::format(R"({}"{:x}":"")", i == 0 ? "" : ",", i);
  }
  safetensors("safetensors metadata", header + "}}", 0);
  header = R"({"__metadata__":{)";
  for (size_t i = 0; i < 6; ++i) {
    header += fmt::format(R"({}"{}":"{}")", i == 0 ? "" : ",", i, std::string((15 << 20) + 1, 'x'));
  }
  safetensors("safetensors long texts", header + "}}", 0);

  const auto document = [&](const char* what, std::string_view element, std::string_view close) {
    std::string text(1, close == "]" ? '[' : '{');
    for (size_t i = 0; i < JsonLimits().values - 1; ++i) {
      if (text.size() > 1) text += ',';
      text += fmt::format(fmt::runtime(element), i);
    }
    text += close;
    expect_bounded(what, text, [&] { parse_json(text, "large"); });
  };
  document("JSON numbers", "0", "]");
  document("JSON texts", "\"\"", "]");
  document("JSON objects", "{{}}", "]");
  document("JSON members", "\"{:x}\":\"\"", "}");
  document("JSON members of some length", "\"{:x}.................\":\"12345678901234567890\"",
           "}");

  std::string lines;
  for (size_t i = 0; i < kMaxTiktokenTokens; ++i) {
    lines += fmt::format("AQ== {}\n", i);
  }
  const auto path = folder.write("tokenizer.model", lines);
  expect_bounded("tiktoken", lines, [&] { read_tiktoken(path); });
}

}  // namespace
}  // namespace drover
