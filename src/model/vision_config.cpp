#include "model/vision_config.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>

#include "base/error.h"
#include "formats/gguf.h"
#include "formats/huggingface.h"
#include "formats/json.h"
#include "kernels/attention/attention.h"
#include "model/tensor_table.h"

namespace drover {
namespace {

// What the family does where a file says nothing (spec sections 5 and 6).
constexpr double kFamilyTheta = 10000;
constexpr int64_t kFamilyTiles = 16;

int64_t size_or(const JsonFields& f, std::string_view key, int64_t otherwise) {
  const int64_t value = f.integer(key).value_or(otherwise);
  if (value < 0 || value > int64_t{1} << 32) {
    throw_error(ErrorKind::kBadData, "{}: '{}': expected a size, got {}", f.where(), key, value);
  }
  return value;
}

// s of a ratio 1/s.
int64_t shuffle_of(const JsonFields& f) {
  const double ratio = f.number("pixel_shuffle_ratio").value_or(0.5);
  const double s = std::round(1 / ratio);
  if (!(ratio > 0) || !(s >= 1 && s <= 64) || std::abs(1 / s - ratio) > 1e-6) {
    throw_error(ErrorKind::kUnsupported,
                "{}: 'pixel_shuffle_ratio': expected one over a whole number, got {}", f.where(),
                ratio);
  }
  return static_cast<int64_t>(s);
}

void read_colours(const JsonFields& f, std::string_view key, float (&out)[3]) {
  const auto values = f.numbers(key);
  if (!values) return;
  if (values->size() != 3) {
    throw_error(ErrorKind::kBadData, "{}: '{}': expected 3 numbers, got {}", f.where(), key,
                values->size());
  }
  for (int c = 0; c < 3; ++c) out[c] = static_cast<float>((*values)[c]);
}

// How pictures are prepared stands in a file of its own, in newer folders as part of another.
void read_preprocessor(const HuggingfaceFolder& folder, VisionConfig& c) {
  std::error_code ignored;
  std::filesystem::path path = folder.path / "preprocessor_config.json";
  const bool older = std::filesystem::exists(path, ignored);
  if (!older) path = folder.path / "processor_config.json";
  if (!older && !std::filesystem::exists(path, ignored)) return;
  const boost::json::object root = read_json_object(path);
  const JsonFields top(root, path.string());
  const JsonFields f = older ? top : top.fields("image_processor").value_or(top);
  c.tiles.max_tiles = size_or(f, "max_patches", kFamilyTiles);
  c.tiles.fill_canvas = f.boolean("resize_to_max_canvas").value_or(false);
  read_colours(f, "image_mean", c.mean);
  read_colours(f, "image_std", c.std);
}

void expect_word(const JsonFields& f, std::string_view key, std::string_view expected) {
  const std::string_view got = f.text(key).value_or(expected);
  if (got != expected) {
    throw_error(ErrorKind::kUnsupported, "{}: '{}': expected {}, got {}", f.where(), key, expected,
                printable(got));
  }
}

}  // namespace

int64_t VisionConfig::parameters() const {
  const int64_t layer = 4 * hidden * hidden + 2 * hidden * width + 9 * hidden + width;
  return patch_values() * hidden + (rows() + 5) * hidden + layer_count * layer +
         adapter * (joined() + adapter + embedding);
}

void validate(const VisionConfig& c, const std::string& source) {
  const auto in_range = [&](std::string_view what, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high) {
      throw_error(ErrorKind::kBadData, "{}: vision: {}: expected {} to {}, got {}", source, what,
                  low, high, value);
    }
  };
  const auto multiple = [&](std::string_view what, int64_t value, int64_t of) {
    if (value % of != 0) {
      throw_error(ErrorKind::kBadData, "{}: vision: {}: expected a multiple of {}, got {}", source,
                  what, of, value);
    }
  };
  const auto positive = [&](std::string_view what, double value) {
    if (!(value > 0) || !std::isfinite(value)) {
      throw_error(ErrorKind::kBadData, "{}: vision: {}: expected a positive number, got {}", source,
                  what, value);
    }
  };
  // Far above any model of the family; products of these stay far from 2^63.
  constexpr int64_t kMost = int64_t{1} << 20;
  in_range("tile size", c.tiles.size, 1, 4096);
  in_range("most tiles", c.tiles.max_tiles, 1, 1024);
  // What a picture of the smallest kind can be blown up to.
  in_range("pixels of all tiles", c.tiles.size * c.tiles.size * (c.tiles.max_tiles + 1), 1,
           int64_t{64} << 20);
  in_range("patch size", c.patch, 1, c.tiles.size);
  multiple("tile size", c.tiles.size, c.patch);
  in_range("pixel shuffle", c.shuffle, 1, c.side());
  multiple("patches of a tile's side", c.side(), c.shuffle);
  in_range("hidden size", c.hidden, 1, kMost);
  in_range("number of heads", c.heads, 1, c.hidden);
  multiple("hidden size", c.hidden, c.heads);
  in_range("head dimension", c.head_dim(), 4, kMaxHeadDim);
  multiple("head dimension", c.head_dim(), 4);  // pairs for x, and as many for y
  in_range("feed-forward size", c.width, 1, kMost);
  in_range("number of layers", c.layer_count, 1, 4096);
  in_range("adapter size", c.adapter, 1, kMost);
  in_range("embedding size", c.embedding, 1, int64_t{1} << 24);
  positive("norm epsilon", c.norm_eps);
  positive("rope theta", c.rope_theta);
  for (int i = 0; i < 3; ++i) {
    positive("image_std", c.std[i]);
    if (!std::isfinite(c.mean[i])) positive("image_mean", c.mean[i]);
  }
}

