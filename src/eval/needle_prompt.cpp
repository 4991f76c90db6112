#include "eval/needle_prompt.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <random>

#include "base/error.h"
#include "base/mapped_file.h"

namespace drover {
namespace {

constexpr std::string_view kWho[] = {
    "The baker",        "A tired sailor",   "Our neighbour",   "The old teacher",
    "A young gardener", "The night porter", "His sister",      "The clockmaker",
    "A quiet student",  "The ferryman",     "Her grandfather", "The village doctor",
    "A passing tinker", "The new tenant",   "The librarian",   "A retired pilot"};
constexpr std::string_view kDid[] = {
    "carried",  "painted", "repaired", "forgot",   "sold", "hid",      "described", "borrowed",
    "measured", "admired", "returned", "polished", "lost", "unpacked", "sketched",  "guarded"};
constexpr std::string_view kWhat[] = {
    "a blue basket",     "the broken clock", "a bag of pears",    "an iron lantern",
    "the winter coats",  "a small boat",     "the copper kettle", "a wooden ladder",
    "the garden chairs", "a bundle of maps", "the heavy curtain", "an empty birdcage",
    "the church bell",   "a pair of gloves", "the spare oars",    "a jar of honey"};
constexpr std::string_view kWhere[] = {
    "by the river",         "behind the mill",     "near the station",  "in the empty market",
    "under the bridge",     "beside the old wall", "on the upper road", "at the edge of the wood",
    "in the narrow lane",   "below the castle",    "across the square", "outside the tavern",
    "at the harbour steps", "in the back garden",  "along the canal",   "next to the well"};
constexpr std::string_view kWhen[] = {
    "before dawn",          "after the rain",        "on a Sunday",         "late in the evening",
    "while the others ate", "during the long frost", "when spring came",    "without a word",
    "as the fog lifted",    "for the second time",   "to general surprise", "at the usual hour"};

// Sentences of the made-up text, some hundred thousand different ones.
std::string made_up_text(uint64_t seed, int64_t sentences) {
  std::mt19937_64 random(seed);
  const auto of = [&](std::span<const std::string_view> words) {
    return words[random() % words.size()];
  };
  std::string out;
  for (int64_t i = 1; i <= sentences; ++i) {
    out += fmt::format("{} {} {} {}", of(kWho), of(kDid), of(kWhat), of(kWhere));
    if (random() % 2 == 0) out += fmt::format(" {}", of(kWhen));
    out += i % 8 == 0 ? ".\n\n" : ". ";
  }
  return out;
}

// FNV-1a: tells files apart that were not made to be alike.
uint64_t hash(std::string_view text) {
  uint64_t h = 0xcbf29ce484222325;
  for (const unsigned char c : text) h = (h ^ c) * 0x100000001b3;
  return h;
}

class Places {
 public:
  // body: tokens of the haystack, the first at position `head` of the prompt.
  Places(int64_t body, int64_t head, int64_t chunk) : body_(body), head_(head), chunk_(chunk) {}

  // The free place nearest to `want` for so many tokens, inside a chunk if they fit one.
  std::optional<int64_t> nearest(int64_t want, int64_t count) const {
    std::vector<int64_t> candidates = {want, 0, body_ - count};
    for (const auto& span : taken_) {
      candidates.push_back(span.first + span.count);
      candidates.push_back(span.first - count);
    }
    if (chunk_ > 0) {
      for (size_t i = 0, n = candidates.size(); i < n; ++i) {
        const int64_t border = border_before(candidates[i] + count - 1);
        candidates.push_back(border);
        candidates.push_back(border - count);
      }
    }
    std::optional<int64_t> best;
    for (const int64_t at : candidates) {
      if (!is_free(at, count)) continue;
      if (!best || std::abs(at - want) < std::abs(*best - want)) best = at;
    }
    return best;
  }

  // The place over the border nearest to `want`.
  std::optional<int64_t> across(int64_t want, int64_t count) const {
    if (chunk_ == 0) return std::nullopt;
    std::optional<int64_t> best;
    const int64_t middle = border_before(want + count / 2);
    for (const int64_t border : {middle - chunk_, middle, middle + chunk_, middle + 2 * chunk_}) {
      const int64_t at = border - count / 2;
      if (at < 0 || at + count > body_ || border <= at) continue;
      if (!best || std::abs(at - want) < std::abs(*best - want)) best = at;
    }
    return best;
  }

  void take(int64_t first, int64_t count) { taken_.push_back({first, count}); }

 private:
  // The last border at or before a place of the body, as such a place.
  int64_t border_before(int64_t at) const { return (head_ + at) / chunk_ * chunk_ - head_; }

  bool is_free(int64_t at, int64_t count) const {
    if (at < 0 || at + count > body_) return false;
    for (const auto& span : taken_) {
      if (at < span.first + span.count && span.first < at + count) return false;
    }
    const bool inside =
        chunk_ == 0 || count > chunk_ || (head_ + at) / chunk_ == (head_ + at + count - 1) / chunk_;
    return inside;
  }

