#include <map>
#include <numeric>
#include <regex>

#include "train/generators/generators_fixture.h"
#include "train/generators/needle_sentences.h"
#include "train/generators/story.h"
#include "train/question_score.h"

namespace drover {
namespace {

bool same(const Example& a, const Example& b) {
  if (a.pictures.size() != b.pictures.size()) return false;
  for (size_t i = 0; i < a.pictures.size(); ++i) {
    if (a.pictures[i].pixels != b.pictures[i].pixels) return false;
  }
  return a.tokens == b.tokens && a.weights == b.weights && a.repeats == b.repeats &&
         a.filler == b.filler;
}

TEST_F(GeneratorTest, AnExampleIsAFunctionOfSeedAndIndexAlone) {
  for (const json::object& settings : kinds_) {
    SCOPED_TRACE(json::serialize(settings));
    const auto one = source(settings), another = source(settings), asked = source(settings, true);
    int different = 0;
    for (uint64_t i = 0; i < 10; ++i) {
      const Example example = one->example(7, i, 2048);
      // Others in between change nothing.
      one->example(8, 3 * i, 2048);
      EXPECT_TRUE(same(example, another->example(7, i, 2048))) << i;
      different += !same(example, one->example(7, i + 1, 2048));
      different += !same(example, one->example(8, i, 2048));
      different += !same(example, asked->example(7, i, 2048));
    }
    // Small worlds may repeat a short one.
    EXPECT_GE(different, 27);
  }
}

TEST_F(GeneratorTest, ExamplesFitTheirLengthAndTheirPicturesTheirTokens) {
  const Token patch = *tokenizer_.special("<|patch|>");
  for (const json::object& settings : kinds_) {
    SCOPED_TRACE(json::serialize(settings));
    for (const bool held_out : {false, true}) {
      const auto made = source(settings, held_out);
      for (uint64_t i = 0; i < 40; ++i) {
        const int64_t length = i % 2 == 0 ? 1024 : 2048;
        const Example example = made->example(1, i, length);
        EXPECT_LE(static_cast<int64_t>(example.tokens.size()), length);
        ASSERT_EQ(example.weights.size(), example.tokens.size());
        EXPECT_GT(std::accumulate(example.weights.begin(), example.weights.end(), 0.0), 0);
        int64_t tokens = 0;
        for (const TiledImage& picture : example.pictures) {
          tokens += picture.layout.tiles() * vision_.tile_tokens();
          EXPECT_EQ(static_cast<int64_t>(picture.pixels.size()),
                    picture.layout.tiles() * 112 * 112 * 3);
        }
        EXPECT_EQ(std::count(example.tokens.begin(), example.tokens.end(), patch), tokens);
        // A patch token or a question is never learnt.
        for (size_t t = 0; t < example.tokens.size(); ++t) {
          if (example.tokens[t] == patch) {
            EXPECT_EQ(example.weights[t], 0);
          }
        }
      }
    }
  }
}

TEST_F(GeneratorTest, AnUnknownSettingIsRefusedByName) {
  for (json::object settings : kinds_) {
    settings["colour"] = 1;
    refuses(settings, "colour");
  }
  refuses({{"kind", "shapes"}, {"large", 2}}, "large");
  refuses({{"kind", "repeats"}, {"chunk", 0}}, "chunk");
}

TEST_F(GeneratorTest, ASourceOfPicturesRefusesAModelWithoutEyes) {
  SourceContext blind = context();
  blind.vision = nullptr;
  const auto made = make_source({{"kind", "shapes"}}, blind);
  testing::expect_error(ErrorKind::kBadData, "eyes", [&] { made->example(1, 1, 1024); });
}

TEST_F(GeneratorTest, WhatIsRepeatedStandsFurtherBackThanAChunk) {
  const auto made = source({{"kind", "repeats"}, {"chunk", 64}, {"symbols", 32}});
  for (uint64_t i = 0; i < 50; ++i) {
    const Example example = made->example(1, i, 200);
    ASSERT_EQ(example.tokens.size(), 200u);
    const auto learnt =
        std::find_if(example.weights.begin(), example.weights.end(), [](float w) { return w > 0; });
    const auto first = learnt - example.weights.begin() - 1;  // the copy begins one before
    const auto copied = 200 - first;
    EXPECT_GE(first, 64);
    EXPECT_TRUE(
        std::equal(example.tokens.begin() + first, example.tokens.end(), example.tokens.begin()))
        << i;
    EXPECT_EQ(std::count(learnt, example.weights.end(), 1.0f), copied - 1);
    EXPECT_LE(std::set(example.tokens.begin(), example.tokens.end()).size(), 32u);
  }
  testing::expect_error(ErrorKind::kBadData, "length", [&] { made->example(1, 1, 64); });
  const auto few = source({{"kind", "repeats"}, {"chunk", 64}, {"tokens", 100}});
  EXPECT_EQ(few->example(1, 1, 200).tokens.size(), 100u);
  EXPECT_EQ(few->example(1, 1, 90).tokens.size(), 90u);
}

TEST_F(GeneratorTest, EachRecalledValueStoodBesideItsKeyBefore) {
  const auto made = source({{"kind", "recall"}});
  int64_t asked = 0;
  for (uint64_t i = 0; i < 30; ++i) {
    const Example example = made->example(1, i, 1024);
    // Lines, as tokens: what is not learnt of one, and what is.
    std::map<std::vector<Token>, std::vector<Token>> said;
    std::vector<Token> line;
    const Token end = tokenizer_.encode("\n").at(0);
    size_t learnt = 0;
    for (size_t t = 0; t < example.tokens.size(); ++t) {
      line.push_back(example.tokens[t]);
      learnt += example.weights[t] > 0;
      if (example.tokens[t] != end) continue;
      if (learnt == 0) {
        for (size_t key = 1; key < line.size(); ++key) {
          said[{line.begin(), line.begin() + static_cast<int64_t>(key)}] = line;
        }
      } else {
        const auto key = line.end() - static_cast<int64_t>(learnt);
        ASSERT_EQ(said.at({line.begin(), key}), line) << i;
        ++asked;
      }
      line.clear(), learnt = 0;
    }
    EXPECT_TRUE(line.empty());
  }
  EXPECT_GT(asked, 100);
}

TEST_F(GeneratorTest, TheAnswerToANeedlesQuestionStandsInItsText) {
  for (const double measured : {0.0, 1.0}) {
    const auto made = source({{"kind", "needles"}, {"chunk", 64}, {"measured", measured}});
    int64_t questions = 0;
    for (uint64_t i = 0; i < 40; ++i) {
      const Example example = made->example(1, i, 2048);
      EXPECT_LE(example.tokens.size(), 2048u);
      // Short of it by what four answers take that say their questions again.
      EXPECT_GT(example.tokens.size(), 2048u - 64 - 4 * 64);
      ASSERT_EQ(example.filler.size(), example.tokens.size());
      std::vector<Token> hidden;
      for (size_t t = 0; t < example.tokens.size(); ++t) {
        if (example.filler[t] == 0 && example.weights[t] == 0) hidden.push_back(example.tokens[t]);
        if (example.filler[t] != 0) {
          EXPECT_EQ(example.weights[t], 0);
        }
      }
      const std::string told = tokenizer_.decode(hidden);
      for (const Turn& turn : turns(example)) {
        const size_t is = turn.answer.rfind(" is ");
        const std::string value = is == std::string::npos
                                      ? turn.answer
                                      : turn.answer.substr(is + 4, turn.answer.find('.') - is - 4);
        EXPECT_NE(told.find(value), std::string::npos) << turn.question << turn.answer;
        ++questions;
      }
    }
    EXPECT_GE(questions, 40);
  }
}

TEST_F(GeneratorTest, NeedlesStandAtAllDepthsAndNowAndThenAcrossABorder) {
  const int64_t chunk = 256, length = 2048;
  const auto at = [&](double across) {
    const auto made = source({{"kind", "needles"},
                              {"chunk", chunk},
                              {"measured", 1},
                              {"kinds", {"single"}},
                              {"across", across},
                              {"repeated", 0}});
    std::pair<int, int> cut_and_late;
    for (uint64_t i = 0; i < 100; ++i) {
      const Example example = made->example(1, i, length);
      const auto filler = [&](int64_t t) { return example.filler[static_cast<size_t>(t)] != 0; };
      int64_t first = 0;
      while (!filler(first)) ++first;
      while (filler(first)) ++first;
      int64_t end = first;
      while (!filler(end) && end + 1 < std::ssize(example.tokens)) ++end;
      cut_and_late.first += first / chunk != (end - 1) / chunk;
      cut_and_late.second += first > length / 2;
    }
    return cut_and_late;
  };
  // A needle of some 60 tokens of this small vocabulary is cut by a quarter of all places.
  const auto by_chance = at(0), always = at(1);
  EXPECT_GT(by_chance.first, 5);
  EXPECT_LT(by_chance.first, 50);
  EXPECT_GT(always.first, 80);
  EXPECT_GT(by_chance.second, 25);
  EXPECT_LT(by_chance.second, 65);
}

// A prompt is as long as it is: a model whose questions never lay across a border found nothing in
// a text of 1,000,000 tokens, whose last border was in the question, and 73 % in one of 999,424.
TEST_F(GeneratorTest, TextsWithNeedlesEndAnywhereInAChunk) {
  const int64_t chunk = 1024, length = 4096;
  const auto made = source({{"kind", "needles"},
                            {"chunk", chunk},
                            {"measured", 1},
                            {"kinds", {"single"}},
                            {"repeated", 0}});
  std::set<size_t> lengths;
  int cut = 0;
  for (uint64_t i = 0; i < 100; ++i) {
    const Example example = made->example(1, i, length);
    lengths.insert(example.tokens.size());
    int64_t last = std::ssize(example.tokens) - 1;
    const int64_t end = last;
    while (example.filler[static_cast<size_t>(last)] == 0) --last;
    cut += (last + 1) / chunk != end / chunk;
  }
  EXPECT_GT(lengths.size(), 60u);
  EXPECT_GT(cut, 25);
  EXPECT_LT(cut, 75);
}

// Among 1,000,000 tokens of source code a key that was said again went on as another word of it.
TEST_F(GeneratorTest, PiecesOfNeedlesAreStrewnThroughTheirText) {
  const auto made = [&](double fragments) {
    return source({{"kind", "needles"}, {"measured", 0}, {"fragments", fragments}});
  };
  const auto plain = made(0), strewn = made(1);
  int64_t pieces = 0, filler = 0;
  for (uint64_t i = 0; i < 20; ++i) {
    const Example example = strewn->example(1, i, 1024);
    std::set<Token> hidden;
    for (size_t t = 0; t < example.tokens.size(); ++t) {
      if (example.filler[t] == 0) hidden.insert(example.tokens[t]);
    }
    // The text around needles is drawn first, so it is the same but for the pieces.
    const Example before = plain->example(1, i, 1024);
    ASSERT_EQ(before.tokens.size(), example.tokens.size());
    ASSERT_EQ(before.filler, example.filler);
    for (size_t t = 0; t < example.tokens.size(); ++t) {
      filler += example.filler[t];
      if (example.tokens[t] == before.tokens[t]) continue;
      ++pieces;
      EXPECT_NE(example.filler[t], 0);
      EXPECT_EQ(example.weights[t], 0);
      EXPECT_TRUE(hidden.contains(example.tokens[t]));
    }
  }
  EXPECT_GT(pieces, filler / 40);
  EXPECT_LT(pieces, filler / 4);
}

TEST_F(GeneratorTest, HiddenFactsHaveKeysOfTheirOwn) {
  Random random(3, 0);
  for (int i = 0; i < 50; ++i) {
    std::map<std::string, std::string> known;
    for (const HiddenFact& fact : hidden_facts(random, 12, 1 + i % 3)) {
      EXPECT_NE(fact.sentence.find(fact.value), std::string::npos) << fact.sentence;
      EXPECT_EQ(fact.question.find(fact.value), std::string::npos) << fact.question;
      EXPECT_EQ(fact.sentence.find('{'), std::string::npos) << fact.sentence;
      EXPECT_EQ(fact.question.find('{'), std::string::npos) << fact.question;
      EXPECT_TRUE(known.emplace(fact.question, fact.value).second) << fact.question;
    }
  }
}

// Edge found the one of 64 near duplicates once in forty: in training, one question of each
// document was about such needles, of which its text had two.
TEST_F(GeneratorTest, ManyOfTheNeedlesThatDifferInAWordAreAskedFor) {
  const auto made = source({{"kind", "needles"},
                            {"measured", 1},
                            {"kinds", {"near-duplicate", "multi-key"}},
                            {"apart", 64},
                            {"questions", 8},
                            {"repeated", 0}});
  const std::regex asked(R"(What is the pass number of (.+)\? Answer)");
  size_t most = 0;
  for (uint64_t i = 0; i < 40; ++i) {
    const Example example = made->example(1, i, 4096);
    const std::string told = tokenizer_.decode(example.tokens);
    const std::vector<Turn> all = turns(example);
    most = std::max(most, all.size());
    for (const Turn& turn : all) {
      std::smatch m;
      ASSERT_TRUE(std::regex_search(turn.question, m, asked)) << turn.question;
      const size_t begins = turn.answer.rfind(' ') + 1;  // of a number, or of a sentence's end
      const size_t ends = turn.answer.find_first_not_of("0123456789", begins);
      const std::string number = turn.answer.substr(begins, ends - begins);
      EXPECT_NE(told.find(fmt::format("The pass number of {} is {}.", m[1].str(), number)),
                std::string::npos)
          << turn.question << turn.answer;
    }
  }
  EXPECT_EQ(most, 8u);
}

// Edge found nothing in 1,000,000 tokens, whose last border lies between question and answer: its
// last layer saw the question there and could not look for what it asked.
TEST_F(GeneratorTest, TheQuestionsWordsAreSaidAgainWhereABorderHidesThem) {
  const int64_t chunk = 512;
  const Token begins = *tokenizer_.special("<|header_start|>");
  for (const double measured : {0.0, 1.0}) {
    const auto made = source({{"kind", "needles"},
                              {"chunk", chunk},
                              {"measured", measured},
                              {"cut", 0.8},
                              {"repeated", 0}});
    int stated = 0;
    for (uint64_t i = 0; i < 60; ++i) {
      const Example example = made->example(1, i, 2048);
      EXPECT_LE(example.tokens.size(), 2048u);
      std::vector<int64_t> headers;  // of the system, users and assistants
      const auto& tokens = example.tokens;
      for (int64_t t = 0; t < std::ssize(tokens); ++t) {
        if (tokens[static_cast<size_t>(t)] == begins) headers.push_back(t);
      }
      const std::vector<Turn> all = turns(example);
      const size_t first = headers.size() - 2 * all.size();
      for (size_t k = 0; k < all.size(); ++k) {
        // The first question ends a long turn; the others begin theirs.
        if (k == 0) continue;
        const int64_t question = headers[first + 2 * k], answer = headers[first + 2 * k + 1];
        if (question / chunk == answer / chunk && answer % chunk < chunk - 60) {
          EXPECT_EQ(all[k].answer.find("The "), std::string::npos) << all[k].answer;
        } else if (question / chunk != answer / chunk) {
          EXPECT_EQ(all[k].answer.find("The "), 0u) << all[k].answer;
        }
      }
      stated += all[0].answer.starts_with("The ");
    }
    EXPECT_GT(stated, 15);
  }
}

TEST_F(GeneratorTest, FewerNeedlesAreAskedForWhereThereIsNoRoomForAll) {
  const auto made = source({{"kind", "needles"}, {"apart", 20}, {"questions", 10}, {"most", 48}});
  for (uint64_t i = 0; i < 100; ++i) {
    const Example example = made->example(1, i, 1280);
    EXPECT_LE(example.tokens.size(), 1280u);
    EXPECT_FALSE(turns(example).empty());
  }
}

TEST_F(GeneratorTest, KeysOfAGroupDifferFromItsFirstInOnePart) {
  // Words that are in seven of ten questions: of groups, most parts of their first key.
  const std::regex word("[A-Za-z0-9-]+");
  const auto in_most = [&](Random random, int64_t alike) {
    std::map<std::string, int> in;
    for (const HiddenFact& fact : hidden_facts(random, 10, alike)) {
      const std::string& text = fact.question;
      for (const std::string& w :
           std::set<std::string>(std::sregex_token_iterator(text.begin(), text.end(), word), {})) {
        ++in[w];
      }
    }
    return std::count_if(in.begin(), in.end(), [](const auto& of) { return of.second >= 7; });
  };
  int64_t groups = 0, others = 0;
  for (uint64_t i = 0; i < 20; ++i) {
    groups += in_most(Random(5, i), 10);
    others += in_most(Random(5, i), 1);
  }
  EXPECT_GT(groups, others + 20);
}

// What a careful reader knows after a story.
struct Reader {
  std::map<std::string, std::string> place, owner, lies, colour;
  std::map<std::string, int> owned;

