#include "engine/session.h"

#include <algorithm>
#include <chrono>

#include "base/error.h"
#include "text/detokenizer.h"

namespace drover {
namespace {

// Enough for long conversations, and small enough that a model made for ten million tokens does not
// promise memory that a newcomer does not have. More is asked for by name.
constexpr int64_t kDefaultContext = 32768;

int64_t choose_context(const ModelConfig& config, int64_t asked) {
  if (asked < 0)
    throw_error(ErrorKind::kUsage, "context: expected 0 or more tokens, got {}", asked);
  if (asked == 0) return std::min(config.context, kDefaultContext);
  if (asked > config.context) {
    throw Error(ErrorKind::kLimit,
                fmt::format("context: expected at most the model's {} tokens, got {}",
                            config.context, asked),
                "the model was not made for more; choose a smaller --context");
  }
  return asked;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

bool cancelled(const Listener& listener) {
  return listener.cancel != nullptr && listener.cancel->load(std::memory_order_relaxed);
}

}  // namespace

DType choose_cache_type(const Model& model, std::optional<DType> asked) {
  if (asked) {
    if (!is_cache_type(*asked)) {
      throw_error(ErrorKind::kUsage, "cache type: expected f32, bf16 or int8, got {}",
                  dtype_name(*asked));
    }
    return *asked;
  }
  return model.weights().layers.front().wk.type == DType::kF32 ? DType::kF32 : DType::kBF16;
}

std::string_view finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kContext:
      return "context";
    case FinishReason::kCancelled:
      return "cancelled";
  }
  return "unknown";
}

Session::Session(const Model& model, Context& context, const SessionOptions& options)
    : model_(model),
      context_(context),
      options_(options),
      cache_(model.config().cache_layout(choose_cache_type(model, options.cache_type)),
             choose_context(model.config(), options.context)),
      decoder_(context, model.config(), model.weights()),
      logits_(static_cast<size_t>(model.config().vocab)) {
  decoder_.observe(options.observer);
  if (options.batch < 1) {
    throw_error(ErrorKind::kUsage, "batch: expected at least 1 token, got {}", options.batch);
  }
}

void Session::clear() {
  cache_.rewind(0);
  cut_text(0);
}

void Session::expect_room(int64_t tokens) const {
  if (tokens <= cache_.context()) return;
  throw Error(ErrorKind::kLimit,
              fmt::format("prompt: expected at most the context of {} tokens, got {}",
                          cache_.context(), tokens),
              "ask for a larger context with --context, or shorten the text");
}

void Session::cut_text(int64_t length) {
  text_.resize(static_cast<size_t>(length));
  while (!pictures_.empty() && pictures_.back().first >= length) pictures_.pop_back();
}

void Session::expect_patches(std::span<const Token> tokens,
                             std::span<const PictureTokens> pictures) const {
  if (pictures.empty()) return;
  const auto patch = model_.vision().config.patch_token;
  const int64_t got = patch ? std::count(tokens.begin(), tokens.end(), *patch) : 0;
  int64_t expected = 0;
  for (const PictureTokens& picture : pictures) expected += picture.patches();
  if (got != expected) {
    throw_error(ErrorKind::kUsage,
                "pictures: expected {} patch tokens in the prompt for {} pictures, got {}",
                expected, pictures.size(), got);
  }
}

std::pair<std::vector<Session::Placed>, Session::Embeddings> Session::place(
    const Prompt& prompt) const {
  if (prompt.pictures.empty()) return {};
  std::vector<PictureTokens> pictures;
  for (const auto& picture : prompt.pictures) {
    DROVER_CHECK(picture->embedding == model_.config().hidden);
    pictures.push_back(picture->tokens);
  }
  expect_patches(prompt.tokens, pictures);
  const Token patch = *model_.vision().config.patch_token;
  std::vector<Placed> placed;
  Embeddings embeddings(prompt.tokens.size(), nullptr);
  size_t next = 0;  // picture
  int64_t row = 0;
  for (size_t i = 0; i < prompt.tokens.size(); ++i) {
    if (prompt.tokens[i] != patch) continue;
    if (row == 0) placed.push_back({static_cast<int64_t>(i), prompt.pictures[next]});
    embeddings[i] = prompt.pictures[next]->row(row);
    if (++row == pictures[next].patches()) {
      ++next;
      row = 0;
    }
  }
  return {std::move(placed), std::move(embeddings)};
}