std::optional<VisionConfig> vision_config_from_huggingface(const HuggingfaceFolder& folder,
                                                           int64_t embedding) {
  const std::string source = (folder.path / "config.json").string();
  const JsonFields top(folder.config, source);
  const auto vision = top.fields("vision_config");
  if (!vision) return std::nullopt;
  const JsonFields& f = *vision;
  expect_word(f, "model_type", "llama4_vision_model");
  expect_word(f, "hidden_act", "gelu");
  expect_word(f, "vision_feature_select_strategy", "default");
  if (f.boolean("multi_modal_projector_bias").value_or(false)) {
    throw_error(ErrorKind::kUnsupported, "{}: 'multi_modal_projector_bias': expected false",
                f.where());
  }
  VisionConfig c;
  c.tiles.size = size_or(f, "image_size", 448);
  c.patch = size_or(f, "patch_size", 14);
  c.hidden = size_or(f, "hidden_size", 768);
  c.heads = size_or(f, "num_attention_heads", 16);
  c.width = size_or(f, "intermediate_size", 5632);
  c.layer_count = size_or(f, "num_hidden_layers", 34);
  c.shuffle = shuffle_of(f);
  c.adapter = size_or(f, "projector_output_dim", 4096);
  c.embedding = embedding;
  c.norm_eps = 1e-5f;  // whatever 'norm_eps' says: the reference does not read it
  c.rope_theta = f.number("rope_theta").value_or(kFamilyTheta);
  if (const auto rope = f.fields("rope_parameters")) {
    expect_word(*rope, "rope_type", "default");
    c.rope_theta = rope->number("rope_theta").value_or(c.rope_theta);
  }
  const auto token = top.integer("image_token_index");
  const auto newer = token ? token : top.integer("image_token_id");
  if (newer && *newer >= 0 && *newer < (int64_t{1} << 30)) {
    c.patch_token = static_cast<Token>(*newer);
  }
  read_preprocessor(folder, c);
  validate(c, source);
  return c;
}

