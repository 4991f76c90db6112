#include "formats/json.h"

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

using testing::expect_error;
using testing::TempFolder;

boost::json::value parse(std::string_view text, const JsonLimits& limits = {}) {
  return parse_json(text, "a.json", limits);
}
void expect_refused(ErrorKind kind, std::string_view words, std::string_view text,
                    const JsonLimits& limits = {}) {
  expect_error(kind, words, [&] { parse(text, limits); });
}

TEST(Json, ParsesWhatBoostParses) {
  // Long enough that strings and keys arrive in parts.
  const std::string longer(100'000, 'x');
  const std::string escaped = longer.substr(0, 60'000) + "\\n" + longer.substr(60'000);
  for (const std::string& text :
       {std::string("null"), std::string("true"), std::string("-12"),
        std::string("18446744073709551615"), std::string("0.1"), std::string("1e300"),
        std::string("\"\""), std::string("[]"), std::string("{}"),
        std::string(
            R"( {"a" : [1, 2.5, {"b": null}], "": {"a": {"a": "\u00e9\n"}}, "c": [[], [[]]]} )"),
        "[\"" + escaped + "\",\"" + escaped + "\"]",
        "{\"" + longer.substr(0, 60'000) + "\":\"" + escaped + "\"}"}) {
    EXPECT_EQ(parse(text), boost::json::parse(text)) << text.substr(0, 100);
  }
}

TEST(Json, ATextMayBeNearlyTheDocument) {
  const JsonLimits limits{.bytes = size_t{32} << 20};  // a picture inside a request
  const std::string text(limits.bytes - 2, 'x');
  EXPECT_EQ(parse('"' + text + '"', limits).as_string(), text);
}

TEST(Json, KeepsTheOrderOfKeys) {
  EXPECT_EQ(boost::json::serialize(parse(R"({"b":1,"a":2,"c":{"z":1,"y":2}})")),
            R"({"b":1,"a":2,"c":{"z":1,"y":2}})");
}

TEST(Json, RefusesWhatIsNotJson) {
  const auto bad = ErrorKind::kBadData;
  expect_refused(bad, "a.json: at byte 0: expected JSON, got a fault: incomplete JSON", "");
  expect_refused(bad, "a.json: at byte 5: expected JSON, got a fault", R"({"a":})");
  expect_refused(bad, "expected JSON, got a fault", "[1,]");
  expect_refused(bad, "expected JSON, got a fault", "NaN");
  expect_refused(bad, "expected JSON, got a fault", "\"\xff\"");
  expect_refused(bad, "expected JSON, got a fault", R"("\ud800")");
  expect_refused(bad, "expected the end of the JSON text, got more", "{} x");
  expect_refused(bad, "key a: expected a number that fits a double", R"({"a":1e999})");
}

TEST(Json, RefusesAKeyGivenTwice) {
  expect_refused(ErrorKind::kBadData, "a.json: key a: expected once, got twice",
                 R"({"a":1,"a":1})");
  expect_refused(ErrorKind::kBadData, "key a: expected once, got twice",
                 R"({"b":[{"a":{},"c":1,"a":2}]})");
  EXPECT_NO_THROW(parse(R"({"a":{"a":1},"b":{"a":1}})"));
}

TEST(Json, HoldsToItsLimits) {
  const auto nested = [](size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  EXPECT_NO_THROW(parse(nested(64)));
  expect_refused(ErrorKind::kLimit, "expected JSON nested at most 64 deep", nested(65));
  expect_refused(ErrorKind::kLimit, "expected JSON nested at most 64 deep",
                 std::string(1'000'000, '['));
  expect_refused(ErrorKind::kLimit, "expected JSON nested at most 64 deep", [] {
    std::string out;
    for (int i = 0; i < 100'000; ++i) out += "{\"a\":";
    return out;
  }());
  expect_refused(ErrorKind::kLimit, "expected at most 4 bytes, got 5", "[1,2]", {.bytes = 4});
  EXPECT_NO_THROW(parse("[1,2]", {.values = 3}));
  expect_refused(ErrorKind::kLimit, "expected at most 2 JSON values, got more", "[1,2]",
                 {.values = 2});
}

TEST(JsonFields, GivesTypedFieldsAndNothingForAbsentOnes) {
  const boost::json::value value =
      parse(R"({"i":-3,"f":2.5,"whole":8192.0,"b":true,"t":"text","n":null,"o":{"i":1},)"
            R"("is":[1,2.0],"fs":[1,2.5],"ts":["a",""]})");
  const JsonFields fields(value.as_object(), "a.json");
  EXPECT_EQ(fields.required_integer("i"), -3);
  EXPECT_EQ(fields.integer("whole"), 8192);
  EXPECT_EQ(fields.required_number("f"), 2.5);
  EXPECT_EQ(fields.number("i"), -3.0);
  EXPECT_TRUE(fields.required_boolean("b"));
  EXPECT_EQ(fields.required_text("t"), "text");
  EXPECT_EQ(fields.required_fields("o").required_integer("i"), 1);
  EXPECT_EQ(fields.integers("is"), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(fields.numbers("fs"), (std::vector<double>{1, 2.5}));
  EXPECT_EQ(fields.texts("ts"), (std::vector<std::string_view>{"a", ""}));
  for (const char* absent : {"n", "x"}) {
    EXPECT_FALSE(fields.has(absent));
    EXPECT_EQ(fields.integer(absent), std::nullopt);
    EXPECT_EQ(fields.texts(absent), std::nullopt);
    EXPECT_FALSE(fields.fields(absent));
  }
}

TEST(JsonFields, NamesFileKeyAndTypesInErrors) {
  const boost::json::value value = parse(
      R"({"i":-3,"big":18446744073709551615,"f":2.5,"t":"text","l":[1,"a"],"o":{"p":{"x":1}}})");
  const JsonFields fields(value.as_object(), "a.json");
  const auto bad = ErrorKind::kBadData;
  expect_error(bad, "a.json: missing key x", [&] { fields.required_integer("x"); });
  expect_error(bad, "a.json: key f: expected an integer of 64 bits, got 2.5",
               [&] { fields.integer("f"); });
  expect_error(bad, "key big: expected an integer of 64 bits, got 18446744073709551615",
               [&] { fields.integer("big"); });
  expect_error(bad, "key t: expected a number, got a string", [&] { fields.number("t"); });
  expect_error(bad, "key i: expected a boolean, got -3", [&] { fields.boolean("i"); });
  expect_error(bad, "key o: expected a string, got an object", [&] { fields.text("o"); });
  expect_error(bad, "key l: expected an array of integers, got an array",
               [&] { fields.integers("l"); });
  expect_error(bad, "key t: expected an array of strings, got a string",
               [&] { fields.texts("t"); });
  expect_error(bad, "key l: expected an object, got an array",
               [&] { fields.required_fields("l"); });
  expect_error(bad, "a.json: o.p: key x: expected a string, got 1",
               [&] { fields.required_fields("o").required_fields("p").text("x"); });
}

TEST(JsonFile, MustHoldAnObject) {
  const TempFolder folder;
  EXPECT_EQ(read_json_object(folder.write("a.json", R"({"a":1})")).at("a"), 1);
  expect_error(ErrorKind::kBadData, "a.json: expected a JSON object, got an array",
               [&] { read_json_object(folder.write("a.json", "[]")); });
  expect_error(ErrorKind::kBadData, "a.json: at byte 0: expected JSON",
               [&] { read_json_object(folder.write("a.json", "")); });
  expect_error(ErrorKind::kNotFound, "b.json", [&] { read_json_object(folder / "b.json"); });
}

}  // namespace
}  // namespace drover
