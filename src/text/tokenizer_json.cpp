// tokenizer.json and tokenizer_config.json of the Hugging Face tokenizers library. Source:
// spec 7.5.
#include <boost/json.hpp>

#include "base/error.h"
#include "text/byte_alphabet.h"
#include "text/patterns.h"
#include "text/token_index.h"
#include "text/vocabulary.h"

namespace drover {
namespace {

namespace json = boost::json;

// Memory for parsed JSON with a ceiling. A real tokenizer.json takes two to six times its own size,
// the most when it is written without spaces; `[0,0,0,...` would take more than twelve times.
constexpr size_t kMemoryFactor = 10;

class CappedMemory final : public json::memory_resource {
 public:
  // For the JSON `text` of `source`.
  CappedMemory(std::string_view source, std::string_view text)
      : source_(source), limit_(kMemoryFactor * text.size() + (size_t{1} << 20)) {}

 private:
  void* do_allocate(size_t size, size_t alignment) override {
    if (size > limit_ - used_) {
      throw_error(ErrorKind::kLimit,
                  "{}: expected a file that takes at most {} bytes of memory, got one that takes "
                  "more",
                  source_, limit_);
    }
    // Boost.JSON gives keys back with another alignment than it asked for them; all are small.
    DROVER_CHECK(alignment <= __STDCPP_DEFAULT_NEW_ALIGNMENT__);
    void* out = ::operator new(size);
    used_ += size;
    return out;
  }
  void do_deallocate(void* memory, size_t size, size_t) override {
    ::operator delete(memory);
    used_ -= size;
  }
  bool do_is_equal(const json::memory_resource& other) const noexcept override {
    return this == &other;
  }

  std::string source_;
  size_t limit_;
  size_t used_ = 0;
};

std::string_view text_of(const json::string& text) { return {text.data(), text.size()}; }

// Names a place in a JSON file and reads from it; every mismatch is a kBadData Error that says what
// was expected there. `value` may be null: absent.
class Node {
 public:
  Node(const json::value* value, std::string path) : value_(value), path_(std::move(path)) {}

  // Absent, or null.
  bool empty() const { return value_ == nullptr || value_->is_null(); }
  bool is_text() const { return value_ && value_->is_string(); }
  bool is_array() const { return value_ && value_->is_array(); }
  const std::string& path() const { return path_; }

  // A member, or an item; a member of something absent is absent.
  Node operator[](std::string_view key) const {
    return {empty() ? nullptr : object().if_contains({key.data(), key.size()}),
            fmt::format("{}.{}", path_, key)};
  }
  Node item(size_t i) const { return {&array()[i], fmt::format("{}[{}]", path_, i)}; }

  const json::object& object() const {
    if (!value_ || !value_->is_object()) fail("an object");
    return value_->get_object();
  }
  const json::array& array() const {
    if (!is_array()) fail("an array");
    return value_->get_array();
  }
  std::string_view text() const {
    if (!is_text()) fail("a string");
    return text_of(value_->get_string());
  }
  bool flag(bool otherwise) const {
    if (empty()) return otherwise;
    if (!value_->is_bool()) fail("true or false");
    return value_->get_bool();
  }
  Token id() const {
    const int64_t id = value_ && value_->is_int64() ? value_->get_int64() : -1;
    if (id < 0 || static_cast<uint64_t>(id) >= kMaxVocabularySize) {
      fail(fmt::format("an id from 0 to {}", kMaxVocabularySize - 1));
    }
    return static_cast<Token>(id);
  }

  [[noreturn]] void fail(std::string_view expected) const {
    std::string got = empty()               ? "nothing"
                      : value_->is_object() ? "an object"
                      : is_array()          ? "an array"
                                            : printable(json::serialize(*value_));
    throw_error(ErrorKind::kBadData, "{}: expected {}, got {}", path_, expected, got);
  }
  [[noreturn]] void unsupported(std::string_view expected, std::string_view got) const {
    throw_error(ErrorKind::kUnsupported, "{}: expected {}, got {}", path_, expected,
                printable(got, 400));
  }

