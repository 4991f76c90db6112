#include <gtest/gtest.h>

#include <random>
#include <string_view>
#include <vector>

#include "base/crc32c.h"
#include "base/sha256.h"

namespace drover {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

TEST(Crc32c, GivesTheValuesOfTheStandard) {
  // RFC 3720 appendix B.4, and the check value that catalogues of CRCs list.
  std::vector<std::byte> up(32), down(32);
  for (size_t i = 0; i < 32; ++i) {
    up[i] = static_cast<std::byte>(i);
    down[i] = static_cast<std::byte>(31 - i);
  }
  for (const auto crc : {crc32c, crc32c_plain}) {
    EXPECT_EQ(crc(std::vector<std::byte>(32, std::byte{0})), 0x8a9136aau);
    EXPECT_EQ(crc(std::vector<std::byte>(32, std::byte{0xff})), 0x62a8ab43u);
    EXPECT_EQ(crc(up), 0x46dd794eu);
    EXPECT_EQ(crc(down), 0x113fdb5cu);
    EXPECT_EQ(crc(bytes_of("123456789")), 0xe3069283u);
    EXPECT_EQ(crc({}), 0u);
  }
}

TEST(Crc32c, IsThatOfThePlainTwinAtEveryLengthAndAlignment) {
  std::mt19937 random(1);
  std::vector<std::byte> data(70'000);
  for (std::byte& byte : data) byte = static_cast<std::byte>(random());
  const std::span<const std::byte> all(data);
  for (size_t length = 0; length < 300; ++length) {
    for (size_t begin = 0; begin < 9; ++begin) {
      const auto piece = all.subspan(begin, length);
      ASSERT_EQ(crc32c(piece), crc32c_plain(piece)) << begin << " " << length;
    }
  }
  // Round the borders of the three lanes, and whole blocks.
  for (const size_t near : {4080, 4096, 8160, 12240, 65536, 69632}) {
    for (size_t length = near - 17; length < near + 18; ++length) {
      const auto piece = all.subspan(length % 8, length);
      ASSERT_EQ(crc32c(piece), crc32c_plain(piece)) << length;
    }
  }
}

TEST(Sha256, GivesTheValuesOfTheStandard) {
  EXPECT_EQ(hex(sha256(bytes_of("abc"))),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hex(sha256({})), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  Sha256 pieces;
  pieces.update(bytes_of("a"));
  pieces.update(bytes_of("bc"));
  EXPECT_EQ(pieces.finish(), sha256(bytes_of("abc")));
}

TEST(Sha256, TellsListsOfTextsApart) {
  Sha256 a, b;
  a.update_text("ab");
  a.update_text("c");
  b.update_text("a");
  b.update_text("bc");
  EXPECT_NE(a.finish(), b.finish());
}

}  // namespace
}  // namespace drover
