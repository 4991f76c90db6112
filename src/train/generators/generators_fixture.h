// What tests of generators need: a vocabulary with control tokens, eyes of Edge's size, files to
// read, and settings of every kind.
#pragma once

#include <filesystem>
#include <fstream>
#include <regex>

#include "train/data/data_fixture.h"
#include "train/generators/generator.h"

namespace drover {

namespace json = boost::json;

inline constexpr const char* kFont = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf";

class GeneratorTest : public SourceTest {
 protected:
  GeneratorTest() {
    vision_.tiles = {.size = 112, .max_tiles = 4};
    vision_.patch = 14;
    vision_.shuffle = 2;  // 16 tokens a tile
    std::ofstream(folder_ / "words.txt")
        << "cat\ndog\nhouse\ntree\nKing\nriver\nit's\nwonderful\nstone\nbread\nlight\nwater\nbird\n"
           "cloud\nround\nsmall\nwhite\npaper\nglass\nchair\ntable\nspoon\nhorse\napple\nlemon\n";
    // A picture that stands for an emoji: orange.
    std::vector<uint8_t> rgb;
    for (int i = 0; i < 64 * 64; ++i) rgb.insert(rgb.end(), {250, 120, 10});
    std::filesystem::create_directories(folder_ / "noto");
    write_png(folder_ / "noto/emoji_u1f436.png", rgb.data(), 64, 64);
    std::ofstream(folder_ / "emoji.json") << R"({"🐶": "dog", "🐱": "cat"})";
    if (std::filesystem::exists(kFont)) {
      std::filesystem::copy(kFont, folder_ / "font.ttf");
      kinds_.push_back(
          {{"kind", "printed_words"}, {"words", "words.txt"}, {"fonts", {"font.ttf"}}});
      kinds_.push_back({{"kind", "bars"}, {"fonts", {"font.ttf"}}});
    }
  }

  std::unique_ptr<Source> source(const json::object& settings, bool held_out = false) const {
    return make_source(settings, context(held_out));
  }
  // Questions and answers, as text.
  std::vector<Turn> turns(const Example& example) const {
    static const std::regex turn(
        R"(<\|header_start\|>user<\|header_end\|>\n\n([^]*?)<\|eot\|><\|header_start\|>assistant)"
        R"(<\|header_end\|>\n\n([^]*?)<\|eot\|>)");
    static const std::regex picture(R"(<\|image_start\|>[^]*<\|image_end\|>)");
    const std::string all = text(example);
    std::vector<Turn> out;
    for (std::sregex_iterator i(all.begin(), all.end(), turn), end; i != end; ++i) {
      out.push_back({std::regex_replace((*i)[1].str(), picture, ""), (*i)[2].str()});
    }
    return out;
  }

  std::vector<json::object> kinds_ = {
      {{"kind", "repeats"}, {"chunk", 64}},
      {{"kind", "recall"}},
      {{"kind", "needles"}, {"chunk", 64}},
      {{"kind", "small_world"}},
      {{"kind", "shapes"}, {"large", 0.3}},
      {{"kind", "emoji"},
       {"folder", "noto"},
       {"file", "emoji_u{}.png"},
       {"names", "emoji.json"},
       {"large", 0.3}},
  };
};

}  // namespace drover
