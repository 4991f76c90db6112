// "emoji": a small drawing on any background, and the question what it is. A style of drawing is
// held out by not being named.
//
//   folder   with a PNG for each
//   file     its name with the code points in place of {}: "emoji_u{}.png" has small hexadecimal
//            digits and an underscore between two, "{}.png" large ones and a hyphen
//   names    a file with a JSON object: the emoji itself to its name. Those whose picture is not
//            there are left out
//   large    0.05   share of pictures of several tiles
#include <fmt/format.h>
#include <png.h>

#include <algorithm>

#include "base/error.h"
#include "text/utf8.h"
#include "train/generators/generator.h"
#include "train/generators/generators.h"
#include "train/generators/palette.h"

namespace drover {
namespace {

constexpr std::string_view kQuestions[] = {"What is this?", "What do you see?", "Name the emoji.",
                                           "What does the emoji show?"};

Sprite decoded(std::string_view png, std::string_view file) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  const auto wrong = [&] {
    throw_error(ErrorKind::kBadData, "{}: expected a PNG, libpng cannot read it", printable(file));
  };
  if (png_image_begin_read_from_memory(&image, png.data(), png.size()) == 0) wrong();
  constexpr uint32_t kMost = 1024;
  if (image.width > kMost || image.height > kMost) {
    png_image_free(&image);
    throw_error(ErrorKind::kLimit, "{}: expected at most {} pixels a side", printable(file), kMost);
  }
  image.format = PNG_FORMAT_RGBA;
  Sprite out{static_cast<int64_t>(image.width), static_cast<int64_t>(image.height), {}};
  out.rgba.resize(PNG_IMAGE_SIZE(image));
  if (png_image_finish_read(&image, nullptr, out.rgba.data(), 0, nullptr) == 0) wrong();
  return out;
}

// "1f1fb_1f1ea" for a flag.
std::string code_points(std::string_view emoji, bool large) {
  std::string out;
  for (size_t at = 0; at < emoji.size();) {
    const Utf8Step step = utf8_step(emoji, at);
    at += step.length;
    constexpr char32_t kPresentation = 0xfe0f;  // asks for a picture; file names leave it out
    if (step.code_point == kPresentation) continue;
    if (!out.empty()) out += large ? '-' : '_';
    const auto code = static_cast<uint32_t>(step.code_point);
    out += large ? fmt::format("{:04X}", code) : fmt::format("{:04x}", code);
  }
  return out;
}

class Emoji : public Generator {
 public:
  Emoji(const boost::json::object& settings, const SourceContext& context)
      : Generator(settings, context, {"folder", "file", "names", "large"}),
        large_(share_setting("large", 0.05)) {
    const std::string folder(name_setting("folder")), file(name_setting("file"));
    const size_t gap = file.find("{}");
    if (gap == std::string::npos) {
      throw_error(ErrorKind::kBadData, "{}: file: expected a name with {{}}, got {}", name(),
                  printable(file));
    }
    const std::string names_file(name_setting("names"));
    const boost::json::value names = parse_json(read(names_file), names_file);
    if (!names.is_object()) {
      throw_error(ErrorKind::kBadData, "{}: expected a JSON object", printable(names_file));
    }
    for (const auto& [emoji, name] : names.get_object()) {
      if (!name.is_string()) {
        throw_error(ErrorKind::kBadData, "{}: expected names, got another value",
                    printable(names_file));
      }
      std::string path = file;
      path.replace(gap, 2, code_points(emoji, /*large=*/gap == 0));
      path = fmt::format("{}/{}", folder, path);
      if (has_file(path)) {
        known_.push_back({std::string(name.get_string()), decoded(read(path), path)});
      }
    }
    if (known_.empty()) {
      throw_error(ErrorKind::kBadData, "{}: expected pictures of emoji, got none",
                  printable(folder));
    }
  }

  Example example(uint64_t seed, uint64_t index, int64_t length) const override {
    Random random = draws(context_, seed, index);
    const Known& known = pick(random, known_);
    const Colour background = random.chance(0.5) ? background_colour(random) : any_colour(random);
    Canvas canvas = blank_canvas(random, context_, large_, background);
    const auto w = static_cast<double>(canvas.width()), h = static_cast<double>(canvas.height());
    const auto most = static_cast<double>(std::max(known.sprite.width, known.sprite.height));
    const double side = std::min(w, h) * (0.5 + 0.46 * random.uniform());
    const auto about = [&](double by) { return by * (2 * random.uniform() - 1); };
    const double t = random.chance(0.5) ? 0 : about(0.08);
    canvas.draw(known.sprite, side / most, t, w / 2 + about(0.5) * (w - side),
                h / 2 + about(0.5) * (h - side));
    canvas.noise(random, random.chance(0.7) ? 0 : random.between(2, 10));
    const Image picture = canvas.take();
    const Turn turn{std::string(pick(random, kQuestions)), known.name};
    return dialogue(context_, {&picture, 1}, {&turn, 1}, length, weight_);
  }

 private:
  struct Known {
    std::string name;
    Sprite sprite;
  };
  double large_;
  std::vector<Known> known_;
};

}  // namespace

std::unique_ptr<Source> make_emoji(const boost::json::object& settings,
                                   const SourceContext& context) {
  return std::make_unique<Emoji>(settings, context);
}

}  // namespace drover
