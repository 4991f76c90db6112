// "fashion_mnist": photos of clothes, 28 x 28 grey pixels, made as large as a tile, and the
// question what they are. Held out is the data set's own test split, shown as it is.
//
//   folder   with the four .gz files of the data set (Debian: dataset-fashion-mnist, MIT licence)
//
// Source: Xiao, Rasul & Vollgraf 2017, arXiv 1708.07747. Takes 47 MB of memory.
#include <fmt/format.h>

#include <iterator>

#include "base/error.h"
#include "train/generators/generator.h"
#include "train/generators/generators.h"
#include "train/generators/palette.h"

namespace drover {
namespace {

constexpr std::string_view kClasses[] = {"T-shirt", "trousers", "pullover", "dress", "coat",
                                         "sandal",  "shirt",    "sneaker",  "bag",   "ankle boot"};
constexpr std::string_view kQuestions[] = {"Which piece of clothing is this?",
                                           "What piece of clothing do you see?", "What is this?",
                                           "Name the piece of clothing."};
constexpr int64_t kSide = 28;

// The data behind a header of big-endian numbers: the kind of data, and its sizes (the IDX format).
std::string after_header(std::string text, std::string_view file,
                         std::initializer_list<uint32_t> header) {
  size_t bytes = 4 * header.size(), data = 1;
  for (const uint32_t* size = header.begin() + 1; size != header.end(); ++size) data *= *size;
  if (text.size() != bytes + data) {
    throw_error(ErrorKind::kBadData, "{}: expected {} bytes unpacked, got {}", printable(file),
                bytes + data, text.size());
  }
  size_t at = 0;
  for (const uint32_t expected : header) {
    uint32_t got = 0;
    for (int i = 0; i < 4; ++i) got = got << 8 | static_cast<uint8_t>(text[at++]);
    if (got != expected) {
      throw_error(ErrorKind::kBadData, "{}: expected {} in its header, got {}", printable(file),
                  expected, got);
    }
  }
  return text.substr(bytes);
}

class FashionMnist : public Generator {
 public:
  FashionMnist(const boost::json::object& settings, const SourceContext& context)
      : Generator(settings, context, {"folder"}) {
    const std::string folder(name_setting("folder"));
    const uint32_t count = context.held_out ? 10'000 : 60'000;
    const std::string_view split = context.held_out ? "t10k" : "train";
    constexpr uint32_t kOfThree = 0x0803, kOfOne = 0x0801;  // dimensions, of bytes
    const auto data = [&](std::string_view what, std::initializer_list<uint32_t> header) {
      const std::string file = fmt::format("{}/{}-{}-ubyte.gz", folder, split, what);
      return after_header(read(file), file, header);
    };
    pixels_ = data("images-idx3", {kOfThree, count, kSide, kSide});
    classes_ = data("labels-idx1", {kOfOne, count});
    for (const char of : classes_) {
      if (static_cast<uint8_t>(of) >= std::size(kClasses)) {
        throw_error(ErrorKind::kBadData, "{}: expected classes 0 to 9, got {}", folder,
                    static_cast<int>(static_cast<uint8_t>(of)));
      }
    }
  }

  // Held out: picture `index` of the test split, whatever the seed, so that 10,000 examples are all
  // of it.
  Example example(uint64_t seed, uint64_t index, int64_t length) const override {
    Random random = draws(context_, seed, index);
    const uint64_t count = classes_.size();
    const uint64_t item = context_.held_out
                              ? index % count
                              : static_cast<uint64_t>(random.below(static_cast<int64_t>(count)));
    const Image picture = draw(random, item);
    const Turn turn{std::string(context_.held_out ? kQuestions[0] : pick(random, kQuestions)),
                    std::string(kClasses[static_cast<size_t>(classes_[item])])};
    return dialogue(context_, {&picture, 1}, {&turn, 1}, length, weight_);
  }

 private:
  Image draw(Random& random, uint64_t item) const {
    if (context_.vision == nullptr) {
      throw_error(ErrorKind::kBadData, "source of pictures: expected a model with eyes");
    }
    const int64_t tile = context_.vision->tiles.size;
    const char* from = pixels_.data() + item * kSide * kSide;
    const bool turned = !context_.held_out && random.chance(0.5);
    Sprite sprite{kSide, kSide, {}};
    for (int64_t y = 0; y < kSide; ++y) {
      for (int64_t x = 0; x < kSide; ++x) {
        const auto grey = static_cast<uint8_t>(from[y * kSide + (turned ? kSide - 1 - x : x)]);
        sprite.rgba.insert(sprite.rgba.end(), {grey, grey, grey, 255});
      }
    }
    Canvas canvas(tile, tile, {0, 0, 0});
    const double whole = static_cast<double>(tile) / kSide, middle = static_cast<double>(tile) / 2;
    if (context_.held_out) {
      canvas.draw(sprite, whole, 0, middle, middle);
    } else {
      const auto about = [&](double by) { return by * (2 * random.uniform() - 1); };
      canvas.draw(sprite, whole * (1 + about(0.1)), about(0.04), middle + about(0.05) * tile,
                  middle + about(0.05) * tile);
      canvas.noise(random, random.chance(0.7) ? 0 : random.between(2, 8));
    }
    return canvas.take();
  }

  std::string pixels_;   // [count, 28, 28]
  std::string classes_;  // [count]
};

}  // namespace

std::unique_ptr<Source> make_fashion_mnist(const boost::json::object& settings,
                                           const SourceContext& context) {
  return std::make_unique<FashionMnist>(settings, context);
}

}  // namespace drover
