// What a tokenizer file says, as plain data: the bytes of every token, what it is for, the merges,
// and the few facts around them. Loaders for the three kinds of files that Llama 4-family models
// come with stand below: they check what they read, and the Tokenizer (tokenizer.h) that is made
// from the result validates the whole. Owns its memory.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/pre_tokenizer.h"

namespace drover {

using Token = int32_t;

enum class TokenKind : uint8_t {
  kNormal,       // bytes of ordinary text
  kUnknown,      // stands for what has no token; never made from text
  kControl,      // only a template may make it: <|eot|>
  kUserDefined,  // a piece of ordinary text that is cut out before all else
  kUnused,       // an id without a meaning
  kByte,         // one byte of ordinary text; as kNormal
};

struct Vocabulary {
  std::string source;               // the file, for messages
  std::vector<std::string> tokens;  // by id: raw bytes, for control tokens their text, unused: ""
  std::vector<TokenKind> kinds;     // by id
  // Pairs that may be joined, best first. A pair's result is the token whose bytes are both parts'
  // bytes together.
  std::vector<std::pair<Token, Token>> merges;
  PreTokenizer pre = PreTokenizer::kLlama4;
  bool ignore_merges = false;  // a piece that is itself a token is that token, whatever the merges
  std::optional<Token> bos, eos, pad;
  std::vector<Token> stops;   // every token that ends a turn or a text: eos, eot, eom; increasing
  bool add_bos = false;       // plain text (not a rendered chat) starts with bos
  std::string chat_template;  // Jinja source, empty when the file has none
};

// Larger files than any model of today needs are refused with kLimit.
inline constexpr size_t kMaxVocabularySize = size_t{1} << 20;
inline constexpr size_t kMaxMerges = size_t{1} << 22;
inline constexpr size_t kMaxSpecialTextLength = 256;  // bounds the search for them in text
inline constexpr size_t kMaxTokenizerJsonBytes = size_t{64} << 20;

// Throws unless a Tokenizer can be made from the vocabulary: kBadData for sizes that disagree, ids
// outside the vocabulary, two tokens with the same text, an empty token, a repeated merge or one
// without a result; kLimit for the limits above. Bytes without a token of their own are no fault
// (SmolLM2 lacks 21 of them): see Tokenizer::encode.
void validate(const Vocabulary& vocabulary);

// Sets `stops` from eos and from the control tokens that are known to end turns or texts.
void find_stops(Vocabulary& vocabulary);

// The tokenizer keys of a GGUF file (spec 9.2). The views must live as long as the call.
struct GgufTokenizerFields {
  std::string source;                     // the file, for messages
  std::string_view model;                 // tokenizer.ggml.model
  std::string_view pre;                   // tokenizer.ggml.pre
  std::vector<std::string_view> tokens;   // tokenizer.ggml.tokens, GPT-2 byte alphabet
  std::vector<int32_t> token_types;       // tokenizer.ggml.token_type; empty: all normal
  std::vector<std::string_view> merges;   // tokenizer.ggml.merges, "left right"
  std::optional<uint32_t> bos, eos, pad;  // tokenizer.ggml.{bos,eos,padding}_token_id
  std::optional<uint32_t> eot, eom;       // tokenizer.ggml.{eot,eom}_token_id
  std::optional<bool> add_bos;            // tokenizer.ggml.add_bos_token
  std::string_view chat_template;         // tokenizer.chat_template
};

// Models: "gpt2" (byte-level BPE) with pre "llama4" or "gpt-4o" (kLlama4), "llama-bpe", "llama3" or
// "llama-v3" (kLlama3), "gpt-2" or "default" (kGpt2), "smollm". Anything else is kUnsupported and
// named; wrong data is kBadData.
Vocabulary vocabulary_from_gguf(const GgufTokenizerFields& fields);

// The text of a Hugging Face tokenizer.json, at most kMaxTokenizerJsonBytes, and of the
// tokenizer_config.json beside it, if any, which says bos, eos, pad and the chat template (a
// chat_template.jinja, where there is one, the caller puts in place afterwards).
// Byte-level BPE with one of our pre-tokenizers and no normalizer; anything else is kUnsupported
// and named. Time and memory are linear in the text.
Vocabulary vocabulary_from_tokenizer_json(std::string_view json, std::string_view source_name,
                                          std::optional<std::string_view> tokenizer_config_json);

// The other way: a tokenizer.json that says what the vocabulary does, for us and for the tokenizers
// library. What has no place in that file (eos, pad, stops, chat template) is left to the files
// beside it. Unused ids stay unused.
std::string vocabulary_to_tokenizer_json(const Vocabulary& vocabulary);

// The ranks of a tiktoken file (spec 7.5), tokens[r] being the bytes of rank r. 200,000 ranks are
// Llama 4 and 128,000 are Llama 3 (else kUnsupported); their special tokens come from
// special_tokens.h. There is no chat template. All 256 bytes must have a rank.
Vocabulary vocabulary_from_tiktoken(std::vector<std::string> tokens, std::string_view source_name);

}  // namespace drover
