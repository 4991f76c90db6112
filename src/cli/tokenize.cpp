// drover tokenize MODEL [TEXT] and drover detokenize MODEL [IDS]: text to tokens and back.

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>
#include <iostream>
#include <iterator>
#include <sstream>

#include "cli/command.h"
#include "model/vocabulary_source.h"

namespace drover {
namespace {

std::string read_input() { return std::string(std::istreambuf_iterator<char>(std::cin), {}); }

struct Tokenize {
  ModelFlags model_flags;
  std::string text = "-";
  bool special = false;
  bool bos = false;
  bool json = false;
  bool count = false;

  void operator()() const {
    const std::string input = text == "-" ? read_input() : text;
    const Tokenizer tokenizer = load_tokenizer(model_flags.model);
    std::vector<Token> ids = special ? tokenizer.encode_special(input) : tokenizer.encode(input);
    if (bos) {
      if (!tokenizer.vocabulary().bos) {
        throw_error(ErrorKind::kUsage, "bos: this vocabulary has no begin-of-text token");
      }
      ids.insert(ids.begin(), *tokenizer.vocabulary().bos);
    }
    if (count) {
      print_out(fmt::format("{}\n", ids.size()));
    } else if (json) {
      boost::json::array out;
      for (const Token id : ids) {
        const std::string bytes(tokenizer.token_bytes(id));
        // Bytes of a token may be half a character; those go as numbers.
        boost::json::object token{{"id", id}};
        if (printable(bytes, ~size_t{0}).find("\\x") == std::string::npos) token["text"] = bytes;
        boost::json::array numbers;
        for (const unsigned char byte : bytes) numbers.push_back(byte);
        token["bytes"] = std::move(numbers);
        out.push_back(std::move(token));
      }
      print_out(boost::json::serialize(out) + '\n');
    } else {
      print_out(fmt::format("{}\n", fmt::join(ids, " ")));
    }
  }
};

struct Detokenize {
  ModelFlags model_flags;
  std::vector<std::string> ids;
  bool special = false;

  void operator()() const {
    std::string input = ids.empty() ? read_input() : fmt::format("{}", fmt::join(ids, " "));
    std::replace(input.begin(), input.end(), ',', ' ');
    const Tokenizer tokenizer = load_tokenizer(model_flags.model);
    std::vector<Token> tokens;
    std::istringstream words(input);
    for (std::string word; words >> word;) {
      Token token = -1;
      const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), token);
      if (error != std::errc() || end != word.data() + word.size() || token < 0 ||
          token >= tokenizer.size()) {
        throw_error(ErrorKind::kUsage, "token: expected 0 to {}, got '{}'", tokenizer.size() - 1,
                    printable(word, 40));
      }
      tokens.push_back(token);
    }
    print_out(tokenizer.decode(tokens, special));
  }
};

}  // namespace

void add_tokenize(CLI::App& app) {
  auto tokenize = std::make_shared<Tokenize>();
  CLI::App* command = app.add_subcommand("tokenize", "Show the tokens of a text");
  tokenize->model_flags.add_model(*command);
  command->add_option("text", tokenize->text, "The text; - reads standard input")
      ->capture_default_str();
  command->add_flag("--special", tokenize->special, "Names of control tokens become those tokens");
  command->add_flag("--bos", tokenize->bos, "Begin with the begin-of-text token");
  command->add_flag("--json", tokenize->json, "Ids, bytes and text as JSON");
  command->add_flag("--count", tokenize->count, "Print only how many there are");
  command->callback([tokenize] { (*tokenize)(); });
}

void add_detokenize(CLI::App& app) {
  auto detokenize = std::make_shared<Detokenize>();
  CLI::App* command = app.add_subcommand("detokenize", "Show the text of tokens");
  detokenize->model_flags.add_model(*command);
  command->add_option("ids", detokenize->ids, "Token numbers; none reads standard input");
  command->add_flag("--special", detokenize->special, "Show the names of control tokens");
  command->callback([detokenize] { (*detokenize)(); });
}

}  // namespace drover
