#include "text/tools.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "text/python_json.h"

namespace drover {
namespace {

namespace json = boost::json;

json::value tool(std::string_view name) {
  return {{"type", "function"}, {"function", {{"name", name}, {"parameters", json::object()}}}};
}

TEST(Tools, AreWhatTheChoiceShows) {
  const json::value both = json::array{tool("f"), tool("mcp.read:it/now-1")};
  const auto names = [&](const json::value& choice) { return read_tools(both, choice).names; };
  using Names = std::vector<std::string>;
  EXPECT_EQ(names(nullptr), (Names{"f", "mcp.read:it/now-1"}));
  EXPECT_EQ(names("auto"), (Names{"f", "mcp.read:it/now-1"}));
  EXPECT_EQ(names("none"), Names{});
  EXPECT_TRUE(read_tools(both, "none").definitions.empty());
  EXPECT_FALSE(read_tools(both, "auto").required);
  for (const char* word : {"required", "any"}) {
    EXPECT_EQ(names(word), (Names{"f", "mcp.read:it/now-1"}));
    EXPECT_TRUE(read_tools(both, word).required);
  }
  for (const json::value& choice :
       {json::value{{"type", "function"}, {"function", {{"name", "f"}}}},
        json::value{{"type", "function"}, {"name", "f"}}}) {
    const Tools named = read_tools(both, choice);
    EXPECT_EQ(named.names, Names{"f"});
    EXPECT_EQ(named.definitions, json::array{tool("f")});
    EXPECT_TRUE(named.required);
  }
  EXPECT_TRUE(read_tools(nullptr, nullptr).names.empty());
  EXPECT_TRUE(read_tools(json::array(), "auto").names.empty());
}

TEST(Tools, OfOtherShapesAreRefusedByName) {
  const auto message = [](const json::value& tools, const json::value& choice) -> std::string {
    try {
      read_tools(tools, choice);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      return error.message();
    }
    return "accepted";
  };
  const json::value one = json::array{tool("f")};
  EXPECT_NE(message("f", nullptr).find("tools: "), std::string::npos);
  EXPECT_NE(message(json::array{tool("f"), "g"}, nullptr).find("tools[1]"), std::string::npos);
  EXPECT_NE(
      message(json::array{json::object{{"type", "code_interpreter"}}}, nullptr).find("tools[0]"),
      std::string::npos);
  EXPECT_NE(message(json::array{json::object{{"type", "function"}}}, nullptr).find("\"function\""),
            std::string::npos);
  for (const std::string& name : {std::string(), std::string("a b"), std::string("<|eot|>"),
                                  std::string("f\n"), std::string("é"), std::string(129, 'a')}) {
    EXPECT_NE(message(json::array{tool(name)}, nullptr).find("expected a name"), std::string::npos);
  }
  EXPECT_NE(message(json::array{tool("f"), tool("f")}, nullptr).find("twice"), std::string::npos);
  EXPECT_NE(message(one, "sometimes").find("sometimes"), std::string::npos);
  EXPECT_NE(message(one, json::object{{"type", "function"}, {"name", "g"}}).find("\"g\""),
            std::string::npos);
  EXPECT_NE(message(one, json::object{{"type", "custom"}}).find("tool_choice"), std::string::npos);
  EXPECT_NE(message(one, 1).find("tool_choice"), std::string::npos);
  EXPECT_NE(message(nullptr, "required").find("needs tools"), std::string::npos);
}

TEST(Tools, ArgumentsOfEarlierCallsAreReadAsFarAsTheyAreJson) {
  EXPECT_EQ(read_tool_arguments(R"({"a": [1]})"), (json::object{{"a", json::array{1}}}));
  EXPECT_EQ(read_tool_arguments(""), json::object());
  EXPECT_EQ(read_tool_arguments(" \n"), json::object());
  EXPECT_EQ(read_tool_arguments("{\"a\": "), json::value("{\"a\": "));
  EXPECT_TRUE(read_tool_arguments(std::string(100'000, '[')).is_string());
}

// The expected texts are Python's: json.dumps(..., ensure_ascii=False), repr of floats.
TEST(PythonJson, IsSpelledAsPythonSpellsIt) {
  const json::value value = json::parse(
      R"({"a": [], "b": {}, "c": [1, -2, 18446744073709551615, true, false, null], "é": "\u0001\"\\/\n😀"})");
  EXPECT_EQ(python_json(value),
            R"({"a": [], "b": {}, "c": [1, -2, 18446744073709551615, true, false, null], )"
            R"("é": "\u0001\"\\/\n😀"})");
  EXPECT_EQ(python_json(json::parse(R"({"a": [1, {"b": {}}], "c": []})"), 4),
            "{\n    \"a\": [\n        1,\n        {\n            \"b\": {}\n        }\n    ],\n"
            "    \"c\": []\n}");
  EXPECT_EQ(python_literal(json::parse(R"({"a": [true, false, null, "it's \"x\""]})")),
            R"({"a": [True, False, None, "it's \"x\""]})");
  const std::pair<double, const char*> floats[] = {
      {0.0, "0.0"},       {-0.0, "-0.0"},        {1.0, "1.0"},
      {0.1, "0.1"},       {1e5, "100000.0"},     {1e15, "1000000000000000.0"},
      {1e16, "1e+16"},    {1.5e300, "1.5e+300"}, {0.0001, "0.0001"},
      {0.00001, "1e-05"}, {-2.5e-7, "-2.5e-07"}, {123456.789, "123456.789"}};
  for (const auto& [number, text] : floats) EXPECT_EQ(python_json(number), text);
}

}  // namespace
}  // namespace drover
