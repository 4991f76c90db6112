#include "formats/gzip.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

using testing::expect_error;
using testing::TempFolder;

std::string packed(std::string_view text) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 9, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(deflateBound(&stream, text.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(out.size() - stream.avail_out);
  deflateEnd(&stream);
  return out;
}

// Longer than the pieces it is unpacked in.
std::string long_text() {
  std::string out;
  for (int i = 0; out.size() < 3'000'000; ++i) out += std::to_string(i * int64_t{7919}) + ' ';
  return out;
}

TEST(Gzip, ComesBackWholeInOneMemberOrInSeveral) {
  const std::string text = long_text();
  EXPECT_EQ(gunzip(packed(text), "a", text.size()), text);
  EXPECT_EQ(gunzip(packed("one, ") + packed("") + packed("two"), "a", 100), "one, two");
  EXPECT_EQ(gunzip(packed(""), "a", 0), "");
}

TEST(Gzip, RefusesWhatIsCutDamagedOrTooLarge) {
  const std::string text(100'000, 'x'), whole = packed(text);
  for (const size_t size : {size_t{0}, size_t{2}, size_t{9}, whole.size() / 2, whole.size() - 1}) {
    expect_error(ErrorKind::kBadData, "a.gz: gzip at byte",
                 [&] { gunzip(whole.substr(0, size), "a.gz", 1 << 20); });
  }
  std::string damaged = whole;
  damaged[whole.size() - 6] ^= 1;  // the checksum
  expect_error(ErrorKind::kBadData, "damaged", [&] { gunzip(damaged, "a.gz", 1 << 20); });
  expect_error(ErrorKind::kBadData, "damaged", [&] { gunzip(whole + "more", "a.gz", 1 << 20); });
  expect_error(ErrorKind::kLimit, "at most 99999 bytes", [&] { gunzip(whole, "a.gz", 99'999); });
  EXPECT_EQ(gunzip(whole, "a.gz", 100'000), text);
}

TEST(Gzip, AFileIsUnpackedIfItIsPacked) {
  const TempFolder folder;
  EXPECT_EQ(read_unpacked(folder.write("plain.txt", "as it is"), 8), "as it is");
  EXPECT_EQ(read_unpacked(folder.write("packed", packed("unpacked")), 8), "unpacked");
  EXPECT_EQ(read_unpacked(folder.write("empty", ""), 8), "");
  expect_error(ErrorKind::kLimit, "at most 7 bytes, got 8",
               [&] { read_unpacked(folder / "plain.txt", 7); });
}

}  // namespace
}  // namespace drover
