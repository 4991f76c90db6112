#include "eval/random_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <utility>

#include "base/error.h"
#include "formats/gguf_writer.h"
#include "model/export_metadata.h"
#include "model/tensor_table.h"
#include "model/vision_weights.h"
#include "tensor/quantize.h"
#include "text/special_tokens.h"

namespace drover {
namespace {

// One number of the splitmix64 sequence: a good mix of all bits of its argument.
// Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators".
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// A number of mean 0 and variance 1: the sum of four uniform ones, near enough to normal, and the
// same bits on every machine.
float normal(uint64_t random) {
  constexpr float kScale = 1.7320508f / 65536;  // four uniform numbers have variance 1/3
  float sum = -2 * 65535.0f;
  for (int i = 0; i < 4; ++i) sum += static_cast<float>(random >> (16 * i) & 0xffff);
  return sum * kScale;
}

// Random rows of one type and scale, quantised once: a row of a tensor is a run of its blocks that
// starts at a random one. Drawing and quantising every value would take minutes for a large model.
class RowPool {
 public:
  RowPool(Context& context, DType type, int64_t cols, float scale, uint64_t seed) : type_(type) {
    // Enough that rows of a tensor seldom repeat, and little beside any model.
    constexpr int64_t kValues = 1 << 20;
    starts_ = kValues / block();
    const int64_t blocks = starts_ + cols / block();
    data_ = AlignedArray<std::byte>(static_cast<size_t>(row_bytes(type, blocks * block())));
    // Whole blocks, and a K-quant takes long over each.
    const int64_t per_task = std::max<int64_t>(1, 4096 / block());
    context.threads.run((blocks + per_task - 1) / per_task, [&](int64_t task, int worker) {
      const int64_t first = task * per_task, n = std::min(per_task, blocks - first);
      float* values = context.scratch<float>(worker, static_cast<size_t>(n * block()));
      for (int64_t i = 0; i < n * block(); ++i) {
        values[i] = scale * normal(mix(seed ^ static_cast<uint64_t>(first * block() + i)));
      }
      quantize_row(type, {values, static_cast<size_t>(n * block())},
                   data_.data() + row_bytes(type, first * block()));
    });
  }

  void copy_row(uint64_t random, int64_t cols, std::byte* out) const {
    const int64_t start = static_cast<int64_t>(random % static_cast<uint64_t>(starts_));
    std::memcpy(out, data_.data() + row_bytes(type_, start * block()),
                static_cast<size_t>(row_bytes(type_, cols)));
  }

 private:
  // Plain types have blocks of one value; runs that start at every 32nd are as good.
  int64_t block() const { return std::max<int64_t>(32, dtype_info(type_).block_values); }

