// drover plan MODEL: what a model needs and how long it takes, before anything is loaded.

#include "eval/plan.h"

#include <algorithm>
#include <boost/json.hpp>

#include "cli/command.h"
#include "cli/quantities.h"

namespace drover {
namespace {

namespace json = boost::json;

struct Plan {
  std::string model;
  std::string type;
  std::string context, memory, cache_type;
  int64_t batch = kDefaultBatch;
  MachineLimits by_hand;  // in GB/s, TOP/s, TFLOP/s as flags have them; 0: measured
  bool no_measure = false;
  int threads = 0;
  std::string isa;
  bool json = false;

  void operator()() const;

 private:
  DType choose_cache(const PlannedModel& planned) const;
  MachineLimits limits(const ModelFlags& machine) const;
};

// What one row of the tables says.
struct Row {
  int64_t context = 0;
  std::vector<CacheBytes> caches;  // by type
  std::optional<double> prefill, prefill_dead, decode;
};

DType Plan::choose_cache(const PlannedModel& planned) const {
  if (!cache_type.empty()) {
    const auto chosen = cache_type_from_name(cache_type);
    if (!chosen) {
      throw_error(ErrorKind::kUsage, "cache type: expected f32, bf16 or int8, got {}",
                  printable(cache_type));
    }
    return *chosen;
  }
  const auto key = std::find_if(planned.tensors.begin(), planned.tensors.end(),
                                [](auto& t) { return t.name == "blk.0.attn_k.weight"; });
  return key != planned.tensors.end() && key->type == DType::kF32 ? DType::kF32 : DType::kBF16;
}

MachineLimits Plan::limits(const ModelFlags& machine) const {
  for (const double rate :
       {by_hand.bandwidth, by_hand.int8_rate, by_hand.float_rate, by_hand.bf16_rate}) {
    if (!(rate >= 0)) throw_error(ErrorKind::kUsage, "limits: expected 0 or more, got {}", rate);
  }
  MachineLimits out{.threads = 0,
                    .bandwidth = by_hand.bandwidth * 1e9,
                    .int8_rate = by_hand.int8_rate * 1e12,
                    .float_rate = by_hand.float_rate * 1e12,
                    .bf16_rate = by_hand.bf16_rate * 1e12};
  const bool all = out.bandwidth > 0 && out.int8_rate > 0 && out.float_rate > 0;
  if (no_measure || all) return out;
  const auto context = machine.make_context();
  const MachineLimits measured = measure_limits(*context);
  // A matrix unit is this machine's, and goes with this machine's other multipliers.
  const bool own = out.int8_rate == 0 && out.float_rate == 0;
  const auto fill = [](double& value, double from) { value = value > 0 ? value : from; };
  fill(out.bandwidth, measured.bandwidth);
  fill(out.int8_rate, measured.int8_rate);
  fill(out.float_rate, measured.float_rate);
  if (own) fill(out.bf16_rate, measured.bf16_rate);
  out.threads = measured.threads;
  return out;
}

json::value json_of(const std::optional<double>& seconds) {
  return seconds ? json::value(*seconds) : json::value();
}

std::string text_of(const std::optional<double>& seconds) {
  return seconds ? duration_text(*seconds) : "?";
}

std::string types_text(const PlannedModel& planned) {
  std::vector<std::pair<int64_t, DType>> types;
  for (const auto& [type, bytes] : planned.bytes_by_type()) types.emplace_back(bytes, type);
  std::sort(types.rbegin(), types.rend());
  std::string out;
  for (const auto& [bytes, type] : types) {
    out += fmt::format("{}{} {}", out.empty() ? "" : ", ", dtype_name(type), bytes_text(bytes));
  }
  return out;
}

std::string limits_text(const MachineLimits& l) {
  if (!(l.bandwidth > 0)) return {};
  std::string out = fmt::format("reads {:.1f} GB/s", l.bandwidth * 1e-9);
  if (l.int8_rate > 0) out += fmt::format(", 8-bit dot {:.2f} TOP/s", l.int8_rate * 1e-12);
  if (l.float_rate > 0) out += fmt::format(", f32 {:.2f} TFLOP/s", l.float_rate * 1e-12);
  if (l.bf16_rate > 0) out += fmt::format(", bf16 {:.2f} TFLOP/s", l.bf16_rate * 1e-12);
  return out;
}

void Plan::operator()() const {
  if (batch < 1) throw_error(ErrorKind::kUsage, "batch: expected at least 1 token, got {}", batch);
  std::optional<Mixture> mixture;
  if (!type.empty()) {
    mixture = mixture_from_name(type);
    if (!mixture) {
      throw_error(ErrorKind::kUsage, "type: expected {}, got {}", mixture_names(), printable(type));
    }
  }
  const std::filesystem::path path = locate_model(model);
  PlannedModel planned = planned_model(path);
  if (mixture) planned = in_mixture(std::move(planned), *mixture);
  const ModelConfig& c = planned.config;

  Demand demand{.context = std::min<int64_t>(c.context, 32768),
                .cache_type = choose_cache(planned),
                .batch = batch,
                .memory = memory.empty() ? machine_memory() : parse_bytes("memory", memory)};
  if (!context.empty()) demand.context = parse_tokens("context", context);
  if (demand.context > c.context) {
    throw Error(ErrorKind::kLimit,
                fmt::format("context: expected at most the model's {} tokens, got {}", c.context,
                            demand.context),
                "the model was not made for more; choose a smaller --context");
  }
  std::vector<DType> cache_types = {DType::kBF16, DType::kI8};
  if (demand.cache_type == DType::kF32) cache_types.insert(cache_types.begin(), DType::kF32);

  ModelFlags machine;
  machine.threads = threads;
  machine.isa = isa;
  const MachineLimits measured = limits(machine);

  std::vector<int64_t> lengths = {8192, 32768, 131072, 1'000'000, 10'000'000, c.context};
  if (!context.empty()) lengths = {demand.context};
  std::erase_if(lengths, [&](int64_t n) { return n > c.context; });
  std::sort(lengths.begin(), lengths.end());
  lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());
  std::vector<Row> rows;
  for (const int64_t n : lengths) {
    Row& row = rows.emplace_back();
    row.context = n;
    for (const DType t : cache_types) row.caches.push_back(cache_bytes(c, t, n));
    row.prefill = prefill_seconds(planned, n, batch, /*dead_work=*/false, measured);
    row.prefill_dead = prefill_seconds(planned, n, batch, /*dead_work=*/true, measured);
    row.decode = decode_seconds(planned, n, demand.cache_type, measured);
  }