std::optional<VisionConfig> vision_config_from_gguf(const GgufFile& file,
                                                    std::optional<int64_t> embedding) {
  if (!file.has("clip.vision.block_count")) return std::nullopt;
  const auto kind = file.string_value("clip.projector_type");
  const std::string_view projector =
      kind ? *kind : file.string_value("clip.vision.projector_type").value_or("");
  if (projector != "llama4") {
    throw Error(ErrorKind::kUnsupported,
                fmt::format("{}: vision projector '{}': expected llama4", file.path(),
                            printable(projector)),
                "the file belongs to a model of another family");
  }
  const auto size = [&](std::string_view key) {
    const std::string name = fmt::format("clip.vision.{}", key);
    const uint64_t value = file.required_unsigned(name);
    if (value > uint64_t{1} << 32) {
      throw_error(ErrorKind::kBadData, "{}: '{}': expected a size, got {}", file.path(), name,
                  value);
    }
    return static_cast<int64_t>(value);
  };
  VisionConfig c;
  c.tiles.size = size("image_size");
  c.tiles.max_tiles = static_cast<int64_t>(std::min<uint64_t>(
      file.unsigned_value("drover.vision.max_tiles").value_or(kFamilyTiles), 1 << 20));
  c.tiles.fill_canvas = file.bool_value("drover.vision.fill_canvas").value_or(false);
  c.patch = size("patch_size");
  c.hidden = size("embedding_length");
  c.heads = size("attention.head_count");
  c.width = size("feed_forward_length");
  c.layer_count = size("block_count");
  c.shuffle = file.has("clip.vision.projector.scale_factor") ? size("projector.scale_factor") : 2;
  c.norm_eps = static_cast<float>(file.required_float("clip.vision.attention.layer_norm_epsilon"));
  c.rope_theta = file.float_value("drover.vision.rope_theta").value_or(kFamilyTheta);
  c.embedding = size("projection_dim");
  const auto colours = [&](std::string_view key, float(&out)[3]) {
    const auto values = file.float_array(key);
    if (!values) return;
    if (values->size() != 3) {
      throw_error(ErrorKind::kBadData, "{}: '{}': expected 3 numbers, got {}", file.path(), key,
                  values->size());
    }
    std::copy(values->begin(), values->end(), out);
  };
  colours("clip.vision.image_mean", c.mean);
  colours("clip.vision.image_std", c.std);
  if (const auto token = file.unsigned_value("drover.vision.patch_token")) {
    if (*token < (uint64_t{1} << 30)) c.patch_token = static_cast<Token>(*token);
  }
  // No key tells the adapter's size, but its second matrix does.
  const NamedTensor* adapter = file.find_tensor("mm.model.mlp.2.weight");
  if (adapter == nullptr || adapter->shape.size() != 2) {
    throw_error(ErrorKind::kBadData,
                "{}: expected a tensor 'mm.model.mlp.2.weight' of two "
                "dimensions",
                file.path());
  }
  c.adapter = adapter->shape[0];
  if (c.embedding != embedding.value_or(c.embedding)) {
    throw Error(ErrorKind::kBadData,
                fmt::format("{}: 'clip.vision.projection_dim': expected the model's {}, got {}",
                            file.path(), *embedding, c.embedding),
                "the vision file belongs to another model");
  }
  validate(c, file.path());
  return c;
}

void write_vision_config(GgufWriter& out, const VisionConfig& c) {
  const auto size = [&](std::string_view key, int64_t value) {
    out.set(fmt::format("clip.vision.{}", key), static_cast<uint32_t>(value));
  };
  out.set("clip.has_vision_encoder", true);
  out.set("clip.projector_type", std::string("llama4"));
  out.set("clip.use_gelu", true);
  size("image_size", c.tiles.size);
  size("patch_size", c.patch);
  size("embedding_length", c.hidden);
  size("feed_forward_length", c.width);
  size("block_count", c.layer_count);
  size("projection_dim", c.embedding);
  size("attention.head_count", c.heads);
  out.set("clip.vision.attention.layer_norm_epsilon", c.norm_eps);
  size("projector.scale_factor", c.shuffle);
  out.set("clip.vision.image_mean", std::vector<float>(c.mean, c.mean + 3));
  out.set("clip.vision.image_std", std::vector<float>(c.std, c.std + 3));
  out.set("drover.vision.max_tiles", static_cast<uint32_t>(c.tiles.max_tiles));
  out.set("drover.vision.fill_canvas", c.tiles.fill_canvas);
  out.set("drover.vision.rope_theta", static_cast<float>(c.rope_theta));
  if (c.patch_token) out.set("drover.vision.patch_token", static_cast<uint32_t>(*c.patch_token));
}

}  // namespace drover
