// drover convert FOLDER OUT.gguf: a Hugging Face folder as one file that maps.
// drover quantize IN OUT.gguf: any model in other types.

#include <boost/json.hpp>
#include <filesystem>
#include <map>

#include "base/progress.h"
#include "cli/command.h"
#include "model/export_gguf.h"

namespace drover {
namespace {

// Lines of at most 100 characters, indented.
std::string wrapped(const std::string& list) {
  std::string out, line;
  for (size_t at = 0; at < list.size();) {
    const size_t comma = std::min(list.find(", ", at), list.size() - 2);
    const std::string word = list.substr(at, comma + 2 - at);
    if (line.size() + word.size() > 98) {
      out += "  " + line + "\n";
      line.clear();
    }
    line += word;
    at = comma + 2;
  }
  return out + "  " + line;
}

// Both commands: they differ in what they take and in what they say.
struct Export {
  bool quantizes = false;
  ModelFlags machine;
  std::string in;
  std::string out;
  std::string type = "bf16";
  bool pure = false;
  std::vector<std::string> rules;
  std::string importance_file;
  std::string mmproj;
  std::vector<std::string> lora;
  bool no_vision = false;
  bool force = false;
  bool json = false;

  void add_options(CLI::App& command);
  void operator()() const;

 private:
  ExportOptions options() const;
  void report(const GgufExport& model, const GgufExport* vision, double seconds) const;
};

void Export::add_options(CLI::App& command) {
  command.add_option("out", out, "The file to write")->type_name("FILE")->required();
  CLI::Option* option = command
                            .add_option("--type,--outtype", type,
                                        "The type of the weights; what there is stands below")
                            ->type_name("TYPE");
  if (quantizes) {
    option->required();
  } else {
    option->capture_default_str();
  }
  command.add_flag("--pure", pure, "All matrices in the type itself, none in a better one");
  command
      .add_option("--tensor,--tensor-type", rules,
                  "Another type for some tensors; may be given several times, the last counts")
      ->type_name("PATTERN=TYPE")
      ->allow_extra_args(false);
  command
      .add_option("--importance,--imatrix", importance_file,
                  "Round with respect to what `score --importance` or llama-imatrix found")
      ->type_name("FILE");
  CLI::Option* apart =
      command
          .add_option("--mmproj", mmproj,
                      "Write the vision encoder to a file of its own, as llama.cpp wants it")
          ->type_name("FILE");
  add_adapters(command, lora,
               "Merge an adapter, as PEFT writes it, into the weights; may be given several times");
  command.add_flag("--no-vision", no_vision, "Leave the vision encoder out")->excludes(apart);
  command.add_flag("--force", force, "Write over an existing file");
  command.footer(
      "Types:\n" + wrapped(mixture_names()) +
      "\nA name means what it means in llama.cpp: q4_k_m, say, keeps the matrices that suffer "
      "most\n"
      "in q6_k. Norms and routers stay float. Rows that are no whole number of blocks get a type\n"
      "with smaller blocks.\n"
      "A PATTERN must match the whole name of a tensor, with * ? [...] as in a shell:\n"
      "  --tensor '*.ffn_down*=q6_k' --tensor 'blk.0.*=q8_0'\n");
}

ExportOptions Export::options() const {
  const auto mixture = mixture_from_name(type);
  if (!mixture) {
    throw_error(ErrorKind::kUsage, "type: expected {}, got {}", mixture_names(), printable(type));
  }
  ExportOptions out{.mixture = *mixture};
  if (pure) out.mixture = mixture->base;
  for (const std::string& rule : rules) out.rules.push_back(TensorRule::parse(rule));
  return out;
}

// What a file holds, as JSON and in a line.
struct Written {
  boost::json::object facts;
  std::string line;
};

Written describe(const GgufExport& work, const std::string& file) {
  struct Share {
    int64_t tensors = 0, bytes = 0;
  };
  std::map<std::string_view, Share> shares;
  int64_t bytes = 0, source_bytes = 0, values = 0;
  for (const GgufExport::Tensor& tensor : work.tensors()) {
    Share& share = shares[dtype_name(tensor.type)];
    ++share.tensors;
    share.bytes += tensor.bytes();
    bytes += tensor.bytes();
    source_bytes += tensor.source.matrices() * tensor.source.rows() *
                    row_bytes(tensor.source.from->type, tensor.source.cols());
    values += tensor.source.matrices() * tensor.source.rows() * tensor.source.cols();
  }
  const double bits = 8 * static_cast<double>(bytes) / static_cast<double>(values);
  boost::json::object types;
  std::vector<std::string> parts;
  for (const auto& [name, share] : shares) {
    types[name] = {{"tensors", share.tensors}, {"bytes", share.bytes}};
    parts.push_back(fmt::format("{} {}", share.tensors, name));
  }
  return {{{"out", as_utf8(file)},
           {"weight_bytes", bytes},
           {"source_weight_bytes", source_bytes},
           {"bits_per_weight", bits},
           {"types", types}},
          fmt::format("{}: {:.1f} MB of weights, from {:.1f} MB; {:.2f} bits per weight; tensors: "
                      "{}\n",
                      printable(file, 300), static_cast<double>(bytes) / 1e6,
                      static_cast<double>(source_bytes) / 1e6, bits, fmt::join(parts, ", "))};
}

void Export::report(const GgufExport& model, const GgufExport* vision, double seconds) const {
  Written written = describe(model, out);
  const std::optional<Written> apart =
      vision != nullptr ? std::optional(describe(*vision, mmproj)) : std::nullopt;
  if (!json) return print_out(written.line + (apart ? apart->line : ""));
  boost::json::object& facts = written.facts;
  facts["type"] = as_utf8(type);
  facts["warnings"] = boost::json::value_from(model.warnings());
  facts["seconds"] = seconds;
  if (apart) facts["mmproj"] = apart->facts;
  print_out(boost::json::serialize(facts) + '\n');
}

void Export::operator()() const {
  ExportOptions chosen = options();
  for (const std::string& file : {out, mmproj}) {
    if (file.empty() && &file != &out) continue;
    if (std::filesystem::exists(file) && !force) {
      throw Error(ErrorKind::kCannotWrite, fmt::format("{}: already exists", printable(file, 300)),
                  "--force writes over it");
    }
    check_can_create(file);
  }
  if (!mmproj.empty() &&
      std::filesystem::weakly_canonical(out) == std::filesystem::weakly_canonical(mmproj)) {
    throw_error(ErrorKind::kUsage, "mmproj: expected another file than the model's");
  }
  std::optional<Importance> importance;
  if (!importance_file.empty()) {
    chosen.importance = &importance.emplace(Importance::load(importance_file));
  }
  const std::filesystem::path source = locate_model(in);
  std::optional<HuggingfaceFolder> folder;
  std::optional<GgufFile> file;
  if (!quantizes || std::filesystem::is_directory(source)) {
    folder = HuggingfaceFolder::open(source);
  } else {
    file = GgufFile::open(source);
  }
  Adapter adapter;
  if (!lora.empty()) {
    adapter = read_adapter(
        lora, folder ? config_from_huggingface(folder->config, (source / "config.json").string())
                     : config_from_gguf(*file));
    chosen.adapter = &adapter;
  }
  // All is decided and checked before the first byte is written.
  std::optional<GgufExport> model, vision;
  const auto plan = [&](std::optional<GgufExport>& work, ExportPart part) {
    chosen.part = part;
    folder ? work.emplace(*folder, chosen) : work.emplace(*file, chosen);
  };
  const bool whole = mmproj.empty() && !no_vision;
  plan(model, whole ? ExportPart::kWhole : ExportPart::kText);
  if (!mmproj.empty()) plan(vision, ExportPart::kVision);
  for (const std::string& warning : model->warnings()) warn(warning);
  if (vision) {
    for (const std::string& warning : vision->warnings()) warn(warning);
  }
  const auto context = machine.make_context();
  InterruptGuard interrupt;
  const auto start = std::chrono::steady_clock::now();
  if (vision) {
    ProgressBar bar("vision", "bytes");
    vision->write(*context, mmproj, cancellable(bar.callback()));
  }
  try {
    ProgressBar bar(quantizes ? "quantizing" : "converting", "bytes");
    model->write(*context, out, cancellable(bar.callback()));
  } catch (...) {
    // What was stopped leaves nothing behind.
    std::error_code ignored;
    if (vision) std::filesystem::remove(mmproj, ignored);
    throw;
  }
  if (!quantizes) return;
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  report(*model, vision ? &*vision : nullptr, seconds);
}

}  // namespace

void add_convert(CLI::App& app) {
  auto convert = std::make_shared<Export>();
  CLI::App* command = app.add_subcommand("convert", "Write a Hugging Face folder as one GGUF file");
  command->add_option("folder", convert->in, "Folder with config.json and *.safetensors")
      ->type_name("FOLDER")
      ->required();
  convert->add_options(*command);
  convert->machine.add_machine(*command);
  command->callback([convert] { (*convert)(); });
}

void add_quantize(CLI::App& app) {
  auto quantize = std::make_shared<Export>();
  quantize->quantizes = true;
  CLI::App* command = app.add_subcommand(
      "quantize",
      "Write a model in another type, as one GGUF file. Weights that are quantised already are\n"
      "rounded a second time, with a warning: better to start from f32, f16 or bf16");
  command
      ->add_option("model", quantize->in,
                   "A GGUF file, a Hugging Face folder, or a name in the local model folder")
      ->type_name("MODEL")
      ->required();
  quantize->add_options(*command);
  command->add_flag("--json", quantize->json, "Print one JSON object");
  quantize->machine.add_machine(*command);
  command->callback([quantize] { (*quantize)(); });
}

}  // namespace drover
