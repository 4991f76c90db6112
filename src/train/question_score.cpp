#include "train/question_score.h"

#include <algorithm>
#include <cmath>
#include <future>
#include <map>
#include <optional>

#include "base/error.h"

namespace drover {
namespace {

// Questions have numbers of their own, or a source that makes them up would ask what a training with
// the same seed was taught.
constexpr uint64_t kAsked = 0x61736b6564;  // "asked"

constexpr int64_t kMostAnswerTokens = 64;
constexpr int64_t kTogether = 64;  // questions that are answered at the same time

// Where a picture's tokens stand.
struct Span {
  size_t first = 0, end = 0;
};
std::optional<Span> picture_of(const std::vector<Token>& prompt, const Tokenizer& tokenizer) {
  const auto start = tokenizer.special("<|image_start|>"), end = tokenizer.special("<|image_end|>");
  if (!start || !end) return std::nullopt;
  const auto first = std::find(prompt.begin(), prompt.end(), *start);
  const auto last = std::find(first, prompt.end(), *end);
  if (last == prompt.end()) return std::nullopt;
  return Span{static_cast<size_t>(first - prompt.begin()),
              static_cast<size_t>(last - prompt.begin()) + 1};
}

// The question with another one's picture, or, if there is no other, without any.
Question with_picture_of(const Question& question, const Question* other,
                         const Tokenizer& tokenizer) {
  Question out = question;
  const Span at = *picture_of(question.prompt, tokenizer);
  const auto begin = out.prompt.begin() + static_cast<int64_t>(at.first);
  const auto place = out.prompt.erase(begin, out.prompt.begin() + static_cast<int64_t>(at.end));
  out.pictures.clear();
  if (other == nullptr) return out;
  const Span from = *picture_of(other->prompt, tokenizer);
  out.prompt.insert(place, other->prompt.begin() + static_cast<int64_t>(from.first),
                    other->prompt.begin() + static_cast<int64_t>(from.end));
  out.pictures = other->pictures;
  return out;
}

class Asker {
 public:
  Asker(Engine& engine, PictureEncoder* encoder, const Tokenizer& tokenizer)
      : engine_(engine),
        encoder_(encoder),
        stops_(chat_stop_tokens(ChatFormat::kLlama4, tokenizer)) {}

  std::vector<std::string> answers(std::span<const Question> questions) {
    // All tiles go through the encoder together.
    std::vector<TiledImage> pictures;
    for (const Question& question : questions) {
      pictures.insert(pictures.end(), question.pictures.begin(), question.pictures.end());
    }
    std::vector<std::shared_ptr<const EncodedPicture>> seen;
    if (!pictures.empty()) {
      DROVER_CHECK(encoder_ != nullptr);
      engine_.call([&] { seen = encoder_->encode(pictures); });
    }
    std::vector<Request> requests;
    auto next = seen.begin();
    for (const Question& question : questions) {
      Request request{.prompt = {question.prompt}};
      const auto end = next + static_cast<int64_t>(question.pictures.size());
      request.prompt.pictures.assign(next, end);
      next = end;
      request.options.sampling.temperature = 0;
      request.options.max_tokens = kMostAnswerTokens;
      request.options.stop_tokens = stops_;
      requests.push_back(std::move(request));
    }
    std::vector<std::promise<std::string>> said(requests.size());
    std::vector<Events> events;
    for (auto& promise : said) {
      events.push_back({.prompt = {},
                        .text = {},
                        .done = [&promise](std::vector<Answer> answers, std::exception_ptr error) {
                          if (error) {
                            promise.set_exception(error);
                          } else {
                            promise.set_value(answers.at(0).text);
                          }
                        }});
    }
    engine_.submit(std::move(requests), std::move(events));
    // All are waited for before one of them throws: the promises are theirs until then.
    std::vector<std::future<std::string>> futures;
    for (auto& promise : said) futures.push_back(promise.get_future());
    for (auto& future : futures) future.wait();
    std::vector<std::string> out;
    for (auto& future : futures) out.push_back(future.get());
    return out;
  }

 private:
  Engine& engine_;
  PictureEncoder* encoder_;
  std::vector<Token> stops_;
};

// What questions are answered by most often, in examples of which none is asked.
class Habits {
 public:
  void add(const Question& question) {
    ++answers_[question.text][question.expected];
    ++answers_[kAny][question.expected];
  }
  const std::string& answer(const std::string& question) const {
    const auto known = answers_.find(question);
    const Counts& counts = (known == answers_.end() ? answers_.find(kAny) : known)->second;
    return std::max_element(counts.begin(), counts.end(),
                            [](const auto& a, const auto& b) { return a.second < b.second; })
        ->first;
  }

