// {"kind": "text"}: running text, tokenised once.
#include <algorithm>

#include "base/error.h"
#include "train/data/files.h"
#include "train/data/kinds.h"
#include "train/random.h"

namespace drover {
namespace {

// Tokens in as few bytes as the vocabulary allows.
class TokenArray {
 public:
  explicit TokenArray(int64_t vocabulary) : wide_(vocabulary > 65'536) {}

  void append(std::span<const Token> tokens) {
    if (wide_) {
      tokens32_.insert(tokens32_.end(), tokens.begin(), tokens.end());
    } else {
      for (const Token token : tokens) tokens16_.push_back(static_cast<uint16_t>(token));
    }
  }
  void copy(int64_t begin, int64_t end, std::vector<Token>& out) const {
    if (wide_) {
      out.insert(out.end(), tokens32_.begin() + begin, tokens32_.begin() + end);
    } else {
      out.insert(out.end(), tokens16_.begin() + begin, tokens16_.begin() + end);
    }
  }
  int64_t size() const { return static_cast<int64_t>(wide_ ? tokens32_.size() : tokens16_.size()); }
  void shrink() {
    tokens32_.shrink_to_fit();
    tokens16_.shrink_to_fit();
  }

 private:
  bool wide_;
  std::vector<uint16_t> tokens16_;
  std::vector<uint32_t> tokens32_;
};

std::string_view trim_newlines(std::string_view text) {
  while (!text.empty() && (text.front() == '\n' || text.front() == '\r')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.remove_suffix(1);
  return text;
}

std::optional<Token> end_of_text(const Tokenizer& tokenizer) {
  const auto token = tokenizer.special("<|end_of_text|>");
  return token ? token : tokenizer.special("<|endoftext|>");
}

class TextSource final : public Source {
 public:
  TextSource(const SourceContext& context, DataFiles data, std::string_view split)
      : name_(data.source),
        tokenizer_(*context.tokenizer),
        tokens_(tokenizer_.size()),
        end_(end_of_text(tokenizer_)) {
    if (tokenizer_.vocabulary().add_bos) bos_ = tokenizer_.vocabulary().bos;
    for (size_t file = 0; file < data.paths.size(); ++file) {
      const std::string text = read_data(data, file);
      const std::string& file_name = data.files[file].name;
      if (split.empty()) {
        if (data.takes(file_name)) add(text, file_name);
        continue;
      }
      int64_t number = 1;
      for (size_t at = 0; at <= text.size(); ++number) {
        const size_t end = std::min(text.find(split, at), text.size());
        const auto part = trim_newlines(std::string_view(text).substr(at, end - at));
        if (data.takes(part)) add(part, fmt::format("{}, part {}", file_name, number));
        at = end + split.size();
      }
    }
    tokens_.shrink();
    facts_.files = std::move(data.files);
    facts_.tokens = tokens_.size();
  }

  bool empty() const { return tokens_.size() == 0; }
  std::string_view name() const override { return name_; }
  SourceFacts facts() const override { return facts_; }

  Example example(uint64_t seed, uint64_t index, int64_t length) const override {
    Random random(seed, index);
    // A token of all, and with it a document: long ones come as often as they have tokens.
    const int64_t token = random.below(tokens_.size());
    const auto next = std::upper_bound(begins_.begin(), begins_.end(), token);
    const int64_t document = *(next - 1);
    const int64_t size = (next == begins_.end() ? tokens_.size() : *next) - document;
    const int64_t taken = std::min(size, length - (bos_ ? 1 : 0));
    // The token stands anywhere in its window, as far as the document goes.
    const int64_t before = random.below(std::max<int64_t>(taken, 1));
    const int64_t begin = std::clamp(token - before, document, document + size - taken);
    Example out;
    if (bos_) out.tokens.push_back(*bos_);
    tokens_.copy(begin, begin + taken, out.tokens);
    out.weights.assign(out.tokens.size(), 1.0f);
    return out;
  }

 private:
  void add(std::string_view text, std::string item) {
    if (text.empty()) return;
    std::vector<Token> tokens = tokenizer_.encode(text);
    if (end_) tokens.push_back(*end_);
    begins_.push_back(tokens_.size());
    tokens_.append(tokens);
    facts_.items.push_back({std::move(item), digest_of(text)});
  }

  std::string name_;
  Tokenizer tokenizer_;
  TokenArray tokens_;            // of all documents
  std::vector<int64_t> begins_;  // of each document
  std::optional<Token> bos_, end_;
  SourceFacts facts_;
};

}  // namespace

std::unique_ptr<Source> make_text_source(const boost::json::object& settings,
                                         const SourceContext& context) {
  const JsonFields fields = source_fields(settings);
  DataFiles data = data_files(fields, context, {"split"});
  auto out =
      std::make_unique<TextSource>(context, std::move(data), fields.text("split").value_or(""));
  if (out->empty()) return nullptr;
  return out;
}

}  // namespace drover