  explicit Reader(const std::string& story) {
    std::smatch m;
    const std::regex is_in(R"((\w+) is in (the \w+))"), has(R"((\w+) has (.*))"),
        goes(R"((\w+) goes to (the \w+))"), gives(R"((\w+) gives the (\w+) (\w+) to (\w+))"),
        leaves(R"((\w+) leaves the (\w+) (\w+) in (the \w+))"),
        takes(R"((\w+) takes the (\w+) (\w+))"), thing(R"(an? (\w+) (\w+))");
    for (size_t at = 0; at < story.size();) {
      const size_t end = story.find('.', at);
      const std::string said = story.substr(at, end - at);
      at = std::min(story.size(), end + 2);
      if (std::regex_match(said, m, is_in) || std::regex_match(said, m, goes)) {
        place[m[1]] = m[2];
      } else if (std::regex_match(said, m, has)) {
        const std::string things = m[2], name = m[1];
        for (std::sregex_iterator i(things.begin(), things.end(), thing), none; i != none; ++i) {
          colour[(*i)[2]] = (*i)[1];
          owner[(*i)[2]] = name;
        }
      } else if (std::regex_match(said, m, gives)) {
        EXPECT_EQ(owner[m[3]], m[1]) << said;
        owner[m[3]] = m[4];
      } else if (std::regex_match(said, m, leaves)) {
        EXPECT_EQ(owner[m[3]], m[1]) << said;
        owner.erase(m[3]);
        lies[m[3]] = m[4];
      } else if (std::regex_match(said, m, takes)) {
        EXPECT_FALSE(owner.contains(m[3])) << said;
        owner[m[3]] = m[1];
      } else {
        ADD_FAILURE() << "not understood: " << said;
      }
    }
    for (const auto& [what, who] : owner) ++owned[who];
  }

