// "printed_words": a word of up to six letters, or a number, in a font, and the question what it
// says; or some lines of them, all to be read. Held out are words and numbers; a font is held out
// by not being named.
//
//   words     a file with a word on each line, of which those of two to six small letters are taken
//   fonts     [..] files that FreeType reads
//   most      6      letters or digits of one; short ones come first in a training
//   numbers   0.25   share of pictures with a number
//   letters   0.1    share of pictures with letters that are no word
//   lines     1      at most so many in a picture: more letters to learn from for the same work
//   plain     0      share of pictures in dark ink on a light page, large, upright and in the
//   middle,
//                    from which letters are learnt first
//   large     0.05   share of pictures of several tiles
#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "train/data/files.h"
#include "train/generators/font.h"
#include "train/generators/generator.h"
#include "train/generators/generators.h"
#include "train/generators/palette.h"

namespace drover {
namespace {

constexpr double kHeldOut = 0.1;
constexpr int64_t kMost = 6;
constexpr int64_t kMostLines = 4;
constexpr double kLineHeight = 1.15;  // in heights of an em
constexpr std::string_view kOfWords[] = {"What does it say?", "Read the word.",
                                         "What is written here?", "Which word is this?",
                                         "What does the sign say?"};
constexpr std::string_view kOfNumbers[] = {"What does it say?", "Read the number.",
                                           "What is written here?", "Which number is this?",
                                           "What does the sign say?"};
constexpr std::string_view kOfLines[] = {"What does it say?", "Read all lines.",
                                         "What is written here?", "Read the text.",
                                         "What does the sign say?"};

class PrintedWords : public Generator {
 public:
  PrintedWords(const boost::json::object& settings, const SourceContext& context)
      : Generator(settings, context,
                  {"words", "fonts", "most", "numbers", "letters", "lines", "plain", "large"}),
        most_(size_setting("most", kMost, 1, kMost)),
        numbers_(share_setting("numbers", 0.25)),
        letters_(share_setting("letters", 0.1)),
        lines_(size_setting("lines", 1, 1, kMostLines)),
        plain_(share_setting("plain", 0)),
        large_(share_setting("large", 0.05)),
        fonts_(read_fonts(read_all("fonts"))) {
    const std::string_view file = name_setting("words");
    for_each_line(read(file), [&](std::string_view word, int64_t) {
      const bool plain =
          std::all_of(word.begin(), word.end(), [](char c) { return c >= 'a' && c <= 'z'; });
      if (plain && word.size() >= 2 && static_cast<int64_t>(word.size()) <= most_ &&
          held_out("words", word, kHeldOut) == context.held_out) {
        words_.emplace_back(word);
      }
    });
    if (words_.empty() && numbers_ + letters_ < 1) {
      throw_error(ErrorKind::kBadData, "{}: expected words of two to {} small letters, got none",
                  printable(file), most_);
    }
  }

  Example example(uint64_t seed, uint64_t index, int64_t length) const override {
    Random random = draws(context_, seed, index);
    std::vector<std::string> lines;
    bool number = false;
    for (int64_t left = lines_ > 1 ? random.between(1, lines_) : 1; left > 0; --left) {
      const double what = random.uniform();
      number = what < numbers_;
      lines.push_back(number                       ? a_number(random)
                      : what < numbers_ + letters_ ? some_letters(random)
                                                   : a_word(random));
    }
    const Image picture = draw(random, lines);
    const std::string_view question = lines.size() > 1 ? pick(random, kOfLines)
                                      : number         ? pick(random, kOfNumbers)
                                                       : pick(random, kOfWords);
    const Turn turn{std::string(question), fmt::format("{}", fmt::join(lines, "\n")),
                    /*spelled=*/true};
    return dialogue(context_, {&picture, 1}, {&turn, 1}, length, weight_);
  }

 private:
  // Every letter and digit by itself is taught, since there are no others to read words with; it
  // is asked about only where there is nothing longer.
  bool fits_side(std::string_view text) const {
    if (text.size() == 1) return !context_.held_out || most_ == 1;
    return held_out("words", text, kHeldOut) == context_.held_out;
  }