  int64_t body_, head_, chunk_;
  std::vector<NeedlePrompt::Span> taken_;
};

}  // namespace

// What two prompts with different texts share. Both words are as long as a token of byte_layout().
PromptFrame frame_of(const PromptLayout& layout, std::string_view preface,
                     std::string_view question) {
  const auto with = [&](std::string_view body) {
    return layout.render(fmt::format("{}{}\n\n{}", preface, body, question));
  };
  const std::vector<Token> a = with("Wood"), b = with("Zinc");
  const size_t shorter = std::min(a.size(), b.size());
  size_t head = 0, tail = 0;
  while (head < shorter && a[head] == b[head]) ++head;
  while (tail < shorter - head && a[a.size() - 1 - tail] == b[b.size() - 1 - tail]) ++tail;
  return {{a.begin(), a.begin() + static_cast<int64_t>(head)},
          {a.end() - static_cast<int64_t>(tail), a.end()}};
}

PromptLayout byte_layout() {
  constexpr size_t kBytes = sizeof(Token);
  PromptLayout out;
  out.encode = [](std::string_view text) {
    std::vector<Token> tokens((text.size() + kBytes - 1) / kBytes);
    std::string padded(text);
    padded.resize(tokens.size() * kBytes, ' ');
    if (!tokens.empty()) std::memcpy(tokens.data(), padded.data(), padded.size());
    return tokens;
  };
  out.decode = [](std::span<const Token> tokens) {
    std::string text(tokens.size() * kBytes, ' ');
    if (!tokens.empty()) std::memcpy(text.data(), tokens.data(), text.size());
    return text;
  };
  out.render = out.encode;
  return out;
}

Haystack Haystack::made_up(const PromptLayout& layout) {
  Haystack out;
  out.name_ = "made up, version 1";
  out.more_ = [encode = layout.encode, seed = uint64_t{1}](std::vector<Token>& tokens) mutable {
    const std::vector<Token> more = encode(made_up_text(seed++, 4096));
    tokens.insert(tokens.end(), more.begin(), more.end());
  };
  return out;
}

Haystack Haystack::from_files(const PromptLayout& layout,
                              std::span<const std::filesystem::path> files) {
  std::string text;
  for (const auto& file : files) text += read_file(file, size_t{1} << 30);
  const auto once = std::make_shared<std::vector<Token>>(layout.encode(text));
  if (once->empty()) {
    throw_error(ErrorKind::kUsage, "haystack: expected files with text, got {} without",
                files.size());
  }
  Haystack out;
  out.name_ = fmt::format("{} bytes, hash {:016x}", text.size(), hash(text));
  out.more_ = [once](std::vector<Token>& tokens) {
    tokens.insert(tokens.end(), once->begin(), once->end());
  };
  return out;
}

std::span<const Token> Haystack::tokens(int64_t count) {
  while (static_cast<int64_t>(tokens_.size()) < count) more_(tokens_);
  return std::span<const Token>(tokens_).first(static_cast<size_t>(count));
}

// The question once more and its numbers, digit by digit.
int64_t answer_tokens(const NeedleTask& task) {
  return 32 + 16 * static_cast<int64_t>(task.expected.size());
}

int64_t needle_room(int64_t length) { return std::clamp<int64_t>(length / 4 / 32, 2, 64); }

NeedlePrompt lay_out(const PromptLayout& layout, Haystack& haystack, const NeedleTask& task,
                     int64_t length, bool across_border) {
  const PromptFrame frame = frame_of(layout, kNeedlePreface, task.question);
  const auto head = static_cast<int64_t>(frame.head.size());
  const int64_t max_tokens = answer_tokens(task);
  const int64_t body = length - head - static_cast<int64_t>(frame.tail.size()) - max_tokens;
  std::vector<std::vector<Token>> needles;
  int64_t needed = 1;
  for (const NeedleTask::Needle& needle : task.needles) {
    needles.push_back(layout.encode("\n" + needle.text + "\n"));
    needed += static_cast<int64_t>(needles.back().size());
  }
  const auto too_short = [&] {
    throw Error(ErrorKind::kUsage,
                fmt::format("lengths: expected at least {} tokens for question, answer and {} "
                            "needles, got {}",
                            length - body + 2 * needed, needles.size(), length),
                "choose longer --lengths or other --kinds");
  };
  if (body < needed) too_short();

  NeedlePrompt out;
  out.max_tokens = max_tokens;
  out.first_body = head;
  std::vector<Token> hay(haystack.tokens(body).begin(), haystack.tokens(body).end());
  Places places(body, head, layout.chunk);
  for (size_t i = 0; i < needles.size(); ++i) {
    const auto count = static_cast<int64_t>(needles[i].size());
    int64_t want = std::llround(task.needles[i].depth *
                                static_cast<double>(std::max<int64_t>(0, body - count)));
    // A sentence that begins is better cut off than one that ends.
    for (int64_t back = 0; back < 32 && back < want; ++back) {
      const std::string before =
          layout.decode(haystack.tokens(body).subspan(static_cast<size_t>(want - back - 1), 1));
      if (before.find_first_of(".\n") != std::string::npos) {
        want -= back;
        break;
      }
    }
    const bool over = across_border && i == 0;
    const auto at = over ? places.across(want, count) : places.nearest(want, count);
    if (!at && over) {
      throw_error(ErrorKind::kUsage,
                  "across-border: expected a border between chunks in {} tokens, there is none",
                  length);
    }
    if (!at) too_short();
    places.take(*at, count);
    std::copy(needles[i].begin(), needles[i].end(), hay.begin() + *at);
    out.needles.push_back({head + *at, count});
  }
  out.tokens = frame.head;
  out.tokens.insert(out.tokens.end(), hay.begin(), hay.end());
  out.tokens.insert(out.tokens.end(), frame.tail.begin(), frame.tail.end());
  out.content = fmt::format("{}{}\n\n{}", kNeedlePreface, layout.decode(hay), task.question);
  DROVER_CHECK(static_cast<int64_t>(out.tokens.size()) + max_tokens == length);
  return out;
}

}  // namespace drover
