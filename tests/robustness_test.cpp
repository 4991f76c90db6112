// Bad model files, from the bytes to the logits: thousands of seeded mutants of a GGUF file and of
// a Hugging Face folder go through Model::load and, where that succeeds, through three tokens of
// the decoder and everything that inspect asks. Each gives a typed error or finite work: within a
// second of processor time and the file's size plus 64 MB. The suite runs again under
// AddressSanitizer and UndefinedBehaviorSanitizer.

#include <gtest/gtest.h>
#include <time.h>

#include <boost/json.hpp>
#include <map>

#include "base/mapped_file.h"
#include "engine/engine.h"
#include "model/export_gguf.h"
#include "model/model.h"
#include "model/vision_encoder.h"
#include "tests/support/counting_new.h"
#include "tests/support/mutate.h"
#include "tests/support/small_model.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using testing::Mutator;
using testing::TempFolder;

constexpr size_t kSpareBytes = size_t{64} << 20;
constexpr double kSeconds = 1;

double processor_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// What people do with a file: load it, look at it, run it.
void use(const fs::path& path) {
  const auto model = Model::load(path.string());
  const ModelConfig& config = model->config();
  const ParameterCount count = count_parameters(config);
  EXPECT_GE(count.total, count.active);
  EXPECT_GT(count.active, 0);
  for (const DType type : {DType::kBF16, DType::kF32, DType::kI8}) {
    const CacheLayout layout = config.cache_layout(type);
    EXPECT_GE(layout.global_bytes_per_token(), 0);
    EXPECT_GE(layout.local_bytes(config.context), 0);
  }
  if (model->has_tokenizer()) model->stop_tokens(model->chat_format());

  Context context(1);
  Engine engine(*model, context, {.context = std::min<int64_t>(config.context, 3)});
  std::vector<Token> tokens = {0, static_cast<Token>(config.vocab / 2),
                               static_cast<Token>(config.vocab - 1)};
  tokens.resize(static_cast<size_t>(engine.context()));
  int64_t rows = 0;
  engine.score(tokens, [&](int64_t, ConstMatrixView logits) { rows += logits.rows; });
  EXPECT_EQ(rows, engine.context());
  if (!model->has_vision()) return;
  const Vision& vision = model->vision();
  // A small picture, which some rules blow up, and the first of its tiles.
  const Image black{3, 2, std::vector<uint8_t>(18)};
  const TiledImage tiled = cut_tiles(vision.config.tiles, black);
  const uint8_t* tiles[] = {tiled.tile(0)};
  const int64_t seen = vision.config.tile_tokens(), embedding = vision.config.embedding;
  std::vector<float> features(static_cast<size_t>(seen * embedding));
  VisionEncoder(context, vision).encode(tiles, {features.data(), seen, embedding, embedding});
}

// Counts what becomes of mutants and checks the promise for each.
class Trial {
 public:
  // `bytes`: the size of the file or folder.
  void run(const fs::path& path, size_t bytes, const std::string& what) {
    const size_t before = testing::live_bytes;
    testing::reset_peak();
    const double start = processor_seconds();
    std::string outcome = "loaded";
    try {
      use(path);
    } catch (const Error& error) {
      outcome = std::string(error_kind_name(error.kind()));
      EXPECT_NE(error.kind(), ErrorKind::kInternal) << what << ": " << error.what();
      EXPECT_FALSE(error.message().empty());
    } catch (const std::exception& error) {
      ADD_FAILURE() << what << ": expected a typed error, got " << error.what();
    }
    EXPECT_LT(processor_seconds() - start, kSeconds) << what;
    EXPECT_LT(testing::peak_bytes - before, bytes + kSpareBytes) << what;
    ++outcomes_[outcome];
  }
  const std::map<std::string, int>& outcomes() const { return outcomes_; }

  ~Trial() {
    for (const auto& [outcome, count] : outcomes_)
      std::printf("  %6d %s\n", count, outcome.c_str());
  }

 private:
  std::map<std::string, int> outcomes_;
};

constexpr size_t kAnySize = size_t{64} << 20;

class Robustness : public ::testing::Test {
 protected:
  Robustness() : folder_(TempFolder::fast_parent()) {}

