#include "train/recipe.h"

#include <fnmatch.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <initializer_list>

#include "base/error.h"
#include "formats/json.h"

namespace drover {
namespace {

namespace json = boost::json;

// The fields of one object of a recipe, of which every key has to be known.
class Fields : public JsonFields {
 public:
  Fields(const JsonFields& fields, std::initializer_list<std::string_view> known)
      : JsonFields(fields) {
    for (const auto& entry : object()) {
      const std::string_view key(entry.key().data(), entry.key().size());
      if (std::find(known.begin(), known.end(), key) != known.end()) continue;
      throw_error(ErrorKind::kBadData, "{}: unknown key '{}'; there is {}", where(), printable(key),
                  fmt::join(known, ", "));
    }
  }

  double at_least(std::string_view key, double lowest, double otherwise) const {
    const double value = number(key).value_or(otherwise);
    if (!(value >= lowest)) wrong(key, fmt::format("{} or more", lowest), value);
    return value;
  }
  double between(std::string_view key, double lowest, double highest, double otherwise) const {
    const double value = number(key).value_or(otherwise);
    if (!(value >= lowest && value <= highest)) {
      wrong(key, fmt::format("{} to {}", lowest, highest), value);
    }
    return value;
  }
  int64_t count(std::string_view key, int64_t lowest, int64_t otherwise) const {
    // Far above any plan; products of two stay below 2^63.
    constexpr int64_t kMost = int64_t{1} << 31;
    const int64_t value = integer(key).value_or(otherwise);
    if (value < lowest) wrong(key, fmt::format("{} or more", lowest), value);
    if (value > kMost) wrong(key, fmt::format("at most {}", kMost), value);
    return value;
  }
  int64_t required_count(std::string_view key) const {
    required_integer(key);
    return count(key, 1, 0);
  }
  template <typename T>
  [[noreturn]] void wrong(std::string_view key, std::string_view expected, const T& got) const {
    throw_error(ErrorKind::kBadData, "{}: '{}': expected {}, got {}", where(), key, expected, got);
  }
};

// A part of the recipe that may be left out.
const json::object kNothing;
Fields part(const Fields& of, std::string_view key, std::initializer_list<std::string_view> known) {
  const auto fields = of.fields(key);
  return Fields(fields ? *fields : JsonFields(kNothing, of.where()), known);
}

void read_model(const Fields& top, Recipe& recipe) {
  const Fields f(top.required_fields("model"), {"config", "tokenizer", "start", "chunk"});
  const auto path = [&](std::string_view key) -> std::filesystem::path {
    const auto text = f.text(key);
    return text ? recipe.folder / std::filesystem::path(*text) : std::filesystem::path();
  };
  recipe.config = path("config");
  recipe.tokenizer = path("tokenizer");
  if (f.has("chunk")) recipe.chunk = f.required_count("chunk");
  if (const auto start = f.text("start")) {
    // A name in the local model folder stays one; a path is relative to the recipe.
    const auto beside = path("start");
    recipe.start = std::filesystem::exists(beside) ? beside.string() : std::string(*start);
  }
  if (recipe.chunk > 0 && top.has("lora")) {
    throw_error(ErrorKind::kBadData,
                "{}: expected 'chunk' or 'lora', got both: adapters leave the model as it is",
                f.where());
  }
  if (recipe.start.empty()) {
    f.required_text("config");
    f.required_text("tokenizer");
  } else if (f.has("config") || f.has("tokenizer")) {
    throw_error(ErrorKind::kBadData, "{}: expected 'start', or 'config' and 'tokenizer', got both",
                f.where());
  }
}

void read_initialization(const Fields& top, Recipe& recipe) {
  if (!recipe.start.empty() && top.has("initialization")) {
    throw_error(ErrorKind::kBadData,
                "{}: expected 'initialization', or a model to 'start' from, got both", top.where());
  }
  const Fields f = part(top, "initialization", {"embedding", "constant_components", "constant"});
  Initialization& out = recipe.initialization;
  out.seed = recipe.seed;
  out.embedding = static_cast<float>(f.at_least("embedding", 0, out.embedding));
  out.constant_components = f.count("constant_components", 0, out.constant_components);
  out.constant = static_cast<float>(f.number("constant").value_or(out.constant));
}

void read_optimizer(const Fields& top, Recipe& recipe) {
  const Fields f = part(top, "optimizer", {"muon", "adamw", "clip"});
  OptimizerOptions& out = recipe.optimizer;
  out.clip = f.at_least("clip", 0, out.clip);
  if (f.has("muon")) {
    const Fields m(*f.fields("muon"), {"rate", "momentum", "decay", "scale"});
    MuonOptions& muon = out.muon.emplace();
    muon.rate = m.at_least("rate", 0, muon.rate);
    muon.momentum = m.between("momentum", 0, 1, muon.momentum);
    muon.decay = m.at_least("decay", 0, muon.decay);
    const auto scale = m.text("scale").value_or("shape");
    if (scale != "shape" && scale != "rms") m.wrong("scale", "shape or rms", printable(scale));
    muon.scale = scale == "rms" ? MuonOptions::Scale::kRms : MuonOptions::Scale::kShape;
  }
  const Fields a = part(f, "adamw", {"rate", "betas", "decay", "epsilon"});
  AdamWOptions& adamw = out.adamw;
  adamw.rate = a.at_least("rate", 0, adamw.rate);
  adamw.decay = a.at_least("decay", 0, adamw.decay);
  adamw.epsilon = a.number("epsilon").value_or(adamw.epsilon);
  // Steps divide by it, in f32, where nothing was learnt yet.
  if (!(static_cast<float>(adamw.epsilon) > 0)) {
    a.wrong("epsilon", "a number above 0 as f32", adamw.epsilon);
  }
  if (const auto betas = a.numbers("betas")) {
    const auto fits = [](double beta) { return beta >= 0 && beta < 1; };
    if (betas->size() != 2 || !fits((*betas)[0]) || !fits((*betas)[1])) {
      a.wrong("betas", "two numbers from 0 to below 1", fmt::format("{}", fmt::join(*betas, ", ")));
    }
    adamw.beta1 = (*betas)[0];
    adamw.beta2 = (*betas)[1];
  }
}

void read_plan(const Fields& top, Recipe& recipe) {
  const Fields s = part(top, "schedule", {"warmup", "decay", "kind"});
  recipe.schedule.warmup = s.count("warmup", 0, 0);
  recipe.schedule.decay = s.between("decay", 0, 1, 0);
  const auto kind = s.text("kind").value_or("linear");
  if (kind != "linear" && kind != "cosine") s.wrong("kind", "linear or cosine", printable(kind));
  recipe.schedule.kind = kind == "cosine" ? Schedule::Kind::kCosine : Schedule::Kind::kLinear;

  const Fields e = part(top, "experts", {"balance", "router_z", "selection_bias"});
  recipe.experts.balance = static_cast<float>(e.at_least("balance", 0, 0.01));
  recipe.experts.router_z = static_cast<float>(e.at_least("router_z", 0, 0));
  const Fields b = part(e, "selection_bias", {"rate", "until"});
  recipe.selection_bias.rate = b.at_least("rate", 0, 0);
  recipe.selection_bias.until = b.between("until", 0, 1, recipe.selection_bias.until);
  if (recipe.selection_bias.until == 1) {
    b.wrong("until", "below 1, so that the bias is gone before the end", 1);
  }

  if (const auto patterns = top.texts("freeze")) {
    recipe.freeze.assign(patterns->begin(), patterns->end());
  }
  const Fields c = part(top, "checkpoint", {"every", "minutes", "keep"});
  recipe.checkpoint_steps = c.count("every", 0, 0);
  recipe.checkpoint_minutes = c.at_least("minutes", 0, recipe.checkpoint_steps > 0 ? 0 : 10);
  recipe.checkpoints_kept = c.count("keep", 1, recipe.checkpoints_kept);
  const Fields v = part(top, "evaluate", {"every", "examples"});
  recipe.evaluate_steps = v.count("every", 0, 0);
  recipe.evaluate_examples = v.count("examples", 0, recipe.evaluate_examples);
}

void read_lora(const Fields& top, Recipe& recipe) {
  if (!top.has("lora")) return;
  const Fields f(*top.fields("lora"), {"groups", "rank", "alpha"});
  if (!recipe.freeze.empty()) {
    throw_error(ErrorKind::kBadData, "{}: expected 'freeze' or 'lora', which freezes all, got both",
                top.where());
  }
  if (recipe.start.empty()) {
    throw_error(ErrorKind::kBadData, "{}: 'lora': expected a model to 'start' from", top.where());
  }
  Recipe::Adapters& out = recipe.lora.emplace();
  out.options.rank = f.count("rank", 1, out.options.rank);
  out.options.alpha = f.at_least("alpha", 0, 2 * static_cast<double>(out.options.rank));
  out.options.seed = recipe.seed;
  const auto groups = f.texts("groups");
  out.all_groups = !groups;
  if (!groups) return;
  out.options.attention = out.options.shared = out.options.experts = false;
  for (const std::string_view group : *groups) {
    if (group == "attention") {
      out.options.attention = true;
    } else if (group == "shared") {
      out.options.shared = true;
    } else if (group == "experts") {
      out.options.experts = true;
    } else {
      f.wrong("groups", "attention, shared or experts", printable(group));
    }
  }
}

// Whether a stage's mixture names the source. Wrong types are found when stages are read.
bool is_used(const Fields& top, std::string_view name) {
  const json::value* stages = top.find("stages");
  if (stages == nullptr || !stages->is_array()) return false;
  const json::array& list = stages->get_array();
  return std::any_of(list.begin(), list.end(), [&](const json::value& stage) {
    const auto* fields = stage.if_object();
    const json::value* mixture = fields == nullptr ? nullptr : fields->if_contains("mixture");
    return mixture != nullptr && mixture->is_object() && mixture->get_object().contains(name);
  });
}

// By name, or in a file that recipes share, of which each takes what its stages use. Returns those
// taken.
json::object read_sources(const Fields& top, Recipe& recipe) {
  const json::value* value = top.find("sources");
  const bool shared = value != nullptr && value->is_string();
  json::object in_file;
  std::string where;
  if (shared) {
    const auto path = recipe.folder / std::filesystem::path(top.required_text("sources"));
    in_file = read_json_object(path);
    where = printable(path.string(), 300);
  }
  const JsonFields sources = shared ? JsonFields(in_file, where) : top.required_fields("sources");
  json::object taken;
  for (const auto& entry : sources.object()) {
    const std::string_view name(entry.key().data(), entry.key().size());
    if (shared && !is_used(top, name)) continue;
    recipe.sources.push_back({std::string(name), sources.required_fields(name).object()});
    taken[entry.key()] = entry.value();
  }
  if (recipe.sources.empty()) {
    throw_error(ErrorKind::kBadData, "{}: expected at least one source, got none", sources.where());
  }
  return taken;
}

size_t source_named(const Fields& where, const Recipe& recipe, std::string_view name) {
  for (size_t i = 0; i < recipe.sources.size(); ++i) {
    if (recipe.sources[i].name == name) return i;
  }
  throw_error(ErrorKind::kBadData, "{}: there is no source '{}'", where.where(), printable(name));
}

RecipeStage read_stage(const JsonFields& fields, const Recipe& recipe) {
  const Fields f(fields, {"steps", "tokens", "micro", "length", "mixture", "until"});
  RecipeStage out;
  out.steps = f.required_count("steps");
  out.tokens = f.required_count("tokens");
  out.micro = f.count("micro", 1, out.tokens);
  out.length = f.required_count("length");
  if (out.tokens % out.micro != 0) {
    f.wrong("micro", fmt::format("a divisor of 'tokens', {}", out.tokens), out.micro);
  }
  if (out.length < 2 || out.length > out.micro) {
    f.wrong("length", fmt::format("2 to {}, the tokens of a pass", out.micro), out.length);
  }
  const JsonFields mixture = f.required_fields("mixture");
  out.mixture.assign(recipe.sources.size(), 0);
  double sum = 0;
  for (const auto& entry : mixture.object()) {
    const std::string_view name(entry.key().data(), entry.key().size());
    const double weight = mixture.required_number(name);
    if (!(weight >= 0)) f.wrong("mixture", "weights of 0 or more", weight);
    sum += out.mixture[source_named(f, recipe, name)] = weight;
  }
  if (!(sum > 0)) f.wrong("mixture", "a weight above 0", sum);
  if (f.has("until")) {
    const Fields u(*f.fields("until"), {"source", "accuracy"});
    RecipeStage::Until& until = out.until.emplace();
    until.source = source_named(u, recipe, u.required_text("source"));
    u.required_number("accuracy");
    until.accuracy = u.between("accuracy", 0, 1, 0);
    if (out.mixture[until.source] == 0) {
      u.wrong("source", "one of the stage's mixture", recipe.sources[until.source].name);
    }
  }
  return out;
}

void read_stages(const Fields& top, Recipe& recipe) {
  const json::value* list = top.find("stages");
  if (list == nullptr || !list->is_array() || list->get_array().empty()) {
    throw_error(ErrorKind::kBadData, "{}: 'stages': expected a list of at least one", top.where());
  }
  int64_t tokens = 0;
  int64_t after_until = 0;  // steps of the stages behind the last that may end early
  bool may_end_early = false;
  for (const json::value& value : list->get_array()) {
    const std::string where = fmt::format("{}: stages[{}]", top.where(), recipe.stages.size());
    if (!value.is_object()) throw_error(ErrorKind::kBadData, "{}: expected an object", where);
    recipe.stages.push_back(read_stage(JsonFields(value.get_object(), where), recipe));
    const RecipeStage& stage = recipe.stages.back();
    constexpr int64_t kMostTokens = int64_t{1} << 50;
    if (stage.steps > (kMostTokens - tokens) / stage.tokens) {
      throw_error(ErrorKind::kBadData, "{}: expected at most {} tokens in all stages, got more",
                  where, kMostTokens);
    }
    tokens += stage.steps * stage.tokens;
    after_until = stage.until ? 0 : after_until + stage.steps;
    may_end_early = may_end_early || stage.until;
  }
  // Were a stage to end inside the decay, the rate would fall at once.
  const int64_t decay = recipe.schedule.decay_steps(recipe.steps());
  if (may_end_early && decay > after_until) {
    throw_error(ErrorKind::kBadData,
                "{}: schedule: 'decay': expected at most the {} steps after the last stage with "
                "'until', got {} steps",
                top.where(), after_until, decay);
  }
}

}  // namespace

int64_t Recipe::steps() const {
  int64_t out = 0;
  for (const RecipeStage& stage : stages) out += stage.steps;
  return out;
}

Recipe recipe_from_json(const json::object& object, const std::filesystem::path& folder,
                        const std::string& source) {
  const Fields top(
      JsonFields(object, source),
      {"name", "licence", "out", "seed", "precision", "model", "initialization", "optimizer",
       "schedule", "experts", "freeze", "lora", "sources", "checkpoint", "stages", "evaluate"});
  Recipe recipe;
  recipe.folder = folder;
  recipe.name = top.required_text("name");
  if (recipe.name.empty() || recipe.name == "." || recipe.name == ".." ||
      recipe.name.find('/') != std::string::npos) {
    top.wrong("name", "a name for files", printable(recipe.name));
  }
  recipe.out = folder / std::filesystem::path(top.text("out").value_or(recipe.name));
  recipe.licence = top.text("licence").value_or("");
  recipe.seed = static_cast<uint64_t>(top.integer("seed").value_or(0));
  const auto precision = top.text("precision").value_or("bf16");
  if (precision != "bf16" && precision != "f32") {
    top.wrong("precision", "bf16 or f32", printable(precision));
  }
  recipe.precision = precision == "f32" ? Precision::kF32 : Precision::kBF16;
  read_model(top, recipe);
  read_initialization(top, recipe);
  read_optimizer(top, recipe);
  read_plan(top, recipe);
  read_lora(top, recipe);
  const json::object sources = read_sources(top, recipe);
  read_stages(top, recipe);
  for (const auto& entry : object) {
    const std::string_view key(entry.key().data(), entry.key().size());
    constexpr std::string_view kBeside[] = {"name", "licence", "out", "checkpoint", "evaluate"};
    if (std::find(std::begin(kBeside), std::end(kBeside), key) != std::end(kBeside)) continue;
    recipe.essence[entry.key()] = key == "sources" ? json::value(sources) : entry.value();
  }
  return recipe;
}

Recipe read_recipe(const std::filesystem::path& path) {
  // A bare name has no parent of its own.
  return recipe_from_json(read_json_object(path), std::filesystem::absolute(path).parent_path(),
                          printable(path.string(), 300));
}

void freeze(Parameters& parameters, std::span<const std::string> patterns) {
  for (const std::string& pattern : patterns) {
    bool matches = false;
    for (Parameter& parameter : parameters.all()) {
      if (::fnmatch(pattern.c_str(), parameter.name.c_str(), 0) != 0) continue;
      parameters.freeze(parameter);
      matches = true;
    }
    if (!matches) {
      throw Error(ErrorKind::kUsage,
                  fmt::format("freeze: '{}' matches no tensor of this model", printable(pattern)),
                  fmt::format("names are such as {}", parameters.all().front().name));
    }
  }
  if (std::none_of(parameters.all().begin(), parameters.all().end(),
                   [](const Parameter& p) { return p.taught; })) {
    throw_error(ErrorKind::kUsage, "freeze: every tensor is frozen, there is nothing to teach");
  }
}

}  // namespace drover
