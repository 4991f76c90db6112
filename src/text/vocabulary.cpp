#include "text/vocabulary.h"

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "text/byte_alphabet.h"
#include "text/special_tokens.h"
#include "text/token_index.h"

namespace drover {
namespace {

// Of a tiktoken file. The longest token of the real ones has 128 bytes; trying all splits of a
// token costs its length squared.
constexpr size_t kMaxRankLength = 512;

bool is_text(TokenKind kind) { return kind == TokenKind::kNormal || kind == TokenKind::kByte; }

void check_id(const Vocabulary& v, std::string_view name, std::optional<Token> id) {
  if (id && (*id < 0 || static_cast<size_t>(*id) >= v.tokens.size())) {
    throw_error(ErrorKind::kBadData, "{}: {} token: expected an id below {}, got {}", v.source,
                name, v.tokens.size(), *id);
  }
}

// Ids in files are unsigned; those that no Token can hold are refused here, the rest by validate.
std::optional<Token> token_from_file(const GgufTokenizerFields& fields, std::string_view name,
                                     std::optional<uint32_t> id) {
  if (!id) return std::nullopt;
  if (*id >= fields.tokens.size()) {
    throw_error(ErrorKind::kBadData, "{}: {} token: expected an id below {}, got {}", fields.source,
                name, fields.tokens.size(), *id);
  }
  return static_cast<Token>(*id);
}

void check_size(std::string_view source, std::string_view what, size_t count, size_t limit) {
  if (count > limit) {
    throw_error(ErrorKind::kLimit, "{}: expected at most {} {}, got {}", source, limit, what,
                count);
  }
}

PreTokenizer pre_tokenizer_from_gguf(const GgufTokenizerFields& fields) {
  const std::string_view pre = fields.pre;
  if (pre == "llama4" || pre == "gpt-4o") return PreTokenizer::kLlama4;
  if (pre == "llama-bpe" || pre == "llama3" || pre == "llama-v3") return PreTokenizer::kLlama3;
  if (pre == "gpt-2" || pre == "default") return PreTokenizer::kGpt2;
  if (pre == "smollm") return PreTokenizer::kSmolLm;
  throw Error(
      ErrorKind::kUnsupported,
      fmt::format("{}: tokenizer.ggml.pre: expected llama4, llama-bpe, gpt-2 or smollm, got "
                  "\"{}\"",
                  fields.source, printable(pre)),
      pre.empty() ? "the file does not say how its text is cut into words; convert the "
                    "model again with a newer converter"
                  : "");
}

}  // namespace

void validate(const Vocabulary& v) {
  if (v.tokens.size() != v.kinds.size()) {
    throw_error(ErrorKind::kBadData, "{}: expected as many token kinds as tokens ({}), got {}",
                v.source, v.tokens.size(), v.kinds.size());
  }
  if (v.tokens.empty()) throw_error(ErrorKind::kBadData, "{}: the vocabulary is empty", v.source);
  check_size(v.source, "tokens", v.tokens.size(), kMaxVocabularySize);
  check_size(v.source, "merges", v.merges.size(), kMaxMerges);
  check_id(v, "begin-of-text", v.bos);
  check_id(v, "end-of-text", v.eos);
  check_id(v, "padding", v.pad);
  for (const Token stop : v.stops) check_id(v, "stop", stop);
  if (v.add_bos && !v.bos) {
    throw_error(ErrorKind::kBadData,
                "{}: text shall start with a begin-of-text token, but none is "
                "named",
                v.source);
  }

  // Ordinary tokens and special ones are looked up apart, so only equal texts of a sort clash.
  TokenIndex text(v.tokens, v.tokens.size()), special(v.tokens, v.tokens.size());
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    const auto id = static_cast<Token>(i);
    if (v.kinds[i] == TokenKind::kUnused) continue;
    if (v.tokens[i].empty()) {
      throw_error(ErrorKind::kBadData, "{}: token {} is empty", v.source, id);
    }
    TokenIndex& index = is_text(v.kinds[i]) ? text : special;
    if (&index == &special && v.tokens[i].size() > kMaxSpecialTextLength) {
      throw_error(ErrorKind::kLimit, "{}: special token {}: expected at most {} bytes, got {}",
                  v.source, id, kMaxSpecialTextLength, v.tokens[i].size());
    }
    if (!index.insert(id)) {
      throw_error(ErrorKind::kBadData, "{}: tokens {} and {} are both \"{}\"", v.source,
                  index.find(v.tokens[i]), id, printable(v.tokens[i]));
    }
  }