  // A small model as GGUF bytes.
  std::string gguf_of(std::string_view golden, DType type) {
    const fs::path source = folder_ / (std::string(golden) + ".source");
    testing::write_small_model(source, golden);
    Context context(1);
    const fs::path out = folder_ / "whole.gguf";
    export_gguf(context, HuggingfaceFolder::open(source), out, type);
    return read_file(out, kAnySize);
  }
  void try_gguf(const std::string& bytes, const std::string& what) {
    trial_.run(folder_.write("mutant.gguf", bytes), bytes.size(), what);
  }

  TempFolder folder_;
  Trial trial_;
};

// Where the value of a GGUF key stands: behind the key, four bytes of type, then the value.
size_t value_of(const std::string& bytes, std::string_view key) {
  const size_t at = bytes.find(key);
  return at == std::string::npos ? at : at + key.size() + 4;
}

const char* const kSizeKeys[] = {"context_length",
                                 "embedding_length",
                                 "block_count",
                                 "feed_forward_length",
                                 "attention.head_count",
                                 "attention.head_count_kv",
                                 "attention.key_length",
                                 "attention.value_length",
                                 "rope.dimension_count",
                                 "interleave_moe_layer_step",
                                 "expert_count",
                                 "expert_used_count",
                                 "expert_feed_forward_length",
                                 "attention.chunk_size",
                                 "vocab_size",
                                 "clip.vision.image_size",
                                 "clip.vision.patch_size",
                                 "clip.vision.embedding_length",
                                 "clip.vision.feed_forward_length",
                                 "clip.vision.block_count",
                                 "clip.vision.projection_dim",
                                 "clip.vision.attention.head_count",
                                 "clip.vision.projector.scale_factor",
                                 "drover.vision.max_tiles",
                                 "drover.vision.patch_token"};
const char* const kNumberKeys[] = {"attention.layer_norm_rms_epsilon",
                                   "rope.freq_base",
                                   "drover.attention.floor_scale",
                                   "drover.attention.temperature_scale",
                                   "clip.vision.attention.layer_norm_epsilon",
                                   "drover.vision.rope_theta"};
const char* const kListKeys[] = {"drover.rope_layers",        "drover.chunked_layers",
                                 "drover.moe_layers",         "tokenizer.ggml.tokens",
                                 "tokenizer.ggml.token_type", "tokenizer.ggml.merges",
                                 "clip.vision.image_mean",    "clip.vision.image_std"};

// "llama4.NAME" for sizes; the keys of other prefixes stand as they are.
std::string full_key(std::string_view architecture, std::string_view key) {
  const bool whole =
      key.starts_with("drover.") || key.starts_with("tokenizer.") || key.starts_with("clip.");
  return whole ? std::string(key) : fmt::format("{}.{}", architecture, key);
}

TEST_F(Robustness, EveryHyperParameterOfAGgufFileIsChecked) {
  for (const auto& [golden, architecture] :
       {std::pair("scout", "llama4"), std::pair("maverick", "llama4"),
        std::pair("multimodal", "llama4"), std::pair("llama", "llama")}) {
    const std::string whole = gguf_of(golden, DType::kF32);
    for (const char* name : kSizeKeys) {
      // The next byte keeps head_count from being found in head_count_kv: the type is u32.
      const std::string key = full_key(architecture, name) + std::string("\4\0\0\0", 4);
      const size_t at = whole.find(key);
      if (at == std::string::npos) continue;  // `llama` has no experts
      for (const uint32_t value : {0u, 1u, 2u, 3u, 5u, 7u, 33u, 64u, 4095u, 4097u, 65536u,
                                   0x7fffffffu, 0x80000000u, 0xffffffffu}) {
        std::string bytes = whole;
        std::memcpy(bytes.data() + at + key.size(), &value, 4);
        try_gguf(bytes, fmt::format("{}: {} = {}", golden, name, value));
      }
      std::string other_type = whole;
      other_type[at + key.size() - 4] = 6;  // f32
      try_gguf(other_type, fmt::format("{}: {} as f32", golden, name));
      std::string absent = whole;
      absent[at] = 'x';
      try_gguf(absent, fmt::format("{}: no {}", golden, name));
    }
    for (const char* name : kNumberKeys) {
      const size_t at = value_of(whole, full_key(architecture, name));
      if (at == std::string::npos) continue;
      for (const float value : {0.0f, -1.0f, 1e-45f, 1e38f, INFINITY, -INFINITY, NAN}) {
        std::string bytes = whole;
        std::memcpy(bytes.data() + at, &value, 4);
        try_gguf(bytes, fmt::format("{}: {} = {}", golden, name, value));
      }
    }
    for (const char* name : kListKeys) {
      const size_t at = value_of(whole, name);
      if (at == std::string::npos) continue;
      for (const uint64_t count :
           {0ull, 1ull, 3ull, 5ull, 1ull << 20, 1ull << 32, 1ull << 63, ~0ull}) {
        std::string bytes = whole;
        std::memcpy(bytes.data() + at + 4, &count, 8);
        try_gguf(bytes, fmt::format("{}: {} of {} entries", golden, name, count));
      }
    }
  }
  EXPECT_GT(trial_.outcomes().at("bad_data"), 100);
  EXPECT_GT(trial_.outcomes().at("loaded"), 10);
}