 private:
  const json::value* value_;
  std::string path_;
};

json::value parse(std::string_view text, std::string_view source, CappedMemory* memory) {
  json::parse_options options;
  options.max_depth = 32;  // real files need 8
  json::parser parser(memory, options);
  parser.reset(memory);
  json::error_code code;
  const size_t at = parser.write(text.data(), text.size(), code);
  if (code) {
    throw_error(ErrorKind::kBadData, "{}: JSON at about byte {}: {}", source, at, code.message());
  }
  return parser.release();
}

// `type` of a part of the pipeline, "nothing" when the part is absent.
std::string type_name(const Node& node) {
  return node.empty() ? "nothing" : std::string(node["type"].text());
}

// The members of a Sequence under `key`, or the one node itself.
std::vector<Node> members(const Node& node, std::string_view key) {
  std::vector<Node> out;
  if (node.empty()) return out;
  if (type_name(node) != "Sequence") return {node};
  const Node list = node[key];
  for (size_t i = 0; i < list.array().size(); ++i) out.push_back(list.item(i));
  return out;
}

constexpr std::string_view kKnownPreTokenizers =
    "the pre-tokenizer of Llama 4, Llama 3, GPT-2 or SmolLM";

PreTokenizer pre_tokenizer_of(const Node& node) {
  const std::vector<Node> parts = members(node, "pretokenizers");
  std::string found;
  for (const Node& part : parts) found += (found.empty() ? "" : " + ") + type_name(part);
  if (parts.empty() || type_name(parts.back()) != "ByteLevel" || parts.size() > 2) {
    node.unsupported(kKnownPreTokenizers, found.empty() ? "nothing" : found);
  }
  const Node& byte_level = parts.back();
  if (byte_level["add_prefix_space"].flag(true)) {
    byte_level["add_prefix_space"].unsupported("false", "true");
  }
  const bool use_regex = byte_level["use_regex"].flag(true);
  if (parts.size() == 1 && use_regex) return PreTokenizer::kGpt2;
  if (parts.size() == 2 && use_regex && type_name(parts[0]) == "Digits") {
    if (parts[0]["individual_digits"].flag(false)) return PreTokenizer::kSmolLm;
    parts[0]["individual_digits"].unsupported("true", "false");
  }
  if (parts.size() == 2 && !use_regex && type_name(parts[0]) == "Split") {
    const Node& split = parts[0];
    if (split["behavior"].text() != "Isolated") {
      split["behavior"].unsupported("Isolated", split["behavior"].text());
    }
    if (split["invert"].flag(false)) split["invert"].unsupported("false", "true");
    const Node pattern = split["pattern"]["Regex"];
    if (pattern.empty()) split["pattern"].unsupported("a Regex", "something else");
    if (pattern.text() == kLlama4Pattern) return PreTokenizer::kLlama4;
    if (pattern.text() == kLlama3Pattern) return PreTokenizer::kLlama3;
    pattern.unsupported(kKnownPreTokenizers, pattern.text());
  }
  node.unsupported(kKnownPreTokenizers, found + (use_regex ? " with" : " without") + " use_regex");
}

// What would change the text or the merges in a way that we do not follow.
void refuse_other_pipelines(const Node& root) {
  const Node model = root["model"];
  if (!model["type"].empty() && model["type"].text() != "BPE") {
    model["type"].unsupported("BPE", model["type"].text());
  }
  if (model["byte_fallback"].flag(false)) model["byte_fallback"].unsupported("false", "true");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix", "unk_token"}) {
    if (!model[key].empty() && !model[key].text().empty()) {
      model[key].unsupported("nothing", model[key].text());
    }
  }
  if (!model["dropout"].empty()) model["dropout"].unsupported("nothing", "a number");
  const Node normalizer = root["normalizer"];
  if (!members(normalizer, "normalizers").empty()) {
    normalizer.unsupported("nothing", type_name(normalizer));
  }
  const Node decoder = root["decoder"];
  if (!decoder.empty() && type_name(decoder) != "ByteLevel") {
    decoder.unsupported("ByteLevel", type_name(decoder));
  }
}

// Where the token of an id stands; the vocabulary grows to hold it.
size_t make_room(Vocabulary& v, Token id) {
  const size_t size = static_cast<size_t>(id) + 1;
  if (v.tokens.size() < size) {
    v.tokens.resize(size);
    v.kinds.resize(size, TokenKind::kUnused);
  }
  return size - 1;
}

void read_tokens(const Node& root, Vocabulary& v) {
  const Node vocab = root["model"]["vocab"];
  for (const auto& entry : vocab.object()) {
    const std::string_view key{entry.key().data(), entry.key().size()};
    const Node value(&entry.value(), fmt::format("{}: \"{}\"", vocab.path(), printable(key)));
    const Token id = value.id();
    const size_t i = make_room(v, id);
    if (v.kinds[i] != TokenKind::kUnused) {
      throw_error(ErrorKind::kBadData, "{}: id {} stands twice, the second time for \"{}\"",
                  vocab.path(), id, printable(key));
    }
    // A token outside the byte alphabet is its own text, which no merge makes.
    v.tokens[i] = alphabet_to_bytes(key).value_or(std::string(key));
    v.kinds[i] = TokenKind::kNormal;
  }
  const Node added = root["added_tokens"];
  for (size_t i = 0; !added.empty() && i < added.array().size(); ++i) {
    const Node token = added.item(i);
    for (const char* key : {"single_word", "lstrip", "rstrip"}) {
      if (token[key].flag(false)) token[key].unsupported("false", "true");
    }
    const size_t at = make_room(v, token["id"].id());
    v.tokens[at] = token["content"].text();
    v.kinds[at] = token["special"].flag(false) ? TokenKind::kControl : TokenKind::kUserDefined;
  }
}

void read_merges(const Node& root, Vocabulary& v) {
  // Parts name vocabulary entries, also those that an added token has taken over.
  const json::object& vocab = root["model"]["vocab"].object();
  const Node merges = root["model"]["merges"];
  const json::array& array = merges.array();
  if (array.size() > kMaxMerges) {
    throw_error(ErrorKind::kLimit, "{}: expected at most {}, got {}", merges.path(), kMaxMerges,
                array.size());
  }
  v.merges.reserve(array.size());
  for (size_t i = 0; i < array.size(); ++i) {
    std::string_view sides[2];
    if (array[i].is_string()) {
      const std::string_view merge = text_of(array[i].get_string());
      const size_t space = merge.find(' ');
      if (space != std::string_view::npos) {
        sides[0] = merge.substr(0, space);
        sides[1] = merge.substr(space + 1);
      }
    } else if (array[i].is_array() && array[i].get_array().size() == 2) {
      for (size_t side = 0; side < 2; ++side) {
        const json::string* text = array[i].get_array()[side].if_string();
        if (text) sides[side] = text_of(*text);
      }
    }
    Token parts[2] = {-1, -1};
    for (int side = 0; side < 2; ++side) {
      const json::value* id = vocab.if_contains({sides[side].data(), sides[side].size()});
      if (id) parts[side] = static_cast<Token>(id->get_int64());
    }
    if (parts[0] < 0 || parts[1] < 0) {
      merges.item(i).fail("two tokens of the vocabulary");
    }
    v.merges.emplace_back(parts[0], parts[1]);
  }
}

// TemplateProcessing says what stands around a text: at most a begin-of-text token before it.
void read_post_processor(const Node& node, const TokenIndex& special, Vocabulary& v) {
  for (const Node& part : members(node, "processors")) {
    const std::string type = type_name(part);
    if (type == "ByteLevel") continue;
    if (type != "TemplateProcessing") part.unsupported("ByteLevel or TemplateProcessing", type);
    const Node single = part["single"];
    const size_t size = single.array().size();
    if (size == 0 || size > 2 || single.item(size - 1)["Sequence"].empty()) {
      single.unsupported("a token and the text, or the text alone", "another form");
    }
    if (size == 2) {
      const Node name = single.item(0)["SpecialToken"]["id"];
      const Token id = special.find(name.text());
      if (id < 0) name.fail("a special token");
      v.bos = id;
      v.add_bos = true;
    }
  }
}

// "bos_token": "<s>", or {"content": "<s>", ...}, or null.
std::optional<Token> named_token(const Node& node, const TokenIndex& special) {
  if (node.empty()) return std::nullopt;
  const Token id = special.find(node.is_text() ? node.text() : node["content"].text());
  if (id < 0) return std::nullopt;
  return id;
}

void read_config(const Node& config, const TokenIndex& special, Vocabulary& v) {
  if (const auto bos = named_token(config["bos_token"], special)) v.bos = bos;
  v.eos = named_token(config["eos_token"], special);
  // Llama 4's converted configurations name a padding token that does not exist (spec 7.5).
  v.pad = named_token(config["pad_token"], special);
  for (const char* key : {"bos_token", "eos_token"}) {
    if (!config[key].empty() && !named_token(config[key], special)) {
      config[key].fail("a special token of tokenizer.json");
    }
  }
  v.add_bos = config["add_bos_token"].flag(v.add_bos);
  const Node chat = config["chat_template"];
  if (chat.is_array()) {  // several named ones
    for (size_t i = 0; i < chat.array().size(); ++i) {
      if (chat.item(i)["name"].text() == "default") {
        v.chat_template = chat.item(i)["template"].text();
      }
    }
  } else if (!chat.empty()) {
    v.chat_template = chat.text();
  }
}

}  // namespace

