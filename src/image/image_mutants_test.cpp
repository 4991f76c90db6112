// Damaged and malicious pictures, 30,000 of each format and the worst by hand. Each must give a
// picture or a typed Error within two seconds of processor time and with 12 bytes for each declared
// pixel, 16 MB and the file's own size of memory, that of the libraries counted. A mutant follows
// from its seed; to look at one alone:  DROVER_MUTANT=SEED image_mutants_test
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <map>

#include "base/error.h"
#include "image/decode.h"
#include "image/decoding.h"
#include "image/webp_prefix_codes.h"
#include "tests/support/counting_malloc.h"
#include "tests/support/mutate.h"
#include "tests/support/raw_picture.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace drover {
namespace {

using namespace testing;

constexpr double kSeconds = 2.0;
constexpr size_t kExtraMemory = size_t{16} << 20;

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

struct Outcome {
  std::string kind;  // "picture", or the kind of the Error
  std::string text;  // of the Error
  size_t memory = 0;
};

// Decodes and checks time and memory; `pixels` is what the file declares, or the limit.
Outcome decode(const std::string& bytes, const ImageLimits& limits, int64_t pixels) {
  Outcome out;
  const size_t before = live_bytes;
  reset_peak();
  const std::clock_t start = std::clock();
  try {
    const Image image = decode_image(std::as_bytes(std::span(bytes)), "mutant", limits);
    EXPECT_EQ(image.rgb.size(), static_cast<size_t>(image.width * image.height * 3));
    EXPECT_LE(image.width * image.height, limits.pixels);
    out.kind = "picture";
  } catch (const Error& error) {
    out.kind = error_kind_name(error.kind());
    out.text = error.what();
    EXPECT_NE(error.kind(), ErrorKind::kInternal) << error.what();
  } catch (const std::exception& other) {
    ADD_FAILURE() << "not an Error: " << other.what();
  }
  const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  out.memory = peak_bytes - before;
  EXPECT_LT(seconds, kSeconds);
  EXPECT_LE(out.memory, bytes.size() + kExtraMemory + static_cast<size_t>(12 * pixels));
  EXPECT_LE(live_bytes, before + 4096) << "memory is lost";
  return out;
}

void run_mutants(const std::function<std::string(Mutator& mutator)>& prepare) {
  // Most of a mutant's time would go into clearing memory for sizes that it made up.
  const ImageLimits limits{.pixels = 1 << 18};
  print_seed_on_death();
  uint64_t first = 0, count = 30'000;
  if (const char* one = std::getenv("DROVER_MUTANT")) {
    first = std::strtoull(one, nullptr, 10);
    count = first + 1;
  }
  std::map<std::string, uint64_t> kinds;
  size_t most_memory = 0;
  for (uint64_t seed = first; seed < count; ++seed) {
    current_seed = seed;
    SCOPED_TRACE(fmt::format("mutant seed {}", seed));
    Mutator mutator(seed);
    const Outcome outcome = decode(prepare(mutator), limits, limits.pixels);
    ++kinds[outcome.kind];
    most_memory = std::max(most_memory, outcome.memory);
  }
  std::printf("  %llu mutants:", static_cast<unsigned long long>(count - first));
  for (const auto& [kind, n] : kinds)
    std::printf(" %llu %s,", static_cast<unsigned long long>(n), kind.c_str());
  std::printf(" most memory %zu KB\n", most_memory / 1024);
  if (count - first < 1000) return;
  // Mutants that all fail at the first byte, or that all open, would test nothing.
  EXPECT_GT(kinds["picture"], count / 20);
  EXPECT_GT(kinds["bad_data"], count / 20);
}

std::string damaged(const std::vector<std::string>& seeds, Mutator& mutator) {
  std::string bytes = mutator.pick(seeds);
  for (uint64_t n = mutator.below(4) + 1; n > 0; --n) {
    // One half in the head, where the numbers are.
    const size_t end = mutator.one_in(2) ? bytes.size() : std::min<size_t>(bytes.size(), 200);
    mutator.damage(bytes, mutator.one_in(30) ? 0 : 12, end);
  }
  return bytes;
}

// --- Mutants ------------------------------------------------------------------------------------

TEST(ImageMutants, Jpeg) {
  const std::vector<std::string> seeds = {
      raw_jpeg(33, 21, {}, 1),
      raw_jpeg(33, 21, {.sampling = {{1, 1}, {1, 1}, {1, 1}}, .restart_interval = 3}, 2),
      raw_jpeg(33, 21, {.progressive = true, .exif = raw_exif(6)}, 3),
      raw_jpeg(33, 21, {.channels = 1, .progressive = true, .restart_interval = 2}, 4),
      raw_jpeg(33, 21, {.channels = 4, .space = JCS_YCCK}, 5),
      raw_jpeg(33, 21, {.arithmetic = true}, 6),
      raw_jpeg(33, 21, {.progressive = true, .arithmetic = true}, 7),
  };
  run_mutants([&](Mutator& mutator) { return damaged(seeds, mutator); });
}

// Sets right the checksums of all chunks that can be found, so that damage gets past them.
void mend_checksums(std::string& png) {
  for (size_t at = 8; at + 12 <= png.size();) {
    size_t size = 0;
    for (int i = 0; i < 4; ++i) size = size << 8 | static_cast<uint8_t>(png[at + i]);
    if (size > png.size() - at - 12) return;
    const auto crc =
        crc32(0, reinterpret_cast<const Bytef*>(png.data() + at + 4), static_cast<uInt>(size + 4));
    png.replace(at + 8 + size, 4, big_endian(crc, 4));
    at += 12 + size;
  }
}

// A PNG whose parts need not belong together.
std::string odd_png(Mutator& mutator) {
  static const std::vector<int> kColors = {0, 2, 3, 3, 4, 6}, kDepths = {1, 2, 4, 8, 8, 16};
  const auto random_bytes = [&](uint64_t n) {
    std::string out;
    while (out.size() < n) out += static_cast<char>(mutator.below(256));
    return out;
  };
  const int width = static_cast<int>(1 + mutator.below(40)),
            height = static_cast<int>(1 + mutator.below(40)), depth = mutator.pick(kDepths),
            color = mutator.pick(kColors), interlace = static_cast<int>(mutator.below(2));
  std::vector<std::string> chunks;
  if (color == 3 || mutator.one_in(6)) {
    const uint64_t colors =
        mutator.one_in(3) ? mutator.below(258) : uint64_t{1} << std::min(depth, 8);
    chunks.push_back(png_chunk("PLTE", random_bytes(colors * 3 + (mutator.one_in(20) ? 1 : 0))));
  }
  if (mutator.one_in(2)) {
    const uint64_t right = color == 0 ? 2 : color == 2 ? 6 : mutator.below(16);
    chunks.push_back(
        png_chunk("tRNS", random_bytes(mutator.one_in(8) ? mutator.below(300) : right)));
  }
  static const std::vector<std::string> kKinds = {"gAMA", "cHRM", "sRGB", "iCCP", "sBIT", "bKGD",
                                                  "hIST", "tEXt", "zTXt", "iTXt", "sPLT", "pHYs",
                                                  "acTL", "fcTL", "fdAT", "eXIf", "abCd", "IDAT"};
  while (mutator.one_in(3)) {
    chunks.push_back(png_chunk(mutator.pick(kKinds), random_bytes(mutator.below(64))));
  }
  std::string rows = png_rows(width, height, depth, color, interlace, mutator.below(1 << 30));
  if (mutator.one_in(5)) mutator.damage(rows, 0, rows.size());
  std::string data = deflated(rows);
  if (mutator.one_in(5)) mutator.damage(data, 0, data.size());
  const size_t cut = mutator.below(data.size() + 1);
  chunks.push_back(png_chunk("IDAT", data.substr(0, cut)));
  chunks.push_back(png_chunk("IDAT", data.substr(cut)));
  if (mutator.one_in(8)) std::swap(chunks[mutator.below(chunks.size())], chunks.back());
  std::string out = std::string(kPngSignature) + png_header(width, height, depth, color, interlace);
  for (const std::string& chunk : chunks) out += chunk;
  return out + png_chunk("IEND", "");
}

TEST(ImageMutants, Png) {
  const std::vector<std::string> seeds = {
      raw_png(19, 11, {}, 1),
      raw_png(19, 11, {.color = kRgba, .depth = 16, .interlace = 1}, 2),
      raw_png(19, 11, {.color = kPalette, .depth = 4, .transparency = "\x10\x20"}, 3),
      raw_png(19, 11, {.color = kGrey, .depth = 2, .exif = raw_exif(7)}, 4),
      raw_png(19, 11, {.color = kGreyAlpha, .extra = png_chunk("tEXt", "Comment")}, 5),
  };
  run_mutants([&](Mutator& mutator) {
    if (mutator.one_in(2)) return odd_png(mutator);
    std::string bytes = damaged(seeds, mutator);
    if (!mutator.one_in(8)) mend_checksums(bytes);
    return bytes;
  });
}

// Bits from the lowest up, as lossless WebP packs them.
class BitWriter {
 public:
  void put(uint32_t value, int bits) {
    for (int i = 0; i < bits; ++i) {
      if (used_ % 8 == 0) bytes_ += '\0';
      bytes_.back() = static_cast<char>(bytes_.back() | ((value >> i & 1) << (used_ % 8)));
      ++used_;
    }
  }
  // A prefix code of one symbol, 0, that takes no bits.
  void put_one_symbol() { put(0b0001, 4); }
  // A prefix code of all bytes, 8 bits each.
  void put_all_bytes() {
    put(0, 1);
    put(8, 4);  // 12 code lengths are given, in the order 17 18 0 1 2 3 4 5 16 6 7 8
    for (int i = 0; i < 11; ++i) put(0, 3);
    put(1, 3);
    put(1, 1);  // for so many symbols only:
    put(3, 3);
    put(254, 8);
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
  size_t used_ = 0;
};

// A lossless WebP of 4 * blocks x 4 * blocks pixels in which every square of 4 x 4 pixels has
// prefix codes of its own: `groups` of them, whose numbers are multiples of `spread`.
std::string webp_of_prefix_codes(int blocks, int groups, int cache_bits, int spread = 1) {
  BitWriter bits;
  bits.put(0x2f, 8);
  bits.put(4 * blocks - 1, 14);
  bits.put(4 * blocks - 1, 14);
  bits.put(0, 4);
  bits.put(0, 1);  // no transform
  bits.put(cache_bits > 0, 1);
  if (cache_bits > 0) bits.put(cache_bits, 4);
  bits.put(1, 1);  // several groups of prefix codes, chosen by a picture:
  bits.put(0, 3);
  bits.put(0, 1);
  bits.put_all_bytes();  // green
  bits.put_all_bytes();  // red
  for (int i = 0; i < 3; ++i) bits.put_one_symbol();
  for (int i = 0; i < blocks * blocks; ++i) {
    const int group = i % groups * spread;
    for (const int byte : {group & 255, group >> 8}) {
      for (int bit = 7; bit >= 0; --bit) bits.put(byte >> bit & 1, 1);
    }
  }
  const int written = (groups - 1) * spread + 1;
  for (int i = 0; i < 5 * written; ++i) bits.put_one_symbol();
  return webp_file(webp_chunk("VP8L", bits.bytes()));
}

TEST(ImageMutants, Webp) {
  const std::string alpha = raw_webp(20, 14, 4, false, 3), lossless = raw_webp(20, 14, 4, true, 4);
  const std::vector<std::string> seeds = {
      raw_webp(20, 14, 3, false, 1),
      raw_webp(20, 14, 3, true, 2),
      webp_of_prefix_codes(8, 20, 3),
      alpha,
      lossless,
      webp_file(webp_canvas(kWebpAnimated | kWebpAlpha, 30, 20) + webp_animation() +
                webp_frame(4, 6, 20, 14, alpha) + webp_frame(0, 0, 20, 14, lossless)),
      webp_file(webp_canvas(kWebpExif | kWebpAlpha, 20, 14) + webp_pixels(alpha) +
                webp_chunk("EXIF", raw_exif(5))),
  };
  run_mutants([&](Mutator& mutator) {
    std::string bytes = damaged(seeds, mutator);
    // Mostly with the right size in the head, without which nothing more is looked at.
    if (bytes.size() >= 8 && !mutator.one_in(8))
      bytes.replace(4, 4, little_endian(bytes.size() - 8, 4));
    return bytes;
  });
}

// --- The worst by hand --------------------------------------------------------------------------

void set_jpeg_size(std::string& jpeg, int width, int height) {
  size_t at = jpeg.find("\xff\xc0");
  if (at == std::string::npos) at = jpeg.find("\xff\xc2");
  jpeg.replace(at + 5, 4, big_endian(height, 2) + big_endian(width, 2));
}

TEST(HostileImages, ThatDeclareMoreThanTheyHaveCostNothing) {
  for (const auto& [width, height] : {std::pair(65535, 65535), {65500, 65500}, {16384, 16384}}) {
    std::string jpeg = raw_jpeg(8, 8, {.channels = 1}, 1);
    set_jpeg_size(jpeg, width, height);
    jpeg.resize(300);
    std::string png = std::string(kPngSignature) + png_header(width, height, 16, kRgba, 1);
    const std::string webp =
        webp_file(webp_canvas(kWebpAlpha, width, height) + webp_pixels(raw_webp(8, 8, 4, true, 1)));
    for (const std::string& bytes : {jpeg, png, webp}) {
      const Outcome outcome = decode(bytes, {}, 0);
      EXPECT_TRUE(outcome.kind == "limit" || outcome.kind == "bad_data") << outcome.kind;
    }
  }
}

TEST(HostileImages, ThatAreLongAndThinStayWithinMemory) {
  for (const auto& [width, height] : {std::pair(1, 65500), {65500, 1}}) {
    const int64_t pixels = 65500;
    using Sampling = decltype(JpegKind::sampling);
    for (const Sampling& sampling :
         {Sampling{{1, 1}, {1, 1}, {1, 1}}, Sampling{{2, 2}, {1, 1}, {1, 1}},
          Sampling{{4, 2}, {1, 1}, {1, 1}}}) {
      for (const bool progressive : {false, true}) {
        EXPECT_EQ(
            decode(raw_jpeg(width, height, {.sampling = sampling, .progressive = progressive}, 1),
                   {}, pixels)
                .kind,
            "picture");
      }
    }
    EXPECT_EQ(
        decode(raw_png(width, height, {.color = kRgba, .depth = 16, .interlace = 1}, 1), {}, pixels)
            .kind,
        "picture");
  }
  EXPECT_EQ(decode(raw_webp(16383, 1, 4, true, 1), {}, 16383).kind, "picture");
  EXPECT_EQ(decode(raw_webp(1, 16383, 4, false, 1), {}, 16383).kind, "picture");
  // Sampling that makes every pixel of a column cost a block of 32 x 32 for each of four channels.
  std::string jpeg = raw_jpeg(1, 65500, {.channels = 4, .space = JCS_CMYK, .progressive = true}, 1);
  const size_t frame = jpeg.find("\xff\xc2");
  for (int i = 0; i < 4; ++i) jpeg[frame + 11 + 3 * i] = '\x44';
  EXPECT_EQ(decode(jpeg, {}, 65500).kind, "limit");
}

TEST(HostileImages, OfManyPixelsStayWithinMemory) {
  const int width = 1200, height = 900;
  const int64_t pixels = int64_t{width} * height;
  const auto expect_picture = [&](const char* what, const std::string& bytes) {
    SCOPED_TRACE(what);
    const Outcome outcome = decode(bytes, {}, pixels);
    EXPECT_EQ(outcome.kind, "picture") << outcome.text;
    std::printf("  %s: %.2f bytes per pixel\n", what,
                static_cast<double>(outcome.memory) / static_cast<double>(pixels));
  };
  const std::vector<std::pair<int, int>> even(4, {1, 1});
  expect_picture("JPEG", raw_jpeg(width, height, {}, 1));
  expect_picture("progressive CMYK JPEG", raw_jpeg(width, height,
                                                   {.channels = 4,
                                                    .space = JCS_CMYK,
                                                    .sampling = even,
                                                    .progressive = true,
                                                    .exif = raw_exif(6)},
                                                   1));
  expect_picture("interlaced PNG with alpha of 16 bits",
                 raw_png(width, height, {.color = kRgba, .depth = 16, .interlace = 1}, 1));
  expect_picture("lossy WebP with alpha", raw_webp(width, height, 4, false, 1));
  expect_picture("lossless WebP with alpha", raw_webp(width, height, 4, true, 1));
}

int64_t prefix_code_memory(const std::string& webp, int width, int height) {
  const ImageLimits limits;
  const std::string source = "test";
  const auto bytes = std::as_bytes(std::span(webp));
  // Behind the heads of the file, the chunk and the picture.
  return webp_prefix_code_memory(Decoding(bytes, source, limits), bytes.subspan(12 + 8 + 5), width,
                                 height);
}

TEST(HostileImages, OfThousandsOfPrefixCodesStayWithinMemory) {
  constexpr int kTable = 4 * (2300 + 654) + 600, kCachedTable = 4 * (2300 + 2704) + 600;
  const std::string few = webp_of_prefix_codes(64, 1200, 0);
  EXPECT_EQ(prefix_code_memory(few, 256, 256), 1200 * kTable);
  const Outcome outcome = decode(few, {}, 256 * 256);
  EXPECT_EQ(outcome.kind, "picture") << outcome.text;
  EXPECT_GT(outcome.memory, size_t{1200} * kTable);  // so the library does take it

  // Tables are made for the numbers in use alone.
  const std::string sparse = webp_of_prefix_codes(64, 100, 0, 600);
  EXPECT_EQ(prefix_code_memory(sparse, 256, 256), 100 * kTable);
  EXPECT_EQ(decode(sparse, {}, 256 * 256).kind, "picture");

  const std::string many = webp_of_prefix_codes(256, 65536, 11);
  EXPECT_EQ(prefix_code_memory(many, 1024, 1024), int64_t{65536} * kCachedTable);
  EXPECT_EQ(decode(many, {}, 1024 * 1024).text,
            "mutant: the WebP picture takes more memory to decode than its size justifies");

  // The same as an alpha channel, as a frame, and without the chunk that should be around it.
  const std::string pixels = webp_pixels(many),
                    still = webp_pixels(raw_webp(1024, 1024, 3, false, 1));
  const std::string alpha = webp_chunk("ALPH", '\1' + pixels.substr(8 + 5)) + still;
  for (const std::string& body : {alpha, pixels}) {
    const std::string canvas = webp_canvas(kWebpAlpha, 1024, 1024);
    const std::string animated = webp_canvas(kWebpAlpha | kWebpAnimated, 1024, 1024);
    for (const std::string& file :
         {webp_file(canvas + body),
          webp_file(animated + webp_frame(0, 0, 1024, 1024, webp_file(body)))}) {
      EXPECT_EQ(decode(file, {}, 1024 * 1024).kind, "limit");
    }
  }
  // The library takes pixels without a chunk. Read as a chunk, these go on to a harmless one.
  std::string bare = webp_pixels(webp_of_prefix_codes(256, 65536, 0)).substr(8);
  uint32_t size = 0;
  std::memcpy(&size, bare.data() + 4, 4);
  ASSERT_LT(size, 1u << 20);
  bare.resize(8 + (size + 1) / 2 * 2);
  EXPECT_EQ(decode(webp_file(bare + still), {}, 1024 * 1024).kind, "bad_data");
}

TEST(HostileImages, AreToldFromOrdinaryOnesByTheirPrefixCodes) {
  // What libwebp writes is understood to the end, whichever transforms it takes: the tables are in
  // what is counted, beside 3 bytes for each pixel of the result and up to 5 in the library.
  for (const int colors : {2, 3, 10, 200, 0}) {
    const int width = 500, height = 300;
    std::vector<uint8_t> pixels = some_pixels(width, height, 3, 1);
    for (size_t i = 0; i < pixels.size(); ++i) {
      if (colors > 0) pixels[i] = static_cast<uint8_t>(pixels[i / 3 * 3] % colors);
      // Two halves of different kinds, so that there is more than one group.
      if (colors == 0 && i > pixels.size() / 2) pixels[i] = static_cast<uint8_t>(i * i >> 7);
    }
    uint8_t* memory = nullptr;
    const size_t size = WebPEncodeLosslessRGB(pixels.data(), width, height, 3 * width, &memory);
    const std::string bytes(reinterpret_cast<const char*>(memory), size);
    WebPFree(memory);
    const int64_t tables = prefix_code_memory(bytes, width, height);
    EXPECT_GE(tables, 4 * (2300 + 654) + 600) << colors;
    const Outcome outcome = decode(bytes, {}, width * height);
    EXPECT_EQ(outcome.kind, "picture");
    std::printf("  %d colours: %lld KB of tables, %zu KB in all\n", colors,
                static_cast<long long>(tables / 1024), outcome.memory / 1024);
    EXPECT_GT(outcome.memory, static_cast<size_t>(tables + 3 * width * height));
    EXPECT_LT(outcome.memory, static_cast<size_t>(tables + 8 * width * height));
  }
}

TEST(HostileImages, OfAThousandScansAreRefused) {
  // All coefficients of 8 x 8 pixels, one by one, and each bit by bit: valid, and 1,135 scans.
  std::vector<jpeg_scan_info> script = {{3, {0, 1, 2, 0}, 0, 0, 0, 0}};
  for (int channel = 0; channel < 3; ++channel) {
    for (int i = 1; i < 64; ++i) {
      script.push_back({1, {channel, 0, 0, 0}, i, i, 0, 5});
      for (int bit = 5; bit > 0; --bit)
        script.push_back({1, {channel, 0, 0, 0}, i, i, bit, bit - 1});
    }
  }
  const std::string bytes = raw_jpeg(16, 16, {.progressive = true, .script = script}, 1);
  EXPECT_EQ(decode(bytes, {}, 256).text, "mutant: the JPEG picture comes in more than 100 scans");
  EXPECT_EQ(decode(bytes, {.scans = 2000}, 256).kind, "picture");

  // The same without progression: one scan again and again.
  const std::string three = raw_jpeg(
      16, 16, {.script = {{1, {0}, 0, 63, 0, 0}, {1, {1}, 0, 63, 0, 0}, {1, {2}, 0, 63, 0, 0}}}, 1);
  const size_t last = three.rfind("\xff\xda"), end = three.size() - 2;
  std::string repeated = three.substr(0, end);
  for (int i = 0; i < 1000; ++i) repeated += three.substr(last, end - last);
  repeated += three.substr(end);
  EXPECT_EQ(decode(repeated, {}, 256).text,
            "mutant: the JPEG picture comes in more than 100 scans");
}

TEST(HostileImages, OfManyLargeScansRunOutOfTime) {
  // 3,000 x 3,000 pixels in 100 scans that say little.
  std::vector<jpeg_scan_info> script = {{3, {0, 1, 2, 0}, 0, 0, 0, 0}};
  for (int channel = 0; channel < 3; ++channel) {
    for (int i = 1; i <= 33; ++i) script.push_back({1, {channel, 0, 0, 0}, i, i, 0, 0});
  }
  const std::string bytes =
      raw_jpeg(3000, 3000, {.progressive = true, .quality = 1, .script = script}, 1);
  EXPECT_EQ(decode(bytes, {.seconds = 0.01}, 9'000'000).text,
            "mutant: the JPEG picture takes longer than 0.01 s to decode");
}

TEST(HostileImages, ThatUnpackToMuchMoreThanTheyAreStayWithinMemory) {
  // 50 million pixels in a few kilobytes, and texts that unpack to a gigabyte.
  const int width = 10000, height = 5000;
  std::string rows;
  for (int y = 0; y < height; ++y) rows += std::string(1 + width / 8, '\0');
  std::string bombs;
  const std::string bomb = deflated(std::string(64 << 20, 'a'));
  for (int i = 0; i < 16; ++i) bombs += png_chunk("zTXt", std::string("Comment\0\0", 9) + bomb);
  const std::string png = std::string(kPngSignature) + png_header(width, height, 1, kGrey, 0) +
                          bombs + png_chunk("IDAT", deflated(rows)) + png_chunk("IEND", "");
  EXPECT_EQ(decode(png, {}, int64_t{width} * height).kind, "picture");
}

}  // namespace
}  // namespace drover