  DType type_;
  int64_t starts_ = 0;
  AlignedArray<std::byte> data_;
};

// A vocabulary that a byte-level BPE tokenizer works with: the bytes, then words that each add a
// letter to an earlier one (a merge makes them), the special tokens of Llama 4 last.
Vocabulary made_up_vocabulary(int64_t size) {
  Vocabulary v;
  v.source = "random model";
  v.pre = PreTokenizer::kLlama4;
  v.ignore_merges = true;
  for (int byte = 0; byte < 256; ++byte) v.tokens.emplace_back(1, static_cast<char>(byte));
  std::vector<std::string> special = llama4_special_tokens();
  special.resize(std::min<size_t>(special.size(), static_cast<size_t>(size / 4)));
  const Token words_end = static_cast<Token>(size - static_cast<int64_t>(special.size()));
  Token grown = 'a';  // the word that grows; 'z' is followed by the words that were made first
  for (Token word = 256; word < words_end;) {
    for (Token letter = 'a'; letter <= 'z' && word < words_end; ++letter, ++word) {
      v.tokens.push_back(v.tokens[static_cast<size_t>(grown)] + static_cast<char>(letter));
      v.merges.emplace_back(grown, letter);
    }
    grown = grown == 'z' ? 256 : grown + 1;
  }
  v.kinds.assign(v.tokens.size(), TokenKind::kNormal);
  for (std::string& text : special) {
    v.tokens.push_back(std::move(text));
    v.kinds.push_back(TokenKind::kControl);
  }
  v.bos = words_end;
  v.eos = words_end + 1;
  v.add_bos = true;
  return v;
}

// What all shapes share (spec section 1.1).
ModelConfig base_config(std::string_view name, std::string_view architecture, int64_t layers) {
  ModelConfig c;
  c.architecture = architecture;
  c.name = name;
  c.norm_eps = 1e-5f;
  c.rope_theta = 500000;
  c.context = 262144;
  c.layers.assign(static_cast<size_t>(layers), LayerConfig{.chunked = false});
  return c;
}

// Local layers with every fourth global, experts on every `moe_step`-th.
ModelConfig llama4_config(std::string_view name, int64_t layers, int64_t moe_step) {
  ModelConfig c = base_config(name, "llama4", layers);
  c.chunk = 8192;
  c.temperature_tuning = true;
  c.experts_used = 1;
  for (int64_t i = 0; i < layers; ++i) {
    const bool local = (i + 1) % 4 != 0;
    c.layers[i] = {.rope = local, .chunked = local, .moe = (i + 1) % moe_step == 0};
  }
  return c;
}

void set_sizes(ModelConfig& c, int64_t vocab, int64_t hidden, int64_t heads, int64_t kv_heads,
               int64_t head_dim) {
  c.vocab = vocab;
  c.hidden = hidden;
  c.heads = heads;
  c.kv_heads = kv_heads;
  c.head_dim = head_dim;
}

ModelConfig dense_config(std::string_view name, int64_t hidden, int64_t heads, int64_t kv_heads,
                         int64_t width) {
  ModelConfig c = base_config(name, "llama", 16);
  set_sizes(c, 32768, hidden, heads, kv_heads, 64);
  c.dense_width = width;
  return c;
}

ModelConfig edge_config(std::string_view name, int64_t layers, int64_t vocab, int64_t hidden,
                        int64_t heads, int64_t kv_heads, int64_t experts, int64_t width) {
  ModelConfig c = llama4_config(name, layers, /*moe_step=*/1);
  set_sizes(c, vocab, hidden, heads, kv_heads, 64);
  c.qk_norm = true;
  c.experts = experts;
  c.expert_width = width;
  return c;
}

ModelConfig released_config(std::string_view name, int64_t experts, int64_t moe_step) {
  ModelConfig c = llama4_config(name, /*layers=*/4, moe_step);
  set_sizes(c, 202048, 5120, 40, 8, 128);
  c.experts = experts;
  c.expert_width = 8192;
  c.dense_width = 16384;
  return c;
}

// Contexts of ten million tokens on a small machine: every fourth layer global.
ModelConfig memory_config(std::string_view name, int64_t layers, int64_t chunk) {
  ModelConfig c = edge_config(name, layers, 4096, 256, 8, 2, 8, 512);
  c.chunk = chunk;
  c.context = 10485760;
  return c;
}

ModelConfig tiny_config(std::string_view name) {
  return edge_config(name, 4, 2048, 256, 4, 2, 4, 256);
}

VisionConfig vision_shape(int64_t tile, int64_t patch, int64_t hidden, int64_t heads,
                          int64_t layers, int64_t adapter, int64_t embedding) {
  VisionConfig c;
  c.tiles.size = tile;
  c.patch = patch;
  c.hidden = hidden;
  c.heads = heads;
  c.width = 4 * hidden;
  c.layer_count = layers;
  c.shuffle = 2;
  c.adapter = adapter;
  c.embedding = embedding;
  c.norm_eps = 1e-5f;
  c.rope_theta = 10000;
  return c;
}

}  // namespace

std::string_view random_shape_names() {
  return "edge-moe, edge-dense, edge-dense-active, scout-4l, maverick-4l,\n"
         "memory, memory-8k, memory-12l, vision, tiny or tiny-vision";
}

RandomShape random_shape(std::string_view name) {
  RandomShape shape;
  if (name == "vision") {
    shape.vision = vision_shape(336, 14, 1408, 16, 34, 4096, 5120);
    validate(*shape.vision, std::string(name));
    return shape;
  }
  ModelConfig& c = shape.config.emplace();
  if (name == "edge-moe") {
    c = edge_config(name, 16, 32768, 1024, 16, 4, 16, 2048);
  } else if (name == "memory") {
    c = memory_config(name, 4, 512);
  } else if (name == "memory-8k") {
    c = memory_config(name, 4, 8192);
  } else if (name == "memory-12l") {
    c = memory_config(name, 12, 8192);
  } else if (name == "tiny") {
    c = tiny_config(name);
  } else if (name == "tiny-vision") {
    c = tiny_config(name);
    shape.vision = vision_shape(56, 7, 64, 4, 2, 96, c.hidden);
  } else if (name == "edge-dense") {
    c = dense_config(name, 2048, 32, 8, 9216);
  } else if (name == "edge-dense-active") {
    c = dense_config(name, 1024, 16, 4, 4096);
  } else if (name == "scout-4l") {
    c = released_config(name, 16, /*moe_step=*/1);
    c.context = 10485760;
    c.qk_norm = true;
    c.rope_scaling = {RopeScaling::Kind::kLlama3, 16, 1, 1, 8192};
  } else if (name == "maverick-4l") {
    c = released_config(name, 128, /*moe_step=*/2);
    c.context = 1048576;
  } else {
    throw_error(ErrorKind::kUsage, "shape: expected {}, got {}", random_shape_names(),
                printable(name));
  }
  set_rope_frequencies(c);
  drop_unused(c);
  validate(c, c.name);
  if (shape.vision) validate(*shape.vision, c.name);
  return shape;
}

void write_random_model(Context& context, const RandomShape& shape, const Mixture& mixture,
                        uint64_t seed, const std::filesystem::path& path,
                        const Progress& progress) {
  GgufWriter out;
  if (shape.config) {
    write_general(out, shape.config->architecture, "model", shape.config->name, {});
  } else {
    write_general(out, "clip", "mmproj", "vision", {});
  }
  out.set("general.file_type", mixture.file_type);
  out.set("general.quantization_version", uint32_t{2});
  const ModelConfig config = shape.config.value_or(ModelConfig());
  const auto add = [&](const std::vector<ExpectedTensor>& tensors) {
    for (const ExpectedTensor& tensor : tensors) {
      out.add_tensor(tensor.name, mixture_type(mixture, config, tensor.name, tensor.shape),
                     tensor.shape);
    }
  };
  std::vector<float> divisors;
  if (shape.config) {
    write_config(out, config);
    write_vocabulary(out, made_up_vocabulary(config.vocab), config.vocab);
    add(expected_tensors(config));
    divisors = rope_divisors(config);
    if (config.rope_scaling.kind == RopeScaling::Kind::kLlama3) {
      out.add_tensor("rope_freqs.weight", DType::kF32, {static_cast<int64_t>(divisors.size())});
    }
  }
  if (shape.vision) {
    write_vision_config(out, *shape.vision);
    add(expected_vision_tensors(*shape.vision));
  }

  std::map<std::pair<DType, float>, RowPool> pools;
  AlignedArray<std::byte> buffer;
  out.write(
      path,
      [&](size_t number, const TensorSink& sink) {
        const TensorSpec& tensor = out.tensors()[number];
        if (tensor.name == "rope_freqs.weight") return sink(std::as_bytes(std::span(divisors)));
        const int64_t cols = tensor.shape.back();
        if (tensor.shape.size() == 1) {
          const std::vector<float> same(static_cast<size_t>(cols),
                                        tensor.name.ends_with(".bias") ? 0.0f : 1.0f);
          return sink(std::as_bytes(std::span(same)));
        }
        // A product keeps the size of its input; embeddings are of the size of a normed token, so
        // that what the layers add does not drown which token it was.
        const float scale =
            tensor.name == "token_embd.weight" ? 1.0f : 1.0f / std::sqrt(static_cast<float>(cols));
        const auto pool =
            pools.try_emplace({tensor.type, scale}, context, tensor.type, cols, scale, mix(seed));
        const RowPool& rows = pool.first->second;
        const int64_t bytes = row_bytes(tensor.type, cols);
        int64_t count = 1;
        for (size_t i = 0; i + 1 < tensor.shape.size(); ++i) count *= tensor.shape[i];
        // 16 MB at a time: enough for all threads, little beside the model.
        const int64_t panel = std::clamp<int64_t>((int64_t{16} << 20) / bytes, 1, count);
        buffer.reserve_discarding(static_cast<size_t>(panel * bytes));
        const uint64_t stream = mix(mix(seed) + number);
        for (int64_t first = 0; first < count; first += panel) {
          const int64_t n = std::min(panel, count - first);
          constexpr int64_t kRows = 64;  // of a task
          context.threads.run((n + kRows - 1) / kRows, [&](int64_t task, int) {
            for (int64_t r = task * kRows; r < std::min(n, (task + 1) * kRows); ++r) {
              rows.copy_row(mix(stream ^ static_cast<uint64_t>(first + r)), cols,
                            buffer.data() + r * bytes);
            }
          });
          sink({buffer.data(), static_cast<size_t>(n * bytes)});
        }
      },
      progress);
}

}  // namespace drover