Vocabulary vocabulary_from_tokenizer_json(std::string_view text, std::string_view source_name,
                                          std::optional<std::string_view> config_text) {
  for (const std::string_view part : {text, config_text.value_or("")}) {
    if (part.size() > kMaxTokenizerJsonBytes) {
      throw_error(ErrorKind::kLimit, "{}: expected at most {} bytes, got {}", source_name,
                  kMaxTokenizerJsonBytes, part.size());
    }
  }
  Vocabulary v;
  v.source = source_name;
  {
    // The parsed file is freed before anything else is built.
    CappedMemory memory(source_name, text);
    const json::value value = parse(text, source_name, &memory);
    const Node root(&value, v.source);
    refuse_other_pipelines(root);
    v.pre = pre_tokenizer_of(root["pre_tokenizer"]);
    v.ignore_merges = root["model"]["ignore_merges"].flag(false);
    read_tokens(root, v);
    read_merges(root, v);

    TokenIndex special(v.tokens, v.tokens.size());
    for (size_t i = 0; i < v.tokens.size(); ++i) {
      if (v.kinds[i] == TokenKind::kControl) special.insert(static_cast<Token>(i));
    }
    read_post_processor(root["post_processor"], special, v);
    if (config_text) {
      CappedMemory config_memory(source_name, *config_text);
      const std::string config_name = v.source + " with tokenizer_config.json";
      const json::value config = parse(*config_text, config_name, &config_memory);
      read_config(Node(&config, config_name), special, v);
    }
  }
  find_stops(v);
  return v;
}

}  // namespace drover
