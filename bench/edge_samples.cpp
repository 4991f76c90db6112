// edge_samples SOURCES SOURCE: what a source teaches, to be looked at: its conversations as text,
// and its pictures as one PNG. SOURCES is a file that recipes share, beside a config.json.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <boost/json.hpp>
#include <cstdio>
#include <exception>

#include "base/file_writer.h"
#include "formats/huggingface.h"
#include "formats/json.h"
#include "image/png_writer.h"
#include "model/vision_config.h"
#include "text/bpe_trainer.h"
#include "text/special_tokens.h"
#include "train/sources.h"

namespace drover {
namespace {

struct Flags {
  std::string sources, source, text, sheet;
  int64_t count = 25;
  int64_t length = 2048;
  uint64_t seed = 1;
  bool held_out = false;
};

// Examples in the recipe's own vocabulary may want it to be learnt first; bytes serve to look at.
Tokenizer bytes_and_control_tokens() {
  const std::vector<std::string> special = llama4_chat_tokens();
  BpeTrainer trainer({.size = static_cast<int64_t>(256 + special.size()), .special = special});
  return Tokenizer(trainer.train().vocabulary);
}

// The whole of each picture (its last tile), in rows.
void write_sheet(const std::string& path, const std::vector<TiledImage>& pictures) {
  if (pictures.empty()) return;
  const int64_t size = pictures[0].size, gap = 4;
  const auto count = static_cast<int64_t>(pictures.size());
  const int64_t cols = std::min<int64_t>(count, 8), rows = (count + cols - 1) / cols;
  const int64_t width = cols * (size + gap), height = rows * (size + gap);
  std::vector<uint8_t> rgb(static_cast<size_t>(3 * width * height), 128);
  for (int64_t i = 0; i < count; ++i) {
    const TiledImage& picture = pictures[static_cast<size_t>(i)];
    const uint8_t* tile = picture.tile(picture.layout.tiles() - 1);
    for (int64_t y = 0; y < size; ++y) {
      const int64_t to = (i / cols * (size + gap) + y) * width + i % cols * (size + gap);
      std::copy_n(tile + y * size * 3, size * 3, rgb.data() + 3 * to);
    }
  }
  write_png(path, rgb.data(), width, height);
}

int run(int argc, char** argv) {
  Flags flags;
  CLI::App app("Shows what a source of recipes teaches");
  app.add_option("sources", flags.sources, "sources.json; its folder holds config.json too")
      ->required();
  app.add_option("source", flags.source, "Its name in the file")->required();
  app.add_option("--count", flags.count, "Examples")->capture_default_str();
  app.add_option("--length", flags.length, "Most tokens of one")->capture_default_str();
  app.add_option("--seed", flags.seed, "Of the examples")->capture_default_str();
  app.add_option("--text", flags.text, "A file for their text; standard output if not given");
  app.add_option("--sheet", flags.sheet, "A PNG for their pictures");
  app.add_flag("--held-out", flags.held_out, "What is asked, not what is learnt");
  CLI11_PARSE(app, argc, argv);

  const boost::json::object root = read_json_object(flags.sources);
  const JsonFields sources(root, flags.sources);
  const std::filesystem::path folder = std::filesystem::path(flags.sources).parent_path();
  const auto config = HuggingfaceFolder::open_config_only(folder);
  const auto vision = vision_config_from_huggingface(config, /*embedding=*/256);
  const Tokenizer tokenizer = bytes_and_control_tokens();
  const auto source = make_source(
      sources.required_fields(flags.source).object(),
      {&tokenizer, ChatFormat::kLlama4, vision ? &*vision : nullptr, folder, flags.held_out});
  if (!source) throw_error(ErrorKind::kBadData, "{}: nothing is held out", flags.source);

  const Token patch = *tokenizer.special("<|patch|>");
  std::string text;
  std::vector<TiledImage> pictures;
  for (int64_t i = 0; i < flags.count; ++i) {
    const Example example = source->example(flags.seed, static_cast<uint64_t>(i), flags.length);
    std::vector<Token> shown;
    for (const Token token : example.tokens) {
      if (token != patch) shown.push_back(token);
    }
    text += tokenizer.decode(shown, /*show_special=*/flags.text.empty()) + "\n";
    pictures.insert(pictures.end(), example.pictures.begin(), example.pictures.end());
  }
  if (flags.text.empty()) {
    std::fputs(text.c_str(), stdout);
  } else {
    write_file(flags.text, text);
  }
  if (!flags.sheet.empty()) write_sheet(flags.sheet, pictures);
  return 0;
}

}  // namespace
}  // namespace drover

int main(int argc, char** argv) try {
  return drover::run(argc, argv);
} catch (const std::exception& error) {
  std::fprintf(stderr, "edge_samples: %s\n", error.what());
  return 1;
}