TEST_F(Robustness, InconsistentHyperParametersAreNamed) {
  const std::string whole = gguf_of("scout", DType::kF32);
  struct Case {
    const char* key;
    uint32_t value;
    const char* words;
  };
  for (const Case& c : {
           Case{"attention.head_count", 0, "'llama4.attention.head_count': expected at least 1"},
           Case{"attention.head_count_kv", 3, "multiple of the 3 key and value heads, got 4"},
           Case{"attention.head_count_kv", 0, "key and value heads: expected 1 to 4, got 0"},
           Case{"attention.key_length", 4, "expected keys and values of one size"},
           Case{"rope.dimension_count", 4, "partial rotation"},
           Case{"attention.chunk_size", 0, "chunk size: expected 1 to"},
           Case{"expert_used_count", 5, "experts used: expected 1 to 4, got 5"},
           Case{"expert_used_count", 0, "experts used: expected 1 to 4, got 0"},
           Case{"expert_count", 0, "number of experts: expected 1 to"},
           Case{"block_count", 0x80000000, "'llama4.block_count': expected 1 to 4096"},
           Case{"block_count", 5, "drover.rope_layers': expected 5 entries, one per layer, got 4"},
           Case{"context_length", 0, "context length: expected 1 to"},
           Case{"embedding_length", 48, "expected [64, 48], got [64, 32]"},
       }) {
    std::string bytes = whole;
    const std::string key = full_key("llama4", c.key) + std::string("\4\0\0\0", 4);
    const size_t at = whole.find(key);
    ASSERT_NE(at, std::string::npos) << c.key;
    std::memcpy(bytes.data() + at + key.size(), &c.value, 4);
    const fs::path path = folder_.write("mutant.gguf", bytes);
    try {
      Model::load(path.string());
      ADD_FAILURE() << c.key << " = " << c.value << " loads";
    } catch (const Error& error) {
      EXPECT_NE(std::string_view(error.what()).find(c.words), std::string_view::npos)
          << "expected \"" << c.words << "\" in: " << error.what();
    }
  }
}

TEST_F(Robustness, DamagedGgufFilesGiveAnErrorOrLogits) {
  constexpr uint64_t kSeed = 20260701;
  Mutator mutator(kSeed);
  for (const auto& [golden, type] :
       {std::pair("scout", DType::kF32), std::pair("bf16", DType::kQ4_0),
        std::pair("maverick", DType::kMXFP4), std::pair("multimodal", DType::kF32),
        std::pair("llama", DType::kBF16)}) {
    const std::string whole = gguf_of(golden, type);
    // The tables end where the last tensor is described.
    const size_t tables = whole.rfind(".weight") + 64;
    for (int i = 0; i < 700; ++i) {
      std::string bytes = whole;
      const bool anywhere = mutator.one_in(8);
      for (uint64_t faults = 1 + mutator.below(3); faults > 0; --faults) {
        mutator.damage(bytes, 0, anywhere ? bytes.size() : tables);
      }
      try_gguf(bytes, fmt::format("seed {}, {} mutant {}", kSeed, golden, i));
    }
  }
}

