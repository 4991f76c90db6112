#include <cmath>
#include <map>

#include "train/generators/canvas.h"
#include "train/generators/font.h"
#include "train/generators/generators_fixture.h"
#include "train/generators/scene.h"
#include "train/question_score.h"

namespace drover {
namespace {

double painted(const Canvas& canvas) {
  double sum = 0;
  for (const uint8_t value : canvas.image().rgb) sum += value;
  return sum / (3 * 255);
}

TEST(Canvas, AFilledPathCoversItsArea) {
  // White on black: the sum of all pixels is the area, but for what rounding to 8 bits leaves, half
  // a step for each pixel of the border.
  for (size_t shape = 0; shape < shape_names().size(); ++shape) {
    Canvas canvas(100, 100, {0, 0, 0});
    const Path path = transformed(shape_path(shape), Affine::placed(37.3, 0.06, 49.6, 50.2));
    double area = 0, border = 0;
    for (const auto& outline : path) {
      for (size_t i = 0; i < outline.size(); ++i) {
        const Point a = outline[i], b = outline[(i + 1) % outline.size()];
        area += (a.x * b.y - b.x * a.y) / 2;
        border += std::hypot(b.x - a.x, b.y - a.y) + 2;
      }
    }
    canvas.fill(path, {255, 255, 255});
    EXPECT_NEAR(painted(canvas), std::fabs(area), 2 * border * 0.5 / 255 + 0.01)
        << shape_names()[shape];
  }
}

TEST(Canvas, WhatLiesOutsideIsLeftOut) {
  Canvas canvas(20, 10, {0, 0, 0});
  canvas.fill_rectangle({-5, -5, 4, 50}, {255, 255, 255});
  canvas.fill_rectangle({18.5, 3, 400, 5}, {255, 255, 255});
  canvas.fill_rectangle({30, 3, 40, 5}, {255, 255, 255});
  EXPECT_NEAR(painted(canvas), 4 * 10 + 1.5 * 2, 0.01);
}

TEST(Canvas, ASpriteKeepsItsColoursAndItsHoles) {
  Sprite sprite{4, 4, {}};
  for (int i = 0; i < 16; ++i) {
    const bool seen = i % 4 < 2;
    sprite.rgba.insert(sprite.rgba.end(), {200, 100, 50, static_cast<uint8_t>(seen ? 255 : 0)});
  }
  Canvas canvas(40, 40, {10, 20, 30});
  canvas.draw(sprite, 10, 0, 20, 20);
  const auto at = [&](int64_t x, int64_t y) {
    const uint8_t* p = canvas.image().row(y) + 3 * x;
    return Colour{p[0], p[1], p[2]};
  };
  EXPECT_EQ(at(10, 20), (Colour{200, 100, 50}));
  EXPECT_EQ(at(32, 20), (Colour{10, 20, 30}));
}

TEST_F(GeneratorTest, ShapesAreWhereTheSceneSaysInTheColourThatItSays) {
  for (uint64_t i = 0; i < 60; ++i) {
    Random random(11, i);
    SceneKinds kinds;
    for (uint64_t k = 0; k <= i % 6; ++k) {
      kinds.push_back(
          {static_cast<size_t>(random.below(11)), static_cast<size_t>(random.below(8))});
    }
    const Scene scene = draw_scene(random, context(), 0.3, kinds);
    ASSERT_EQ(scene.objects.size(), kinds.size());
    for (const SceneObject& o : scene.objects) {
      // A ring's middle is a hole.
      const double x = shape_names()[o.shape] == "ring" ? o.x + 0.77 * o.radius : o.x;
      const uint8_t* p = scene.picture.row(static_cast<int64_t>(o.y)) + 3 * static_cast<int64_t>(x);
      // varied() moves a value by up to 16, noise by up to 12.
      EXPECT_LE(distance({p[0], p[1], p[2]}, named_colours()[o.colour].colour), 3 * 28) << i;
      EXPECT_GE(o.x - o.radius, -0.01);
      EXPECT_LE(o.x + o.radius, static_cast<double>(scene.picture.width) + 0.01);
    }
  }
}

TEST_F(GeneratorTest, CountsAndColoursAreThoseOfTheScene) {
  int64_t asked = 0;
  for (uint64_t i = 0; i < 200; ++i) {
    Random random(12, i);
    SceneKinds kinds;
    for (int64_t k = random.between(1, 6); k > 0; --k) {
      kinds.push_back(
          {static_cast<size_t>(random.below(11)), static_cast<size_t>(random.below(8))});
    }
    const Scene scene = draw_scene(random, context(), 0, kinds);
    for (size_t shape = 0; shape < 8; ++shape) {
      for (size_t about = 0; about < kinds.size(); ++about) {
        const auto turn = ask_scene(random, scene, SceneQuestion::kCountShape, about, false);
        if (!turn) continue;
        const auto counted = std::count_if(kinds.begin(), kinds.end(), [&](const auto& kind) {
          const std::string name(shape_names()[kind.second]);
          return turn->question.find(name == "cross" ? "crosses" : name + "s") != std::string::npos;
        });
        EXPECT_EQ(turn->answer, std::to_string(counted)) << turn->question;
        ++asked;
      }
    }
    for (size_t about = 0; about < kinds.size(); ++about) {
      const auto colour = ask_scene(random, scene, SceneQuestion::kColour, about, false);
      if (colour) {
        EXPECT_EQ(colour->answer, named_colours()[kinds[about].first].name);
      }
      const auto there = ask_scene(random, scene, SceneQuestion::kIsThere, about, false);
      if (!there) continue;
      const bool is = std::any_of(kinds.begin(), kinds.end(), [&](const auto& kind) {
        return there->question.find(fmt::format(" {} {}?", named_colours()[kind.first].name,
                                                shape_names()[kind.second])) != std::string::npos;
      });
      EXPECT_EQ(there->answer, is ? "yes" : "no") << there->question;
    }
  }
  EXPECT_GT(asked, 500);
}

TEST_F(GeneratorTest, PairsOfColourAndShapeThatAreHeldOutAreNeverTaught) {
  const auto mentions = [&](const Turn& turn) {
    int64_t found = 0;
    for (size_t colour = 0; colour < named_colours().size(); ++colour) {
      for (size_t shape = 0; shape < shape_names().size(); ++shape) {
        if (!pair_held_out(colour, shape)) continue;
        const std::string pair =
            fmt::format("{} {}", named_colours()[colour].name, shape_names()[shape]);
        found += (turn.question + turn.answer).find(pair) != std::string::npos;
      }
    }
    return found;
  };
  const auto taught = source({{"kind", "shapes"}}), asked = source({{"kind", "shapes"}}, true);
  int64_t unseen = 0;
  for (uint64_t i = 0; i < 300; ++i) {
    for (const Turn& turn : turns(taught->example(1, i, 2048))) {
      EXPECT_EQ(mentions(turn), 0) << turn.question << " " << turn.answer;
    }
    for (const Turn& turn : turns(asked->example(1, i, 2048))) unseen += mentions(turn) > 0;
  }
  EXPECT_GT(unseen, 100);
}

TEST_F(GeneratorTest, ListsOfShapesAgreeWithWhatIsCounted) {
  const auto listed = source({{"kind", "shapes"}, {"lists", 1}, {"turns", 12}});
  int64_t lists = 0, counted = 0;
  for (uint64_t i = 0; i < 200; ++i) {
    const auto all = turns(listed->example(1, i, 2048));
    if (all[0].question != "List the shapes from left to right.") continue;
    ++lists;
    const std::string& list = all[0].answer;
    for (const Turn& turn : all) {
      if (turn.question != "Count the shapes.") continue;
      EXPECT_EQ(turn.answer, std::to_string(1 + std::count(list.begin(), list.end(), ','))) << list;
      ++counted;
    }
  }
  EXPECT_GT(lists, 50);  // some lie too close above each other
  EXPECT_GT(counted, 5);
}

TEST_F(GeneratorTest, PicturesHaveAsManyShapesAsTheRecipeAllows) {
  for (const bool held_out : {false, true}) {
    const auto few = source({{"kind", "shapes"}, {"most", 2}, {"turns", 8}}, held_out);
    int64_t most = 0, counted = 0;
    for (uint64_t i = 0; i < 300; ++i) {
      for (const Turn& turn : turns(few->example(1, i, 2048))) {
        if (turn.question.find("shapes") == std::string::npos || turn.answer.size() > 1) continue;
        most = std::max<int64_t>(most, std::stoi(turn.answer));
        ++counted;
      }
    }
    EXPECT_LE(most, 2);
    EXPECT_GT(counted, 0);
  }
}

TEST_F(GeneratorTest, PrintedWordsAreSpelledAndThoseHeldOutAreOthers) {
  if (kinds_.size() < 7) GTEST_SKIP() << "no font at " << kFont;
  const auto taught = source(kinds_[6]), asked = source(kinds_[6], true);
  const auto said = [&](const Source& from) {
    std::set<std::string> out;
    for (uint64_t i = 0; i < 300; ++i) {
      const Example example = from.example(1, i, 1024);
      const Question question = first_question(example, tokenizer_);
      std::string word = question.expected;
      EXPECT_LE(word.size(), 6u);
      // Each letter is a token of its own, and the token that ends the turn is learnt too.
      EXPECT_EQ(static_cast<size_t>(std::count_if(example.weights.begin(), example.weights.end(),
                                                  [](float w) { return w > 0; })),
                word.size() + 1);
      for (char& c : word) c = static_cast<char>(std::tolower(c));
      out.insert(word);
    }
    return out;
  };
  const auto learnt = said(*taught), held = said(*asked);
  for (const std::string& word : held) EXPECT_FALSE(learnt.contains(word)) << word;
  EXPECT_FALSE(learnt.contains("king") || learnt.contains("wonderful"));
}

TEST_F(GeneratorTest, EveryLetterAndDigitIsTaughtByItself) {
  if (kinds_.size() < 7) GTEST_SKIP() << "no font at " << kFont;
  json::object settings = kinds_[6];
  settings["most"] = 1;
  settings["letters"] = 0.7;
  settings["numbers"] = 0.3;
  for (const bool held_out : {false, true}) {
    const auto from = source(settings, held_out);
    std::set<std::string> said;
    for (uint64_t i = 0; i < 700; ++i) {
      said.insert(first_question(from->example(1, i, 1024), tokenizer_).expected);
    }
    EXPECT_EQ(said.size(), 26u + 26u + 10u) << held_out;
  }
}

TEST_F(GeneratorTest, LinesAreReadFromTheTopDownEachWithinItsBounds) {
  if (kinds_.size() < 7) GTEST_SKIP() << "no font at " << kFont;
  json::object settings = kinds_[6];
  settings["lines"] = 3;
  settings["most"] = 4;
  const auto taught = source(settings);
  std::set<size_t> counts;
  for (uint64_t i = 0; i < 60; ++i) {
    const Example example = taught->example(1, i, 1024);
    const std::string answer = first_question(example, tokenizer_).expected;
    EXPECT_TRUE(std::regex_match(answer, std::regex("[A-Za-z0-9]{1,4}(\\n[A-Za-z0-9]{1,4}){0,2}")))
        << answer;
    counts.insert(static_cast<size_t>(std::count(answer.begin(), answer.end(), '\n')));
    // Each letter and each end of a line is a token of its own.
    EXPECT_EQ(static_cast<size_t>(std::count_if(example.weights.begin(), example.weights.end(),
                                                [](float w) { return w > 0; })),
              answer.size() + 1);
  }
  EXPECT_EQ(counts, (std::set<size_t>{0, 1, 2}));
  settings["lines"] = 5;
  testing::expect_error(ErrorKind::kBadData, "lines: expected 1 to 4, got 5",
                        [&] { source(settings); });
}

TEST_F(GeneratorTest, LettersLieInsideThePicture) {
  if (kinds_.size() < 7) GTEST_SKIP() << "no font at " << kFont;
  std::ifstream file(folder_ / "font.ttf", std::ios::binary);
  const std::string bytes(std::istreambuf_iterator<char>(file), {});
  const Font font(bytes);
  const Box box = bounds(font.line("Hxg"));
  // Above the baseline and below it, less than an em.
  EXPECT_LT(box.top, -0.6);
  EXPECT_GT(box.top, -1);
  EXPECT_GT(box.bottom, 0.1);
  EXPECT_LT(box.bottom, 0.5);
  EXPECT_GT(box.width(), 1.2);
  testing::expect_error(ErrorKind::kBadData, "FreeType", [] { Font("not a font"); });
}

TEST_F(GeneratorTest, ValuesOfAChartAgreeWithEachOther) {
  if (kinds_.size() < 8) GTEST_SKIP() << "no font at " << kFont;
  json::object settings = kinds_[7];
  settings["turns"] = 16;
  settings["lists"] = 0.5;
  const auto made = source(settings);
  int64_t compared = 0, listed = 0;
  for (uint64_t i = 0; i < 100; ++i) {
    std::map<char, int> value;
    const auto all = turns(made->example(1, i, 4096));
    for (const Turn& turn : all) {
      char label = 0;
      if (std::sscanf(turn.question.c_str(), "What is the value of %c?", &label) == 1 ||
          std::sscanf(turn.question.c_str(), "How high is %c?", &label) == 1) {
        const auto [at, fresh] = value.emplace(label, std::stoi(turn.answer));
        EXPECT_EQ(at->second, std::stoi(turn.answer));
      }
    }
    for (const Turn& turn : all) {
      char a = 0, b = 0;
      int number = 0;
      if (std::sscanf(turn.question.c_str(), "Is %c higher than %c?", &a, &b) == 2 &&
          value.contains(a) && value.contains(b)) {
        EXPECT_EQ(turn.answer, value[a] > value[b] ? "yes" : "no");
        ++compared;
      }
      if (std::sscanf(turn.question.c_str(), "Which bar has the value %d?", &number) == 1 &&
          value.contains(turn.answer[0])) {
        EXPECT_EQ(value[turn.answer[0]], number);
        ++compared;
      }
      if (turn.question == "List the values from left to right.") {
        const std::string list = turn.answer + ",";
        for (const auto& [name, number_of] : value) {
          EXPECT_NE((" " + list).find(fmt::format(" {},", number_of)), std::string::npos) << list;
        }
        ++listed;
      }
    }
  }
  EXPECT_GT(compared, 50);
  EXPECT_GT(listed, 20);
}

TEST_F(GeneratorTest, ChartsHaveAsManyBarsAsTheRecipeAllows) {
  if (kinds_.size() < 8) GTEST_SKIP() << "no font at " << kFont;
  json::object settings = kinds_[7];
  settings["least"] = 1;
  settings["most"] = 2;
  std::map<std::string, int> counts;
  const auto few = source(settings);
  for (uint64_t i = 0; i < 200; ++i) {
    for (const Turn& turn : turns(few->example(1, i, 2048))) {
      if (turn.question == "Count the bars.") ++counts[turn.answer];
    }
  }
  EXPECT_EQ(counts.size(), 2u);
  EXPECT_TRUE(counts.contains("1") && counts.contains("2"));
  settings["least"] = 3;
  testing::expect_error(ErrorKind::kBadData, "most: expected 3 to 5, got 2",
                        [&] { source(settings); });
}

TEST_F(GeneratorTest, AnEmojiIsShownAndNamedAndOneWithoutAPictureIsNot) {
  const auto made = source(kinds_[5]);
  for (uint64_t i = 0; i < 20; ++i) {
    const Example example = made->example(1, i, 1024);
    EXPECT_EQ(first_question(example, tokenizer_).expected, "dog");
    // It takes a quarter of the picture at least, which may be three quarters of the tile's side.
    const TiledImage& picture = example.pictures.at(0);
    const uint8_t* whole = picture.tile(picture.layout.tiles() - 1);
    int64_t orange = 0;
    for (int64_t p = 0; p < 112 * 112; ++p) {
      orange += distance({whole[3 * p], whole[3 * p + 1], whole[3 * p + 2]}, {250, 120, 10}) <= 40;
    }
    EXPECT_GT(orange, 112 * 112 / 8) << i;
  }
}

TEST_F(GeneratorTest, FashionMnistOfAnotherSizeIsRefused) {
  std::filesystem::create_directories(folder_ / "fashion");
  std::ofstream(folder_ / "fashion/train-images-idx3-ubyte.gz") << std::string(1000, 'x');
  refuses({{"kind", "fashion_mnist"}, {"folder", "fashion"}}, "expected 47040016 bytes");
}

}  // namespace
}  // namespace drover
