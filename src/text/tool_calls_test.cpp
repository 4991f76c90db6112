#include "text/tool_calls.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <boost/json.hpp>
#include <random>

#include "text/utf8.h"

namespace drover {
namespace {

const std::vector<std::string> kNames = {"f", "g", "now", "get_weather", "get-time", "mcp.read"};

// Whether this is a whole JSON object, for a judge that had no part in making it.
bool is_object(const std::string& text) {
  boost::json::error_code error;
  boost::json::parse_options options;
  options.max_depth = LiteralToJson::kMaxDepth + 4;
  const auto value = boost::json::parse(text, error, {}, options);
  return !error && value.is_object();
}

// Events as a line: text as it is, «0 f {"a": 1}» for a call, «0 f {"a":… for one that broke off.
// Checks that they are well formed.
std::string shown(const std::vector<ToolEvent>& events, bool* damaged = nullptr) {
  std::string out, arguments;
  int64_t calls = 0;
  bool open = false;
  for (const ToolEvent& event : events) {
    switch (event.kind) {
      case ToolEvent::Kind::kText:
        EXPECT_FALSE(open) << "text inside a call";
        EXPECT_FALSE(event.text.empty());
        out += event.text;
        break;
      case ToolEvent::Kind::kCallBegin:
        EXPECT_FALSE(open);
        EXPECT_EQ(event.index, calls++);
        EXPECT_NE(std::count(kNames.begin(), kNames.end(), event.text), 0) << event.text;
        open = true;
        arguments.clear();
        out += "«" + std::to_string(event.index) + " " + event.text + " ";
        break;
      case ToolEvent::Kind::kArguments:
        EXPECT_TRUE(open);
        EXPECT_EQ(event.index, calls - 1);
        EXPECT_FALSE(event.text.empty());
        arguments += event.text;
        out += event.text;
        break;
      case ToolEvent::Kind::kCallEnd:
        EXPECT_TRUE(open);
        EXPECT_EQ(event.index, calls - 1);
        EXPECT_EQ(is_object(arguments), event.whole) << arguments;
        open = false;
        out += event.whole ? "»" : "…";
        if (damaged && !event.whole) *damaged = true;
        break;
    }
  }
  EXPECT_FALSE(open) << "a call without an end";
  return out;
}

void append(std::vector<ToolEvent>& to, std::vector<ToolEvent> events) {
  to.insert(to.end(), events.begin(), events.end());
}

ToolCallOptions streaming() { return {kNames}; }
ToolCallOptions whole() { return {kNames, /*stream_arguments=*/false}; }

std::vector<ToolEvent> events_of(const std::string& text, const ToolCallOptions& options,
                                 const std::vector<size_t>& cuts = {}) {
  ToolCallParser parser(options);
  std::vector<ToolEvent> out;
  size_t at = 0;
  for (const size_t cut : cuts) {
    append(out, parser.push(text.substr(at, cut - at)));
    at = cut;
  }
  append(out, parser.push(text.substr(at)));
  append(out, parser.finish());
  return out;
}

std::string parsed(const std::string& text, const ToolCallOptions& options = streaming()) {
  return shown(events_of(text, options));
}

struct Row {
  std::string text, expected;
};

// What is no call, to be given back byte for byte.
const std::vector<std::string> kTexts = {
    "",
    "Hello, world.",
    "  \n two lines \n\n",
    "a < b, a << b, <b>bold</b>, <tool, </tool_call>, <function>",
    "[1, 2]",
    "The list [1, [2, 3], \"x\"] and the set {1, 2}.",
    "[x] done, [ ] open, [get_weather], [f], [f (x)",
    "See [f(x)](https://example.org/f) and [now()](https://example.org/now).",
    "[f](a=1)",
    "f(a=1)",
    "[h(a=1)]",
    "[f(1, 2)]",
    "[f(a==1)]",
    "[f(a=b)]",
    "[f(**{\"a\": 1})]",
    "[ff(a=1)]",
    "{\"name\": \"Rome\", \"population\": 2800000}",
    "{\"name\": \"f\"}",
    "{\"name\": \"f\", \"description\": \"a tool\", \"parameters\": {\"type\": \"object\"}}",
    "{\"name\": \"h\", \"parameters\": {\"a\": 1}}",
    "{\"parameters\": {\"a\": {\"b\": [1, 2]}}, \"name\": \"h\"}",
    "{\"type\": \"object\", \"properties\": {}}",
    "{\"call\": {\"name\": \"f\", \"parameters\": {}}}",
    "{\"parameters\": {\"a\": 1}}",
    "{\"name\": \"f\", \"parameters\": [1]}",
    "{\"name\": \"f\", \"arguments\": \"not JSON\"}",
    "[{\"name\": \"Ada\"}, {\"name\": \"Alan\"}]",
    "```json\n{\"name\": \"Rome\"}\n```\n",
    "```python\nprint([1, 2])\n```",
    "`` ` ``` ```` `````",
    "<tool_call>\n{\"name\": \"h\", \"arguments\": {}}\n</tool_call>",
    "<tool_call>none</tool_call>",
    "<function=h>{\"a\": 1}</function>",
    "<function=f>a</function>",
    "if (x) { y[0] = {1}; } // {\"name\"",
    "naïve – «日本» 👍🏽 [日本(a=1)]",
    "{\"name\": \"",
    "[get_wea",
    "[f(a=",
    "[f(a",
    "<tool_call>{\"name\": \"f\", \"arguments\":",
    "```",
    "```json\n{",
    "{{{{[[[[<<<<",
};

const std::vector<Row> kCalls = {
    // Python lists.
    {R"([f(a=1, b="x"), g()])", R"(«0 f {"a": 1, "b": "x"}»«1 g {}»)"},
    {"[f()]", "«0 f {}»"},
    {"[f( )]", "«0 f {}»"},
    {"[now()] (", "«0 now {}» ("},
    {"[f(), g(a=1,), now(),]", R"(«0 f {}»«1 g {"a": 1}»«2 now {}»)"},
    {" [ f( a = 1 ,\n b=2 ) ] \n", R"(«0 f {"a": 1, "b": 2}»)"},
    {R"([get-time(time-zone="CET"), mcp.read(größe=1)])",
     R"(«0 get-time {"time-zone": "CET"}»«1 mcp.read {"größe": 1}»)"},
    {R"([f(a=True, b=False, c=None, d=true, e=null)])",
     R"(«0 f {"a": true, "b": false, "c": null, "d": true, "e": null}»)"},
    {R"([f(a='it is', b='say "hi"', c="it's", d='it\'s')])",
     R"(«0 f {"a": "it is", "b": "say \"hi\"", "c": "it's", "d": "it's"}»)"},
    {R"([f(a="\n\t\\\"\x41\u00e9\U0001F600\101\d\N", b=r"\d\"", c=u'x')])",
     R"(«0 f {"a": "\n\t\\\"Aé😀A\\d\\N", "b": "\\d\\\"", "c": "x"}»)"},
    {"[f(a=\"\"\"two\nlines, a \" and a \"\" here\"\"\", b='''''', c='')]",
     R"(«0 f {"a": "two\nlines, a \" and a \"\" here", "b": "", "c": ""}»)"},
    {"[f(a=\"line\nbreak\ttab\", b='x\\\ny')]", R"(«0 f {"a": "line\nbreak\ttab", "b": "xy"}»)"},
    {R"([f(a=-1, b=+2, c=1_000, d=.5, e=5., f=1e5, g=-1.5E-3, h=0xFF, i=007)])",
     R"(«0 f {"a": -1, "b": 2, "c": 1000, "d": 0.5, "e": 5.0, "f": 1e5, "g": -1.5e-3, "h": 255, "i": 7}»)"},
    {"[f(a=123456789012345678901234567890, b=0, c=-0)]",
     R"(«0 f {"a": 123456789012345678901234567890, "b": 0, "c": -0}»)"},
    {"[f(a=[], b=[1, [2, ['x']],], c={}, d={'k': {'l': [True]}, 2: None, None: 1,})]",
     R"(«0 f {"a": [], "b": [1, [2, ["x"]]], "c": {}, "d": {"k": {"l": [true]}, "2": null, "null": 1}}»)"},
    {"[f(a=(1, 2), b=(), c=(1,), d=(1), e=((1, 2), (3)), f=(('x')), g=1)]",
     R"(«0 f {"a": [1, 2], "b": [], "c": [1], "d": 1, "e": [[1, 2], 3], "f": "x", "g": 1}»)"},
    {"[f(a=\"日本 👍🏽\", b='ñ')]", R"(«0 f {"a": "日本 👍🏽", "b": "ñ"}»)"},
    {R"([f(a="<|python_end|> </tool_call> )] [g()]")])",
     R"(«0 f {"a": "<|python_end|> </tool_call> )] [g()]"}»)"},
    {"<|python_start|>[f(a=1)]<|python_end|>", R"(«0 f {"a": 1}»)"},
    {"<|python_start|>[f()]<|python_end|>", "«0 f {}»"},
    {"Let me see.\n\n[f(a=1)] Done.", "Let me see.\n\n«0 f {\"a\": 1}» Done."},
    {"```python\n[f(a=1)]\n```", R"(«0 f {"a": 1}»)"},
    {"`[f(a=1)]`", R"(`«0 f {"a": 1}»`)"},
    // JSON.
    {R"({"name": "f", "parameters": {"a": 1, "b": [1, {"c": null}]}})",
     R"(«0 f {"a": 1, "b": [1, {"c": null}]}»)"},
    {R"({"name":"f","arguments":{}})", "«0 f {}»"},
    {R"({"type": "function", "name": "f", "parameters": {"a": "\u00e9\ud83d\ude00\ud83d\/\"\\"}})",
     R"(«0 f {"a": "é😀�/\"\\"}»)"},
    {R"({"type": "function", "function": {"name": "f", "parameters": {"a": 1}}})",
     R"(«0 f {"a": 1}»)"},
    {R"({"type": "function", "function": "f", "parameters": {"a": 1}, "id": "call_1"})",
     R"(«0 f {"a": 1}»)"},
    {R"({"parameters": {"a": 1}, "name": "f"})", R"(«0 f {"a": 1}»)"},
    {R"({"name": "f", "arguments": "{\"a\": \"x\\n\\\"y\\\"\"}"})", R"(«0 f {"a": "x\n\"y\""}»)"},
    {R"({"name": "f", "arguments": ""}{"name": "g", "arguments": null})", "«0 f {}»«1 g {}»"},
    {R"({"type": "function", "name": "f"})", "«0 f {}»"},
    {R"({'name': 'f', 'parameters': {'a': True, 'b': ('x', None)}})",
     R"(«0 f {"a": true, "b": ["x", null]}»)"},
    {R"({"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}})",
     R"(«0 f {"a": 1}»«1 g {}»)"},
    {R"({"name": "f", "parameters": {}}{"name": "g", "parameters": {}};)", "«0 f {}»«1 g {}»"},
    {"{\"name\": \"f\", \"parameters\": {}},\n{\"name\": \"g\", \"parameters\": {}}\n",
     "«0 f {}»«1 g {}»"},
    {R"([{"name": "f", "parameters": {"a": 1}}, {"name": "g", "arguments": {}}])",
     R"(«0 f {"a": 1}»«1 g {}»)"},
    {R"(<|python_start|>{"name": "f", "parameters": {}}<|python_end|>)", "«0 f {}»"},
    {R"(<|python_tag|>{"name": "f", "parameters": {}})", "«0 f {}»"},
    {"Sure: {\"name\": \"f\", \"parameters\": {\"a\": 1}} and more.",
     "Sure: «0 f {\"a\": 1}» and more."},
    {"Here:\n```json\n{\"name\": \"f\", \"parameters\": {}}\n```\nThat is all.",
     "Here:\n«0 f {}»\nThat is all."},
    {"<|python_start|>Thinking<|python_end|>{\"name\": \"f\", \"parameters\": {\"a\": 1}}",
     R"(Thinking«0 f {"a": 1}»)"},
    // Hermes, and Llama 3's functions.
    {"<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>",
     R"(«0 f {"a": 1}»)"},
    {"I call.\n<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>\n"
     "<tool_call>{\"name\": \"g\", \"arguments\": {}}</tool_call> ok",
     "I call.\n«0 f {}»«1 g {}» ok"},
    {"<tool_call>{\"name\": \"f\"}</tool_call>", "«0 f {}»"},
    {"<tool_call>[f(a=1)]</tool_call>", R"(«0 f {"a": 1}»)"},
    {"<function=f>{\"a\": 1}</function><function=g>{}</function>.", R"(«0 f {"a": 1}»«1 g {}».)"},
    {"<function=f>\n{\"a\": 1}", R"(«0 f {"a": 1}»)"},
    // Almost right.
    {R"([f(a=1), h(b=2)])", R"(«0 f {"a": 1}», h(b=2)])"},
    {R"([f(a=1)](x))", R"(«0 f {"a": 1}»(x))"},
    {R"([f(), h()])", "«0 f {}», h()]"},
    {"[f(", "[f("},
    {"[f()", "«0 f {}»"},
    {"[f(a=1), g(", R"(«0 f {"a": 1}», g()"},
    {R"({"name": "f", "parameters": {"a": 1})", R"(«0 f {"a": 1}»)"},
    {R"({"name": "f", "parameters": {"a": 1}, "x": 2})", R"(«0 f {"a": 1}», "x": 2})"},
    {R"([{"name": "f", "parameters": {}} {"name": "g", "parameters": {}}])",
     R"(«0 f {}» «1 g {}»])"},
    {R"([f(a="C:\users", b="\xg")])", R"(«0 f {"a": "C:\\users", "b": "\\xg"}»)"},
};

