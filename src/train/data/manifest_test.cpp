#include "train/manifest.h"

#include "base/mapped_file.h"
#include "train/data/data_fixture.h"

namespace drover {
namespace {

namespace json = boost::json;
using testing::expect_error;

class ManifestTest : public SourceTest {
 protected:
  // Both sides of a source of text.
  struct Sides {
    json::object settings;
    std::unique_ptr<Source> learnt, held_out;
    ManifestSource entry(std::string name) const {
      return {std::move(name), &settings, learnt.get(), held_out.get()};
    }
  };
  Sides sides(std::string_view file, double fraction) const {
    Sides out{data_settings("text", file), nullptr, nullptr};
    out.settings["split"] = "\n\n";
    out.settings["held_out"] = fraction;
    out.learnt = make_source(out.settings, context(false));
    out.held_out = make_source(out.settings, context(true));
    return out;
  }
};

TEST_F(ManifestTest, SaysWhatATrainingIsMadeOf) {
  std::string text;
  for (int i = 0; i < 40; ++i) text += fmt::format("part {}\n\n", i);
  folder_.write("parts.txt", text);
  const Sides parts = sides("parts.txt", 0.25);
  const json::object drawn = {{"kind", "shapes"}, {"held_out", 0.1}};
  const ManifestSource entries[] = {parts.entry("parts"), {"drawn", &drawn}};
  write_manifest(folder_ / "manifest.json", entries);

  const json::value manifest = json::parse(read_file(folder_ / "manifest.json", 1 << 20));
  const json::value& first = manifest.at("sources").at(0);
  EXPECT_EQ(first.at("name"), "parts");
  EXPECT_EQ(first.at("kind"), "text");
  EXPECT_EQ(first.at("licence"), "CC0-1.0");
  EXPECT_EQ(first.at("origin"), "made by a test");
  EXPECT_EQ(first.at("files").at(0).at("name"), "parts.txt");
  EXPECT_EQ(first.at("files").at(0).at("bytes").as_int64(), static_cast<int64_t>(text.size()));
  EXPECT_EQ(first.at("files").at(0).at("sha256"),
            json::string(hex(sha256(std::as_bytes(std::span(text))))));
  const int64_t learnt = first.at("learnt").at("items").as_int64();
  const int64_t held = first.at("held_out").at("items").as_int64();
  EXPECT_EQ(learnt + held, 40);
  EXPECT_GT(held, 0);
  EXPECT_EQ(first.at("learnt").at("tokens").as_int64(), parts.learnt->facts().tokens);
  EXPECT_EQ(first.at("settings"), json::value(parts.settings));
  EXPECT_EQ(manifest.at("sources").at(1).at("name"), "drawn");
  EXPECT_FALSE(manifest.at("sources").at(1).as_object().contains("files"));
}

TEST_F(ManifestTest, RefusesWhatIsHeldOutAndLearntToo) {
  folder_.write("a.txt", "the same part\n\nanother part");
  folder_.write("b.txt", "a third part\n\nthe same part");
  const Sides a = sides("a.txt", 0), b = sides("b.txt", 1), other = sides("a.txt", 1);
  const ManifestSource apart[] = {a.entry("a"), {"none", &a.settings}};
  EXPECT_NO_THROW(check_disjoint(apart));
  const ManifestSource overlap[] = {a.entry("a"), b.entry("b")};
  expect_error(ErrorKind::kBadData,
               "source b: b.txt, part 2 is held out, and learnt too: a.txt, part 1 of source a",
               [&] { check_disjoint(overlap); });
  expect_error(ErrorKind::kBadData, "learnt too",
               [&] { write_manifest(folder_ / "manifest.json", overlap); });
  EXPECT_FALSE(std::filesystem::exists(folder_ / "manifest.json"));
  // One source whose sides are of the same items.
  const ManifestSource wrong[] = {{"a", &a.settings, a.learnt.get(), other.held_out.get()}};
  expect_error(ErrorKind::kBadData, "source a: a.txt, part 1", [&] { check_disjoint(wrong); });
}

}  // namespace
}  // namespace drover
