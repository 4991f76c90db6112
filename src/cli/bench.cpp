// drover bench MODEL: how fast a model runs here, and how fast it could. Also makes the models of
// random weights that the figures are about, and sets two models beside each other.

#include "eval/bench.h"

#include <algorithm>
#include <boost/json.hpp>
#include <chrono>
#include <filesystem>
#include <iostream>

#include "base/progress.h"
#include "cli/command.h"
#include "eval/random_model.h"

namespace drover {
namespace {

using Clock = std::chrono::steady_clock;

// Parameters that one token is multiplied with: without the embedding, of which it takes one row.
double active_parameters(const ModelConfig& config) {
  const int64_t embedding = config.tied_embeddings ? 0 : config.vocab * config.hidden;
  return static_cast<double>(count_parameters(config).active - embedding);
}

// "pp 512", "tg 128", "pg 512+128"
std::string test_text(const BenchTest& test) {
  if (test.name() == "pg") return fmt::format("pg {}+{}", test.prompt, test.generate);
  return fmt::format("{} {}", test.name(), test.prompt + test.generate);
}

struct Bench {
  std::string model;
  std::vector<std::string> make, compare;
  std::string type = "q4_k_m";
  std::string isa;
  std::vector<int> threads = {0};
  std::vector<int64_t> prompt = {512}, generate = {128}, depth = {0}, parallel = {1}, tiles;
  bool both = false;
  int64_t batch = EngineOptions().batch;
  std::string cache_type;
  std::vector<std::string> lora;
  int64_t repeat = 5;
  uint64_t seed = 1;
  bool force = false, json = false, step = false;

  void operator()() const;

