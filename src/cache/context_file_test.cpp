#include "cache/context_file.h"

#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <functional>
#include <thread>

#include "base/crc32c.h"
#include "base/mapped_file.h"
#include "cache/context_file_fixture.h"
#include "tests/support/counting_malloc.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

namespace fs = std::filesystem;
using testing::expect_error;
using testing::TempFolder;

std::string bytes_of(const fs::path& path) { return read_file(path, size_t{1} << 30); }

void overwrite(const fs::path& path, std::string_view bytes, uint64_t at) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(static_cast<std::streamoff>(at));
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  ASSERT_TRUE(file.flush());
}

size_t files_in(const TempFolder& folder) {
  return static_cast<size_t>(
      std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()));
}

// The whole file, or an Error; counts which.
struct Outcome {
  int refused = 0;
  int same = 0;
  int noticed = 0;  // the same, and the damaged header was said
};
void expect_found_or_harmless(const fs::path& path, const CacheLayout& layout, const Story& text,
                              Outcome& outcome, const std::string& what) {
  try {
    const auto file = load(path, layout);
    ASSERT_EQ(difference(*file, layout, text), "") << what;
    ++(file->damaged_header() ? outcome.noticed : outcome.same);
  } catch (const Error& error) {
    ASSERT_EQ(error.kind(), ErrorKind::kBadData) << what << ": " << error.what();
    ++outcome.refused;
  }
}

TEST(ContextFile, GivesBackWhatWasSavedOfEveryKindOfLayerAndType) {
  const TempFolder folder(TempFolder::fast_parent());
  const std::vector<std::vector<bool>> kinds = {
      {true, true, true, false}, {false, false}, {true, true}, {false, true}};
  for (const DType type : {DType::kF32, DType::kBF16, DType::kI8}) {
    for (const auto& chunked : kinds) {
      for (const int64_t chunk : {16, 512, 1024}) {
        for (const int64_t length : {0, 1, 15, 16, 255, 256, 257, 512, 600, 1024, 1500}) {
          const CacheLayout layout{
              .kv_heads = 2, .head_dim = 6, .chunked = chunked, .chunk = chunk, .type = type};
          const fs::path path = folder / "a.ctx";
          fs::remove(path);
          const ContextSaved saved = save(path, layout, story(length));
          EXPECT_EQ(saved.what, ContextSave::kWritten);
          const auto file = load(path, layout);
          ASSERT_EQ(difference(*file, layout, story(length)), "")
              << dtype_name(type) << " chunk " << chunk << " length " << length;
          EXPECT_EQ(file->resume_length(), length);
          EXPECT_EQ(file->used_bytes(), file->file_bytes());
          EXPECT_EQ(fs::file_size(path), saved.written);
          save(path, layout, story(length + 300));
          ASSERT_EQ(difference(*load(path, layout), layout, story(length + 300)), "");
        }
      }
    }
  }
  EXPECT_EQ(files_in(folder), 1u);
}

TEST(ContextFile, ALongerTextIsAppendedAndCostsItsNewPages) {
  const TempFolder folder(TempFolder::fast_parent());
  const CacheLayout layout = small_layout();
  const fs::path path = folder / "a.ctx";
  const ContextShape shape(layout);
  save(path, layout, story(3000));
  int64_t before = 3000;
  for (const int64_t length : {3001, 3070, 3072, 3073, 4000, 4096, 5000}) {
    const std::string old = bytes_of(path);
    const ContextSaved saved = save(path, layout, story(length));
    EXPECT_EQ(saved.what, ContextSave::kAppended);
    EXPECT_EQ(saved.kept, before);
    const auto pages = static_cast<uint64_t>(
        (length / kPageTokens - before / kPageTokens + (length % kPageTokens != 0)) * 2 +
        shape.chunk_pages(length) * 2);
    // Text and index fill 4,096 bytes each; two header slots.
    EXPECT_EQ(saved.written, pages * shape.stride + 4 * 4096);
    // Nothing but the header was overwritten.
    EXPECT_EQ(bytes_of(path).substr(kHeaderBytes, old.size() - kHeaderBytes),
              old.substr(kHeaderBytes));
    expect_holds(path, layout, story(length));
    before = length;
  }
  EXPECT_EQ(load(path, layout)->segments(), 8);
}