 private:
  using Counts = std::map<std::string, int64_t>;
  static constexpr const char* kAny = "";  // for a question that was not there
  std::map<std::string, Counts> answers_;
};

}  // namespace

Interval interval_95(double share, int64_t trials) {
  if (trials <= 0) return {0, 1};
  constexpr double kDeviations = 1.959964;  // of the normal distribution, 2.5 % on each side
  const auto n = static_cast<double>(trials);
  const double z2 = kDeviations * kDeviations / n;
  const double middle = (share + z2 / 2) / (1 + z2);
  const double half = kDeviations * std::sqrt(share * (1 - share) / n + z2 / (4 * n)) / (1 + z2);
  return {std::max(0.0, middle - half), std::min(1.0, middle + half)};
}

Question first_question(const Example& example, const Tokenizer& tokenizer) {
  const auto learnt = [&](size_t i) { return example.weights[i] > 0; };
  size_t first = 0;
  while (first < example.tokens.size() && !learnt(first)) ++first;
  size_t end = first;
  while (end < example.tokens.size() && learnt(end) && !tokenizer.is_control(example.tokens[end])) {
    ++end;
  }
  if (first == end) throw_error(ErrorKind::kBadData, "an example: expected an answer, got none");
  const std::span<const Token> all(example.tokens);
  Question out{{all.begin(), all.begin() + static_cast<int64_t>(first)},
               example.pictures,
               {},
               tokenizer.decode(all.subspan(first, end - first))};
  const auto picture = picture_of(out.prompt, tokenizer);
  const size_t text = picture ? picture->end : 0;
  out.text = tokenizer.decode(all.subspan(text, first - text));
  return out;
}

QuestionScore score_questions(Engine& engine, PictureEncoder* encoder, const Tokenizer& tokenizer,
                              const Source& source, const QuestionOptions& options,
                              const Progress& progress) {
  Asker asker(engine, encoder, tokenizer);
  QuestionScore out;
  std::vector<std::pair<std::string, std::string>> asked;  // question, answer
  Habits habits;
  int64_t right = 0, controls = 0, blind = 0, shuffled = 0;
  while (out.asked < options.examples) {
    const int64_t count = std::min(kTogether, options.examples - out.asked);
    std::vector<Question> questions;
    for (int64_t i = 0; i < count; ++i) {
      const auto question = [&](int64_t index) {
        return first_question(
            source.example(options.seed ^ kAsked, static_cast<uint64_t>(index), options.length),
            tokenizer);
      };
      questions.push_back(question(out.asked + i));
      asked.emplace_back(questions.back().text, questions.back().expected);
      habits.add(question(options.examples + out.asked + i));
    }
    const auto said = asker.answers(questions);
    for (size_t i = 0; i < said.size(); ++i) {
      if (said[i] == questions[i].expected) {
        ++right;
      } else if (static_cast<int64_t>(out.misses.size()) < options.misses) {
        out.misses.push_back({questions[i].text, questions[i].expected, said[i]});
      }
    }
    const bool pictures = std::all_of(questions.begin(), questions.end(), [&](const Question& q) {
      return q.pictures.size() == 1 && picture_of(q.prompt, tokenizer);
    });
    if (pictures && controls < options.controls && count > 1) {
      std::vector<Question> without, other;
      for (size_t i = 0; i < questions.size(); ++i) {
        without.push_back(with_picture_of(questions[i], nullptr, tokenizer));
        const Question& neighbour = questions[(i + 1) % questions.size()];
        other.push_back(with_picture_of(questions[i], &neighbour, tokenizer));
      }
      const auto said_blind = asker.answers(without), said_other = asker.answers(other);
      for (size_t i = 0; i < questions.size(); ++i) {
        blind += said_blind[i] == questions[i].expected;
        shuffled += said_other[i] == questions[i].expected;
      }
      controls += count;
    }
    out.asked += count;
    if (progress) progress(out.asked, options.examples);
  }
  const auto share = [](int64_t part, int64_t of) {
    return static_cast<double>(part) / static_cast<double>(of);
  };
  if (out.asked == 0) return out;
  const auto most = std::count_if(asked.begin(), asked.end(), [&](const auto& entry) {
    return habits.answer(entry.first) == entry.second;
  });
  out.right = share(right, out.asked);
  out.most_frequent = share(most, out.asked);
  if (controls > 0) {
    out.without_picture = share(blind, controls);
    out.other_picture = share(shuffled, controls);
  }
  return out;
}

}  // namespace drover