 private:
  std::unique_ptr<Context> context(int threads) const {
    ModelFlags machine;
    machine.threads = threads;
    machine.isa = isa;
    return machine.make_context();
  }
  BenchSettings settings() const;
  std::vector<BenchTest> tests() const;
  std::vector<double> repeats(const std::function<double()>& run, uint64_t& done) const;
  void measure_vision(const std::filesystem::path& path) const;
  void make_model() const;
  void measure() const;
  void compare_models() const;
};

// Lets another program measure in turn: says that all is ready, and waits for its word.
void await_turn() {
  print_out("ready\n");
  std::string line;
  if (!std::getline(std::cin, line)) {
    throw_error(ErrorKind::kCancelled,
                "standard input: expected a line for every repeat, got none");
  }
}

// A zero in a list leaves the test out, so that one kind alone can be asked for.
std::vector<BenchTest> Bench::tests() const {
  std::vector<BenchTest> out;
  for (const int64_t d : depth) {
    for (const int64_t n : prompt) {
      if (n != 0) out.push_back({.prompt = n, .depth = d});
    }
    for (const int64_t p : parallel) {
      for (const int64_t n : generate) {
        if (n != 0) out.push_back({.generate = n, .depth = d, .parallel = p});
      }
    }
    if (!both) continue;
    for (const int64_t n : prompt) {
      for (const int64_t m : generate) {
        if (n != 0 && m != 0) out.push_back({.prompt = n, .generate = m, .depth = d});
      }
    }
  }
  for (const BenchTest& test : out) {
    if (test.prompt < 0 || test.generate < 0 || test.depth < 0 || test.parallel < 1 ||
        test.parallel > 4096) {
      throw_error(ErrorKind::kUsage,
                  "bench: expected tokens and depths of 0 or more and 1 to 4096 sequences, got "
                  "prompt {}, generate {}, depth {}, parallel {}",
                  test.prompt, test.generate, test.depth, test.parallel);
    }
  }
  if (out.empty()) throw_error(ErrorKind::kUsage, "bench: expected something to measure, got none");
  return out;
}

BenchSettings Bench::settings() const {
  if (repeat < 1) throw_error(ErrorKind::kUsage, "repeat: expected at least 1, got {}", repeat);
  ModelFlags flags;
  flags.cache_type = cache_type;
  return {.batch = batch, .cache_type = flags.engine_options().cache_type, .seed = seed};
}

void Bench::make_model() const {
  const RandomShape shape = random_shape(make[0]);
  const std::string& out = make[1];
  const auto mixture = mixture_from_name(type);
  if (!mixture) {
    throw_error(ErrorKind::kUsage, "type: expected {}, got {}", mixture_names(), printable(type));
  }
  if (std::filesystem::exists(out) && !force) {
    throw Error(ErrorKind::kCannotWrite, fmt::format("{}: already exists", printable(out, 300)),
                "--force writes over it");
  }
  check_can_create(out);
  const auto machine = context(threads.front());
  InterruptGuard interrupt;
  ProgressBar bar("making", "bytes");
  write_random_model(*machine, shape, *mixture, seed, out, cancellable(bar.callback()));
}

boost::json::object json_of(const BenchTest& test, int threads) {
  return {{"test", test.name()},
          {"tokens", test.prompt + test.generate},
          {"depth", test.depth},
          {"parallel", test.parallel},
          {"threads", threads}};
}

boost::json::object json_of(const MachineLimits& limits) {
  boost::json::object out{{"threads", limits.threads},
                          {"bytes_per_second", limits.bandwidth},
                          {"int8_operations_per_second", limits.int8_rate},
                          {"float_operations_per_second", limits.float_rate}};
  if (limits.bf16_rate > 0) out["bf16_operations_per_second"] = limits.bf16_rate;
  return out;
}

std::string machine_text(const MachineLimits& limits) {
  std::string text =
      fmt::format("{} thread{}: reads {:.1f} GB/s, 8-bit dot {:.2f} TOP/s, f32 {:.2f} TFLOP/s",
                  limits.threads, limits.threads == 1 ? "" : "s", limits.bandwidth * 1e-9,
                  limits.int8_rate * 1e-12, limits.float_rate * 1e-12);
  if (limits.bf16_rate > 0) text += fmt::format(", bf16 {:.2f} TFLOP/s", limits.bf16_rate * 1e-12);
  return text;
}

// The seconds of every repeat, each in its turn.
std::vector<double> Bench::repeats(const std::function<double()>& run, uint64_t& done) const {
  std::vector<double> seconds;
  for (int64_t i = 0; i < repeat; ++i, ++done) {
    if (step) await_turn();
    seconds.push_back(run());
    if (step) print_out(fmt::format("{:.9g}\n", seconds.back()));
  }
  return seconds;
}

// A vision encoder, in a file of its own or in a model's.
void Bench::measure_vision(const std::filesystem::path& path) const {
  settings();  // checks the repeats
  InterruptGuard interrupt;
  const GgufFile file = GgufFile::open(path);
  const std::optional<Vision> vision = vision_from_gguf(file, {});
  if (!vision) {
    throw_error(ErrorKind::kUnsupported, "{}: expected a vision encoder, got a file without one",
                printable(path.string(), 300));
  }
  boost::json::array rows, limit_rows;
  std::string text = fmt::format(
      "{}: vision encoder, {:.2f} GB of weights, {:.2f}B parameters; {} repeats\n",
      printable(path.filename().string()), static_cast<double>(vision->weights.bytes) * 1e-9,
      static_cast<double>(vision->config.parameters()) * 1e-9, repeat);
  std::string table =
      "\n| tiles | threads | seconds per tile | tokens/s | spread | of the limit |\n"
      "| ---: | ---: | ---: | ---: | ---: | --- |\n";
  {
    ProgressBar bar("measuring", "runs");
    const Progress progress = cancellable(bar.callback());
    const std::vector<int64_t> counts = tiles.empty() ? std::vector<int64_t>{1} : tiles;
    const uint64_t runs = threads.size() * counts.size() * static_cast<uint64_t>(repeat + 1);
    uint64_t done = 0;
    const auto tick = [&] { progress(done, runs); };
    for (const int n : threads) {
      const auto machine = context(n);
      const MachineLimits limits = measure_limits(*machine);
      limit_rows.push_back(json_of(limits));
      text += machine_text(limits) + "\n";
      for (const int64_t count : counts) {
        const BenchTest test{.tiles = count};
        VisionBencher bencher(*machine, *vision, count, seed);
        bencher.seconds(tick);
        ++done;
        const std::vector<double> seconds = repeats([&] { return bencher.seconds(tick); }, done);
        const PassWork work = bencher.work();
        const BenchResult r = summarise(test, seconds, {&work, 1}, limits);
        const double tokens =
            static_cast<double>(vision->config.tile_tokens()) * r.tokens_per_second;
        boost::json::object row{{"test", test.name()},
                                {"tiles", count},
                                {"threads", machine->threads.size()},
                                {"seconds_per_tile", 1 / r.tokens_per_second},
                                {"tokens_per_second", tokens},
                                {"spread", r.spread},
                                {"fraction_of_limit", r.fraction_of_limit},
                                {"limit", r.bandwidth_bound ? "bandwidth" : "multipliers"}};
        rows.push_back(std::move(row));
        table +=
            fmt::format("| {} | {} | {:.3f} | {:.1f} | {:.1f} % | {:.0f} % of {} |\n", count,
                        machine->threads.size(), 1 / r.tokens_per_second, tokens, 100 * r.spread,
                        100 * r.fraction_of_limit, r.bandwidth_bound ? "bandwidth" : "multipliers");
      }
    }
  }
  if (!json) return print_out(text + table);
  boost::json::object out;
  out["model"] = as_utf8(path.filename().string());
  out["bytes"] = vision->weights.bytes;
  out["parameters"] = {{"vision", vision->config.parameters()}};
  out["isa"] = isa_name(context(threads.front())->isa);
  out["repeat"] = repeat;
  out["limits"] = std::move(limit_rows);
  out["results"] = std::move(rows);
  print_out(boost::json::serialize(out) + '\n');
}

void Bench::measure() const {
  const std::vector<BenchTest> all = tests();
  const BenchSettings chosen = settings();
  InterruptGuard interrupt;
  std::vector<std::unique_ptr<Context>> contexts;
  for (const int n : threads) contexts.push_back(context(n));

  const auto start = Clock::now();
  const auto loaded = Model::load(model, {}, {}, lora);
  const double load_seconds = seconds_since(start);
  const ModelConfig& config = loaded->config();

  std::vector<MachineLimits> limits;
  std::vector<BenchResult> results;
  int64_t anonymous = 0;
  {
    ProgressBar bar("measuring", "runs");
    const Progress progress = cancellable(bar.callback());
    const uint64_t runs = contexts.size() * all.size() * static_cast<uint64_t>(repeat + 1);
    uint64_t done = 0;
    const auto tick = [&] { progress(done, runs); };
    for (const auto& machine : contexts) {
      tick();
      limits.push_back(measure_limits(*machine));
      Bencher bencher(*machine, *loaded, chosen);
      for (const BenchTest& test : all) {
        const std::vector<PassWork> passes = bencher.warm_up(test, tick);
        ++done;
        const std::vector<double> seconds =
            repeats([&] { return bencher.seconds(test, tick); }, done);
        results.push_back(summarise(test, seconds, passes, limits.back()));
        anonymous = std::max(anonymous, anonymous_memory());
      }
    }
  }
  const ParameterCount parameters = count_parameters(config);

  if (json) {
    boost::json::object out;
    out["model"] = as_utf8(loaded->path().filename().string());
    out["bytes"] = loaded->weights().bytes;
    out["parameters"] = {{"total", parameters.total}, {"active", parameters.active}};
    out["isa"] = isa_name(contexts.front()->isa);
    out["batch"] = batch;
    out["repeat"] = repeat;
    out["load_seconds"] = load_seconds;
    out["memory_beyond_files"] = anonymous;
    boost::json::array& machine = out["limits"].emplace_array();
    for (const MachineLimits& l : limits) machine.push_back(json_of(l));
    boost::json::array& rows = out["results"].emplace_array();
    for (const BenchResult& r : results) {
      boost::json::object row = json_of(r.test, r.threads);
      row["tokens_per_second"] = r.tokens_per_second;
      row["spread"] = r.spread;
      row["bytes_per_second"] = r.bytes_per_second;
      row["fraction_of_limit"] = r.fraction_of_limit;
      row["limit"] = r.bandwidth_bound ? "bandwidth" : "multipliers";
      rows.push_back(std::move(row));
    }
    return print_out(boost::json::serialize(out) + '\n');
  }
  std::string text = fmt::format(
      "{}: {:.2f} GB of weights, {:.2f}B parameters, {:.2f}B active; {}, batch {}, {} repeats\n",
      printable(loaded->path().filename().string()),
      static_cast<double>(loaded->weights().bytes) * 1e-9,
      static_cast<double>(parameters.total) * 1e-9, static_cast<double>(parameters.active) * 1e-9,
      isa_name(contexts.front()->isa), batch, repeat);
  for (const MachineLimits& l : limits) text += machine_text(l) + "\n";
  text +=
      "\n| test | depth | parallel | threads | tokens/s | spread | GB/s | of the limit |\n"
      "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n";
  for (const BenchResult& r : results) {
    text += fmt::format("| {} | {} | {} | {} | {:.1f} | {:.1f} % | {:.1f} | {:.0f} % of {} |\n",
                        test_text(r.test), r.test.depth, r.test.parallel, r.threads,
                        r.tokens_per_second, 100 * r.spread, r.bytes_per_second * 1e-9,
                        100 * r.fraction_of_limit, r.bandwidth_bound ? "bandwidth" : "multipliers");
  }
  text += fmt::format("\nLoaded in {:.3f} s; {:.0f} MB of memory beyond the mapped file.\n",
                      load_seconds, static_cast<double>(anonymous) * 1e-6);
  print_out(text);
}

// Both models in turn, in one run: what slows the machine down meets both.
void Bench::compare_models() const {
  const std::vector<BenchTest> all = tests();
  const BenchSettings chosen = settings();
  if (threads.size() != 1) {
    throw_error(ErrorKind::kUsage, "threads: expected one number with --compare, got {}",
                threads.size());
  }
  InterruptGuard interrupt;
  const auto machine = context(threads.front());
  const auto a = Model::load(compare[0]), b = Model::load(compare[1]);
  Bencher bench_a(*machine, *a, chosen), bench_b(*machine, *b, chosen);
  const double parameters = active_parameters(b->config()) / active_parameters(a->config());

  boost::json::array rows;
  std::string text = fmt::format(
      "A: {}, {:.3f}B active parameters beside the embedding\n"
      "B: {}, {:.3f}B, {:.2f} times A's\n\n"
      "| test | depth | parallel | threads | A tokens/s | B tokens/s | A / B | kept |\n"
      "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
      printable(a->path().filename().string()), active_parameters(a->config()) * 1e-9,
      printable(b->path().filename().string()), active_parameters(b->config()) * 1e-9, parameters);
  {
    ProgressBar bar("comparing", "runs");
    const Progress progress = cancellable(bar.callback());
    const uint64_t runs = all.size() * static_cast<uint64_t>(repeat + 1);
    uint64_t done = 0;
    const auto tick = [&] { progress(done, runs); };
    for (const BenchTest& test : all) {
      bench_a.warm_up(test, tick);
      bench_b.warm_up(test, tick);
      ++done;
      std::vector<double> rates_a, rates_b, ratios;
      for (int64_t i = 0; i < repeat; ++i, ++done) {
        const double tokens = static_cast<double>(test.tokens());
        rates_a.push_back(tokens / bench_a.seconds(test, tick));
        rates_b.push_back(tokens / bench_b.seconds(test, tick));
        ratios.push_back(rates_a.back() / rates_b.back());
      }
      const double ratio = median(ratios), kept = ratio / parameters;
      boost::json::object row = json_of(test, machine->threads.size());
      row["a_tokens_per_second"] = median(rates_a);
      row["b_tokens_per_second"] = median(rates_b);
      row["ratio"] = ratio;
      row["kept"] = kept;
      rows.push_back(std::move(row));
      text += fmt::format("| {} | {} | {} | {} | {:.1f} | {:.1f} | {:.2f} | {:.2f} |\n",
                          test_text(test), test.depth, test.parallel, machine->threads.size(),
                          median(rates_a), median(rates_b), ratio, kept);
    }
  }
  if (json) {
    boost::json::object out;
    out["a"] = as_utf8(a->path().filename().string());
    out["b"] = as_utf8(b->path().filename().string());
    out["parameter_ratio"] = parameters;
    out["results"] = std::move(rows);
    return print_out(boost::json::serialize(out) + '\n');
  }
  print_out(text + "\nKept: A / B over the ratio of their active parameters; 1 is all of it.\n");
}

bool is_vision_file(const std::filesystem::path& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) return false;
  return GgufFile::open(path).string_value("general.architecture") == "clip";
}

void Bench::operator()() const {
  const int asked = (model.empty() ? 0 : 1) + (make.empty() ? 0 : 1) + (compare.empty() ? 0 : 1);
  if (asked != 1) {
    throw_error(ErrorKind::kUsage, "bench: expected one of MODEL, --make and --compare, got {}",
                asked);
  }
  if (!tiles.empty() && model.empty()) {
    throw_error(ErrorKind::kUsage, "tiles: expected a MODEL to measure");
  }
  if (!lora.empty() && (model.empty() || !tiles.empty())) {
    throw_error(ErrorKind::kUsage, "lora: expected a MODEL whose decoder is measured");
  }
  if (!make.empty()) return make_model();
  if (!compare.empty()) return compare_models();
  const std::filesystem::path path = locate_model(model);
  if (!tiles.empty() || is_vision_file(path)) return measure_vision(path);
  measure();
}

}  // namespace

