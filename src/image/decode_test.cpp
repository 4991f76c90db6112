#include "image/decode.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "base/file_writer.h"
#include "base/mapped_file.h"
#include "image/orientation.h"
#include "image/png_writer.h"
#include "tests/support/expect_error.h"
#include "tests/support/raw_picture.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

using namespace testing;

Image decode(const std::string& bytes, const ImageLimits& limits = {}) {
  return decode_image(std::as_bytes(std::span(bytes)), "photo", limits);
}

std::string png_of(int width, int height, int color, int depth, const std::string& rows,
                   const std::string& before_pixels = "") {
  return std::string(kPngSignature) + png_header(width, height, depth, color, 0) + before_pixels +
         png_chunk("IDAT", deflated(rows)) + png_chunk("IEND", "");
}

// One small picture of each format and coding, by name.
std::vector<std::pair<std::string, std::string>> samples() {
  return {
      {"baseline", raw_jpeg(21, 13, {}, 1)},
      {"progressive", raw_jpeg(21, 13, {.progressive = true}, 1)},
      {"arithmetic", raw_jpeg(21, 13, {.arithmetic = true}, 1)},
      {"PNG", raw_png(21, 13, {.color = kRgba}, 1)},
      {"interlaced PNG", raw_png(21, 13, {.color = kPalette, .depth = 4, .interlace = 1}, 1)},
      {"lossy WebP", raw_webp(21, 13, 3, false, 1)},
      {"lossy WebP with alpha", raw_webp(21, 13, 4, false, 1)},
      {"lossless WebP", raw_webp(21, 13, 4, true, 1)},
      {"animated WebP",
       webp_file(webp_canvas(kWebpAnimated | kWebpAlpha, 31, 23) + webp_animation() +
                 webp_frame(4, 6, 21, 13, raw_webp(21, 13, 4, true, 1)))},
  };
}

// --- Pixels. More of them, against Pillow: tests/reference/image_judge.py -----------------------

TEST(Decode, GivesThePixelsThatALosslessPictureWasMadeFrom) {
  const auto pixels = some_pixels(21, 13, 3, 5);
  std::string rows;
  for (int y = 0; y < 13; ++y)
    rows += '\0' + std::string(pixels.begin() + y * 63, pixels.begin() + (y + 1) * 63);
  for (const std::string& bytes : {png_of(21, 13, kRgb, 8, rows), raw_webp(21, 13, 3, true, 5)}) {
    const Image image = decode(bytes);
    EXPECT_EQ(image.width, 21);
    EXPECT_EQ(image.height, 13);
    EXPECT_EQ(image.rgb, pixels);
  }
}

TEST(Decode, GivesNearlyThePixelsThatALossyPictureWasMadeFrom) {
  const auto pixels = some_pixels(21, 13, 1, 5);
  const Image image = decode(raw_jpeg(21, 13, {.channels = 1, .quality = 100}, 5));
  ASSERT_EQ(image.rgb.size(), pixels.size() * 3);
  for (size_t i = 0; i < pixels.size(); ++i) {
    // At quality 100 coefficients are rounded to whole numbers: half a step in each of 64, in an
    // orthonormal transform, is at most 4 in a pixel, and rounding of input and output 1 more.
    ASSERT_NEAR(image.rgb[i * 3], pixels[i], 5) << i;
    ASSERT_EQ(image.rgb[i * 3], image.rgb[i * 3 + 2]) << i;
  }
}

TEST(Decode, PutsWhatIsTransparentOnWhite) {
  // Every value under every alpha.
  std::string rows;
  for (int alpha = 0; alpha < 256; ++alpha) {
    rows += '\0';
    for (int value = 0; value < 256; ++value) {
      rows += static_cast<char>(value);
      rows += static_cast<char>(alpha);
    }
  }
  const Image image = decode(png_of(256, 256, kGreyAlpha, 8, rows));
  for (int alpha = 0; alpha < 256; ++alpha) {
    for (int value = 0; value < 256; ++value) {
      const int sum = 255 * (255 - alpha) + value * alpha;
      ASSERT_EQ(image.row(alpha)[value * 3], (2 * sum + 255) / 510) << value << " under " << alpha;
    }
  }
}

TEST(Decode, TakesTheHighByteOf16BitsAndComparesATransparentColourWithBoth) {
  const std::string rows("\0\x12\x34\x12\x35\xff\x00", 7);
  const Image plain = decode(png_of(3, 1, kGrey, 16, rows));
  EXPECT_EQ(plain.rgb, (std::vector<uint8_t>{0x12, 0x12, 0x12, 0x12, 0x12, 0x12, 255, 255, 255}));
  const Image clear = decode(png_of(3, 1, kGrey, 16, rows, png_chunk("tRNS", "\x12\x34")));
  EXPECT_EQ(clear.rgb, (std::vector<uint8_t>{255, 255, 255, 0x12, 0x12, 0x12, 255, 255, 255}));
}

