// Conversations: what of them is learnt, and where they come from.
#include "train/data/dialogue.h"

#include <map>

#include "train/data/data_fixture.h"
#include "train/data/records.h"
#include "train/data/shuffle.h"

namespace drover {
namespace {

namespace json = boost::json;
using DialogueTest = SourceTest;
using ChatSourceTest = SourceTest;
using TableSourceTest = SourceTest;

TEST_F(DialogueTest, WhatAssistantsSayIsLearntWithTheTokenThatEndsIt) {
  Dialogue dialogue;
  dialogue.messages = {{"system", "Be kind."},
                       {"user", "Hello"},
                       {"assistant", "Hi there!"},
                       {"user", "And now?"},
                       {"assistant", "\n Bye."}};
  const Lesson lesson = teach(context(), dialogue);
  EXPECT_EQ(lesson.example.tokens, render_chat(ChatFormat::kLlama4, tokenizer_, dialogue.messages,
                                               /*add_generation_prompt=*/false));
  EXPECT_EQ(learnt(lesson.example), "Hi there!<|eot|>\n Bye.<|eot|>");
  ASSERT_EQ(lesson.turns.size(), 2u);
  EXPECT_EQ(lesson.turns[1].tokens, lesson.example.tokens.size());
}

TEST_F(DialogueTest, InChatMlTheLineBreakAfterATurnIsNotLearnt) {
  const Tokenizer chat_ml = trained({"<|im_start|>", "<|im_end|>"});
  SourceContext with = context();
  with.tokenizer = &chat_ml;
  with.format = ChatFormat::kChatMl;
  Dialogue dialogue;
  dialogue.messages = {{"user", "Hello"}, {"assistant", "Hi"}, {"user", "x"}, {"assistant", "\ny"}};
  const Example example = teach(with, dialogue).example;
  std::vector<Token> tokens;
  for (size_t i = 0; i < example.tokens.size(); ++i) {
    if (example.weights[i] > 0) tokens.push_back(example.tokens[i]);
  }
  // The last content begins with the line break that ends the header, and is joined with it or not.
  const std::string said = chat_ml.decode(tokens, /*show_special=*/true);
  EXPECT_TRUE(said == "Hi<|im_end|>\ny<|im_end|>" || said == "Hi<|im_end|>\n\ny<|im_end|>") << said;
}

TEST_F(DialogueTest, TheDefaultSystemTurnIsNotLearntWhereTheAssistantBegins) {
  Vocabulary vocabulary = trained({"<|im_start|>", "<|im_end|>"}).vocabulary();
  vocabulary.chat_template = R"({{'<|im_start|>system\nBe kind.<|im_end|>\n'}})";
  const Tokenizer chat_ml(std::move(vocabulary));
  SourceContext with = context();
  with.tokenizer = &chat_ml;
  with.format = ChatFormat::kChatMl;
  Dialogue dialogue;
  dialogue.messages = {{"assistant", "Hi"}, {"user", "x"}, {"assistant", "y"}};
  const Example example = teach(with, dialogue).example;
  EXPECT_NE(chat_ml.decode(example.tokens, /*show_special=*/true).find("Be kind."),
            std::string::npos);
  std::vector<Token> tokens;
  for (size_t i = 0; i < example.tokens.size(); ++i) {
    if (example.weights[i] > 0) tokens.push_back(example.tokens[i]);
  }
  EXPECT_EQ(chat_ml.decode(tokens, /*show_special=*/true), "Hi<|im_end|>y<|im_end|>");
}

TEST_F(DialogueTest, TurnsCountWhatTheirWeightsSay) {
  Dialogue dialogue;
  dialogue.messages = {{"user", "a"}, {"assistant", "b"}, {"user", "c"}, {"assistant", "d"}};
  dialogue.weights = {9, 0, 9, 2.5f};
  const Lesson lesson = teach(context(), dialogue);
  EXPECT_EQ(learnt(lesson.example), "d<|eot|>");
  EXPECT_EQ(lesson.example.weights.back(), 2.5f);
  EXPECT_EQ(lesson.turns.size(), 1u);
  dialogue.weights = {1, 0, 1, 0};
  testing::expect_error(ErrorKind::kBadData, "to learn from", [&] { teach(context(), dialogue); });
}

TEST_F(DialogueTest, IsCutAfterAnAnswerWithThePicturesBeforeIt) {
  Dialogue dialogue;
  for (int i = 0; i < 3; ++i) {
    const Part picture =
        picture_part(context(), {56, 56, std::vector<uint8_t>(56 * 56 * 3)}, dialogue.pictures);
    dialogue.messages.push_back({"user", std::vector<Part>{picture, {"What is this?"}}});
    dialogue.messages.push_back({"assistant", std::string(1, static_cast<char>('a' + i))});
  }
  const Lesson whole = teach(context(), dialogue);
  ASSERT_EQ(whole.turns.size(), 3u);
  for (size_t kept = 1; kept <= 3; ++kept) {
    Lesson lesson = whole;
    // Up to one token short of the next answer.
    const int64_t length = kept < 3 ? static_cast<int64_t>(whole.turns[kept].tokens) - 1 : 1000;
    ASSERT_TRUE(lesson.cut(length));
    EXPECT_EQ(lesson.example.tokens.size(), whole.turns[kept - 1].tokens);
    EXPECT_EQ(lesson.example.weights.size(), lesson.example.tokens.size());
    EXPECT_EQ(lesson.example.pictures.size(), kept);
    EXPECT_EQ(learnt(lesson.example), std::string("a<|eot|>b<|eot|>c<|eot|>").substr(0, 8 * kept));
  }
  Lesson lesson = whole;
  EXPECT_FALSE(lesson.cut(static_cast<int64_t>(whole.turns[0].tokens) - 1));
  EXPECT_EQ(lesson.example.tokens, whole.example.tokens);
}

TEST(Shuffle, TakesEveryItemOnceBeforeAnyAgain) {
  for (const uint64_t n : {1, 2, 3, 16, 17, 1000}) {
    for (const uint64_t seed : {1, 2}) {
      std::vector<int> taken(n);
      for (uint64_t i = 0; i < 3 * n; ++i) {
        const uint64_t item = taken_in_turn(seed, i, n);
        ASSERT_LT(item, n);
        EXPECT_EQ(taken[item]++, static_cast<int>(i / n)) << n;
      }
    }
  }
  // In another order each time: two orders of 1,000 agree in one place on average.
  int same = 0;
  for (uint64_t i = 0; i < 1000; ++i) {
    same += taken_in_turn(1, i, 1000) == taken_in_turn(1, i + 1000, 1000);
    same += taken_in_turn(1, i, 1000) == taken_in_turn(2, i, 1000);
    same += taken_in_turn(1, i, 1000) == i;
  }
  EXPECT_LT(same, 20);
}

TEST_F(ChatSourceTest, GivesEveryConversationOnceBeforeAnyAgain) {
  std::string lines;
  for (int i = 0; i < 20; ++i) {
    lines += fmt::format(
        R"({{"messages": [{{"role": "user", "content": "{0}?"}}, {{"role": "assistant", "content": "It is {0}."}}]}})",
        i);
    lines += i % 2 == 0 ? "\r\n" : "\n\n";
  }
  folder_.write("chat.jsonl", lines);
  const auto source = make_source(data_settings("chat", "chat.jsonl"), context());
  std::map<std::string, int> seen;
  for (uint64_t i = 0; i < 40; ++i) {
    const Example example = source->example(7, i, 1000);
    ++seen[learnt(example)];
    EXPECT_EQ(example.tokens, source->example(7, i, 1000).tokens);
  }
  EXPECT_EQ(seen.size(), 20u);
  for (const auto& [answer, times] : seen) EXPECT_EQ(times, 2) << answer;
  EXPECT_TRUE(seen.contains("It is 13.<|eot|>"));
  EXPECT_EQ(source->facts().items.size(), 20u);
}

TEST_F(ChatSourceTest, TakesPicturesFromFilesAndDataUrls) {
  std::filesystem::create_directory(folder_ / "pictures");
  write_picture("pictures/wide.png", 200, 56, 90);
  // A red pixel.
  const std::string pixel =
      "data:image/png;base64,"
      "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/"
      "pLvAAAAAElFTkSuQmCC";
  folder_.write("pictures/chat.jsonl",
                R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "See "},)"
                R"({"type": "image", "image": "wide.png"}, {"type": "text", "text": " and "},)"
                R"({"type": "image_url", "image_url": {"url": ")" +
                    pixel + R"("}}]}, {"role": "assistant", "content": "Two.", "weight": 3}]})");
  const auto source = make_source(data_settings("chat", "pictures/*.jsonl"), context());
  const Example example = source->example(1, 0, 1000);
  ASSERT_EQ(example.pictures.size(), 2u);
  EXPECT_EQ(example.pictures[0].layout, choose_tiles(vision_.tiles, 56, 200));
  EXPECT_GT(example.pictures[0].layout.tiles(), 1);
  EXPECT_EQ(example.pictures[0].pixels[0], 90);
  EXPECT_EQ(example.pictures[1].pixels[0], 255);
  EXPECT_EQ(example.pictures[1].pixels[1], 0);
  int64_t tiles = 0;
  for (const TiledImage& picture : example.pictures) tiles += picture.layout.tiles();
  EXPECT_EQ(
      std::count(example.tokens.begin(), example.tokens.end(), *tokenizer_.special("<|patch|>")),
      tiles * vision_.tile_tokens());
  EXPECT_EQ(learnt(example), "Two.<|eot|>");
  EXPECT_EQ(example.weights.back(), 3.0f);

  // A checkpoint belongs to them as to the lines.
  const auto files_of = [&] {
    return make_source(data_settings("chat", "pictures/*.jsonl"), context())->facts().files;
  };
  const auto files = files_of();
  ASSERT_EQ(files.size(), 2u);
  EXPECT_EQ(files[1].name, "pictures/wide.png");
  EXPECT_EQ(files[1].bytes,
            static_cast<int64_t>(std::filesystem::file_size(folder_ / "pictures/wide.png")));
  EXPECT_EQ(files_of()[1].sha256, files[1].sha256);
  write_picture("pictures/wide.png", 200, 56, 91);
  EXPECT_NE(files_of()[1].sha256, files[1].sha256);

  SourceContext blind = context();
  blind.vision = nullptr;
  testing::expect_error(ErrorKind::kBadData, "pictures/chat.jsonl:1: messages[0]: content[1]",
                        [&] { make_source(data_settings("chat", "pictures/*.jsonl"), blind); });
}

