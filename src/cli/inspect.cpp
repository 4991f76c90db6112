// drover inspect MODEL: what is in a file, in words.

#include <algorithm>
#include <boost/json.hpp>
#include <filesystem>
#include <iterator>
#include <map>

#include "cli/command.h"
#include "cli/licence.h"
#include "cli/pictures.h"
#include "image/png_writer.h"
#include "model/tensor_table.h"
#include "model/vocabulary_source.h"

namespace drover {
namespace {

namespace json = boost::json;

// What inspect knows of a model, from either format, without touching its weights.
struct Facts {
  std::string path;
  std::string format;  // "GGUF version 3", "Hugging Face folder, 3 shards"
  ModelConfig config;
  std::optional<VisionConfig> vision;
  std::vector<NamedTensor> tensors;
  LicenceNote licence;
  std::optional<Vocabulary> vocabulary;
  std::string no_vocabulary;  // why not
};

struct Inspect {
  std::optional<std::string> model;
  std::vector<std::string> images;
  std::string tiles_folder;
  std::string mmproj;
  bool tensors = false;
  bool json = false;

  void operator()() const;
  void model_facts() const;
  void encoder_facts(const std::filesystem::path& path) const;
  void picture_facts() const;
};

template <typename Source>
void read_vocabulary(Facts& facts, const Source& source) {
  try {
    facts.vocabulary = vocabulary_of(source);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kUnsupported) throw;
    facts.no_vocabulary = error.message();
  }
}

std::string human_bytes(double bytes) {
  const char* units[] = {"B", "KB", "MB", "GB", "TB"};
  int unit = 0;
  for (; bytes >= 1000 && unit < 4; ++unit) bytes /= 1000;
  return fmt::format("{:.{}f} {}", bytes, unit == 0 ? 0 : bytes < 10 ? 2 : 1, units[unit]);
}

std::string human_count(int64_t n) {
  if (n >= 1'000'000'000) return fmt::format("{:.1f} billion", static_cast<double>(n) / 1e9);
  if (n >= 1'000'000) return fmt::format("{:.1f} million", static_cast<double>(n) / 1e6);
  return fmt::format("{}", n);
}

int64_t count_layers(const ModelConfig& c, bool LayerConfig::*member) {
  return std::count_if(c.layers.begin(), c.layers.end(),
                       [&](const LayerConfig& layer) { return layer.*member; });
}

// "layers 0-2, 4-6, 8" of those that are so.
std::string layer_ranges(const ModelConfig& c, bool LayerConfig::*member, bool value) {
  std::string out;
  int64_t count = 0;
  for (int64_t i = 0; i < c.layer_count(); ++i) {
    if (c.layers[i].*member != value) continue;
    int64_t end = i;
    while (end + 1 < c.layer_count() && c.layers[end + 1].*member == value) ++end;
    if (!out.empty()) out += ", ";
    count += end - i + 1;
    out += i == end ? fmt::format("{}", i) : fmt::format("{}-{}", i, end);
    i = end;
  }
  return (count == 1 ? "layer " : "layers ") + out;
}

std::string scaling_words(const RopeScaling& s) {
  switch (s.kind) {
    case RopeScaling::Kind::kNone:
      return "not scaled";
    case RopeScaling::Kind::kLinear:
      return fmt::format("scaled linearly by {}", s.factor);
    case RopeScaling::Kind::kLlama3:
      return fmt::format("llama3 scaling: factor {}, low {}, high {}, original context {}",
                         s.factor, s.low, s.high, s.original_context);
    case RopeScaling::Kind::kFactors:
      return "scaled by a factor per pair (rope_freqs.weight)";
  }
  return "";
}

// What is told of the model's mathematics, each line with its label.
std::vector<std::pair<std::string_view, std::string>> architecture_words(const ModelConfig& c) {
  std::vector<std::pair<std::string_view, std::string>> out;
  const auto add = [&](std::string_view label, std::string text) {
    out.emplace_back(label, std::move(text));
  };
  const int64_t moe = count_layers(c, &LayerConfig::moe);
  const int64_t rope = count_layers(c, &LayerConfig::rope);
  const int64_t chunked = count_layers(c, &LayerConfig::chunked);
  const int64_t layers = c.layer_count();
  add("architecture",
      fmt::format("{}: {} layers, hidden size {}, vocabulary {}{}", c.architecture, layers,
                  c.hidden, c.vocab, c.tied_embeddings ? ", tied embeddings" : ""));
  add("attention",
      fmt::format("{} query heads and {} key/value heads of {}", c.heads, c.kv_heads, c.head_dim));
  add("positions",
      fmt::format("RoPE on {} of {} layers, base {}, {}{}", rope, layers, c.rope_theta,
                  scaling_words(c.rope_scaling), c.qk_norm ? "; queries and keys normalised" : ""));
  if (rope < layers) {
    add("", fmt::format("none (NoPE) on {}{}", layer_ranges(c, &LayerConfig::rope, false),
                        c.temperature_tuning
                            ? fmt::format("; attention temperature with floor {} and scale {}",
                                          c.floor_scale, c.attn_scale)
                            : ""));
  }
  add("context",
      fmt::format("made for {} tokens; {}", c.context,
                  chunked == 0
                      ? std::string("every layer sees the whole past")
                      : fmt::format("{} layers see their chunk of {} tokens, {} the whole past",
                                    chunked, c.chunk, layers - chunked)));
  if (moe > 0) {
    add("experts",
        fmt::format("{} of {} and a shared one, width {}, on {}", c.experts_used, c.experts,
                    c.expert_width,
                    moe == layers ? "every layer" : layer_ranges(c, &LayerConfig::moe, true)));
  }
  if (moe < layers) {
    add("feed-forward", fmt::format("width {} on {}", c.dense_width,
                                    moe == 0 ? "every layer" : "the other layers"));
  }
  return out;
}

std::string vision_words(const VisionConfig& c) {
  return fmt::format(
      "{} layers of width {}, {} heads, patches of {} px; {} parameters; tiles of {} "
      "px, {} tokens each, at most {} and the whole",
      c.layer_count, c.hidden, c.heads, c.patch, human_count(c.parameters()), c.tiles.size,
      c.tile_tokens(), c.tiles.max_tiles);
}

json::object vision_json(const VisionConfig& c) {
  return {{"layers", c.layer_count},
          {"hidden", c.hidden},
          {"heads", c.heads},
          {"width", c.width},
          {"patch", c.patch},
          {"tile", c.tiles.size},
          {"max_tiles", c.tiles.max_tiles},
          {"tile_tokens", c.tile_tokens()},
          {"adapter", c.adapter},
          {"norm_eps", c.norm_eps},
          {"rope_theta", c.rope_theta},
          {"parameters", c.parameters()}};
}

std::string as_text(const Facts& f, bool tensors) {
  std::string text;
  const auto out = std::back_inserter(text);
  const ModelConfig& c = f.config;
  const ParameterCount count = count_parameters(c);
  int64_t bytes = 0;
  std::map<std::string, std::pair<int64_t, int64_t>> types;  // name -> tensors, bytes
  for (const NamedTensor& tensor : f.tensors) {
    bytes += tensor.bytes;
    auto& [n, size] = types[std::string(dtype_name(tensor.type))];
    ++n;
    size += tensor.bytes;
  }
  fmt::format_to(
      out, "{}\n",
      printable(c.name.empty() ? std::filesystem::path(f.path).filename().string() : c.name));
  fmt::format_to(out, "  file         {} ({})\n", printable(f.path, 300), f.format);
  fmt::format_to(out, "  weights      {} in {} tensors:", human_bytes(static_cast<double>(bytes)),
                 f.tensors.size());
  const char* separator = " ";
  for (const auto& [name, entry] : types) {
    fmt::format_to(out, "{}{} of {} ({})", separator, entry.first, name,
                   human_bytes(static_cast<double>(entry.second)));
    separator = ", ";
  }
  fmt::format_to(out, "\n  parameters   {} in all, {} at work per token\n",
                 human_count(count.total), human_count(count.active));
  for (const auto& [label, words] : architecture_words(c)) {
    fmt::format_to(out, "  {:<12} {}\n", label, words);
  }
  if (f.vision) fmt::format_to(out, "  {:<12} {}\n", "vision", vision_words(*f.vision));
  for (const DType type : {DType::kI8, DType::kBF16, DType::kF32}) {
    const CacheLayout layout = c.cache_layout(type);
    fmt::format_to(out, "  {:<12} {} per token on global layers",
                   fmt::format("cache ({})", cache_type_name(type)),
                   human_bytes(static_cast<double>(layout.global_bytes_per_token())));
    if (layout.chunk > 0) {
      fmt::format_to(out, ", and at most {} on chunked layers",
                     human_bytes(static_cast<double>(layout.local_bytes(c.context))));
    }
    fmt::format_to(out, "\n");
  }
  if (f.vocabulary) {
    fmt::format_to(out, "  tokenizer    {} tokens, chat format {}\n", f.vocabulary->tokens.size(),
                   chat_format_name(detect_chat_format(*f.vocabulary)));
  } else {
    fmt::format_to(out, "  tokenizer    none that can be used: {}\n",
                   printable(f.no_vocabulary, 1000));
  }
  const LicenceNote& l = f.licence;
  const bool stated = !l.id.empty() || !l.name.empty();
  fmt::format_to(out, "  licence      {}{}\n",
                 !stated ? std::string("not stated in the file; ask where you got it")
                         : printable(l.name.empty() ? l.id : l.name),
                 l.link.empty() ? "" : " (" + printable(l.link, 200) + ")");
  for (const std::string& line : licence_asks(l)) fmt::format_to(out, "    - {}\n", line);
  if (!tensors) return text;
  fmt::format_to(out, "\n");
  for (const NamedTensor& tensor : f.tensors) {
    fmt::format_to(out, "  {:<44} {:<6} {:<22} {}\n", printable(tensor.name),
                   dtype_name(tensor.type), shape_text(tensor.shape),
                   human_bytes(static_cast<double>(tensor.bytes)));
  }
  return text;
}

json::array layer_flags(const ModelConfig& c, bool LayerConfig::*member) {
  json::array out;
  for (const LayerConfig& layer : c.layers) out.push_back(layer.*member);
  return out;
}

std::string as_json(const Facts& f, bool tensors) {
  const ModelConfig& c = f.config;
  const ParameterCount count = count_parameters(c);
  json::object config{{"architecture", c.architecture},
                      {"layers", c.layer_count()},
                      {"hidden", c.hidden},
                      {"vocab", c.vocab},
                      {"heads", c.heads},
                      {"kv_heads", c.kv_heads},
                      {"head_dim", c.head_dim},
                      {"dense_width", c.dense_width},
                      {"expert_width", c.expert_width},
                      {"experts", c.experts},
                      {"experts_used", c.experts_used},
                      {"context", c.context},
                      {"chunk", c.chunk},
                      {"norm_eps", c.norm_eps},
                      {"rope_theta", c.rope_theta},
                      {"rope_scaling", scaling_words(c.rope_scaling)},
                      {"qk_norm", c.qk_norm},
                      {"temperature_tuning", c.temperature_tuning},
                      {"floor_scale", c.floor_scale},
                      {"attn_scale", c.attn_scale},
                      {"tied_embeddings", c.tied_embeddings},
                      {"rope_layers", layer_flags(c, &LayerConfig::rope)},
                      {"chunked_layers", layer_flags(c, &LayerConfig::chunked)},
                      {"moe_layers", layer_flags(c, &LayerConfig::moe)}};
  int64_t bytes = 0;
  json::object types;
  json::array list;
  for (const NamedTensor& tensor : f.tensors) {
    bytes += tensor.bytes;
    json::value& n = types[dtype_name(tensor.type)];
    n = n.is_null() ? 1 : n.to_number<int64_t>() + 1;
    list.push_back({{"name", as_utf8(tensor.name)},
                    {"type", dtype_name(tensor.type)},
                    {"shape", json::array(tensor.shape.begin(), tensor.shape.end())},
                    {"bytes", tensor.bytes}});
  }
  json::object cache;
  for (const DType type : {DType::kI8, DType::kBF16, DType::kF32}) {
    const CacheLayout layout = c.cache_layout(type);
    cache[cache_type_name(type)] =
        json::object{{"global_bytes_per_token", layout.global_bytes_per_token()},
                     {"local_bytes", layout.local_bytes(c.context)}};
  }
  json::object out{{"path", as_utf8(f.path)},
                   {"format", f.format},
                   {"name", as_utf8(c.name)},
                   {"config", config},
                   {"parameters", {{"total", count.total}, {"active", count.active}}},
                   {"weight_bytes", bytes},
                   {"tensor_types", types},
                   {"cache", cache}};
  out["vision"] = f.vision ? json::value(vision_json(*f.vision)) : json::value();
  if (f.vocabulary) {
    out["tokenizer"] =
        json::object{{"tokens", f.vocabulary->tokens.size()},
                     {"chat_format", chat_format_name(detect_chat_format(*f.vocabulary))}};
  } else {
    out["tokenizer"] = nullptr;
  }
  json::array asks;
  for (const std::string& line : licence_asks(f.licence)) asks.push_back(json::string(line));
  out["licence"] = json::object{{"id", as_utf8(f.licence.id)},
                                {"name", as_utf8(f.licence.name)},
                                {"link", as_utf8(f.licence.link)},
                                {"asks", asks}};
  if (tensors) out["tensors"] = list;
  return json::serialize(out) + '\n';
}

// The encoder of a file for vision alone.
VisionConfig vision_apart(const std::string& name) {
  const GgufFile file = GgufFile::open(locate_model(name));
  if (const auto config = vision_config_from_gguf(file, {})) return *config;
  throw_error(ErrorKind::kBadData, "{}: expected a vision encoder (clip.vision.*), got none",
              printable(name, 300));
}

std::optional<VisionConfig> vision_of(const std::filesystem::path& path) {
  if (!std::filesystem::is_directory(path)) {
    return vision_config_from_gguf(GgufFile::open(path), {});
  }
  const HuggingfaceFolder folder = HuggingfaceFolder::open(path);
  const int64_t hidden =
      config_from_huggingface(folder.config, (path / "config.json").string()).hidden;
  const auto vision = vision_from_huggingface(folder, hidden);
  return vision ? std::optional(vision->config) : std::nullopt;
}

// The eyes of the model that was named, or the released ones.
VisionConfig vision_rules(const std::optional<std::string>& model, const std::string& mmproj) {
  if (!mmproj.empty()) return vision_apart(mmproj);
  if (!model) {
    VisionConfig released;
    released.patch = 14;
    released.shuffle = 2;
    return released;
  }
  const std::filesystem::path path = locate_model(*model);
  if (const auto config = vision_of(path)) return *config;
  throw Error(ErrorKind::kUnsupported,
              fmt::format("{}: this model is text only and cannot see pictures", path.string()),
              "without a model, --image shows what the released models would see");
}

void Inspect::model_facts() const {
  Facts facts;
  const std::filesystem::path path = locate_model(*model);
  facts.path = path.string();
  std::optional<GgufFile> gguf;
  std::optional<HuggingfaceFolder> folder;
  if (std::filesystem::is_directory(path)) {
    folder = HuggingfaceFolder::open(path);
    const size_t files = folder->weights.files().size();
    facts.format = fmt::format("Hugging Face folder, {} {}", files, files == 1 ? "file" : "shards");
    facts.config = config_from_huggingface(folder->config, (path / "config.json").string());
    decoder_tensors(*folder, facts.config);  // says what is missing, if anything is
    if (const auto vision = vision_from_huggingface(*folder, facts.config.hidden)) {
      facts.vision = vision->config;
    }
    facts.tensors.assign(folder->weights.tensors().begin(), folder->weights.tensors().end());
    facts.licence = licence_of(*folder);
    read_vocabulary(facts, *folder);
  } else {
    gguf = GgufFile::open(path);
    facts.format = fmt::format("GGUF version {}", gguf->version());
    facts.config = config_from_gguf(*gguf);
    weights_from_gguf(*gguf, facts.config);  // the same
    if (const auto vision = vision_from_gguf(*gguf, facts.config.hidden)) {
      facts.vision = vision->config;
    }
    facts.tensors.assign(gguf->tensors().begin(), gguf->tensors().end());
    facts.licence = licence_of(*gguf);
    read_vocabulary(facts, *gguf);
  }
  if (!mmproj.empty()) facts.vision = vision_apart(mmproj);
  print_out(json ? as_json(facts, tensors) : as_text(facts, tensors));
}

void Inspect::picture_facts() const {
  const VisionConfig config = vision_rules(model, mmproj);
  if (!tiles_folder.empty() && !std::filesystem::is_directory(tiles_folder)) {
    throw Error(ErrorKind::kCannotWrite,
                fmt::format("{}: expected a folder for the tiles", printable(tiles_folder, 300)),
                "make the folder first");
  }
  json::array list;
  const std::vector<Image> all = read_images(images);
  for (size_t i = 0; i < images.size(); ++i) {
    const Image& image = all[i];
    const TiledImage tiled = cut_tiles(config.tiles, image);
    const TileLayout& layout = tiled.layout;
    const PictureTokens picture = picture_tokens(config, layout);
    const int64_t size = tiled.size, tokens = picture.length();
    if (json) {
      list.push_back({{"image", as_utf8(images[i])},
                      {"width", image.width},
                      {"height", image.height},
                      {"canvas", {{"rows", layout.rows}, {"cols", layout.cols}}},
                      {"resized", {{"width", layout.width}, {"height", layout.height}}},
                      {"tile", size},
                      {"tiles", layout.tiles()},
                      {"tokens", tokens}});
    } else {
      print_out(fmt::format(
          "{}\n  picture      {} x {} pixels\n  canvas       {} x {} tiles of {} px ({} x {} px)\n"
          "  resized to   {} x {}\n  tiles        {}{}\n  tokens       {}\n",
          printable(images[i], 300), image.width, image.height, layout.cols, layout.rows, size,
          layout.cols * size, layout.rows * size, layout.width, layout.height, layout.tiles(),
          layout.tiles() > 1 ? ", the last one the whole picture" : "", tokens));
    }
    for (int64_t t = 0; !tiles_folder.empty() && t < layout.tiles(); ++t) {
      const std::string name = fmt::format("image{}-tile{:02}.png", i + 1, t + 1);
      write_png(std::filesystem::path(tiles_folder) / name, tiled.tile(t), size, size);
    }
  }
  if (json) print_out(json::serialize(list) + '\n');
}

bool is_vision_alone(const std::filesystem::path& path) {
  return !std::filesystem::is_directory(path) &&
         GgufFile::open(path).string_value("general.architecture") == "clip";
}

// A file with a vision encoder and nothing else.
void Inspect::encoder_facts(const std::filesystem::path& path) const {
  const GgufFile file = GgufFile::open(path);
  const auto vision = vision_from_gguf(file, {});  // says what is missing, if anything is
  if (!vision) vision_apart(path.string());
  const std::string format = fmt::format("GGUF version {}", file.version());
  if (json) {
    return print_out(json::serialize(json::object{{"path", as_utf8(path.string())},
                                                  {"format", format},
                                                  {"weight_bytes", vision->weights.bytes},
                                                  {"vision", vision_json(vision->config)}}) +
                     '\n');
  }
  print_out(
      fmt::format("{}\n  file         {} ({})\n  weights      {} in {} tensors\n"
                  "  vision       {}\n  for models   of hidden size {}\n",
                  printable(path.filename().string()), printable(path.string(), 300), format,
                  human_bytes(static_cast<double>(vision->weights.bytes)), file.tensors().size(),
                  vision_words(vision->config), vision->config.embedding));
}

void Inspect::operator()() const {
  if (images.empty() && !model) {
    throw Error(ErrorKind::kUsage, "inspect: expected a model, or pictures",
                "drover inspect MODEL, or drover inspect --image FILE");
  }
  if (images.empty() && !tiles_folder.empty()) {
    throw_error(ErrorKind::kUsage, "inspect: expected --image FILE with --tiles FOLDER");
  }
  if (!images.empty()) return picture_facts();
  const std::filesystem::path path = locate_model(*model);
  if (is_vision_alone(path)) return encoder_facts(path);
  model_facts();
}

}  // namespace

void add_inspect(CLI::App& app) {
  auto inspect = std::make_shared<Inspect>();
  CLI::App* command = app.add_subcommand(
      "inspect",
      "Show what is in a model file, and its licence; or what a model sees of a picture");
  command
      ->add_option("model,-m,--model", inspect->model,
                   "A GGUF file, a Hugging Face folder, or a name in the local model folder")
      ->type_name("MODEL");
  command->add_flag("--tensors", inspect->tensors, "List every tensor");
  add_images(*command, inspect->images,
             "Show a picture's canvas, tiles and tokens instead, as MODEL sees it (- is standard\n"
             "input); repeatable");
  command->add_option("--tiles", inspect->tiles_folder, "Write the pictures' tiles there, as PNG")
      ->type_name("FOLDER");
  command
      ->add_option("--mmproj", inspect->mmproj,
                   "A GGUF file with the model's vision encoder, if it is in one of its own")
      ->type_name("FILE");
  command->add_flag("--json", inspect->json, "Print a JSON object, or with --image a list of them");
  command->callback([inspect] { (*inspect)(); });
}

}  // namespace drover
