// tokenizer_probe tiktoken FILE
// tokenizer_probe json FILE [TOKENIZER_CONFIG]
// Encodes what tests/reference/tokenizer_check.py and chat_reference.py send, to be compared with
// other tokenizers. In, per request: a mode byte, a 32-bit length, that many bytes: 't' a text, 's'
// a text with special tokens, 'c' a conversation as JSON [[role, content], ...], 'g' the same with
// the generation prompt, 'h' {"messages": [{role, content, tool_calls}], "tools": [...]} in the
// shapes of OpenAI, with the prompt, but for arguments, which are an object. Out, per request: the
// 32-bit number of tokens, the tokens. Little-endian.
#include <boost/json.hpp>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>

#include "text/chat_format.h"
#include "text/test_vocabularies.h"
#include "text/tokenizer.h"

namespace drover {
namespace {

bool read_exactly(void* out, size_t n) { return std::fread(out, 1, n, stdin) == n; }

Vocabulary load(const std::string& form, const std::string& path, const char* config_path) {
  if (form != "json") return vocabulary_from_tiktoken(read_ranks(path), path);
  const std::string json = read_file(path, kMaxTokenizerJsonBytes);
  if (!config_path) return vocabulary_from_tokenizer_json(json, path, {});
  return vocabulary_from_tokenizer_json(json, path, read_file(config_path, kMaxTokenizerJsonBytes));
}

std::vector<Token> answer_with_tools(const Tokenizer& tokenizer, const boost::json::value& talk) {
  std::vector<Message> messages;
  for (const auto& given : talk.at("messages").as_array()) {
    Message message(boost::json::value_to<std::string>(given.at("role")),
                    boost::json::value_to<std::string>(given.at("content")));
    if (const auto* calls = given.as_object().if_contains("tool_calls")) {
      for (const auto& call : calls->as_array()) {
        const auto& function = call.at("function");
        message.tool_calls.push_back(
            {boost::json::value_to<std::string>(function.at("name")), function.at("arguments")});
      }
    }
    messages.push_back(std::move(message));
  }
  return render_chat(detect_chat_format(tokenizer.vocabulary()), tokenizer, messages,
                     /*add_generation_prompt=*/true, read_tools(talk.at("tools"), nullptr));
}

std::vector<Token> answer(const Tokenizer& tokenizer, char mode, const std::string& text) {
  if (mode == 't') return tokenizer.encode(text);
  if (mode == 's') return tokenizer.encode_special(text);
  std::vector<Message> messages;
  const boost::json::value talk = boost::json::parse(text);
  if (mode == 'h') return answer_with_tools(tokenizer, talk);
  for (const auto& message : talk.as_array()) {
    messages.push_back({boost::json::value_to<std::string>(message.at(0)),
                        boost::json::value_to<std::string>(message.at(1))});
  }
  return render_chat(detect_chat_format(tokenizer.vocabulary()), tokenizer, messages,
                     /*add_generation_prompt=*/mode == 'g');
}

int probe(const std::string& form, const std::string& path, const char* config_path) {
  const Tokenizer tokenizer(load(form, path, config_path));
  char mode;
  uint32_t length;
  std::string text;
  while (read_exactly(&mode, 1)) {
    if (!read_exactly(&length, sizeof length)) return 1;
    text.resize(length);
    if (!read_exactly(text.data(), length)) return 1;
    const auto tokens = answer(tokenizer, mode, text);
    const auto count = static_cast<uint32_t>(tokens.size());
    std::fwrite(&count, sizeof count, 1, stdout);
    std::fwrite(tokens.data(), sizeof(Token), tokens.size(), stdout);
  }
  return 0;
}

}  // namespace
}  // namespace drover

int main(int argc, char** argv) {
  if (argc < 3 || argc > 4) {
    std::fprintf(stderr, "usage: tokenizer_probe tiktoken|json FILE [TOKENIZER_CONFIG]\n");
    return 2;
  }
  try {
    return drover::probe(argv[1], argv[2], argc == 4 ? argv[3] : nullptr);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