  std::string answer(const std::string& question) {
    std::smatch m;
    const auto asks = [&](const char* form) {
      return std::regex_match(question, m, std::regex(form));
    };
    const char* const numbers[] = {"no things", "one thing", "two things", "three things",
                                   "four things"};
    if (asks(R"(Where is the (\w+)\?)")) {
      const std::string what = m[1];
      return "The " + what + " is in " + (owner.contains(what) ? place[owner[what]] : lies[what]) +
             ".";
    }
    if (asks(R"(Where is (\w+)\?)")) return m[1].str() + " is in " + place[m[1]] + ".";
    if (asks(R"(How many things does (\w+) have\?)"))
      return m[1].str() + " has " + numbers[owned[m[1]]] + ".";
    if (asks(R"(What colour is the (\w+)\?)"))
      return "The " + m[1].str() + " is " + colour[m[1]] + ".";
    if (asks(R"(Who has the (\w+)\?)")) {
      return (owner.contains(m[1]) ? owner[m[1]] : "Nobody") + " has the " + m[1].str() + ".";
    }
    if (asks(R"(Does (\w+) have the (\w+)\?)")) {
      const bool has = owner.contains(m[2]) && owner[m[2]] == m[1].str();
      return has ? "Yes, " + m[1].str() + " has it." : "No, " + m[1].str() + " does not have it.";
    }
    return "not understood";
  }
};

TEST(Story, AnswersFollowFromWhatWasTold) {
  std::map<char, int> yes_no;
  for (uint64_t i = 0; i < 300; ++i) {
    Random random(5, i);
    const Story story = make_story(random, /*held_out=*/i % 2 == 1);
    Reader reader(story.text);
    for (const Turn& turn : story.questions) {
      EXPECT_EQ(turn.answer, reader.answer(turn.question)) << story.text << "\n" << turn.question;
      if (turn.question.starts_with("Does")) ++yes_no[turn.answer[0]];
    }
  }
  EXPECT_NEAR(yes_no['Y'], yes_no['N'], 0.25 * (yes_no['Y'] + yes_no['N']));
}

TEST(Story, NobodyIsTaughtToHaveWhatIsHeldOut) {
  const std::regex has(R"((\w+) has the (\w+)\.)");
  int64_t unseen = 0;
  for (uint64_t i = 0; i < 2000; ++i) {
    Random random(6, i);
    const bool asked = i % 2 == 1;
    for (const Turn& turn : make_story(random, asked).questions) {
      std::smatch m;
      if (!std::regex_match(turn.answer, m, has) || m[1] == "Nobody") continue;
      if (!held_out("story", m[1].str() + " " + m[2].str(), 0.1)) continue;
      EXPECT_TRUE(asked) << turn.answer;
      ++unseen;
    }
  }
  EXPECT_GT(unseen, 100);
}

TEST_F(GeneratorTest, TheSmallWorldSaysWhoItIs) {
  const auto made = source({{"kind", "small_world"}, {"stories", 0}});
  std::set<std::string> said;
  for (uint64_t i = 0; i < 400; ++i) {
    for (const Turn& turn : turns(made->example(1, i, 2048))) {
      EXPECT_EQ(turn.question.find('{'), std::string::npos);
      if (turn.question == "Who are you?") said.insert(turn.answer);
      int a = 0, b = 0;
      if (std::sscanf(turn.question.c_str(), "%d * %d = ?", &a, &b) == 2) {
        EXPECT_TRUE(turn.answer.ends_with(" is " + std::to_string(a * b) + ".")) << turn.answer;
      }
    }
  }
  EXPECT_EQ(said, (std::set<std::string>{"I am Edge, Drover's small model."}));
}

TEST_F(GeneratorTest, AQuestionEndsWhereItsAnswerBegins) {
  const Turn talk[] = {{"Who are you?", "Edge."}, {"And now?", "Still Edge."}};
  const Question question = first_question(dialogue(context(), {}, talk, 1024), tokenizer_);
  EXPECT_EQ(question.expected, "Edge.");
  const Message user("user", "Who are you?");
  EXPECT_EQ(question.prompt, render_chat(ChatFormat::kLlama4, tokenizer_, {&user, 1}, true));
  // What does not fit is left out, but never the first answer.
  const auto whole = dialogue(context(), {}, talk, 1024).tokens;
  const auto shorter = dialogue(context(), {}, talk, static_cast<int64_t>(whole.size()) - 1).tokens;
  EXPECT_EQ(shorter.size(), question.prompt.size() + tokenizer_.encode("Edge.").size() + 1);
  testing::expect_error(ErrorKind::kBadData, "tokens", [&] { dialogue(context(), {}, talk, 8); });
}

}  // namespace
}  // namespace drover