void add_bench(CLI::App& app) {
  auto bench = std::make_shared<Bench>();
  CLI::App* command = app.add_subcommand("bench", "Measure how fast a model runs here");
  CLI::Option* model =
      command
          ->add_option("model,-m,--model", bench->model,
                       "A GGUF file, a Hugging Face folder, or a name in the local model folder")
          ->type_name("MODEL");
  const auto list = [&](const std::string& flags, auto& values, const std::string& help) {
    return command->add_option(flags, values, help)->delimiter(',')->type_name("LIST");
  };
  list("-p,--prompt", bench->prompt, "Tokens of a prompt; 0 leaves prompts out")
      ->default_str("512");
  list("-n,--generate", bench->generate, "Tokens to generate; 0 leaves generating out")
      ->default_str("128");
  command->add_flag("--both", bench->both, "Also both together, timed as one");
  list("-d,--depth", bench->depth, "Tokens of context before the measured ones")->default_str("0");
  list("--parallel", bench->parallel, "Sequences that generate together")->default_str("1");
  list("--tiles", bench->tiles,
       "Measure the vision encoder of a GGUF file instead, with so many tiles at once");
  add_adapters(*command, bench->lora,
               "With an adapter, whose work the limits leave out; repeatable");
  command->add_option("-r,--repeat", bench->repeat, "Repeats of every test, after one to warm up")
      ->capture_default_str();
  command->add_option("-s,--seed", bench->seed, "Of the random tokens, and of --make's weights")
      ->capture_default_str();
  command->add_flag("--json", bench->json, "Print one JSON object");
  command->add_flag("--step", bench->step,
                    "Take turns: say \"ready\", wait for a line, run once, say the seconds");

  command
      ->add_option("--compare", bench->compare,
                   "Two models in turn: speeds, and what they keep of their parameters' ratio")
      ->type_name("A B")
      ->expected(2)
      ->excludes(model);
  const std::string making = "Models of random weights";
  command
      ->add_option("--make", bench->make,
                   fmt::format("Write one of random weights:\n{}", random_shape_names()))
      ->type_name("SHAPE OUT")
      ->expected(2)
      ->excludes(model)
      ->group(making);
  command->add_option("--type", bench->type, "Type or mixture of its weights")
      ->type_name("TYPE")
      ->capture_default_str()
      ->group(making);
  command->add_flag("--force", bench->force, "Write over an existing file")->group(making);

  const std::string machine = "Machine";
  list("-t,--threads", bench->threads, "Threads to compute with; 0 means the physical cores")
      ->default_str("0")
      ->group(machine);
  command
      ->add_option(
          "--isa", bench->isa,
          "Instruction set: plain, avx2, avxvnni, avx512 or amx; the best there is if unset")
      ->group(machine);
  command->add_option("-b,--batch", bench->batch, "Tokens of a prompt that are computed together")
      ->group(machine)
      ->capture_default_str();
  command
      ->add_option("--cache-type", bench->cache_type,
                   "Cached keys and values: f32, bf16 or int8; f32 for f32 weights, else bf16")
      ->group(machine);
  command->callback([bench] { (*bench)(); });
}

}  // namespace drover
