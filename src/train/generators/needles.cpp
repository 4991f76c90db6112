// "needles": facts with random values, hidden at any depth of a running text, and questions for
// some of them at its end. The values are learnt.
//
//   files      [..]   the running text (each one's last tenth is held out); without it sentences
//                     that are made up
//   most       8      needles of a document, of which the text holds one per
//   apart      128    tokens at most
//   questions  4      of a document, at most, and one per 128 tokens
//   measured   0.4    share of documents that look as those of `drover needle`, with the tasks of
//                     `kinds` ["single", "multi-key", "near-duplicate"] (eval/needle_task.h)
//   similar    0.5    share of the others whose keys come in groups, of two at least, that differ
//                     in one part
//   cut        0.25   share of documents of which a border between chunks surely cuts the questions
//   chunk      512    of local attention; and
//   across     0.1    share of documents in which a needle is put over a border between chunks
//   fragments  0      share of documents strewn with pieces of their needles, of at most three
//                     tokens: a long text has by chance whatever of a key is that short
//   weight     4      of an answer's tokens
//   repeats    4096   virtual repetition (train/example.h) up to so many times, log-uniform; and
//   repeated   0.5    the share of documents that have it
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "eval/needle_local.h"
#include "eval/needle_prompt.h"
#include "train/generators/generator.h"
#include "train/generators/generators.h"
#include "train/generators/needle_sentences.h"

namespace drover {
namespace {

constexpr std::string_view kPrefaces[] = {"", "Read this text.\n\n",
                                          "Here is a long text. A question follows it.\n\n"};

// What is hidden and what is asked.
struct Task {
  std::string preface;
  std::vector<std::string> needles;
  size_t required = 0;  // of the needles, the first ones; the others may be left out
  struct Asked {
    std::string question, answer;
    // What is answered where a border lies between question and answer. Layers with chunks do not
    // see the question from there, and the last layer, which does, cannot look for a key that it
    // has yet to read: said again, the key is there for them.
    std::string statement;
  };
  std::vector<Asked> turns;
};

class Needles : public Generator {
 public:
  Needles(const boost::json::object& settings, const SourceContext& context)
      : Generator(settings, context,
                  {"files", "most", "questions", "apart", "measured", "kinds", "similar", "cut",
                   "chunk", "across", "fragments", "repeats", "repeated"},
                  /*weight=*/4),
        layout_(model_layout(*context.tokenizer, context.format)),
        text_(read_all("files"), context),
        most_(size_setting("most", 8, 1, 1024)),
        apart_(size_setting("apart", 128, 1, 1 << 20)),
        questions_(size_setting("questions", 4, 1, 1024)),
        chunk_(size_setting("chunk", 512, 2, 1 << 20)),
        repeats_(size_setting("repeats", 4096, 1, 1 << 24)),
        measured_(share_setting("measured", 0.4)),
        similar_(share_setting("similar", 0.5)),
        across_(share_setting("across", 0.1)),
        cut_(share_setting("cut", 0.25)),
        fragments_(share_setting("fragments", 0)),
        repeated_(share_setting("repeated", 0.5)) {
    for (const std::string_view kind : names_setting("kinds")) {
      kinds_.push_back(needle_kind_from_name(kind));
    }
    if (kinds_.empty()) {
      kinds_ = {NeedleKind::kSingle, NeedleKind::kMultiKey, NeedleKind::kNearDuplicate};
    }
    if (context.format == ChatFormat::kNone) {
      throw_error(ErrorKind::kBadData, "{}: expected a model with a chat format", name());
    }
  }

  Example example(uint64_t seed, uint64_t index, int64_t length) const override {
    Random random = draws(context_, seed, index);
    const Task task = random.chance(measured_) ? measured(random, length) : own(random, length);
    return lay_out(random, task, length);
  }

 private:
  Task measured(Random& random, int64_t length) const {
    // Seeds of measurements are small numbers.
    const uint64_t seed = random.next() | uint64_t{1} << 40;
    const int64_t room = std::clamp<int64_t>(length / apart_, 2, 64);
    const NeedleTask asked = make_needle_task(pick(random, kinds_), seed, 0.5, room);
    Task out{std::string(kNeedlePreface),
             {},
             asked.needles.size() - asked.decoys.size(),
             {{asked.question, listed(asked.expected), stated(asked.needles[0])}}};
    for (const NeedleTask::Needle& needle : asked.needles) {
      out.needles.push_back("\n" + needle.text + "\n");
    }
    // Then for some of the others, each of which has a decoy of its own.
    for (int64_t more = random.between(1, most_questions(length)) - 1;
         more > 0 && out.required < asked.needles.size(); --more) {
      const size_t i = out.required++;
      const size_t decoy = i - (asked.needles.size() - asked.decoys.size());
      const NeedleTask::Needle& needle = asked.needles[i];
      out.turns.push_back({needle.question, asked.decoys[decoy], stated(needle)});
    }
    return out;
  }