  std::string a_word(Random& random) const { return in_a_case(random, pick(random, words_)); }

  std::string some_letters(Random& random) const {
    for (;;) {
      std::string out;
      for (int64_t left = random.between(1, most_); left > 0; --left) {
        out += static_cast<char>('a' + random.below(26));
      }
      if (fits_side(out)) return in_a_case(random, out);
    }
  }

  // Small letters, capitals, or a capital first.
  static std::string in_a_case(Random& random, std::string text) {
    const double style = random.uniform();
    for (size_t i = 0; i < text.size(); ++i) {
      if (style < 0.25 || (style < 0.5 && i == 0)) text[i] = static_cast<char>(text[i] - 'a' + 'A');
    }
    return text;
  }

  std::string a_number(Random& random) const {
    for (;;) {
      int64_t most = 10;
      for (int64_t digits = random.between(1, most_); digits > 1; --digits) most *= 10;
      const std::string out = std::to_string(random.below(most));
      if (fits_side(out)) return out;
    }
  }

  // Lines one below the other, each in the middle.
  static Path block(const Font& font, std::span<const std::string> lines) {
    Path out;
    for (size_t i = 0; i < lines.size(); ++i) {
      const Path line = font.line(lines[i]);
      const Box box = bounds(line);
      const Path placed = transformed(
          line, {1, 0, 0, 1, -(box.left + box.right) / 2, kLineHeight * static_cast<double>(i)});
      out.insert(out.end(), placed.begin(), placed.end());
    }
    return out;
  }

  Image draw(Random& random, std::span<const std::string> lines) const {
    const bool plain = random.chance(plain_);
    Colour background, ink;
    do {
      background = plain || random.chance(0.7) ? background_colour(random) : any_colour(random);
      ink = any_colour(random);
    } while (plain ? contrast({0, 0, 0}, background) - contrast({0, 0, 0}, ink) < 0.6
                   : contrast(ink, background) < 0.35);
    Canvas canvas = blank_canvas(random, context_, large_, background);
    const auto w = static_cast<double>(canvas.width()), h = static_cast<double>(canvas.height());

    Path text = block(pick(random, fonts_), lines);
    const Box box = bounds(text);
    // Around its own middle, so that it can be turned.
    text =
        transformed(text, {1, 0, 0, 1, -(box.left + box.right) / 2, -(box.top + box.bottom) / 2});
    const double high = lines.size() > 1 ? 0.9 : 0.7;
    const double fits = std::min({0.92 * w / box.width(), high * h / box.height(), 0.6 * h});
    const double least = std::min(fits, std::max(0.14 * h, 0.55 * fits));
    const double scale = plain ? fits : least + (fits - least) * random.uniform();
    const double t = plain || random.chance(0.5) ? 0 : 0.04 * (2 * random.uniform() - 1);
    const Box placed = bounds(transformed(text, Affine::placed(scale, t, 0, 0)));
    const double room = plain ? 0.2 : 0.9;
    const double room_x = room * std::max(0.0, w - placed.width()),
                 room_y = room * std::max(0.0, h - placed.height());
    const double x = w / 2 + (random.uniform() - 0.5) * room_x;
    const double y = h / 2 + (random.uniform() - 0.5) * room_y;
    canvas.fill(transformed(text, Affine::placed(scale, t, x, y)), ink);
    canvas.noise(random, plain || random.chance(0.6) ? 0 : random.between(2, 14));
    return canvas.take();
  }

  int64_t most_;
  double numbers_, letters_;
  int64_t lines_;
  double plain_, large_;
  std::vector<Font> fonts_;
  std::vector<std::string> words_;
};

}  // namespace

std::unique_ptr<Source> make_printed_words(const boost::json::object& settings,
                                           const SourceContext& context) {
  return std::make_unique<PrintedWords>(settings, context);
}

}  // namespace drover