TEST(Decode, TakesTheFirstPictureOfAnAnimation) {
  const std::string first = raw_webp(20, 12, 3, true, 1), second = raw_webp(20, 12, 3, true, 2);
  const auto animation = [&](int flags) {
    return webp_file(webp_canvas(kWebpAnimated | flags, 30, 20) + webp_animation() +
                     webp_frame(4, 6, 20, 12, first) + webp_frame(0, 0, 20, 12, second));
  };
  const Image still = decode(first);
  for (const bool alpha : {false, true}) {
    const Image image = decode(animation(alpha ? kWebpAlpha : 0));
    ASSERT_EQ(image.width, 30);
    ASSERT_EQ(image.height, 20);
    const uint8_t around = alpha ? 255 : 0;
    EXPECT_EQ(image.rgb.front(), around);
    EXPECT_EQ(image.rgb.back(), around);
    for (int y = 0; y < 12; ++y) {
      ASSERT_TRUE(std::equal(still.row(y), still.row(y) + 60, image.row(y + 6) + 12)) << y;
    }
  }
}

// --- Orientation --------------------------------------------------------------------------------

TEST(Orientation, TurnsAndMirrorsAsTheTagSays) {
  // Pixels a to f, as the sensor has them and as they are to be seen.
  const auto letters = [](int width, int height, const std::string& text) {
    Image image{width, height, {}};
    for (const char c : text) image.rgb.insert(image.rgb.end(), {uint8_t(c), uint8_t(c + 100), 7});
    return image;
  };
  const char* const seen[] = {"abcdef", "cbafed", "fedcba", "defabc",
                              "adbecf", "daebfc", "fcebda", "cfbead"};
  for (int orientation = 1; orientation <= 8; ++orientation) {
    const Image image = apply_orientation(letters(3, 2, "abcdef"), orientation);
    const Image expected = orientation < 5 ? letters(3, 2, seen[orientation - 1])
                                           : letters(2, 3, seen[orientation - 1]);
    EXPECT_EQ(image.width, expected.width) << orientation;
    EXPECT_EQ(image.height, expected.height) << orientation;
    EXPECT_EQ(image.rgb, expected.rgb) << orientation;
  }
}

TEST(Orientation, OfPicturesLargerThanASquareGoesWholeWayAround) {
  Image image{130, 67, some_pixels(130, 67, 3, 9)};
  const auto pixels = image.rgb;
  for (int i = 0; i < 4; ++i) image = apply_orientation(std::move(image), 6);
  EXPECT_EQ(image.rgb, pixels);
  image = apply_orientation(apply_orientation(std::move(image), 6), 8);
  EXPECT_EQ(image.rgb, pixels);
}

TEST(Orientation, IsReadFromEveryFormat) {
  for (const bool big : {false, true}) {
    const std::string exif = raw_exif(6, big);
    const std::string files[] = {
        raw_jpeg(21, 13, {.exif = exif}, 1), raw_png(21, 13, {.exif = exif}, 1),
        webp_file(webp_canvas(kWebpExif, 21, 13) + webp_pixels(raw_webp(21, 13, 3, true, 1)) +
                  webp_chunk("EXIF", exif))};
    for (const std::string& file : files) EXPECT_EQ(decode(file).width, 13) << file.substr(0, 4);
  }
}

TEST(Orientation, IsOneWhereExifIsMissingDamagedOrGoesInCircles) {
  const auto read = [](const std::string& exif) {
    return exif_orientation(std::as_bytes(std::span(exif)));
  };
  const std::string good = raw_exif(8);
  EXPECT_EQ(read(good), 8);
  EXPECT_EQ(read(std::string("Exif\0\0", 6) + good), 8);
  EXPECT_EQ(read(""), 1);
  for (size_t n = 0; n < 20; ++n) EXPECT_EQ(read(good.substr(0, n)), 1) << n;
  for (const int value : {0, 9, 255, 65535}) EXPECT_EQ(read(raw_exif(value)), 1) << value;
  std::string bad = good;
  bad.replace(4, 4, little_endian(0xffffffff, 4));  // the directory far outside
  EXPECT_EQ(read(bad), 1);
  bad = good;
  bad.replace(8, 2, little_endian(65535, 2));  // entries without end, none of them ours
  bad.replace(10, 2, little_endian(0x0100, 2));
  EXPECT_EQ(read(bad), 1);
  bad = good;
  bad.replace(22, 4, little_endian(8, 4));  // the next directory is this one
  bad.replace(10, 2, little_endian(0x0100, 2));
  EXPECT_EQ(read(bad), 1);
  bad = good;
  bad.replace(12, 2, little_endian(5, 2));  // a fraction
  EXPECT_EQ(read(bad), 1);
  bad = good;
  bad.replace(14, 4, little_endian(0xffffffff, 4));  // four thousand million of them
  EXPECT_EQ(read(bad), 1);
}