TEST_F(ChatSourceTest, NamesFileAndLineOfWhatIsWrong) {
  const std::string good =
      R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})"
      "\n";
  const std::pair<const char*, const char*> bad[] = {
      {"no JSON", "chat.jsonl:3"},
      {"[]", "chat.jsonl:3: expected a JSON object"},
      {"{}", "chat.jsonl:3: messages: expected an array"},
      {R"({"messages": []})", "chat.jsonl:3: messages: expected a turn of the assistant"},
      {R"({"messages": [{"role": "user", "content": "a"}]})",
       "chat.jsonl:3: messages: expected a turn of the assistant"},
      {R"({"messages": [7]})", "chat.jsonl:3: messages: expected an array of objects"},
      {R"({"messages": [{"content": "a"}]})", "chat.jsonl:3: messages[0]: missing key role"},
      {R"({"messages": [{"role": "bot", "content": "a"}]})", "chat.jsonl:3: messages[0]: role"},
      {R"({"messages": [{"role": "assistant"}]})",
       "chat.jsonl:3: messages[0]: missing key content"},
      {R"({"messages": [{"role": "assistant", "content": "a", "weight": -1}]})",
       "chat.jsonl:3: messages[0]: weight"},
      {R"({"messages": [{"role": "user", "content": [{"type": "image", "image": "gone.png"}]}]})",
       "chat.jsonl:3: messages[0]: content[0]: picture: expected a file"},
      {R"({"messages": [{"role": "user", "content": [{"type": "image", "image": "http://a/b"}]}]})",
       "chat.jsonl:3: messages[0]: content[0]: picture"},
      {R"({"messages": [{"role": "user", "content": [{"type": "sound"}]}]})",
       "chat.jsonl:3: messages[0]: content[0]: type"},
  };
  for (const auto& [line, words] : bad) {
    folder_.write("chat.jsonl", good + "\n" + line + "\n");
    refuses(data_settings("chat", "chat.jsonl"), words);
  }
  // What a picture holds is seen when its turn comes.
  folder_.write("no.png", "this is no picture");
  folder_.write(
      "chat.jsonl",
      R"({"messages": [{"role": "user", "content": [{"type": "image", "image": "no.png"}]}, {"role": "assistant", "content": "b"}]})");
  const auto source = make_source(data_settings("chat", "chat.jsonl"), context());
  testing::expect_error(ErrorKind::kBadData, "chat.jsonl:1: messages[0]: content[0]",
                        [&] { source->example(1, 0, 1000); });

  SourceContext silent = context();
  silent.format = ChatFormat::kNone;
  testing::expect_error(ErrorKind::kUnsupported, "chat format",
                        [&] { make_source(data_settings("chat", "chat.jsonl"), silent); });
}