TEST(ContextFile, WhatIsSavedLastIsWhatIsThere) {
  const TempFolder folder(TempFolder::fast_parent());
  const CacheLayout layout = small_layout();
  const fs::path path = folder / "a.ctx";
  save(path, layout, story(3000));
  EXPECT_EQ(save(path, layout, story(3000)).what, ContextSave::kUnchanged);
  // A beginning of it.
  EXPECT_EQ(save(path, layout, story(2000)).what, ContextSave::kAppended);
  expect_holds(path, layout, story(2000));
  // One that goes on otherwise; then from what an older save had and the last has not.
  const Story other = turned(story(2000), 1500, 800, 7);
  EXPECT_EQ(save(path, layout, other).kept, 1500);
  expect_holds(path, layout, other);
  EXPECT_EQ(save(path, layout, story(3500)).kept, 1500);
  expect_holds(path, layout, story(3500));
  // One that shares nothing.
  const Story stranger = story(1000, 99);
  EXPECT_EQ(save(path, layout, stranger).what, ContextSave::kWritten);
  expect_holds(path, layout, stranger);
  EXPECT_EQ(load(path, layout)->segments(), 1);
  EXPECT_EQ(files_in(folder), 1u);
}

TEST(ContextFile, IsWrittenAnewWhenMostOfItNoLongerCounts) {
  const TempFolder folder(TempFolder::fast_parent());
  // 32 KiB pages of 16 chunked layers: a tail of a MiB with every save.
  const CacheLayout layout{.kv_heads = 1,
                           .head_dim = 32,
                           .chunked =
                               [] {
                                 std::vector<bool> out(17, true);
                                 out[3] = false;
                                 return out;
                               }(),
                           .chunk = 512,
                           .type = DType::kBF16};
  const fs::path path = folder / "a.ctx";
  uint64_t most = 0;
  int appended = 0, anew = 0;
  for (int64_t length = 300; length < 360; ++length) {
    const ContextSaved saved = save(path, layout, story(length));
    ++(saved.what == ContextSave::kAppended ? appended : anew);
    most = std::max(most, fs::file_size(path));
    ASSERT_EQ(difference(*load(path, layout), layout, story(length)), "");
  }
  EXPECT_GT(appended, 40);
  EXPECT_GE(anew, 2);
  EXPECT_LT(most, uint64_t{24} << 20);  // 16 MiB, and one save
}

TEST(ContextFile, PicturesBelongToTheText) {
  const TempFolder folder(TempFolder::fast_parent());
  const CacheLayout layout = small_layout();
  const fs::path path = folder / "a.ctx";
  Story text = story(2000);
  text.pictures = {{100, 250, digest_of(5)}, {250, 260, digest_of(6)}, {1900, 2000, digest_of(5)}};
  save(path, layout, text);
  expect_holds(path, layout, text);
  Story longer = story(2500);
  longer.pictures = text.pictures;
  longer.pictures.push_back({2000, 2400, digest_of(7)});
  EXPECT_EQ(save(path, layout, longer).kept, 2000);
  expect_holds(path, layout, longer);
  // The same tokens around another picture are another text from there on.
  Story other = longer;
  other.pictures[2].hash = digest_of(8);
  EXPECT_EQ(save(path, layout, other).kept, 1900);
  expect_holds(path, layout, other);
  // A beginning that ends in a picture does not have it.
  EXPECT_EQ(shared_beginning(longer, story(2000)), 100);
  Story cut = story(1950);
  cut.pictures = {text.pictures[0], text.pictures[1]};
  EXPECT_EQ(shared_beginning(longer, cut), 1900);
  EXPECT_EQ(shared_beginning(cut, longer), 1900);
  // The pictures of what a save does not keep are gone.
  EXPECT_EQ(save(path, layout, cut).kept, 1900);
  expect_holds(path, layout, cut);
}

TEST(ContextFile, WithoutTheChunksPagesOneGoesOnFromTheChunksBegin) {
  const TempFolder folder(TempFolder::fast_parent());
  const CacheLayout layout = small_layout();
  const fs::path path = folder / "a.ctx";
  const Memory memory(layout, story(1300));
  std::vector<PageList> lists = memory.lists();
  lists[0] = lists[2] = {};
  ThreadPool threads(1);
  save_context(path, identity_of(layout), story(1300), lists, threads);
  const auto file = load(path, layout);
  EXPECT_EQ(file->length(), 1300);
  EXPECT_EQ(file->resume_length(), 1024);
  EXPECT_TRUE(file->pages(0).empty());
  EXPECT_EQ(file->pages(1).size(), 6u);
  // With them there is more to keep than before; without there is not.
  EXPECT_EQ(save_context(path, identity_of(layout), story(1300), lists, threads).what,
            ContextSave::kAppended);
  EXPECT_EQ(save(path, layout, story(1300)).what, ContextSave::kAppended);
  EXPECT_EQ(save_context(path, identity_of(layout), story(1300), lists, threads).what,
            ContextSave::kUnchanged);
  EXPECT_EQ(load(path, layout)->resume_length(), 1300);
}