int64_t Session::shared_with(const Prompt& prompt, std::span<const Placed> pictures) const {
  // The last token is computed anew, for its logits.
  const auto& tokens = prompt.tokens;
  const auto differs = std::mismatch(tokens.begin(), tokens.end() - 1, text_.begin(), text_.end());
  int64_t same = differs.first - tokens.begin();
  for (size_t i = 0; i < std::max(pictures.size(), pictures_.size()); ++i) {
    const Placed* here = i < pictures.size() ? &pictures[i] : nullptr;
    const Placed* there = i < pictures_.size() ? &pictures_[i] : nullptr;
    if (here != nullptr && there != nullptr && here->first == there->first &&
        here->picture->hash == there->picture->hash) {
      continue;
    }
    if (here != nullptr) same = std::min(same, here->first);
    if (there != nullptr) same = std::min(same, there->first);
    break;
  }
  return same;
}

bool Session::feed(std::span<const Token> tokens, std::span<const float* const> embeddings,
                   const Listener& listener, int64_t done, int64_t total) {
  while (!tokens.empty()) {
    const size_t count = std::min<size_t>(tokens.size(), options_.batch);
    const auto piece = tokens.first(count);
    tokens = tokens.subspan(count);
    SequenceSlice slice{&cache_, piece, tokens.empty() ? 1 : 0};
    if (!embeddings.empty()) {
      slice.embeddings = embeddings.first(count);
      embeddings = embeddings.subspan(count);
    }
    const int64_t vocab = static_cast<int64_t>(logits_.size());
    const int64_t n = slice.tokens.size(), layers = model_.config().layer_count();
    const auto between_layers = [&](int64_t layer) {
      if (listener.prompt) listener.prompt(done + n * layer / layers, total);
      return !cancelled(listener);
    };
    if (cancelled(listener)) return false;
    if (!decoder_.forward({&slice, 1}, {logits_.data(), slice.logits, vocab, vocab},
                          between_layers)) {
      cut_text(cache_.rewind(cache_.length()));
      return false;
    }
    text_.insert(text_.end(), piece.begin(), piece.end());
    done += n;
    if (listener.prompt) listener.prompt(done, total);
  }
  return true;
}