TEST_F(ChatSourceTest, PassesOverWhatIsTooLong) {
  const auto line = [](const std::string& answer) {
    return R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": ")" +
           answer + "\"}]}\n";
  };
  folder_.write("chat.jsonl", line("short") + line(std::string(500, 'z')));
  const auto source = make_source(data_settings("chat", "chat.jsonl"), context());
  for (uint64_t i = 0; i < 4; ++i) {
    EXPECT_EQ(learnt(source->example(1, i, 100)), "short<|eot|>");
  }
  testing::expect_error(ErrorKind::kLimit, "within 5 tokens", [&] { source->example(1, 0, 5); });
}

TEST_F(ChatSourceTest, LinesOfOneItemFallOnOneSide) {
  std::string lines;
  for (int i = 0; i < 300; ++i) {
    lines += fmt::format(
        R"({{"source": "item {}", "messages": [{{"role": "assistant", "content": "{}"}}]}})"
        "\n",
        i % 100, i);
  }
  folder_.write("chat.jsonl", lines);
  auto settings = data_settings("chat", "chat.jsonl");
  settings["held_out"] = 0.2;
  const auto learnt_side = make_source(settings, context(false));
  const auto held_side = make_source(settings, context(true));
  const auto learnt_names = item_names(*learnt_side), held_names = item_names(*held_side);
  EXPECT_EQ(learnt_names.size() + held_names.size(), 100u);
  // 20 are expected of 100; four standard deviations are 16.
  EXPECT_GT(held_names.size(), 4u);
  EXPECT_LT(held_names.size(), 36u);
  for (const std::string& name : held_names) EXPECT_TRUE(held_out("", name, 0.2)) << name;
  EXPECT_EQ(learnt_side->facts().items.size(), 3 * learnt_names.size());
  settings["salt"] = "another";
  EXPECT_NE(item_names(*make_source(settings, context(true))), held_names);
  // Neither side of what is held out altogether, or not at all, is a source.
  settings["held_out"] = 1;
  EXPECT_EQ(make_source(settings, context(false)), nullptr);
  settings["held_out"] = 0;
  EXPECT_EQ(make_source(settings, context(true)), nullptr);
}

