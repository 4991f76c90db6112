// tokenizer_probe tiktoken FILE | tokenizer_probe json FILE
// Encodes strings from standard input for tests/reference/tokenizer_check.py. In: per string a mode
// byte ('t' text, 's' text with special tokens), a 32-bit length, the bytes. Out: per string the
// 32-bit number of tokens, then the tokens. All little-endian.
#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>

#include "text/test_vocabularies.h"
#include "text/tokenizer.h"

namespace drover {
namespace {

bool read_exactly(void* out, size_t n) { return std::fread(out, 1, n, stdin) == n; }

int probe(const std::string& form, const std::string& path) {
  const Tokenizer tokenizer(
      form == "json"
          ? vocabulary_from_tokenizer_json(read_file(path, kMaxTokenizerJsonBytes), path, {})
          : vocabulary_from_tiktoken(read_ranks(path), path));
  char mode;
  uint32_t length;
  std::string text;
  while (read_exactly(&mode, 1)) {
    if (!read_exactly(&length, sizeof length)) return 1;
    text.resize(length);
    if (!read_exactly(text.data(), length)) return 1;
    const auto tokens = mode == 's' ? tokenizer.encode_special(text) : tokenizer.encode(text);
    const auto count = static_cast<uint32_t>(tokens.size());
    std::fwrite(&count, sizeof count, 1, stdout);
    std::fwrite(tokens.data(), sizeof(Token), tokens.size(), stdout);
  }
  return 0;
}

}  // namespace
}  // namespace drover

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: tokenizer_probe tiktoken|json FILE\n");
    return 2;
  }
  try {
    return drover::probe(argv[1], argv[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