TEST(ContextFile, IsWrittenWhileTheTextIsRead) {
  const TempFolder folder(TempFolder::fast_parent());
  const CacheLayout layout = small_layout();
  const fs::path path = folder / "a.ctx";
  save(path, layout, story(700, 3));  // of another text
  ThreadPool threads(2);
  const Story text = story(5000);
  const Memory memory(layout, text);
  const std::vector<PageList> lists = memory.lists();
  const auto pieces = [&](int64_t from, int64_t to) {
    const auto first = static_cast<size_t>(from), count = static_cast<size_t>(to - from);
    return std::vector<PageList>{lists[1].subspan(first, count), lists[3].subspan(first, count)};
  };
  {
    ContextWriter writer(path, identity_of(layout), text, threads);
    EXPECT_EQ(writer.pages(), 0);
    for (int64_t p = 0; p < 8; p += 2) writer.append_pages(pieces(p, p + 2));
    expect_holds(path, layout, story(700, 3));  // nothing is seen of it yet
    const Memory at2200(layout, story(2200));
    std::vector<PageList> tail = at2200.lists();
    tail[1] = tail[1].subspan(8);
    tail[3] = tail[3].subspan(8);
    EXPECT_EQ(writer.publish(story(2200), tail), ContextSave::kWritten);
    expect_holds(path, layout, story(2200));
    writer.append_pages(pieces(8, 19));
    tail = lists;
    tail[1] = tail[1].subspan(19);
    tail[3] = tail[3].subspan(19);
    EXPECT_EQ(writer.publish(text, tail), ContextSave::kAppended);
    expect_holds(path, layout, text);
    writer.append_pages(pieces(19, 19));
  }
  {
    ContextWriter writer(path, identity_of(layout), story(9000), threads);
    EXPECT_EQ(writer.pages(), 19);
    const Memory more(layout, story(9000));
    const std::vector<PageList> all = more.lists();
    writer.append_pages(std::vector<PageList>{all[1].subspan(19, 10), all[3].subspan(19, 10)});
  }
  // Never published: as if it had not been.
  expect_holds(path, layout, text);
  EXPECT_EQ(load(path, layout)->file_bytes(), fs::file_size(path));
  EXPECT_EQ(files_in(folder), 1u);
}

TEST(ContextFile, IsOfOneModelTokenizerTypeAndLayout) {
  const TempFolder folder(TempFolder::fast_parent());
  const CacheLayout layout = small_layout();
  const fs::path path = folder / "a.ctx";
  save(path, layout, story(700));
  const auto refused = [&](std::string_view words,
                           const std::function<void(ContextIdentity&)>& change) {
    ContextIdentity identity = identity_of(layout);
    change(identity);
    ThreadPool threads(1);
    expect_error(ErrorKind::kUsage, words, [&] { ContextFile::open(path, identity, threads); });
  };
  refused("another model", [](auto& i) { i.model[31] ^= 1; });
  refused("another tokenizer", [](auto& i) { i.tokenizer[0] ^= 1; });
  refused("another vocabulary size", [](auto& i) { i.vocab = 1001; });
  refused("--cache-type int8", [](auto& i) { i.layout.type = DType::kBF16; });
  refused("number of kv heads", [](auto& i) { i.layout.kv_heads = 2; });
  refused("head size", [](auto& i) { i.layout.head_dim = 7; });
  refused("chunk size", [](auto& i) { i.layout.chunk = 256; });
  refused("number of layers", [](auto& i) { i.layout.chunked.push_back(false); });
  refused("kind of layer 1", [](auto& i) { i.layout.chunked[1] = true; });
  // Saving is meant: it takes the other's place.
  CacheLayout wide = layout;
  wide.kv_heads = 3;
  EXPECT_EQ(save(path, wide, story(700)).what, ContextSave::kWritten);
  expect_holds(path, wide, story(700));
}