  const int64_t weights = planned.bytes(), activations = activation_bytes(planned, batch);
  const int64_t needed = needed_bytes(planned, demand);
  const bool fits = needed <= demand.memory;
  const int64_t rest = demand.memory - weights - activations - kProgramBytes;
  struct Room {
    DType type;
    int64_t longest, together;
  };
  std::vector<Room> rooms;
  for (const DType t : cache_types) {
    Demand in_type = demand;
    in_type.cache_type = t;
    rooms.push_back(
        {t, rest < 0 ? 0 : longest_context(c, t, rest), conversations(planned, in_type)});
  }
  const std::vector<Change> changes =
      fits ? std::vector<Change>() : changes_to_fit(planned, demand);
  const ParameterCount parameters = count_parameters(c);

  if (json) {
    json::object types;
    for (const auto& [t, bytes] : planned.bytes_by_type()) types[dtype_name(t)] = bytes;
    json::array table;
    for (const Row& row : rows) {
      json::object caches;
      for (size_t i = 0; i < cache_types.size(); ++i) {
        caches[cache_type_name(cache_types[i])] =
            json::object{{"global_bytes", row.caches[i].global},
                         {"local_bytes", row.caches[i].local},
                         {"bytes", row.caches[i].all()}};
      }
      table.push_back({{"context", row.context},
                       {"cache", caches},
                       {"prefill_seconds", json_of(row.prefill)},
                       {"prefill_seconds_with_dead_work", json_of(row.prefill_dead)},
                       {"decode_seconds_per_token", json_of(row.decode)}});
    }
    json::object room;
    for (const Room& r : rooms) {
      room[cache_type_name(r.type)] =
          json::object{{"longest_context", r.longest}, {"conversations", r.together}};
    }
    json::array advice;
    for (const Change& change : changes) {
      advice.push_back(
          {{"flags", change.flags}, {"words", change.words}, {"needed_bytes", change.bytes}});
    }
    json::object out{
        {"model", as_utf8(path.string())},
        {"has_weights", planned.has_weights},
        {"type", mixture ? json::value(mixture->name) : json::value()},
        {"parameters",
         {{"total", planned.values()}, {"text", parameters.total}, {"active", parameters.active}}},
        {"weight_bytes", weights},
        {"weight_bytes_by_type", types},
        {"vision_bytes", planned.vision_bytes()},
        {"batch", batch},
        {"activation_bytes", activations},
        {"program_bytes", kProgramBytes},
        {"context", demand.context},
        {"cache_type", cache_type_name(demand.cache_type)},
        {"needed_bytes", needed},
        {"memory_bytes", demand.memory},
        {"fits", fits},
        {"room", room},
        {"advice", advice},
        {"table", table},
        {"limits",
         {{"bytes_per_second", measured.bandwidth},
          {"int8_operations_per_second", measured.int8_rate},
          {"float_operations_per_second", measured.float_rate},
          {"bf16_operations_per_second", measured.bf16_rate}}},
        {"efficiency",
         {{"prefill", kPrefillEfficiency},
          {"decode", kDecodeEfficiency},
          {"attention", kAttentionEfficiency}}}};
    print_out(json::serialize(out) + '\n');
  } else {
    const std::string name = printable(c.name.empty() ? path.string() : c.name, 300);
    std::string text =
        fmt::format("{}: {} parameters, {} active for a token; made for {} tokens\n", name,
                    grouped(planned.values()), grouped(parameters.active), grouped(c.context));
    text += fmt::format("\n  weights      {:>10}  {}{}\n", bytes_text(weights),
                        planned.has_weights && !mixture ? "" : "would be ", types_text(planned));
    if (planned.vision) {
      text += fmt::format("               {:>10}  of those, the vision encoder's\n",
                          bytes_text(planned.vision_bytes()));
    }
    text += fmt::format("  activations  {:>10}  batches of {} tokens\n", bytes_text(activations),
                        grouped(batch));
    text += fmt::format("  program      {:>10}\n", bytes_text(kProgramBytes));
    text += fmt::format("  cache        {:>10}  one conversation of {} tokens in {}\n",
                        bytes_text(needed - weights - activations - kProgramBytes),
                        grouped(demand.context), cache_type_name(demand.cache_type));
    text += fmt::format("  together     {:>10}  of {}: {}\n", bytes_text(needed),
                        bytes_text(demand.memory), fits ? "fits" : "does NOT fit");
    for (const Room& r : rooms) {
      text += fmt::format("  room         {:>10}  {}\n", cache_type_name(r.type),
                          r.longest == 0
                              ? "no conversation"
                              : fmt::format("up to {} tokens, or {} conversation{} of {}",
                                            grouped(r.longest), grouped(r.together),
                                            r.together == 1 ? "" : "s", grouped(demand.context)));
    }
    for (const Change& change : changes) {
      text += fmt::format("  to fit       {:>10}  {} ({})\n", bytes_text(change.bytes),
                          change.flags, change.words);
    }

    text += "\n| context |";
    std::string line = "| ---: |";
    for (const DType t : cache_types) {
      text += fmt::format(" {0}, global | {0}, local |", cache_type_name(t));
      line += " ---: | ---: |";
    }
    text += " prefill | with dead work | per token |\n" + line + " ---: | ---: | ---: |\n";
    for (const Row& row : rows) {
      text += fmt::format("| {} |", grouped(row.context));
      for (const CacheBytes& cache : row.caches) {
        text += fmt::format(" {} | {} |", bytes_text(cache.global), bytes_text(cache.local));
      }
      text += fmt::format(" {} | {} | {} |\n", text_of(row.prefill), text_of(row.prefill_dead),
                          text_of(row.decode));
    }
    const std::string machine_words = limits_text(measured);
    text += machine_words.empty()
                ? "\nNo times: nothing was measured and no limits were given.\n"
                : fmt::format(
                      "\nTimes: {}; of these {:.0f} % in prefill, {:.0f} % of the bandwidth in "
                      "decode, {:.0f} % of f32 in attention, all weights in memory. Dead work is "
                      "what no later token reads; per token with a {} cache.\n",
                      machine_words, 100 * kPrefillEfficiency, 100 * kDecodeEfficiency,
                      100 * kAttentionEfficiency, cache_type_name(demand.cache_type));
    print_out(text);
  }
  if (!fits) throw Verdict{kVerdictNo};
}

}  // namespace