// --- Refusals -----------------------------------------------------------------------------------

TEST(Decode, NamesAFileOfAnotherKind) {
  expect_error(ErrorKind::kBadData, "photo: the file is empty", [] { decode(""); });
  expect_error(ErrorKind::kUnsupported, "got none of them", [] { decode("some words"); });
  expect_error(ErrorKind::kUnsupported, "got a GIF file", [] { decode("GIF89a......"); });
  expect_error(ErrorKind::kUnsupported, "got a BMP file", [] { decode("BM......"); });
  expect_error(ErrorKind::kUnsupported, "got a HEIC file", [] {
    decode(
        std::string("\0\0\0\x18"
                    "ftypheic",
                    12));
  });
  expect_error(ErrorKind::kUnsupported, "got a TIFF file",
               [] { decode(std::string("II\x2a\0\0\0\0\0", 8)); });
  // RIFF is also the head of sounds.
  expect_error(ErrorKind::kUnsupported, "got none of them", [] { decode("RIFF\4\0\0\0WAVEfmt "); });
}

TEST(Decode, HoldsALimitOfBytes) {
  const std::string bytes = raw_png(5, 5, {}, 1);
  decode(bytes, {.bytes = static_cast<int64_t>(bytes.size())});
  expect_error(ErrorKind::kLimit, "bytes; ",
               [&] { decode(bytes, {.bytes = static_cast<int64_t>(bytes.size()) - 1}); });
}

TEST(Decode, HoldsALimitOfPixels) {
  for (const auto& [name, bytes] : samples()) {
    SCOPED_TRACE(name);
    const int64_t pixels = name == "animated WebP" ? 31 * 23 : 21 * 13;
    EXPECT_EQ(decode(bytes, {.pixels = pixels}).rgb.size(), static_cast<size_t>(3 * pixels));
    expect_error(ErrorKind::kLimit, "pixels; ",
                 [&, &bytes = bytes] { decode(bytes, {.pixels = pixels - 1}); });
  }
}

TEST(Decode, HoldsALimitOfSides) {
  expect_error(ErrorKind::kLimit, "a side may have 65535",
               [] { decode(png_of(65536, 1, kGrey, 1, "")); });
  expect_error(ErrorKind::kLimit, "a side may have 65535",
               [] { decode(png_of(1, 65536, kGrey, 1, "")); });
}

TEST(Decode, HoldsALimitOfTime) {
  for (const auto& [name, bytes] : samples()) {
    SCOPED_TRACE(name);
    expect_error(ErrorKind::kLimit, "takes longer than 0 s to decode",
                 [&, &bytes = bytes] { decode(bytes, {.seconds = 0}); });
  }
}

TEST(Decode, HoldsALimitOfScans) {
  const std::string bytes = raw_jpeg(21, 13, {.progressive = true}, 1);
  decode(bytes, {.scans = 10});  // as libjpeg writes a picture in colour
  expect_error(ErrorKind::kLimit, "comes in more than 9 scans",
               [&] { decode(bytes, {.scans = 9}); });
}

TEST(Decode, RefusesATruncatedPictureWhereverItEnds) {
  for (const auto& [name, bytes] : samples()) {
    SCOPED_TRACE(name);
    decode(bytes);
    for (size_t n = 12; n < bytes.size(); ++n) {
      SCOPED_TRACE(n);
      expect_error(ErrorKind::kBadData, "photo: the ",
                   [&, &bytes = bytes] { decode(bytes.substr(0, n)); });
    }
  }
}

TEST(Decode, RefusesAWebpThatEndsEarlyThoughItsSizesAgree) {
  for (const auto& [channels, lossless] : {std::pair(3, false), {4, true}}) {
    const std::string pixels = webp_pixels(raw_webp(41, 33, channels, lossless, 1));
    const std::string kind = pixels.substr(0, 4);
    for (const size_t part : {2, 4, 8}) {
      const std::string cut = webp_file(webp_chunk(kind, pixels.substr(8, pixels.size() / part)));
      expect_error(ErrorKind::kBadData, "photo: the WebP picture", [&] { decode(cut); });
    }
  }
}