json::object capitals() {
  json::object settings = data_settings("table", "capitals.csv");
  settings["item"] = "country";
  settings["templates"] = json::array{
      {{"user", "What is the capital of {country}?"}, {"assistant", "{capital}"}},
      {{"user", "Which {{money}} has {country}?"}, {"assistant", "The {money}."}},
      {{"user", "Name {country}'s capital."}, {"assistant", "{capital}"}, {"held_out", true}},
  };
  return settings;
}

TEST_F(TableSourceTest, AsksEachRecordByEachTemplateThatItHasFieldsFor) {
  folder_.write("capitals.csv",
                "country,capital,money\r\nNorway,Oslo,krone\r\n\"Land, of \"\"Far\"\"\",Faro,\r\n");
  const auto source = make_source(capitals(), context());
  std::set<std::string> seen;
  for (uint64_t i = 0; i < 3; ++i) seen.insert(text(source->example(1, i, 1000)));
  const auto turn = [](std::string_view question, std::string_view answer) {
    return fmt::format(
        "<|begin_of_text|><|header_start|>user<|header_end|>\n\n{}<|eot|><|header_start|>assistant"
        "<|header_end|>\n\n{}<|eot|>",
        question, answer);
  };
  EXPECT_EQ(seen,
            (std::set<std::string>{turn("What is the capital of Norway?", "Oslo"),
                                   turn("Which {money} has Norway?", "The krone."),
                                   turn("What is the capital of Land, of \"Far\"?", "Faro")}));
  // Nothing else is held out but a template.
  const auto held = make_source(capitals(), context(true));
  EXPECT_EQ(item_names(*held),
            (std::set<std::string>{"Norway, template 2", "Land, of \"Far\", template 2"}));
}