  std::vector<std::pair<Token, Token>> pairs = v.merges;
  std::sort(pairs.begin(), pairs.end());
  const auto repeated = std::adjacent_find(pairs.begin(), pairs.end());
  if (repeated != pairs.end()) {
    throw_error(ErrorKind::kBadData, "{}: the merge of tokens {} and {} stands twice", v.source,
                repeated->first, repeated->second);
  }
  std::string joined;
  for (size_t i = 0; i < v.merges.size(); ++i) {
    const auto [left, right] = v.merges[i];
    for (const Token part : {left, right}) {
      if (part < 0 || static_cast<size_t>(part) >= v.tokens.size() ||
          !is_text(v.kinds[static_cast<size_t>(part)])) {
        throw_error(ErrorKind::kBadData, "{}: merge {}: {} is not an ordinary token", v.source, i,
                    part);
      }
    }
    joined = v.tokens[static_cast<size_t>(left)];
    joined += v.tokens[static_cast<size_t>(right)];
    if (text.find(joined) < 0) {
      throw_error(ErrorKind::kBadData, "{}: merge {}: its result \"{}\" is not a token", v.source,
                  i, printable(joined));
    }
  }
}

void find_stops(Vocabulary& v) {
  // What the families' templates end turns with, and texts.
  static constexpr std::string_view kEnds[] = {"<|eot|>",      "<|eom|>",    "<|end_of_text|>",
                                               "<|eot_id|>",   "<|eom_id|>", "<|im_end|>",
                                               "<|endoftext|>"};
  if (v.eos) v.stops.push_back(*v.eos);
  for (size_t i = 0; i < v.tokens.size() && i < v.kinds.size(); ++i) {
    if (v.kinds[i] != TokenKind::kControl) continue;
    if (std::find(std::begin(kEnds), std::end(kEnds), v.tokens[i]) != std::end(kEnds)) {
      v.stops.push_back(static_cast<Token>(i));
    }
  }
  std::sort(v.stops.begin(), v.stops.end());
  v.stops.erase(std::unique(v.stops.begin(), v.stops.end()), v.stops.end());
}

Vocabulary vocabulary_from_gguf(const GgufTokenizerFields& fields) {
  if (fields.model != "gpt2") {
    const bool sentence_piece = fields.model == "llama";
    throw_error(ErrorKind::kUnsupported,
                "{}: tokenizer.ggml.model: expected gpt2 (byte-level BPE), got \"{}\"{}",
                fields.source, printable(fields.model),
                sentence_piece ? ", the SentencePiece tokenizer of Llama 1 and 2" : "");
  }
  check_size(fields.source, "tokens", fields.tokens.size(), kMaxVocabularySize);
  check_size(fields.source, "merges", fields.merges.size(), kMaxMerges);
  if (!fields.token_types.empty() && fields.token_types.size() != fields.tokens.size()) {
    throw_error(ErrorKind::kBadData,
                "{}: tokenizer.ggml.token_type: expected {} entries, one for each token, got {}",
                fields.source, fields.tokens.size(), fields.token_types.size());
  }

  Vocabulary v;
  v.source = fields.source;
  v.pre = pre_tokenizer_from_gguf(fields);
  v.ignore_merges = v.pre == PreTokenizer::kLlama4 || v.pre == PreTokenizer::kLlama3;
  v.chat_template = fields.chat_template;
  for (size_t i = 0; i < fields.tokens.size(); ++i) {
    const int32_t type = fields.token_types.empty() ? 1 : fields.token_types[i];
    if (type < 1 || type > 6) {
      throw_error(ErrorKind::kBadData,
                  "{}: tokenizer.ggml.token_type: token {}: expected 1 to 6, got {}", fields.source,
                  i, type);
    }
    // The file counts from 1 in the order of TokenKind.
    const auto kind = static_cast<TokenKind>(type - 1);
    std::string text(fields.tokens[i]);
    if (kind == TokenKind::kUnused) text.clear();
    if (is_text(kind)) {
      // A token outside the byte alphabet is its own text, which no merge makes.
      if (auto bytes = alphabet_to_bytes(text)) text = std::move(*bytes);
    }
    v.tokens.push_back(std::move(text));
    v.kinds.push_back(kind);
  }

  TokenIndex index(v.tokens, v.tokens.size());
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    if (is_text(v.kinds[i])) index.insert(static_cast<Token>(i));  // doubles: validate names them
  }
  v.merges.reserve(fields.merges.size());
  for (size_t i = 0; i < fields.merges.size(); ++i) {
    const std::string_view merge = fields.merges[i];
    const size_t space = merge.find(' ');
    Token parts[2] = {-1, -1};
    if (space != std::string_view::npos) {
      const std::string_view sides[2] = {merge.substr(0, space), merge.substr(space + 1)};
      for (int side = 0; side < 2; ++side) {
        const auto bytes = alphabet_to_bytes(sides[side]);
        if (bytes && !bytes->empty()) parts[side] = index.find(*bytes);
      }
    }
    if (parts[0] < 0 || parts[1] < 0) {
      throw_error(ErrorKind::kBadData,
                  "{}: tokenizer.ggml.merges: entry {}: expected two tokens and a space between, "
                  "got \"{}\"",
                  fields.source, i, printable(merge));
    }
    v.merges.emplace_back(parts[0], parts[1]);
  }

  v.bos = token_from_file(fields, "begin-of-text", fields.bos);
  v.eos = token_from_file(fields, "end-of-text", fields.eos);
  v.pad = token_from_file(fields, "padding", fields.pad);
  // The Llama converters leave the flag out when it is true; other families start without.
  v.add_bos = fields.add_bos.value_or(v.ignore_merges && v.bos.has_value());
  for (const auto& [name, id] :
       {std::pair{"end-of-turn", fields.eot}, {"end-of-message", fields.eom}}) {
    if (const auto token = token_from_file(fields, name, id)) v.stops.push_back(*token);
  }
  find_stops(v);
  return v;
}