Answer Session::generate(const Prompt& prompt, const GenerateOptions& options,
                         const Listener& listener) {
  Sampler sampler(options.sampling);
  const Tokenizer& tokenizer = model_.tokenizer();
  Answer answer;
  answer.prompt_tokens = static_cast<int64_t>(prompt.tokens.size());
  if (prompt.tokens.empty())
    throw_error(ErrorKind::kUsage, "prompt: expected at least one token, got none");
  expect_room(answer.prompt_tokens);

  // Keep what the prompt shares with the text so far.
  const auto start = std::chrono::steady_clock::now();
  auto [pictures, embeddings] = place(prompt);
  answer.cached_tokens = cache_.rewind(shared_with(prompt, pictures));
  cut_text(answer.cached_tokens);
  pictures_ = std::move(pictures);
  const size_t kept = static_cast<size_t>(answer.cached_tokens);
  const bool read = feed(std::span(prompt.tokens).subspan(kept),
                         std::span(embeddings).subspan(std::min(kept, embeddings.size())), listener,
                         answer.cached_tokens, answer.prompt_tokens);
  cut_text(static_cast<int64_t>(text_.size()));  // and of the pictures what was read
  answer.prompt_seconds = seconds_since(start);

  const auto answering = std::chrono::steady_clock::now();
  Detokenizer detokenizer(tokenizer);
  StopFinder stops(options.stop);
  const auto say = [&](const std::string& piece) {
    if (piece.empty()) return;
    answer.text += piece;
    if (listener.text) listener.text(piece);
  };
  answer.finish =
      read && options.max_tokens == 0 ? FinishReason::kLength : FinishReason::kCancelled;
  while (read && options.max_tokens != 0 && !cancelled(listener)) {
    const Token token =
        sampler.sample(logits_, text_, static_cast<int64_t>(answer.tokens.size()), cache_.length());
    if (std::find(options.stop_tokens.begin(), options.stop_tokens.end(), token) !=
        options.stop_tokens.end()) {
      answer.finish = FinishReason::kStop;
      break;
    }
    answer.tokens.push_back(token);
    std::string piece = detokenizer.push(token);
    if (options.show_special && tokenizer.is_control(token)) piece += tokenizer.token_bytes(token);
    say(stops.push(piece));
    if (stops.found()) {
      answer.finish = FinishReason::kStop;
      break;
    }
    // The last token is not fed: nothing would be drawn from what it makes.
    if (static_cast<int64_t>(answer.tokens.size()) == options.max_tokens) {
      answer.finish = FinishReason::kLength;
      break;
    }
    if (cache_.length() == cache_.context()) {
      answer.finish = FinishReason::kContext;
      break;
    }
    // A cancel between the sample and here must not lose the token that was already shown.
    feed({&token, 1}, {}, {}, 0, 0);
  }
  if (!stops.found()) {
    say(stops.push(detokenizer.flush()));
    if (!stops.found()) say(stops.flush());
  }
  answer.answer_seconds = seconds_since(answering);
  return answer;
}

void Session::score(const Prompt& prompt, const std::function<void(int64_t, ConstMatrixView)>& each,
                    const Progress& progress) {
  clear();
  auto [pictures, embeddings] = place(prompt);
  const std::span tokens(prompt.tokens);
  const int64_t vocab = static_cast<int64_t>(logits_.size());
  // Logits of a large vocabulary are the largest thing in sight; 64 MB of them at a time.
  const int64_t rows = std::clamp<int64_t>((int64_t{64} << 20) / (vocab * 4), 1, options_.batch);
  AlignedArray<float> logits(static_cast<size_t>(rows * vocab));
  for (int64_t first = 0; first < static_cast<int64_t>(tokens.size()); first += rows) {
    const int64_t n = std::min<int64_t>(rows, tokens.size() - first);
    const MatrixView out{logits.data(), n, vocab, vocab};
    SequenceSlice slice{&cache_, tokens.subspan(first, n), n};
    if (!embeddings.empty()) slice.embeddings = std::span(embeddings).subspan(first, n);
    decoder_.forward({&slice, 1}, out);
    each(first, out);
    if (progress) progress(first + n, tokens.size());
  }
  text_ = prompt.tokens;
  pictures_ = std::move(pictures);
}

StopFinder::StopFinder(std::vector<std::string> stops) : stops_(std::move(stops)) {
  std::erase_if(stops_, [](const std::string& stop) { return stop.empty(); });
}

std::string StopFinder::push(std::string_view piece) {
  if (found_) return {};
  held_ += piece;
  size_t end = std::string::npos;
  for (const std::string& stop : stops_) end = std::min(end, held_.find(stop));
  if (end != std::string::npos) {
    found_ = true;
    held_.resize(end);
    return std::exchange(held_, {});
  }
  // Hold back the longest tail that begins some stop string.
  size_t keep = 0;
  for (const std::string& stop : stops_) {
    for (size_t n = std::min(held_.size(), stop.size() - 1); n > keep; --n) {
      if (held_.ends_with(std::string_view(stop).substr(0, n))) keep = n;
    }
  }
  std::string out = held_.substr(0, held_.size() - keep);
  held_.erase(0, out.size());
  return out;
}

std::string StopFinder::flush() { return std::exchange(held_, {}); }

}  // namespace drover
