#include "train/generators/generator.h"

#include <algorithm>

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/sha256.h"
#include "eval/needle_local.h"
#include "eval/needle_prompt.h"
#include "formats/gzip.h"
#include "train/data/dialogue.h"
#include "train/data/files.h"

namespace drover {
Generator::Generator(const boost::json::object& settings, const SourceContext& context,
                     std::initializer_list<std::string_view> known, double weight)
    : context_(context),
      settings_(source_fields(settings)),
      name_(settings_.text("name").value_or(settings_.required_text("kind"))),
      weight_(static_cast<float>(settings_.number("weight").value_or(weight))) {
  expect_only(settings_, {"kind", "name", "licence", "origin", "weight"}, known);
  if (!(weight_ > 0 && weight_ <= 1000)) {
    throw_error(ErrorKind::kBadData, "{}: weight: expected more than 0, at most 1000, got {}",
                settings_.where(), weight_);
  }
}

int64_t Generator::size_setting(std::string_view key, int64_t otherwise, int64_t least,
                                int64_t most) const {
  const int64_t value = settings_.integer(key).value_or(otherwise);
  if (value < least || value > most) {
    throw_error(ErrorKind::kBadData, "{}: {}: expected {} to {}, got {}", settings_.where(), key,
                least, most, value);
  }
  return value;
}

double Generator::share_setting(std::string_view key, double otherwise) const {
  const double value = settings_.number(key).value_or(otherwise);
  if (!(value >= 0 && value <= 1)) {
    throw_error(ErrorKind::kBadData, "{}: {}: expected 0 to 1, got {}", settings_.where(), key,
                value);
  }
  return value;
}

std::vector<std::string_view> Generator::names_setting(std::string_view key) const {
  return settings_.texts(key).value_or(std::vector<std::string_view>{});
}

std::string Generator::read(std::string_view file) {
  const std::filesystem::path path = context_.folder / file;
  {
    const MappedFile packed(path);
    facts_.files.push_back(
        {std::string(file), static_cast<int64_t>(packed.bytes().size()), sha256(packed.bytes())});
  }
  return read_unpacked(path, kMaxDataBytes);
}

std::vector<std::string> Generator::read_all(std::string_view key) {
  std::vector<std::string> out;
  for (const std::string_view name : names_setting(key)) out.push_back(read(name));
  return out;
}

bool Generator::has_file(std::string_view file) const {
  return std::filesystem::exists(context_.folder / file);
}

std::string with_article(std::string_view noun) {
  const bool vowel =
      !noun.empty() && std::string_view("aeiou").find(noun[0]) != std::string_view::npos;
  return fmt::format("{} {}", vowel ? "an" : "a", noun);
}

std::string capitalised(std::string_view text) {
  std::string out(text);
  if (!out.empty() && out[0] >= 'a' && out[0] <= 'z')
    out[0] = static_cast<char>(out[0] - 'a' + 'A');
  return out;
}

std::string listed(std::span<const std::string> things) {
  std::string out;
  for (size_t i = 0; i < things.size(); ++i) {
    if (i > 0) out += i + 1 == things.size() ? " and " : ", ";
    out += things[i];
  }
  return out;
}

void append(Example& example, std::span<const Token> tokens, float weight) {
  example.tokens.insert(example.tokens.end(), tokens.begin(), tokens.end());
  example.weights.resize(example.tokens.size(), weight);
}

Token end_of_turn(const SourceContext& context) {
  return render_next_turn(context.format, *context.tokenizer, {"user", ""}).front();
}

Example dialogue(const SourceContext& context, std::span<const Image> pictures,
                 std::span<const Turn> turns, int64_t length, float weight) {
  DROVER_CHECK(!turns.empty());
  const Tokenizer& tokenizer = *context.tokenizer;
  Example out;
  std::vector<Part> first;
  for (const Image& image : pictures) {
    first.push_back(picture_part(context, image, out.pictures));
  }
  first.push_back({turns[0].question});
  const Message opening("user", std::move(first));
  append(out, render_chat(context.format, tokenizer, {&opening, 1}, /*add_generation_prompt=*/true),
         0);
  const Token end = end_of_turn(context);
  for (size_t i = 0; i < turns.size(); ++i) {
    // What stands between two answers ends the first of them.
    std::vector<Token> between;
    if (i > 0) between = render_next_turn(context.format, tokenizer, {"user", turns[i].question});
    std::vector<Token> answer;
    if (turns[i].spelled) {
      for (const char& c : turns[i].answer) tokenizer.encode({&c, 1}, answer);
    } else {
      tokenizer.encode(turns[i].answer, answer);
    }
    const size_t all = out.tokens.size() + between.size() + answer.size() + 1;
    if (static_cast<int64_t>(all) > length) {
      if (i > 0) break;
      throw_error(ErrorKind::kBadData, "an example of {} tokens: expected at most {}", all, length);
    }
    if (i > 0) append(out, std::span(between).subspan(1), 0);
    append(out, answer, weight);
    append(out, {&end, 1}, weight);
  }
  return out;
}

RunningText::RunningText(std::span<const std::string> texts, const SourceContext& context) {
  const auto keep = [&](std::span<const Token> tokens) {
    const size_t border = tokens.size() - tokens.size() / 10;
    const auto part = context.held_out ? tokens.subspan(border) : tokens.first(border);
    tokens_.insert(tokens_.end(), part.begin(), part.end());
  };
  if (texts.empty()) {
    constexpr int64_t kMadeUp = 200'000;
    Haystack sentences = Haystack::made_up(model_layout(*context.tokenizer, ChatFormat::kNone));
    keep(sentences.tokens(kMadeUp));
  }
  for (const std::string& text : texts) keep(context.tokenizer->encode(text));
  if (tokens_.empty()) {
    throw_error(ErrorKind::kBadData, "running text: expected text in {} files, got none",
                texts.size());
  }
}

std::vector<Token> RunningText::window(Random& random, int64_t count) const {
  const auto size = static_cast<int64_t>(tokens_.size());
  const int64_t start = random.below(size);
  std::vector<Token> out(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    out[static_cast<size_t>(i)] = tokens_[static_cast<size_t>((start + i) % size)];
  }
  return out;
}

}  // namespace drover