// Arguments that break off: what was told stands, the rest is text.
const std::vector<Row> kBroken = {
    {R"([f(a="x)", R"(«0 f {"a": "x…)"},
    {R"([f(a="x", b=y)])", R"(«0 f {"a": "x", "b": …)])"},
    {R"([f(a=1 b=2)])", R"(«0 f {"a": 1…b=2)])"},
    {R"({"name": "f", "parameters": {"a": "x", "b": [1, )", R"(«0 f {"a": "x", "b": [1…)"},
    {R"({"name": "f", "parameters": {"a" 1}})", R"(«0 f {"a"…1}})"},
    {R"(<tool_call>{"name": "f", "arguments": {"a": tru)", R"(«0 f {"a": …)"},
    {R"(<function=f>{"a": {)", R"(«0 f {"a": {…)"},
    {R"([f(a="x", b=(1, 2)", R"(«0 f {"a": "x", "b": [1, …)"},
    {R"([f(a="x", b=(1)", R"(«0 f {"a": "x", "b": …)"},
};

TEST(ToolCalls, WhatIsNoCallStaysTextByteForByte) {
  for (const std::string& text : kTexts) {
    EXPECT_EQ(parsed(text), text);
    EXPECT_EQ(parsed(text, whole()), text);
  }
}

TEST(ToolCalls, AreFoundInEveryForm) {
  for (const Row& row : kCalls) {
    EXPECT_EQ(parsed(row.text), row.expected) << row.text;
    EXPECT_EQ(parsed(row.text, whole()), row.expected) << row.text;
  }
}

TEST(ToolCalls, BrokenOffEndAsTheyCanAndSaySo) {
  for (const Row& row : kBroken) {
    bool damaged = false;
    EXPECT_EQ(shown(events_of(row.text, streaming()), &damaged), row.expected);
    EXPECT_TRUE(damaged) << row.text;
    // Nobody has heard of the call yet: it is text.
    EXPECT_EQ(parsed(row.text, whole()), row.text);
  }
}

std::vector<std::string> all_texts() {
  std::vector<std::string> out = kTexts;
  for (const auto* rows : {&kCalls, &kBroken}) {
    for (const Row& row : *rows) out.push_back(row.text);
  }
  return out;
}

TEST(ToolCalls, HowTheAnswerIsCutDoesNotMatter) {
  for (const ToolCallOptions& options : {streaming(), whole()}) {
    for (const std::string& text : all_texts()) {
      const std::string expected = shown(events_of(text, options));
      std::vector<size_t> every;
      for (size_t cut = 0; cut <= text.size(); ++cut) {
        EXPECT_EQ(shown(events_of(text, options, {cut})), expected) << text << " cut at " << cut;
        every.push_back(cut);
      }
      EXPECT_EQ(shown(events_of(text, options, every)), expected) << text << " byte by byte";
    }
  }
}

TEST(ToolCalls, WholeCharactersInAreWholeCharactersOut) {
  for (const std::string& text : all_texts()) {
    std::vector<size_t> cuts;
    for (size_t at = 0; at < text.size(); at += utf8_step(text, at).length) cuts.push_back(at);
    for (const ToolEvent& event : events_of(text, streaming(), cuts)) {
      EXPECT_EQ(as_utf8(event.text), event.text);
    }
  }
}

// As soon as a byte settles what a text is, it is told.
TEST(ToolCalls, NothingIsHeldBackLongerThanItIsUnclear) {
  ToolCallParser parser(streaming());
  const auto push = [&](const char* piece) { return parser.push(piece); };
  EXPECT_EQ(push("Hello ").back().text, "Hello ");
  EXPECT_TRUE(push("[").empty());
  EXPECT_EQ(push("1").back().text, "[1");
  EXPECT_TRUE(push("[get_").empty());
  EXPECT_EQ(push("up").back().text, "[get_up");
  EXPECT_TRUE(push("<").empty());
  EXPECT_EQ(push("b").back().text, "<b");
  EXPECT_TRUE(push("{\"na").empty());
  EXPECT_TRUE(push("me\": \"get_weather").empty());
  EXPECT_EQ(push("s").back().text, "{\"name\": \"get_weathers");
  EXPECT_TRUE(push("[get_weather(city").empty());
  EXPECT_TRUE(push("=").empty());
  const auto begun = push("\"Par");
  ASSERT_EQ(begun.size(), 2u);
  EXPECT_EQ(begun[0].kind, ToolEvent::Kind::kCallBegin);
  EXPECT_EQ(begun[0].text, "get_weather");
  EXPECT_EQ(begun[1].text, "{\"city\": \"Par");
  EXPECT_EQ(parser.calls(), 1);
  EXPECT_EQ(push("is").back().text, "is");
  EXPECT_EQ(push("\")").back().kind, ToolEvent::Kind::kCallEnd);
  EXPECT_TRUE(push("]").empty());
  EXPECT_EQ(push(" ok").back().text, " ok");
  EXPECT_TRUE(parser.finish().empty());
}

TEST(ToolCalls, WithoutToolsOnlyTheMarkersGo) {
  for (const std::string& text : all_texts()) {
    std::string expected = text;
    for (const char* marker : {"<|python_start|>", "<|python_end|>", "<|python_tag|>"}) {
      for (size_t at; (at = expected.find(marker)) != std::string::npos;) {
        expected.erase(at, std::string_view(marker).size());
      }
    }
    EXPECT_EQ(parsed(text, {}), expected);
  }
}

TEST(ToolCalls, HaveLimits) {
  const auto nested = [](size_t depth) {
    return "[f(a=" + std::string(depth, '[') + std::string(depth, ']') + ")]";
  };
  EXPECT_TRUE(parsed(nested(LiteralToJson::kMaxDepth), whole()).starts_with("«"));
  EXPECT_EQ(parsed(nested(LiteralToJson::kMaxDepth + 1), whole()),
            nested(LiteralToJson::kMaxDepth + 1));
  EXPECT_TRUE(
      parsed("[f(a=" + std::string(LiteralToJson::kMaxNumber, '1') + ")]").starts_with("«"));
  const std::string long_number = "[f(a=" + std::string(LiteralToJson::kMaxNumber + 1, '1') + ")]";
  EXPECT_EQ(parsed(long_number), long_number);
  const std::string long_name = "[f(" + std::string(129, 'a') + "=1)]";
  EXPECT_EQ(parsed(long_name), long_name);
  EXPECT_EQ(parsed("[f(a=1), f(a=2), f(a=3)]", {kNames, true, /*max_calls=*/2}),
            "«0 f {\"a\": 1}»«1 f {\"a\": 2}», f(a=3)]");
  EXPECT_EQ(parsed("[f(), f()]", {kNames, true, /*max_calls=*/1}), "«0 f {}», f()]");
  EXPECT_EQ(parsed("[f()]", {kNames, true, /*max_calls=*/0}), "[f()]");
}

// What is undecided for very long becomes text, in about linear time.
TEST(ToolCalls, LongTextsThatNeverDecideAreGivenBack) {
  const auto repeat = [](std::string_view part, size_t bytes) {
    std::string out;
    while (out.size() < bytes) out += part;
    return out;
  };
  constexpr size_t kBytes = size_t{3} << 20;
  for (const std::string& text :
       {"{" + std::string(kBytes, ' '), "[" + std::string(kBytes, '\n') + "x",
        "{\"parameters\": {\"a\": \"" + std::string(kBytes, 'x'), std::string(kBytes, '`'),
        repeat("{\"parameters\":", 1 << 18), repeat("<tool_call>", kBytes),
        repeat("```json\n", kBytes), repeat("[", kBytes), repeat("{\"id\": '[f(a=\"", 1 << 18)}) {
    std::vector<ToolEvent> events = events_of(text, whole());
    std::string out;
    for (const ToolEvent& event : events) out += event.text;
    EXPECT_TRUE(out == text) << text.substr(0, 40);
  }
}

// Damage as models do it: bytes, cuts, copies, and words that mean something to the forms.
std::string damaged(std::string text, std::mt19937& random,
                    const std::vector<std::string>& others) {
  static constexpr std::string_view kWords[] = {"[",
                                                "]",
                                                "{",
                                                "}",
                                                "(",
                                                ")",
                                                "\"",
                                                "'",
                                                "\\",
                                                ",",
                                                ":",
                                                "=",
                                                ";",
                                                "```",
                                                "\n",
                                                " ",
                                                "<",
                                                ">",
                                                "f(",
                                                "[f(",
                                                "<tool_call>",
                                                "</tool_call>",
                                                "f",
                                                "name",
                                                "None",
                                                "1",
                                                "-",
                                                "()",
                                                "[]",
                                                "{}",
                                                "\"\"",
                                                "'''",
                                                "<function=f>",
                                                "\\u",
                                                "日",
                                                "[now()]",
                                                "<|python_start|>",
                                                "{\"name\": \"f\", \"parameters\": {"};
  for (unsigned n = random() % 4 + 1; n > 0 && !text.empty(); --n) {
    const size_t at = random() % text.size();
    const size_t length = std::min<size_t>(random() % 12, text.size() - at);
    switch (random() % 6) {
      case 0:
        text[at] = static_cast<char>(random());
        break;
      case 1:
        text.erase(at, length);
        break;
      case 2:
        text.insert(at, text.substr(at, length));
        break;
      case 3:
        text.insert(at, others[random() % others.size()]);
        break;
      case 4:
        text.resize(at);
        break;
      default:
        text.insert(at, kWords[random() % std::size(kWords)]);
    }
  }
  return as_utf8(text);
}

TEST(ToolCalls, TwentyThousandMutantsGiveWellFormedEventsHoweverTheyAreCut) {
  constexpr unsigned kSeed = 20250405;
  std::mt19937 random(kSeed);
  const std::vector<std::string> texts = all_texts();
  int with_calls = 0, broken = 0;
  for (int i = 0; i < 20'000 && !::testing::Test::HasFailure(); ++i) {
    const std::string text = damaged(texts[random() % texts.size()], random, texts);
    std::vector<size_t> cuts;
    for (size_t at = 0; at < text.size(); at += random() % 9) cuts.push_back(at);
    for (const ToolCallOptions& options : {streaming(), whole()}) {
      bool damage = false;
      const auto events = events_of(text, options);
      const std::string expected = shown(events, &damage);
      EXPECT_EQ(shown(events_of(text, options, cuts)), expected);
      const bool calls = std::any_of(events.begin(), events.end(), [](const ToolEvent& event) {
        return event.kind == ToolEvent::Kind::kCallBegin;
      });
      if (!calls && text.find("<|python_") == std::string::npos) {
        EXPECT_EQ(expected, text);
      }
      EXPECT_FALSE(damage && !options.stream_arguments);
      with_calls += calls;
      broken += damage;
    }
    EXPECT_FALSE(::testing::Test::HasFailure())
        << "seed " << kSeed << ", mutant " << i << ": " << text;
  }
  // So that the mutants say something about both.
  EXPECT_GT(with_calls, 5'000);
  EXPECT_GT(broken, 500);
}

// What breaks elsewhere, with the reports.

// vllm-project/vllm#46863, #16214.
TEST(ToolCallsElsewhere, JsonIsACallWhereThePythonicFormWasExpected) {
  EXPECT_EQ(
      parsed(R"({"type": "function", "name": "get_weather", "parameters": {"city": "Rome"}})"),
      R"(«0 get_weather {"city": "Rome"}»)");
  EXPECT_EQ(parsed(R"(<|python_start|>{"name": "get_weather", "parameters": {"city": "Rome"}})"
                   "<|python_end|>"),
            R"(«0 get_weather {"city": "Rome"}»)");
}

// vllm-project/vllm#22917.
TEST(ToolCallsElsewhere, TextBeforeACallStaysAndTheCallIsFound) {
  EXPECT_EQ(parsed("To determine the weather I ask:\n\n[get_weather(city=\"Rome\"), now()]"),
            "To determine the weather I ask:\n\n«0 get_weather {\"city\": \"Rome\"}»«1 now {}»");
}

// vllm-project/vllm#30722.
TEST(ToolCallsElsewhere, NestedListsAndAMissingBracketAtTheEndAreNoSyntaxError) {
  EXPECT_EQ(parsed("[f(a=[[\"x\", \"y\"], [1, [2]]])]"), R"(«0 f {"a": [["x", "y"], [1, [2]]]}»)");
  EXPECT_EQ(parsed("[f(a=[[\"x\"]])"), R"(«0 f {"a": [["x"]]}»)");
}

// vllm-project/vllm pull request 17917.
TEST(ToolCallsElsewhere, AStrayStartTokenNeitherShowsNorHidesACall) {
  EXPECT_EQ(parsed("<|python_start|>It is sunny."), "It is sunny.");
  EXPECT_EQ(parsed("<|python_start|>[f(a=1)]"), R"(«0 f {"a": 1}»)");
  EXPECT_EQ(parsed("[f(a=1)]<|python_end|>"), R"(«0 f {"a": 1}»)");
  EXPECT_EQ(parsed("Wait.<|python_end|> [f(a=1)]"), R"(Wait. «0 f {"a": 1}»)");
}

// lmstudio-ai/lmstudio-bug-tracker#1794: a client that sees calls as text asks again for ever.
TEST(ToolCallsElsewhere, ACallIsNeverLeftInTheText) {
  for (const Row& row : {Row{"[f(a=1)]", "1"}, Row{R"({"name": "f", "parameters": {}})", "1"},
                         Row{"<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>", "1"},
                         Row{"<function=f>{}</function>", "1"}}) {
    for (const auto& event : events_of(row.text, streaming())) {
      EXPECT_NE(event.kind, ToolEvent::Kind::kText) << row.text;
    }
  }
}

// sgl-project/sglang#10151: the parser that the documentation named did not exist. There is one for
// all forms here, and nothing to name.
TEST(ToolCallsElsewhere, NoFormHasToBeChosen) {
  EXPECT_EQ(parsed("[f(a=1)]\n{\"name\": \"f\", \"parameters\": {\"a\": 2}}\n"
                   "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 3}}</tool_call>\n"
                   "<function=f>{\"a\": 4}</function>"),
            "«0 f {\"a\": 1}»«1 f {\"a\": 2}»«2 f {\"a\": 3}»«3 f {\"a\": 4}»");
}

// ollama/ollama#7881, ggml-org/llama.cpp#18591, #12379: indices missing, or all 0, or the name in
// every piece.
TEST(ToolCallsElsewhere, EachCallHasItsIndexAndSaysItsNameOnce) {
  const std::string text = "[f(a=\"long\"), g(b=\"longer\"), f()]";
  std::vector<size_t> every;
  for (size_t at = 0; at < text.size(); ++at) every.push_back(at);
  std::string names;
  for (const auto& event : events_of(text, streaming(), every)) {
    if (event.kind == ToolEvent::Kind::kCallBegin)
      names += event.text + std::to_string(event.index);
  }
  EXPECT_EQ(names, "f0g1f2");
}

// Clients parse the arguments: {} for none, never nothing.
TEST(ToolCallsElsewhere, NoArgumentsAreAnEmptyObject) {
  for (const char* text :
       {"[f()]", R"({"name": "f", "parameters": {}})", R"({"name": "f", "arguments": null})",
        R"({"name": "f", "arguments": ""})", "<function=f>{}</function>"}) {
    EXPECT_EQ(parsed(text), "«0 f {}»") << text;
  }
}

}  // namespace
}  // namespace drover
