#include "cli/program.h"

#include "cli/command.h"
#include "cli/option_tree.h"

namespace drover {

Program::Program() : app_("Runs, serves, measures and teaches models of the Llama 4 family.", "drover") {
  app_.formatter(std::make_shared<HelpFormatter>());
  app_.get_formatter()->column_width(34);
  app_.set_version_flag("--version", DROVER_VERSION, "Print the version and exit");
  app_.require_subcommand(1);
  app_.fallthrough(false);
  add_run(app_);
  add_chat(app_);
  add_serve(app_);
  add_batch(app_);
  add_inspect(app_);
  add_tokenize(app_);
  add_detokenize(app_);
  add_tokenizer(app_);
  add_score(app_);
  add_convert(app_);
  add_quantize(app_);
  add_bench(app_);
  add_plan(app_);
  add_needle(app_);
  add_train(app_);
  add_tune(app_);
  add_man(app_);
  add_completion(app_);
  settings_.emplace(app_);
}

}  // namespace drover
