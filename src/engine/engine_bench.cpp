// Many conversations on one engine, timed: engine_bench MODEL [--threads N]
//
// Prints a Markdown report: how fast short conversations go alone and beside a long prompt that is
// being read, how soon a known prompt's first token comes, how soon a cancel is heard. The texts
// are random tokens of a fixed seed.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <random>
#include <string_view>

#include "engine/engine.h"

namespace drover {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

constexpr int64_t kLong = 262144;  // tokens of the prompt that is read beside
constexpr int64_t kKnown = 30000;  // of the one that is asked about twice
constexpr int kConversations = 32;
constexpr int64_t kAnswer = 256;

std::vector<Token> text(const Model& model, int64_t tokens, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Token> out;
  // The special tokens stand last.
  const auto words = static_cast<uint64_t>(model.config().vocab - 1200);
  for (int64_t i = 0; i < tokens; ++i) out.push_back(static_cast<Token>(random() % words));
  return out;
}

GenerateOptions greedy(int64_t most) {
  GenerateOptions options;
  options.sampling.temperature = 0;
  options.max_tokens = most;
  return options;
}

// Tokens per second of all short conversations together, from the first token of the last to begin
// to the last token of the first to end: while all of them are written.
double short_conversations(Engine& engine, const Model& model, uint64_t seed) {
  struct Times {
    std::atomic<int64_t> pieces{0};
  } times;
  std::vector<std::future<void>> done;
  std::vector<std::unique_ptr<std::promise<void>>> promises;
  std::atomic<int> begun{0};
  std::promise<Clock::time_point> all_begun;
  std::atomic<bool> first_done{false};
  std::promise<std::pair<Clock::time_point, int64_t>> one_done;
  std::atomic<int64_t> at_begin{0};
  for (int i = 0; i < kConversations; ++i) {
    promises.push_back(std::make_unique<std::promise<void>>());
    done.push_back(promises.back()->get_future());
    Events events;
    events.text = [&, first = true](int64_t, std::string_view) mutable {
      ++times.pieces;
      if (first && ++begun == kConversations) {
        at_begin = times.pieces.load();
        all_begun.set_value(Clock::now());
      }
      first = false;
    };
    std::promise<void>* promise = promises.back().get();
    events.done = [&, promise](std::vector<Answer>, std::exception_ptr error) {
      if (!first_done.exchange(true)) one_done.set_value({Clock::now(), times.pieces.load()});
      error ? promise->set_exception(error) : promise->set_value();
    };
    engine.submit({.prompt = {text(model, 64, seed + static_cast<uint64_t>(i))},
                   .options = greedy(kAnswer),
                   .priority = 1},
                  events);
  }
  const auto begin = all_begun.get_future().get();
  const auto [end, pieces] = one_done.get_future().get();
  for (auto& one : done) one.get();
  return static_cast<double>(pieces - at_begin) /
         std::chrono::duration<double>(end - begin).count();
}

int run(int argc, char** argv) {
  if (argc != 2 && !(argc == 4 && std::string_view(argv[2]) == "--threads")) {
    std::fputs("usage: engine_bench MODEL [--threads N]\n", stderr);
    return 2;
  }
  const auto model = Model::load(argv[1]);
  Context context(argc == 4 ? std::atoi(argv[3]) : physical_cores());
  Engine engine(*model, context, {.context = kLong + 1024});

  short_conversations(engine, *model, 1000);  // warms up
  const double alone = short_conversations(engine, *model, 2000);
  std::atomic<bool> cancel{false};
  std::atomic<uint64_t> read{0};
  Events reading;
  reading.cancel = &cancel;
  std::promise<Clock::time_point> heard;
  std::promise<void> begun;
  reading.prompt = [&, first = true](uint64_t done, uint64_t) mutable {
    read = done;
    if (first) begun.set_value();
    first = false;
  };
  reading.done = [&](std::vector<Answer>, std::exception_ptr) { heard.set_value(Clock::now()); };
  engine.submit({.prompt = {text(*model, kLong, 3)}, .options = greedy(1)}, reading);
  begun.get_future().wait();
  const uint64_t before = read;
  const auto start = Clock::now();
  const double beside = short_conversations(engine, *model, 4000);
  const double reading_speed = static_cast<double>(read - before) / seconds_since(start);
  const bool still = read < static_cast<uint64_t>(kLong);
  const auto cancelled = Clock::now();
  cancel = true;
  const double cancel_seconds =
      std::chrono::duration<double>(heard.get_future().get() - cancelled).count();
  std::printf("| | |\n| --- | ---: |\n");
  std::printf("| %d conversations, alone, tokens/s | %.0f |\n", kConversations, alone);
  std::printf("| the same beside a prompt of %lld tokens%s | %.0f (%.2f) |\n",
              static_cast<long long>(kLong), still ? "" : " (which ended first)", beside,
              beside / alone);
  std::printf("| the prompt meanwhile, tokens/s | %.0f |\n", reading_speed);
  std::printf("| a cancel while it is read, heard after, ms | %.1f |\n", cancel_seconds * 1e3);

  engine.forget();
  const std::vector<Token> known = text(*model, kKnown, 5);
  const Answer cold = engine.generate(known, greedy(1));
  std::vector<Token> longer = known;
  for (const Token token : text(*model, 16, 6)) longer.push_back(token);
  const Answer warm = engine.generate(longer, greedy(1));
  std::printf("| first token of a prompt of %lld tokens, cold, s | %.3f |\n",
              static_cast<long long>(kKnown), cold.prompt_seconds);
  std::printf("| the same, known but for its last 16 tokens (%lld known), s | %.4f (%.0fx) |\n",
              static_cast<long long>(warm.cached_tokens), warm.prompt_seconds,
              cold.prompt_seconds / warm.prompt_seconds);
  return 0;
}

}  // namespace
}  // namespace drover

int main(int argc, char** argv) try {
  return drover::run(argc, argv);
} catch (const std::exception& error) {
  std::fprintf(stderr, "engine_bench: %s\n", error.what());
  return 1;
}