  Task own(Random& random, int64_t length) const {
    const int64_t room = std::clamp<int64_t>(length / apart_, 1, most_);
    const int64_t count = random.between(1, room);
    const int64_t alike =
        random.chance(similar_) ? random.between(2, std::max<int64_t>(2, count)) : 1;
    const auto facts = hidden_facts(random, count, alike);
    const int64_t asked = random.between(1, std::min(most_questions(length), count));
    Task out{std::string(pick(random, kPrefaces)), {}, static_cast<size_t>(asked), {}};
    const std::string_view around = random.chance(0.7) ? "\n" : " ";
    for (const HiddenFact& fact : facts) {
      out.needles.push_back(fmt::format("{}{}{}", around, fact.sentence, around));
    }
    for (size_t i = 0; i < out.required; ++i) {
      out.turns.push_back({facts[i].question, facts[i].value, facts[i].statement});
    }
    return out;
  }

  // Empty for needles that have no question of their own.
  static std::string stated(const NeedleTask::Needle& needle) {
    return needle.question.empty() ? "" : needle.text;
  }

  // That there is room for, with their needles and answers.
  int64_t most_questions(int64_t length) const {
    return std::clamp<int64_t>(length / 128, 1, questions_);
  }

  Example lay_out(Random& random, const Task& task, int64_t length) const {
    const Tokenizer& tokenizer = *context_.tokenizer;
    const PromptFrame frame = frame_of(layout_, task.preface, task.turns[0].question);
    std::vector<std::vector<Token>> needles;
    int64_t needed = 0;
    for (const std::string& needle : task.needles) {
      needles.push_back(tokenizer.encode(needle));
      needed += static_cast<int64_t>(needles.back().size());
    }
    const auto head = static_cast<int64_t>(frame.head.size());
    const int64_t behind = std::ssize(tail_at(0, frame, task, Answers::kShort).tokens);
    const int64_t most_behind = std::ssize(tail_at(0, frame, task, Answers::kStated).tokens);
    const int64_t total = tokens_of(random, length - (most_behind - behind), head + needed, behind);
    const int64_t body = total - head - behind;
    while (body < needed && needles.size() > task.required) {
      needed -= static_cast<int64_t>(needles.back().size());
      needles.pop_back();
    }
    if (body < needed && task.turns.size() > 1) {
      Task fewer = task;  // of whose questions each but the first is for a needle more
      fewer.turns.pop_back();
      --fewer.required;
      return lay_out(random, fewer, length);
    }
    if (body < needed) {
      throw_error(ErrorKind::kBadData,
                  "source of kind 'needles': length: expected at least {} tokens, got {}",
                  head + needed + most_behind, length);
    }
    shuffle(random, needles);
    const std::vector<int64_t> places = places_of(random, needles, body, head);

    Example out;
    append(out, frame.head, 0);
    append(out, text_.window(random, body), 0);
    out.filler.assign(out.tokens.size(), 1);
    std::fill_n(out.filler.begin(), head, uint8_t{0});
    for (size_t i = 0; i < needles.size(); ++i) {
      std::copy(needles[i].begin(), needles[i].end(), out.tokens.begin() + head + places[i]);
      std::fill_n(out.filler.begin() + head + places[i], needles[i].size(), uint8_t{0});
    }
    if (fragments_ > 0 && random.chance(fragments_)) strew(random, needles, head, out);
    const Example tail = tail_at(head + body, frame, task, Answers::kAsBordersAre);
    out.tokens.insert(out.tokens.end(), tail.tokens.begin(), tail.tokens.end());
    out.weights.insert(out.weights.end(), tail.weights.begin(), tail.weights.end());
    out.filler.resize(out.tokens.size(), 0);
    if (repeats_ > 1 && random.chance(repeated_)) {
      const auto doublings = static_cast<int64_t>(std::log2(static_cast<double>(repeats_)));
      out.repeats = std::ldexp(1 + random.uniform(),
                               static_cast<int>(random.below(std::max<int64_t>(1, doublings))));
    }
    return out;
  }

