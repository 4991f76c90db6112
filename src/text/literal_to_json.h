// A value as JSON or Python writes it, turned into JSON while it comes, byte by byte. Models mix
// the two, so one reader takes both: single, double and triple quotes, raw strings, escapes of
// either language, true and True, null and None, tuples, trailing commas, 1_000 and 0xFF, line
// breaks inside strings. What comes out is JSON spelled as json.dumps spells it; numbers keep their
// digits, however many. One per value; not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace drover {

class LiteralToJson {
 public:
  static constexpr size_t kMaxDepth = 64;
  static constexpr size_t kMaxNumber = 1024;  // bytes

  enum class Step {
    kMore,   // the byte belongs to the value, which goes on
    kLast,   // the byte ends the value
    kAfter,  // the value had ended: the byte is not part of it
    kBad,    // no value goes on like this
  };

  // Appends to `out`, which is the same in all calls. The bytes are valid UTF-8.
  Step push(char c, std::string& out);

  // What was appended will not change any more. It does while a parenthesis is open that may become
  // a tuple or may only group; nobody may take from `out` before.
  bool settled() const { return unsettled_ == 0; }
  // Nothing but white space has come.
  bool fresh() const { return state_ == State::kValue && frames_.empty(); }

 private:
  enum class State {
    kValue,
    kAfterValue,
    kKey,
    kAfterKey,
    kOpenQuote,    // one quote has come: of '', of ''' or of a string
    kSecondQuote,  // two have come
    kString,
    kEscape,
    kRawEscape,
    kHex,
    kOctal,
    kNumber,
    kWord,
  };
  struct Frame {
    char open;         // { [ (
    bool list;         // written as [ in JSON
    size_t count = 0;  // values so far
    size_t at = 0;     // of an open parenthesis: where a [ would stand
  };

  Step begin(char c, bool key, std::string& out);
  Step end(bool with_byte);
  Step close(std::string& out);
  bool open(char c, std::string& out);
  Step string_byte(char c, std::string& out);
  void put(char c, std::string& out);
  void put_code(uint32_t code, std::string& out);
  void put_lone_surrogate(std::string& out);
  bool number(std::string& out) const;
  bool word(std::string& out) const;

  State state_ = State::kValue;
  std::vector<Frame> frames_;
  size_t unsettled_ = 0;
  bool key_ = false;  // the string, number or word is a key
  char quote_ = 0;
  bool triple_ = false, raw_ = false;
  int quotes_ = 0;     // in a row, inside a triple-quoted string
  char escape_ = 0;    // x, u or U
  size_t digits_ = 0;  // that the escape takes
  uint32_t high_ = 0;  // a first surrogate that waits for its second
  std::string word_;   // a number, a word, or the digits of an escape
};

}  // namespace drover