TEST(ContextFile, AFileOfAnotherKindIsNeitherReadNorOverwritten) {
  const TempFolder folder(TempFolder::fast_parent());
  const CacheLayout layout = small_layout();
  const std::string letter(20'000, 'x');
  const fs::path path = folder.write("letter.txt", letter);
  expect_error(ErrorKind::kBadData, "expected a context file", [&] { load(path, layout); });
  expect_error(ErrorKind::kUsage, "another kind", [&] { save(path, layout, story(10)); });
  EXPECT_EQ(bytes_of(path), letter);
  const fs::path note = folder.write("note.txt", "short");
  expect_error(ErrorKind::kBadData, "end of file", [&] { load(note, layout); });
  expect_error(ErrorKind::kUsage, "another kind", [&] { save(note, layout, story(10)); });
  expect_error(ErrorKind::kUsage, "folder", [&] { load(folder.path(), layout); });
  expect_error(ErrorKind::kUsage, "folder", [&] { save(folder.path(), layout, story(10)); });
  expect_error(ErrorKind::kNotFound, "a.ctx", [&] { load(folder / "a.ctx", layout); });
  expect_error(ErrorKind::kNotFound, "none/a.ctx",
               [&] { save(folder / "none/a.ctx", layout, story(10)); });
  // An empty file, as mktemp makes, is nobody's.
  const fs::path empty = folder.write("empty.ctx", "");
  save(empty, layout, story(10));
  expect_holds(empty, layout, story(10));
  // What is replaced is the file, not the link to it; and it keeps its permissions.
  fs::permissions(empty, fs::perms::owner_read | fs::perms::owner_write);
  fs::create_symlink("empty.ctx", folder / "link.ctx");
  save(folder / "link.ctx", layout, story(10, 5));
  EXPECT_TRUE(fs::is_symlink(folder / "link.ctx"));
  EXPECT_EQ(fs::status(empty).permissions(), fs::perms::owner_read | fs::perms::owner_write);
  expect_holds(empty, layout, story(10, 5));
}

TEST(ContextFile, TenThousandFlippedBitsAreFound) {
  const TempFolder folder(TempFolder::fast_parent());
  const CacheLayout layout = small_layout();
  std::mt19937_64 random(1);
  for (const bool grown : {false, true}) {
    const fs::path path = folder / "a.ctx";
    fs::remove(path);
    Story text = story(2100);
    text.pictures = {{30, 70, digest_of(3)}};
    if (grown) {  // three saves, the second of which was not wholly kept
      Story first = story(700), second = turned(text, 1200, 700, 6);
      first.pictures = second.pictures = text.pictures;
      save(path, layout, first);
      save(path, layout, second);
    }
    save(path, layout, text);
    const std::string good = bytes_of(path);
    const auto file = load(path, layout);
    ASSERT_EQ(file->segments(), grown ? 3 : 1);
    const double dead = 1 - static_cast<double>(file->used_bytes()) / file->file_bytes();
    Outcome outcome;
    for (int i = 0; i < 5000; ++i) {
      const uint64_t bit = random() % (good.size() * 8);
      const char flipped = static_cast<char>(good[bit / 8] ^ (1 << bit % 8));
      overwrite(path, {&flipped, 1}, bit / 8);
      expect_found_or_harmless(path, layout, text, outcome, fmt::format("bit {}", bit));
      overwrite(path, {&good[bit / 8], 1}, bit / 8);
    }
    // Harmless are those in space that no longer counts; within five standard deviations.
    EXPECT_EQ(outcome.refused + outcome.noticed + outcome.same, 5000);
    EXPECT_NEAR(outcome.same, 5000 * dead, 5 * std::sqrt(5000 * dead * (1 - dead)));
    EXPECT_GT(outcome.noticed, 0);
    if (!grown) {
      EXPECT_EQ(outcome.same, 0);
    }
    expect_holds(path, layout, text);
  }
}

TEST(ContextFile, OneThatIsCutShortIsRefused) {
  const TempFolder folder(TempFolder::fast_parent());
  const CacheLayout layout = small_layout();
  const fs::path path = folder / "a.ctx";
  save(path, layout, story(1100));
  save(path, layout, story(1900));
  const std::string good = bytes_of(path);
  std::mt19937_64 random(2);
  std::vector<uint64_t> cuts;
  for (uint64_t at = 0; at < good.size(); at += 4096) cuts.push_back(at);
  for (int i = 0; i < 500; ++i) cuts.push_back(random() % good.size());
  cuts.push_back(good.size() - 1);
  for (const uint64_t cut : cuts) {
    folder.write("a.ctx", good.substr(0, cut));
    expect_error(ErrorKind::kBadData, "a.ctx", [&] { load(path, layout); });
  }
  // Saving then puts a whole one in its place, unless the header says no more whose it was.
  folder.write("a.ctx", good.substr(0, 10'000));
  EXPECT_EQ(save(path, layout, story(1900)).what, ContextSave::kWritten);
  expect_holds(path, layout, story(1900));
}

TEST(ContextFile, SwappedBlocksAreFound) {
  const TempFolder folder(TempFolder::fast_parent());
  const CacheLayout layout = small_layout();
  const fs::path path = folder / "a.ctx";
  save(path, layout, story(1900));
  const std::string good = bytes_of(path);
  const auto block = [&](uint64_t i) { return std::string_view(good).substr(i * 4096, 4096); };
  int tried = 0;
  for (uint64_t a = 0; a < good.size() / 4096; ++a) {
    for (uint64_t b = a + 1; b < good.size() / 4096; ++b) {
      if (block(a) == block(b)) continue;  // the two header slots, say
      overwrite(path, block(b), a * 4096);
      overwrite(path, block(a), b * 4096);
      Outcome outcome;
      expect_found_or_harmless(path, layout, story(1900), outcome, fmt::format("{} {}", a, b));
      EXPECT_EQ(outcome.same, 0);
      overwrite(path, block(a), a * 4096);
      overwrite(path, block(b), b * 4096);
      ++tried;
    }
  }
  EXPECT_GT(tried, 500);
}

TEST(ContextFile, AReplayedHeaderGivesTheWholeOldTextOrNone) {
  const TempFolder folder(TempFolder::fast_parent());
  const CacheLayout layout = small_layout();
  const fs::path path = folder / "a.ctx";
  save(path, layout, story(1100));
  const std::string old = bytes_of(path).substr(0, kHeaderBytes);
  save(path, layout, story(1900));
  const std::string now = bytes_of(path).substr(0, kHeaderBytes);
  for (const uint64_t slot : {0, 1}) {  // one of the two: the newer counts
    overwrite(path, std::string_view(old).substr(slot * kSlotBytes, kSlotBytes), slot * kSlotBytes);
    expect_holds(path, layout, story(1900));
    EXPECT_EQ(save(path, layout, story(1900)).what, ContextSave::kUnchanged);
    overwrite(path, now, 0);
  }
  overwrite(path, old, 0);
  expect_holds(path, layout, story(1100));
  // The header of a file that was replaced leads to nothing that has its hash.
  save(path, layout, story(3000, 4));
  overwrite(path, now, 0);
  expect_error(ErrorKind::kBadData, "", [&] { load(path, layout); });
  overwrite(path, old, 0);
  expect_error(ErrorKind::kBadData, "", [&] { load(path, layout); });
}

TEST(ContextFile, ADamagedHeaderIsSaidAndMendedByTheNextSave) {
  const TempFolder folder(TempFolder::fast_parent());
  const CacheLayout layout = small_layout();
  const fs::path path = folder / "a.ctx";
  for (const uint64_t slot : {0, 1}) {
    save(path, layout, story(1000));
    overwrite(path, "x", slot * kSlotBytes + 100);
    EXPECT_TRUE(load(path, layout)->damaged_header());
    expect_holds(path, layout, story(1000));
    EXPECT_EQ(save(path, layout, story(1000)).what, ContextSave::kAppended);
    EXPECT_FALSE(load(path, layout)->damaged_header());
    expect_holds(path, layout, story(1000));
  }
  overwrite(path, "x", 100);
  overwrite(path, "x", kSlotBytes + 100);
  expect_error(ErrorKind::kBadData, "both headers", [&] { load(path, layout); });
}

TEST(ContextFile, AnotherVersionIsNamed) {
  const TempFolder folder(TempFolder::fast_parent());
  const CacheLayout layout = small_layout();
  const fs::path path = folder / "a.ctx";
  save(path, layout, story(10));
  std::string header = bytes_of(path).substr(0, kSlotBytes);
  header[8] = 9;
  const Digest hash = sha256(std::as_bytes(std::span(header)).first(kSlotBytes - 32));
  std::memcpy(header.data() + kSlotBytes - 32, hash.data(), hash.size());
  overwrite(path, header + header, 0);
  expect_error(ErrorKind::kUnsupported, "expected 1, got 9", [&] { load(path, layout); });
}

// Puts `index` where the file's last one is, with hashes that are right.
void forge(const fs::path& path, const ContextSlot& was, std::span<const std::byte> index) {
  const ContextSlot slot{was.number, {was.index.offset, index.size(), sha256(index)}};
  const auto header = encode_slot(slot);
  const std::string_view text(reinterpret_cast<const char*>(header.data()), header.size());
  overwrite(path, text, 0);
  overwrite(path, text, kSlotBytes);
  overwrite(path, {reinterpret_cast<const char*>(index.data()), index.size()}, was.index.offset);
}

ContextSlot slot_of(std::string_view file) {
  return *decode_slot(std::as_bytes(std::span(file)).first(kSlotBytes), "");
}

TEST(ContextFile, ForgedIndexesAreRefusedInBoundedTimeAndMemory) {
  const TempFolder folder(TempFolder::fast_parent());
  const CacheLayout layout = small_layout();
  const fs::path path = folder / "a.ctx";
  save(path, layout, story(1100));
  save(path, layout, story(1900));
  const std::string good = bytes_of(path);
  const ContextSlot slot = slot_of(good);
  const auto bytes = std::as_bytes(std::span(good)).subspan(slot.index.offset);
  std::mt19937_64 random(3);
  const uint64_t values[] = {0,
                             1,
                             255,
                             256,
                             1899,
                             1901,
                             uint64_t{1} << 27,
                             (uint64_t{1} << 27) + 1,
                             uint64_t{1} << 31,
                             uint64_t{1} << 32,
                             uint64_t{1} << 62,
                             uint64_t{1} << 63,
                             ~uint64_t{0},
                             good.size(),
                             good.size() - 4096};
  int refused = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::vector<std::byte> index(bytes.begin(), bytes.end());
    for (int change = static_cast<int>(random() % 3); change >= 0; --change) {
      // 225 bytes of fields, then the checksums of 13 blocks; behind them are zeros.
      const size_t at = random() % (225 + 13 * 4);
      if (random() % 2 == 0) {
        index[at] = static_cast<std::byte>(random());
      } else {
        const uint64_t value = values[random() % std::size(values)];
        std::memcpy(index.data() + at, &value, sizeof(value));
      }
    }
    if (random() % 8 == 0) index.resize(random() % (3 * index.size()));
    folder.write("a.ctx", good);
    forge(path, slot, index);
    testing::reset_peak();
    const size_t before = testing::live_bytes;
    try {
      const auto file = load(path, layout);
      // What passes is whole by its own account.
      for (size_t layer = 0; layer < layout.chunked.size(); ++layer) {
        for (const std::byte* page : file->pages(static_cast<int64_t>(layer))) {
          ASSERT_NE(page, nullptr);
        }
      }
    } catch (const Error& error) {
      const auto kind = error.kind();
      ASSERT_TRUE(kind == ErrorKind::kBadData || kind == ErrorKind::kUsage ||
                  kind == ErrorKind::kLimit)
          << error.what();
      ++refused;
    }
    ASSERT_LT(testing::peak_bytes - before, size_t{4} << 20);
  }
  EXPECT_GT(refused, 18'000);
}

TEST(ContextFile, ASparseFileOfATerabyteCostsNoTimeAndMemory) {
  const TempFolder folder;
  const CacheLayout layout = small_layout();
  const fs::path path = folder / "a.ctx";
  save(path, layout, story(1100));
  constexpr uint64_t kTerabyte = uint64_t{1} << 40;
  std::error_code error;
  fs::resize_file(path, kTerabyte, error);
  if (error) GTEST_SKIP() << "no sparse files of a terabyte here: " << error.message();
  const auto start = std::chrono::steady_clock::now();
  testing::reset_peak();
  const size_t before = testing::live_bytes;
  expect_holds(path, layout, story(1100));
  // An index that lies in the void, of every size, with hashes that are right.
  for (const uint64_t bytes : {uint64_t{4096}, uint64_t{1} << 22}) {
    const std::vector<std::byte> zeros(bytes);
    forge(path, {7, {kTerabyte / 2, 0, {}}}, zeros);
    expect_error(ErrorKind::kBadData, "expected an index", [&] { load(path, layout); });
  }
  for (const uint64_t bytes : {kTerabyte / 2, kTerabyte, ~uint64_t{0}}) {
    for (const uint64_t offset : {uint64_t{kHeaderBytes}, kTerabyte / 2, ~uint64_t{4095}}) {
      const auto header = encode_slot({7, {offset, bytes, {}}});
      const std::string slot(reinterpret_cast<const char*>(header.data()), header.size());
      overwrite(path, slot + slot, 0);
      expect_error(ErrorKind::kBadData, "index", [&] { load(path, layout); });
    }
  }
  EXPECT_LT(testing::peak_bytes - before, size_t{16} << 20);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
}

TEST(ContextFile, AChainOfVastTextsInAVoidCostsNoMemory) {
  // Five saves, each of 32 million tokens that are a hole in the file, of which the next one keeps
  // a few. Everything is as it should be, so the last text is given.
  const TempFolder folder;
  const CacheLayout layout{
      .kv_heads = 1, .head_dim = 6, .chunked = {true}, .chunk = 16, .type = DType::kI8};
  constexpr int64_t kVast = int64_t{1} << 25;
  const uint32_t zeros = crc32c(std::vector<std::byte>(kChecksumBlock));
  const fs::path path = folder.write("a.ctx", "");
  IndexPlace place;
  uint64_t at = kHeaderBytes;
  for (int64_t kept = 0; kept <= 5; ++kept) {
    SegmentIndex index;
    index.previous = place;
    index.length = kept < 5 ? kVast : 16;
    index.kept = kept;
    at += index.text_bytes();
    index.checksums.assign(index.checksum_count(ContextShape(layout)), zeros);
    // The last text block of a vast save is short by what it keeps; a hole all the same.
    if (const uint64_t rest = index.text_bytes() % kChecksumBlock; rest != 0) {
      index.checksums.back() = crc32c(std::vector<std::byte>(rest));
    }
    const auto bytes = encode_index(index, identity_of(layout));
    place = {at, bytes.size(), sha256(bytes)};
    overwrite(path, {reinterpret_cast<const char*>(bytes.data()), bytes.size()}, at);
    at += bytes.size();
  }
  const auto header = encode_slot({1, place});
  const std::string slot(reinterpret_cast<const char*>(header.data()), header.size());
  overwrite(path, slot + slot, 0);
  testing::reset_peak();
  const size_t before = testing::live_bytes;
  const auto file = load(path, layout);
  EXPECT_LT(testing::peak_bytes - before, size_t{4} << 20);
  EXPECT_EQ(file->segments(), 6);
  EXPECT_TRUE(std::ranges::equal(file->text().tokens, std::vector<int32_t>(16)));
}

TEST(ContextFile, ASecondWriterWaitsAndThenIsToldWhy) {
  const TempFolder folder(TempFolder::fast_parent());
  const CacheLayout layout = small_layout();
  const fs::path path = folder / "a.ctx";
  ThreadPool threads(1), others(1);
  const Story text = story(600);
  auto writer = std::make_unique<ContextWriter>(path, identity_of(layout), text, threads);
  const Memory memory(layout, text);
  const auto start = std::chrono::steady_clock::now();
  expect_error(ErrorKind::kCannotWrite, "only writer", [&] {
    save_context(path, identity_of(layout), text, memory.lists(), others,
                 std::chrono::milliseconds(50));
  });
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(50));
  std::thread second([&] { save(path, layout, text); });
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  writer.reset();
  second.join();
  expect_holds(path, layout, text);
  EXPECT_EQ(files_in(folder), 1u);
}

TEST(ContextFile, AMappedTextStaysWhileOthersAreSavedOverIt) {
  const TempFolder folder(TempFolder::fast_parent());
  const CacheLayout layout = small_layout();
  const fs::path path = folder / "a.ctx";
  save(path, layout, story(1000));
  const auto first = load(path, layout);
  save(path, layout, story(1300));
  const auto second = load(path, layout);
  save(path, layout, turned(story(1300), 900, 900, 8));
  save(path, layout, story(2000, 5));  // in place of it
  fs::remove(path);
  EXPECT_EQ(difference(*first, layout, story(1000)), "");
  EXPECT_EQ(difference(*second, layout, story(1300)), "");
}

}  // namespace
}  // namespace drover
