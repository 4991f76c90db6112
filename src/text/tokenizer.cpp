#include "text/tokenizer.h"

#include "base/error.h"
#include "text/bpe.h"
#include "text/special_matcher.h"

namespace drover {

// Members view `vocabulary`; a State stays where it was made.
struct Tokenizer::State {
  explicit State(Vocabulary v)
      : vocabulary((validate(v), std::move(v))),
        bpe(vocabulary),
        control(vocabulary, TokenKind::kControl),
        user_defined(vocabulary, TokenKind::kUserDefined) {
    for (unsigned byte = 0; byte < 256; ++byte) {
      if (bpe.byte_token(static_cast<unsigned char>(byte)) < 0) {
        missing_bytes.push_back(static_cast<unsigned char>(byte));
      }
    }
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  const Vocabulary vocabulary;
  const Bpe bpe;
  const SpecialMatcher control, user_defined;
  std::vector<unsigned char> missing_bytes;
};

namespace {

// Cuts `text` at the matches: ordinary(stretch) for what lies between, their token for themselves.
template <typename Ordinary>
void split_at(const SpecialMatcher& matcher, std::string_view text, std::vector<Token>& out,
              Ordinary ordinary) {
  for (size_t at = 0; at < text.size();) {
    const auto match = matcher.find(text, at);
    ordinary(text.substr(at, match.begin - at));
    if (match.token >= 0) out.push_back(match.token);
    at = match.end;
  }
}

void check_length(std::string_view text) {
  if (text.size() > kMaxTextBytes) {
    throw_error(ErrorKind::kLimit, "text: expected at most {} bytes, got {}", kMaxTextBytes,
                text.size());
  }
}

}  // namespace

Tokenizer::Tokenizer(Vocabulary vocabulary)
    : state_(std::make_shared<const State>(std::move(vocabulary))) {}

void Tokenizer::encode(std::string_view text, std::vector<Token>& out) const {
  check_length(text);
  const PreTokenizer pre = state_->vocabulary.pre;
  split_at(state_->user_defined, text, out, [&](std::string_view stretch) {
    for (size_t begin = 0; begin < stretch.size();) {
      const size_t end = piece_end(pre, stretch, begin);
      state_->bpe.encode(stretch.substr(begin, end - begin), out);
      begin = end;
    }
  });
}

std::vector<Token> Tokenizer::encode(std::string_view text) const {
  std::vector<Token> out;
  encode(text, out);
  return out;
}

std::vector<Token> Tokenizer::encode_special(std::string_view text) const {
  check_length(text);
  std::vector<Token> out;
  split_at(state_->control, text, out, [&](std::string_view stretch) { encode(stretch, out); });
  return out;
}

std::optional<Token> Tokenizer::special(std::string_view text) const {
  const Token token = state_->control.exactly(text);
  if (token < 0) return std::nullopt;
  return token;
}

std::string_view Tokenizer::token_bytes(Token token) const {
  if (token < 0 || token >= size()) return {};
  return state_->vocabulary.tokens[static_cast<size_t>(token)];
}

bool Tokenizer::is_control(Token token) const {
  if (token < 0 || token >= size()) return false;
  const TokenKind kind = state_->vocabulary.kinds[static_cast<size_t>(token)];
  return kind == TokenKind::kControl || kind == TokenKind::kUnknown;
}

std::string Tokenizer::decode(std::span<const Token> tokens, bool show_special) const {
  std::string out;
  for (const Token token : tokens) {
    if (show_special || !is_control(token)) out += token_bytes(token);
  }
  return out;
}

const Vocabulary& Tokenizer::vocabulary() const { return state_->vocabulary; }

std::span<const unsigned char> Tokenizer::missing_bytes() const { return state_->missing_bytes; }

}  // namespace drover