Vocabulary vocabulary_from_tiktoken(std::vector<std::string> tokens, std::string_view source_name) {
  const size_t ranks = tokens.size();
  if (ranks != kLlama3Ranks && ranks != kLlama4Ranks) {
    throw_error(ErrorKind::kUnsupported, "{}: expected {} ranks (Llama 4) or {} (Llama 3), got {}",
                source_name, kLlama4Ranks, kLlama3Ranks, ranks);
  }
  const bool llama4 = ranks == kLlama4Ranks;
  Vocabulary v;
  v.source = source_name;
  v.pre = llama4 ? PreTokenizer::kLlama4 : PreTokenizer::kLlama3;
  v.ignore_merges = true;
  v.tokens = std::move(tokens);
  v.kinds.assign(ranks, TokenKind::kNormal);

  TokenIndex index(v.tokens, ranks);
  for (size_t i = 0; i < ranks; ++i) index.insert(static_cast<Token>(i));
  for (int byte = 0; byte < 256; ++byte) {
    const char text = static_cast<char>(byte);
    if (index.find({&text, 1}) < 0) {
      throw_error(ErrorKind::kBadData, "{}: byte {:#04x} has no rank of its own", source_name,
                  byte);
    }
  }
  // Ranks alone say that two neighbours may join when their bytes together are a token, lower ranks
  // first. As pairs: every split of a token into two tokens, in the order of the token, then of
  // the parts (what the conversion to tokenizer.json writes).
  std::vector<std::pair<Token, Token>> splits;
  for (size_t i = 0; i < ranks; ++i) {
    const std::string_view text = v.tokens[i];
    splits.clear();
    if (text.size() > kMaxRankLength) {
      throw_error(ErrorKind::kLimit, "{}: rank {}: expected at most {} bytes, got {}", source_name,
                  i, kMaxRankLength, text.size());
    }
    for (size_t cut = 1; cut < text.size(); ++cut) {
      const Token left = index.find(text.substr(0, cut));
      if (left < 0) continue;
      const Token right = index.find(text.substr(cut));
      if (right >= 0) splits.emplace_back(left, right);
    }
    std::sort(splits.begin(), splits.end());
    v.merges.insert(v.merges.end(), splits.begin(), splits.end());
  }

  for (std::string& text : llama4 ? llama4_special_tokens() : llama3_special_tokens()) {
    v.tokens.push_back(std::move(text));
    v.kinds.push_back(TokenKind::kControl);
  }
  v.bos = static_cast<Token>(ranks);
  v.eos = static_cast<Token>(ranks + 1);
  v.pad = static_cast<Token>(llama4 ? ranks + 18 : ranks + 4);
  v.add_bos = true;
  find_stops(v);
  return v;
}

}  // namespace drover