TEST_F(TableSourceTest, NamesWhatIsWrongWithTemplatesAndRecords) {
  folder_.write("capitals.csv", "country,capital,money\nNorway,Oslo,krone\n");
  json::object settings = capitals();
  const auto with_user = [&](const char* user) {
    json::object out = settings;
    out["templates"] = json::array{{{"user", user}, {"assistant", "x"}}};
    return out;
  };
  refuses(with_user("Where is {city}?"), "source table: {city}: expected a field of the records");
  refuses(with_user("Where is {city?"), "templates[0]: user: expected {field} at byte 9");
  refuses(with_user("Where is city}?"), "templates[0]: user: expected }} for a brace at byte 13");
  settings["templates"] = json::array();
  refuses(settings, "source table: templates");
  folder_.write("capitals.csv", "country,capital,money\nNorway,Oslo,krone\nSweden,Stockholm\n");
  refuses(capitals(), "capitals.csv:3: expected 3 values, got 2");
  folder_.write("capitals.csv", "country,capital,money\n\"Norway,Oslo,krone\n");
  refuses(capitals(), "capitals.csv:2: a quote is not closed");
}

TEST(Records, AreTheSameFromEveryForm) {
  const std::vector<Record> expected = {{{"a", "1"}, {"b", "x y"}}, {{"b", "line\nbreak"}}};
  EXPECT_EQ(read_separated("\xEF\xBB\xBF"
                           "a,b\n1,x y\n,\"line\nbreak\"",
                           ',', "t"),
            expected);
  EXPECT_EQ(read_separated("a\tb\r\n1\tx y\r\n\t\"line\nbreak\"\r\n", '\t', "t"), expected);
  EXPECT_EQ(
      read_json_lines("{\"a\": 1, \"b\": \"x y\"}\n{\"b\": \"line\\nbreak\", \"a\": null}", "t"),
      expected);
  testing::expect_error(ErrorKind::kBadData, "t:1: a: expected a text or a number",
                        [] { read_json_lines("{\"a\": []}", "t"); });
}

}  // namespace
}  // namespace drover