  // Puts pieces of the needles over filler, from token `head` on: at most one per 12 tokens.
  static void strew(Random& random, std::span<const std::vector<Token>> needles, int64_t head,
                    Example& out) {
    const int64_t body = std::ssize(out.tokens) - head;
    for (int64_t left = random.between(1, std::max<int64_t>(1, body / 12)); left > 0; --left) {
      const std::vector<Token>& needle =
          needles[static_cast<size_t>(random.below(std::ssize(needles)))];
      const int64_t count = std::min<int64_t>(random.between(1, 3), std::ssize(needle));
      const auto from = needle.begin() + random.between(0, std::ssize(needle) - count);
      const int64_t at = head + random.between(0, std::max<int64_t>(0, body - count));
      const auto over = out.filler.begin() + at;
      const bool free = at + count <= std::ssize(out.tokens) &&
                        std::all_of(over, over + count, [](uint8_t f) { return f != 0; });
      if (free) std::copy_n(from, count, out.tokens.begin() + at);
    }
  }

  enum class Answers { kShort, kStated, kAsBordersAre };

  // What comes after the text, at token `first` of the document: questions and answers.
  Example tail_at(int64_t first, const PromptFrame& frame, const Task& task,
                  Answers answers) const {
    const Tokenizer& tokenizer = *context_.tokenizer;
    const Token end = end_of_turn(context_);
    Example tail;
    for (size_t i = 0; i < task.turns.size(); ++i) {
      const Task::Asked& asked = task.turns[i];
      const int64_t question = first + std::ssize(tail.tokens);
      if (i == 0) {
        append(tail, frame.tail, 0);
      } else {
        const auto next = render_next_turn(context_.format, tokenizer, {"user", asked.question});
        append(tail, std::span(next).subspan(1), 0);
      }
      const int64_t answer = first + std::ssize(tail.tokens);
      const bool cut = question / chunk_ != answer / chunk_;
      const bool states = !asked.statement.empty() && answers != Answers::kShort &&
                          (cut || answers == Answers::kStated);
      append(tail, tokenizer.encode(states ? asked.statement : asked.answer), weight_);
      append(tail, {&end, 1}, weight_);
    }
    return tail;
  }

  // How long a document is, of `before` tokens at least and those of its questions and answers: it
  // ends anywhere in a chunk, and often enough where a border cuts a question, whose beginning only
  // global layers see then.
  int64_t tokens_of(Random& random, int64_t length, int64_t before, int64_t behind) const {
    const int64_t most = random.chance(cut_) ? std::min(behind, chunk_) : chunk_;
    const int64_t end = random.below(most);  // tokens behind the last border
    const int64_t out = (length - end) / chunk_ * chunk_ + end;
    return out < before + behind ? length : out;
  }

  // Where needles stand in the text, increasing, evenly over all ways to place them.
  std::vector<int64_t> places_of(Random& random, std::span<const std::vector<Token>> needles,
                                 int64_t body, int64_t head) const {
    int64_t room = body;
    for (const auto& needle : needles) room -= static_cast<int64_t>(needle.size());
    std::vector<int64_t> out;
    for (size_t i = 0; i < needles.size(); ++i) out.push_back(random.between(0, room));
    std::sort(out.begin(), out.end());
    int64_t before = 0;
    for (size_t i = 0; i < needles.size(); ++i) {
      out[i] += before;
      before += static_cast<int64_t>(needles[i].size());
    }
    if (!random.chance(across_)) return out;
    // All move together, so that one of them has a border in its middle.
    const auto cut = static_cast<size_t>(random.below(static_cast<int64_t>(needles.size())));
    const int64_t middle = head + out[cut] + static_cast<int64_t>(needles[cut].size()) / 2;
    const int64_t border = (middle + chunk_ / 2) / chunk_ * chunk_;
    const int64_t by = border - middle;
    const int64_t last = out.back() + static_cast<int64_t>(needles.back().size());
    if (border == 0 || out.front() + by < 0 || last + by > body) return out;
    for (int64_t& place : out) place += by;
    return out;
  }

  PromptLayout layout_;
  RunningText text_;
  std::vector<NeedleKind> kinds_;
  int64_t most_, apart_, questions_, chunk_;
  int64_t repeats_;
  double measured_, similar_, across_, cut_, fragments_, repeated_;
};

}  // namespace

std::unique_ptr<Source> make_needles(const boost::json::object& settings,
                                     const SourceContext& context) {
  return std::make_unique<Needles>(settings, context);
}

}  // namespace drover
