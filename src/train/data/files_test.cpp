// What all sources of files share: settings, files, hold-outs.
#include "train/data/files.h"

#include "train/data/data_fixture.h"

namespace drover {
namespace {

namespace json = boost::json;
using testing::expect_error;
using DataFilesTest = SourceTest;

DataFiles files_of(const json::object& settings, const SourceContext& context) {
  return data_files(source_fields(settings), context, {});
}

std::vector<std::string> names_of(const DataFiles& data) {
  std::vector<std::string> out;
  for (const auto& file : data.files) out.push_back(file.name);
  return out;
}

TEST(HeldOut, IsAShareOfItemsThatFollowsFromTheirNamesAlone) {
  int64_t held = 0, moved = 0;
  for (int i = 0; i < 10'000; ++i) {
    const std::string item = "item " + std::to_string(i);
    held += held_out("", item, 0.1);
    moved += held_out("", item, 0.1) != held_out("salt", item, 0.1);
    // More held out is more of the same.
    EXPECT_LE(held_out("", item, 0.1), held_out("", item, 0.2));
    EXPECT_FALSE(held_out("", item, 0));
    EXPECT_TRUE(held_out("", item, 1));
  }
  // Four standard deviations of 10,000 draws of 0.1, and of 0.18.
  EXPECT_NEAR(static_cast<double>(held), 1000, 120);
  EXPECT_NEAR(static_cast<double>(moved), 1800, 154);
  // Pinned: what is held out must not change from one version to the next.
  EXPECT_TRUE(held_out("", "item 9", 0.0865));
  EXPECT_FALSE(held_out("", "item 9", 0.0864));
  EXPECT_TRUE(held_out("salt", "item 2", 0.0418));
  EXPECT_FALSE(held_out("salt", "item 2", 0.0417));
}

TEST_F(DataFilesTest, PatternsAreExpandedInOrderAndNamesBeginWhereTheyDo) {
  std::filesystem::create_directories(folder_ / "texts [1]" / "deep");
  for (const char* name : {"b.txt", "a.txt", "c.md"}) {
    folder_.write(std::string("texts [1]/") + name, name);
  }
  SourceContext in_folder = context();
  in_folder.folder = folder_ / "texts [1]";  // its name is no pattern
  json::object settings = data_settings("text", "*.txt");
  settings["files"] = json::array{"c.md", "*.txt", "a*"};
  EXPECT_EQ(names_of(files_of(settings, in_folder)),
            (std::vector<std::string>{"c.md", "a.txt", "b.txt"}));
  settings["files"] = json::array{"texts [[]1]/?.txt"};
  EXPECT_EQ(names_of(files_of(settings, context())),
            (std::vector<std::string>{"texts [1]/a.txt", "texts [1]/b.txt"}));
  settings["files"] = json::array{"*.txt", "*.pdf"};
  expect_error(ErrorKind::kNotFound, "got none that match", [&] { files_of(settings, in_folder); });
  settings["files"] = json::array{"deep"};  // a folder is no file
  expect_error(ErrorKind::kNotFound, "got none", [&] { files_of(settings, in_folder); });
}

TEST_F(DataFilesTest, RefusesSettingsByName) {
  folder_.write("a.txt", "text");
  json::object good = data_settings("text", "a.txt");
  good["name"] = "books";
  EXPECT_NE(make_source(good, context()), nullptr);
  EXPECT_EQ(make_source(good, context())->name(), "books");
  const auto with = [&](const char* key, json::value value) {
    json::object out = good;
    out[key] = std::move(value);
    return out;
  };
  const auto without = [&](const char* key) {
    json::object out = good;
    out.erase(key);
    return out;
  };
  refuses(without("licence"), "source books: missing key licence");
  refuses(without("origin"), "source books: missing key origin");
  refuses(without("files"), "source books: files");
  refuses(without("kind"), "source books: missing key kind");
  refuses(with("kind", "txt"), "source books: kind: expected one of ");
  refuses(with("helt_out", 0.1), "source books: helt_out: expected one of kind, name");
  refuses(with("held_out", 1.5), "source books: held_out: expected 0 to 1, got 1.5");
  refuses(with("held_out", "all"), "source books: key held_out: expected a number");
  refuses(with("files", json::array{"gone.txt"}), "gone.txt", ErrorKind::kNotFound);
}

TEST_F(DataFilesTest, FilesAreNotedAsTheyLieOnDisk) {
  folder_.write("a.txt", "abc");
  DataFiles data = files_of(data_settings("text", "a.txt"), context());
  EXPECT_EQ(read_data(data, 0), "abc");
  EXPECT_EQ(data.files[0].bytes, 3);
  // FIPS 180's example.
  EXPECT_EQ(hex(data.files[0].sha256),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

// A source that a program brings itself.
class Echo final : public Source {
 public:
  std::string_view name() const override { return "echo"; }
  Example example(uint64_t, uint64_t index, int64_t) const override {
    return {.tokens = {static_cast<Token>(index)}, .weights = {1}};
  }
};

TEST_F(DataFilesTest, AProgramAddsKindsOfItsOwn) {
  add_source_kind("echo", [](const json::object&, const SourceContext&) -> std::unique_ptr<Source> {
    return std::make_unique<Echo>();
  });
  EXPECT_EQ(make_source({{"kind", "echo"}}, context())->example(1, 7, 10).tokens[0], 7);
}

}  // namespace
}  // namespace drover