void add_plan(CLI::App& app) {
  auto plan = std::make_shared<Plan>();
  CLI::App* command = app.add_subcommand(
      "plan", "Tell what a model needs and how long it takes; exit code 3 if it does not fit");
  command
      ->add_option("model,-m,--model", plan->model,
                   "A GGUF file, a Hugging Face folder, a name in the local model folder, or a\n"
                   "config.json alone")
      ->type_name("MODEL")
      ->required();
  command
      ->add_option("--type", plan->type,
                   "As if its weights were quantised so, such as q4_k_m; as they are if unset")
      ->type_name("TYPE");
  command
      ->add_option("-c,--context,--ctx-size", plan->context,
                   "Tokens of a conversation (K is 1,024, M a million); 32K at most if unset, as "
                   "run\nhas it")
      ->type_name("TOKENS");
  command
      ->add_option("--memory", plan->memory,
                   "What there is (64G and 64GiB are 2^30, 64GB 10^9); this machine's if unset")
      ->type_name("BYTES");
  command->add_option("--cache-type", plan->cache_type,
                      "Cached keys and values: f32, bf16 or int8; f32 for f32 weights, else bf16");
  command->add_option("-b,--batch", plan->batch, "Tokens of a prompt that are computed together")
      ->capture_default_str();
  command->add_flag("--json", plan->json, "Print one JSON object");

  const std::string group = "Machine";
  command->add_option("-t,--threads", plan->threads, "Threads to measure with; 0: physical cores")
      ->group(group)
      ->capture_default_str();
  command->add_option("--isa", plan->isa, "Instruction set to measure; the best there is if unset")
      ->group(group);
  const auto limit = [&](const char* flag, double& value, const char* help) {
    command->add_option(flag, value, help)->group(group)->type_name("RATE");
  };
  limit("--bandwidth", plan->by_hand.bandwidth,
        "GB/s read from memory, instead of measuring it here");
  limit("--int8-rate", plan->by_hand.int8_rate, "TOP/s of 8-bit dot products, likewise");
  limit("--float-rate", plan->by_hand.float_rate, "TFLOP/s in f32, likewise");
  limit("--bf16-rate", plan->by_hand.bf16_rate, "TFLOP/s of a matrix unit in bf16, likewise");
  command->add_flag("--no-measure", plan->no_measure, "Measure nothing; no times without limits")
      ->group(group);
  command->callback([plan] { (*plan)(); });
}

}  // namespace drover