TEST(Decode, RefusesAPngWithABadChecksum) {
  const std::string bytes =
      raw_png(9, 9, {.color = kPalette, .transparency = "\x20", .exif = raw_exif(1)}, 1);
  decode(bytes);
  size_t chunks = 0;
  for (size_t at = 8; at < bytes.size(); ++chunks) {
    size_t size = 12;
    for (int i = 0; i < 4; ++i) size += size_t{static_cast<uint8_t>(bytes[at + i])} << (24 - 8 * i);
    std::string bad = bytes;
    bad[at + size - 1] ^= 1;
    expect_error(ErrorKind::kBadData, "photo: the PNG picture is damaged", [&] { decode(bad); });
    at += size;
  }
  EXPECT_EQ(chunks, 7u);
}

TEST(Decode, RefusesATransparentColourThatCannotBe) {
  const std::string rows("\0\1\2\3", 4);
  expect_error(ErrorKind::kBadData, "damaged",
               [&] { decode(png_of(3, 1, kGrey, 8, rows, png_chunk("tRNS", "\1"))); });
  // Where there is an alpha channel nobody needs it.
  decode(png_of(1, 1, kRgba, 8, std::string("\0\1\2\3\4", 5), png_chunk("tRNS", "\1")));
}

TEST(Decode, SkipsWhatAPngSaysBesideItsPixels) {
  const std::string bomb = deflated(std::string(1 << 20, 'a'));
  std::string extra;
  for (int i = 0; i < 2000; ++i) extra += png_chunk("tEXt", std::string("Comment\0words", 13));
  extra += png_chunk("zTXt", std::string("Comment\0\0", 9) + bomb);
  extra += png_chunk("iTXt", std::string("Comment\0\1\0\0\0", 12) + bomb);
  extra += png_chunk("iCCP", std::string("Profile\0\0", 9) + bomb);
  extra += png_chunk("sPLT", std::string("Palette\0\x10", 9) + std::string(100, 'a'));
  EXPECT_EQ(decode(raw_png(9, 9, {.extra = extra}, 1)).rgb, decode(raw_png(9, 9, {}, 1)).rgb);
}

TEST(Decode, RefusesAJpegWithDamageInsideItsScan) {
  const std::string bytes = raw_jpeg(64, 64, {.restart_interval = 2}, 1);
  std::string bad = bytes;
  // A restart mark with the wrong number, which libjpeg would mend with grey blocks and a warning.
  const size_t mark = bad.find("\xff\xd3");
  ASSERT_NE(mark, std::string::npos);
  bad[mark + 1] = '\xd6';
  expect_error(ErrorKind::kBadData, "photo: the JPEG picture is damaged", [&] { decode(bad); });
  // Bytes between the end of the scan and the next mark, as some cameras write, lose nothing.
  std::string padded = bytes;
  padded.insert(padded.size() - 2, std::string(5, '\0'));
  EXPECT_EQ(decode(padded).rgb, decode(bytes).rgb);
  expect_error(ErrorKind::kBadData, "ends before it is complete",
               [&] { decode(padded.substr(0, padded.size() - 2)); });
}

TEST(Decode, IgnoresWhatFollowsThePicture) {
  for (const auto& [name, bytes] : samples()) {
    EXPECT_EQ(decode(bytes + "PK\3\4 and an archive").rgb, decode(bytes).rgb) << name;
  }
}

TEST(Decode, NamesWhatItsLibrariesDoNot) {
  std::string lossless = raw_jpeg(9, 9, {.channels = 1}, 1);
  lossless[lossless.find("\xff\xc0") + 1] = '\xc3';
  expect_error(ErrorKind::kUnsupported, "photo: this kind of JPEG is not supported",
               [&] { decode(lossless); });
  std::string twelve_bits = raw_jpeg(9, 9, {.channels = 1}, 1);
  twelve_bits[twelve_bits.find("\xff\xc0") + 4] = 12;
  expect_error(ErrorKind::kUnsupported, "photo: this kind of JPEG is not supported",
               [&] { decode(twelve_bits); });
}

// --- Writing ------------------------------------------------------------------------------------

TEST(WritePng, WritesWhatIsReadBackTheSame) {
  const TempFolder folder;
  const auto pixels = some_pixels(131, 77, 3, 3);
  write_png(folder / "a.png", pixels.data(), 131, 77);
  const MappedFile file(folder / "a.png");
  const Image image = decode_image(file.bytes(), "a.png");
  EXPECT_EQ(image.width, 131);
  EXPECT_EQ(image.height, 77);
  EXPECT_EQ(image.rgb, pixels);
}

TEST(WritePng, SaysWhyItCannot) {
  const TempFolder folder;
  const uint8_t pixel[3] = {1, 2, 3};
  expect_error(ErrorKind::kNotFound, "nowhere",
               [&] { write_png(folder / "nowhere" / "a.png", pixel, 1, 1); });
}

}  // namespace
}  // namespace drover