class RobustFolder : public Robustness {
 protected:
  void make(std::string_view golden) {
    fs::remove_all(folder_ / "model");
    testing::write_small_model(folder_ / "model", golden);
    bytes_ = 0;
    for (const auto& entry : fs::directory_iterator(folder_ / "model")) bytes_ += entry.file_size();
  }
  std::string file(const std::string& name) {
    return read_file(folder_ / ("model/" + name), kAnySize);
  }
  void try_with(const std::string& name, const std::string& text, const std::string& what) {
    folder_.write("model/" + name, text);
    trial_.run(folder_ / "model", bytes_ + text.size(), what);
  }

  size_t bytes_ = 0;
};

const char* const kJsonValues[] = {"0",
                                   "-1",
                                   "1",
                                   "2",
                                   "3",
                                   "0.5",
                                   "1e300",
                                   "2147483648",
                                   "1099511627776",
                                   "9223372036854775807",
                                   "18446744073709551615",
                                   "\"x\"",
                                   "null",
                                   "true",
                                   "false",
                                   "[]",
                                   "{}",
                                   "[1]",
                                   "[1,1,1,1,1]",
                                   "[-1,\"x\",null,1e300]",
                                   "NaN",
                                   "Infinity"};

TEST_F(RobustFolder, EveryFieldOfTheConfigurationIsChecked) {
  for (const char* golden : {"scout", "maverick", "multimodal", "llama", "scout_8_1_4"}) {
    make(golden);
    const json::object whole = json::parse(file("config.json")).as_object();
    // The fields of the root, of text_config and of the objects in them.
    const std::function<void(const json::object&, const std::string&)> each =
        [&](const json::object& object, const std::string& path) {
          for (const auto& member : object) {
            const std::string pointer = path + "/" + std::string(member.key());
            if (member.value().is_object()) {
              each(member.value().get_object(), pointer);
            }
            for (const char* value : kJsonValues) {
              json::value root = whole;
              root.at_pointer(pointer) = "@@";
              std::string text = json::serialize(root);
              text.replace(text.find("\"@@\""), 4, value);
              try_with("config.json", text, fmt::format("{}: {} = {}", golden, pointer, value));
            }
          }
        };
    each(whole, "");
  }
  EXPECT_GT(trial_.outcomes().at("bad_data"), 1000);
  EXPECT_GT(trial_.outcomes().at("loaded"), 100);
}

TEST_F(RobustFolder, DamageInAnyFileGivesAnErrorOrLogits) {
  constexpr uint64_t kSeed = 20260702;
  Mutator mutator(kSeed);
  for (const char* golden : {"scout", "sharded", "multimodal"}) {
    make(golden);
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_ / "model")) {
      names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    for (const std::string& name : names) {
      const std::string whole = file(name);
      // Of weights, the header; their values are any values.
      const size_t end =
          name.ends_with(".safetensors") ? whole.find("__metadata__") + 4096 : whole.size();
      for (int i = 0; i < 120; ++i) {
        std::string bytes = whole;
        for (uint64_t faults = 1 + mutator.below(2); faults > 0; --faults)
          mutator.damage(bytes, 0, end);
        try_with(name, bytes, fmt::format("seed {}, {} of {}, mutant {}", kSeed, name, golden, i));
      }
      try_with(name, "", fmt::format("{} of {} empty", name, golden));
      folder_.write("model/" + name, whole);
    }
  }
}

TEST_F(RobustFolder, WeightsThatAreNotNumbersGiveLogitsAndNoCrash) {
  make("top_2");
  const std::string whole = file("model.safetensors");
  uint64_t header = 0;
  std::memcpy(&header, whole.data(), 8);
  for (const float value : {NAN, INFINITY, -INFINITY, 3e38f}) {
    std::string bytes = whole;
    for (size_t at = 8 + header; at + 4 <= bytes.size(); at += 4) {
      std::memcpy(bytes.data() + at, &value, 4);
    }
    try_with("model.safetensors", bytes, fmt::format("every weight {}", value));
  }
  EXPECT_EQ(trial_.outcomes().at("loaded"), 4);
}

}  // namespace
}  // namespace drover
