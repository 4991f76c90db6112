// drover convert FOLDER OUT.gguf: a Hugging Face folder as one file that maps.

#include <filesystem>

#include "base/progress.h"
#include "cli/command.h"
#include "model/export_gguf.h"

namespace drover {
namespace {

struct Convert {
  ModelFlags machine;
  std::string folder;
  std::string out;
  std::string type = "bf16";
  bool force = false;

  void operator()() const {
    const auto dtype = dtype_from_name(type);
    if (!dtype || !dtype_info(*dtype).is_weight) {
      throw_error(
          ErrorKind::kUsage,
          "type: expected f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, q6_k, q5_k or q4_k, "
          "got {}",
          printable(type));
    }
    if (std::filesystem::exists(out) && !force) {
      throw Error(ErrorKind::kCannotWrite, fmt::format("{}: already exists", printable(out, 300)),
                  "--force writes over it");
    }
    check_can_create(out);
    const HuggingfaceFolder source = HuggingfaceFolder::open(locate_model(folder));
    const auto context = machine.make_context();
    InterruptGuard interrupt;  // a stopped conversion leaves nothing behind
    ProgressBar bar("converting", "bytes");
    export_gguf(*context, source, out, *dtype, cancellable(bar.callback()));
  }
};

}  // namespace

void add_convert(CLI::App& app) {
  auto convert = std::make_shared<Convert>();
  CLI::App* command = app.add_subcommand("convert", "Write a Hugging Face folder as one GGUF file");
  command->add_option("folder", convert->folder, "Folder with config.json and *.safetensors")
      ->type_name("FOLDER")
      ->required();
  command->add_option("out", convert->out, "The file to write")->type_name("FILE")->required();
  command
      ->add_option("--type,--outtype", convert->type,
                   "f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, q6_k, q5_k or q4_k")
      ->capture_default_str();
  command->add_flag("--force", convert->force, "Write over an existing file");
  convert->machine.add_machine(*command);
  command->callback([convert] { (*convert)(); });
}

}  // namespace drover
