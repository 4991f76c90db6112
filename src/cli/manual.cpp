#include "cli/manual.h"

#include <fmt/chrono.h>

#include <cstdlib>
#include <ctime>
#include <set>

#include "base/error.h"
#include "base/file_writer.h"
#include "cli/command.h"
#include "cli/option_tree.h"

namespace drover {
namespace {

// Text of a line of its own. Dashes are those that people type; a line must not begin with what
// would be a request.
std::string roff(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\') {
      out += "\\e";
    } else if (c == '-') {
      out += "\\-";
    } else if (c == '\'') {
      out += "\\(aq";
    } else if (c == '`') {
      out += "\\(ga";
    } else if (c == '^') {
      out += "\\(ha";
    } else if (c == '~') {
      out += "\\(ti";
    } else if (c == '\n') {
      out += ' ';
    } else {
      out += c;
    }
  }
  return out.starts_with('.') ? "\\&" + out : out;
}
std::string bold(std::string_view text) { return "\\fB" + roff(text) + "\\fR"; }
std::string italic(std::string_view text) { return "\\fI" + roff(text) + "\\fR"; }

std::string page_name(const CLI::App* command) {
  return command == nullptr ? "drover" : "drover-" + command->get_name();
}

std::string upper(std::string text) {
  for (char& c : text) c = static_cast<char>(std::toupper(c));
  return text;
}

class Page {
 public:
  Page(const CLI::App& program, const CLI::App* command)
      : program_(program), command_(command), app_(command == nullptr ? program : *command) {}

  std::string write(std::string_view version, std::string_view date) {
    const std::string name = page_name(command_);
    line(".TH {} 1 {} \"drover {}\" \"Drover manual\"", roff(upper(name)), date, version);
    write_name(name);
    write_synopsis();
    write_description();
    if (command_ == nullptr) write_commands();
    write_options();
    write_environment();
    write_files();
    write_exit_status();
    write_examples();
    write_see_also();
    return std::move(out_);
  }

 private:
  template <typename... Args>
  void line(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(out_), format, std::forward<Args>(args)...);
    out_ += '\n';
  }
  void section(std::string_view name) { line(".SH {}", name); }
  void item(std::string_view tag, std::string_view text) { line(".TP\n{}\n{}", tag, text); }

  void write_name(std::string_view name) {
    section("NAME");
    // Up to the first pause: what follows stands in the help, and below.
    std::string what = on_one_line(app_.get_description());
    what = what.substr(0, std::min(what.find(';'), what.find(". ")));
    if (what.ends_with('.')) what.pop_back();
    what.front() = static_cast<char>(std::tolower(what.front()));
    line("{} \\- {}", roff(name), roff(what));
  }

  void write_synopsis() {
    section("SYNOPSIS");
    if (command_ == nullptr) {
      line("{} [{}] {} [{}]", bold("drover"), italic("OPTIONS"), italic("COMMAND"),
           italic("ARGUMENTS"));
      return;
    }
    std::string places;
    for (const CLI::Option* option : app_.get_options({})) {
      if (!option->get_positional()) continue;
      const std::string name = place_of(*option);
      places += option->get_required() ? " " + italic(name) : " [" + italic(name) + "]";
      if (option->get_items_expected_max() > 1) places += " ...";
    }
    line("{} [{}]{}", bold("drover " + app_.get_name()), italic("OPTIONS"), places);
  }

  static std::string place_of(const CLI::Option& option) {
    const std::string type = value_name(option);
    return type.empty() || type == "TEXT" || type == "INT" ? upper(option.get_name(true)) : type;
  }

  void write_description() {
    section("DESCRIPTION");
    const ManualText* text = manual_text(command_ == nullptr ? "drover" : command_->get_name());
    const std::string whole(text == nullptr ? app_.get_description()
                                            : std::string(text->description));
    std::string_view rest = whole;
    while (!rest.empty()) {
      const size_t end = rest.find("\n\n");
      line("{}", roff(rest.substr(0, end)));
      rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 2);
      if (!rest.empty()) line(".PP");
    }
    const std::string below = app_.get_footer();
    if (below.empty()) return;
    line(".PP\n.nf");
    std::string_view footer = below;
    while (!footer.empty()) {
      const size_t end = std::min(footer.find('\n'), footer.size());
      line("{}", end == 0 ? "\\&" : roff(footer.substr(0, end)));
      footer.remove_prefix(std::min(end + 1, footer.size()));
    }
    line(".fi");
  }

  void write_commands() {
    section("COMMANDS");
    for (const CLI::App* command : commands_of(program_, /*hidden_too=*/true)) {
      item(bold(command->get_name()), roff(command->get_description()));
    }
  }

  void write_options() {
    section("OPTIONS");
    for (const CLI::Option* option : app_.get_options({})) {
      if (option->get_positional())
        item(italic(place_of(*option)), roff(option->get_description()));
    }
    for (const std::string& group : app_.get_groups()) {
      bool begun = false;
      for (const CLI::Option* option : app_.get_options({})) {
        if (option->get_group() != group || !option->nonpositional()) continue;
        if (!begun && group != "Options") line(".SS {}", roff(group));
        begun = true;
        write_option(*option);
      }
    }
  }

  void write_option(const CLI::Option& option) {
    std::string tag;
    for (const std::string& flag : flags_of(option)) tag += (tag.empty() ? "" : ", ") + bold(flag);
    if (!is_flag(option)) tag += " " + italic(value_name(option));
    std::string text = roff(option.get_description()) + ".";
    std::string choices;
    for (const std::string& choice : choices_of(option)) {
      choices += (choices.empty() ? "" : ", ") + bold(choice);
    }
    if (!choices.empty()) text += "\nOne of " + choices + ".";
    if (const std::string range = range_of(option); !range.empty()) text += "\n" + range + ".";
    const std::string start = option.get_default_str();
    if (!start.empty()) text += "\nIf unset: " + bold(start) + ".";
    if (const std::string variable = variable_of(option); !variable.empty()) {
      text += "\nVariable: " + bold(variable) + ".";
    }
    item(tag, text);
  }

  void write_environment() {
    section("ENVIRONMENT");
    line(
        "What the command line leaves open is taken from the variable that stands with each "
        "option, and what that leaves open from the file of \\fB\\-\\-config\\fR.\n"
        "A flag without a value is given by 1, true, on or yes.\n"
        "An option that may be given several times takes one value a line, or with commas between "
        "where the option has them so.");
    item(bold("DROVER_CONFIG"), "The file of settings, as \\fB\\-\\-config\\fR.");
    item(bold("DROVER_MODELS"),
         "The local model folder; else drover/models in \\fBXDG_DATA_HOME\\fR or in "
         "\\(ti/.local/share.");
    std::set<std::string> names;
    for (const CLI::App* command : commands_of(program_, /*hidden_too=*/true)) {
      if (command_ != nullptr && command != command_) continue;
      for (const CLI::Option* option : command->get_options({})) {
        const std::string name = variable_of(*option);
        if (!name.empty() && name != "DROVER_CONFIG") names.insert(name);
      }
    }
    std::string all;
    for (const std::string& name : names) all += (all.empty() ? "" : ",\n") + bold(name);
    if (!all.empty()) line(".PP\nOf options: {}.", all);
  }

  void write_files() {
    section("FILES");
    item(italic("/etc/drover/drover.toml"),
         "What the service drover.service is set to. Any other command reads it only when "
         "\\fB\\-\\-config\\fR says so.");
    item(italic("~/.local/share/drover/models"), "Models that have a name alone.");
    if (command_ == nullptr || command_->get_name() == "chat") {
      item(italic("~/.local/state/drover/history"), "What was typed in conversations.");
    }
    line(
        ".PP\nA file of settings has a section for each command, and above them what holds for "
        "every command that has such an option. Names are those of the flags, without dashes:\n"
        ".PP\n.nf\n.RS\n"
        "threads = 8\n\n[serve]\nmodel = \"scout\"\nalias = [\"scout\", \"llama\\-4\"]\n"
        "max\\-queue = 64\nshare\\-prefixes = true\n.RE\n.fi");
  }

  void write_exit_status() {
    section("EXIT STATUS");
    const std::pair<const char*, const char*> codes[] = {
        {"0", "Done."},
        {"1", "Valid, but more than there is room for, or not something Drover does."},
        {"2", "The command line, or a variable, is off."},
        {"3", "The answer is no: it does not fit, or a threshold was not reached."},
        {"65", "A file breaks the rules of its format."},
        {"66", "A file, folder or name is not there."},
        {"70", "A fault of Drover\\(aqs own."},
        {"73", "A file cannot be created or written."},
        {"74", "Reading or writing failed."},
        {"77", "The system does not permit it."},
        {"78", "The file of settings is off."},
        {"130", "Ended by Ctrl\\-C; 143 by SIGTERM."},
    };
    for (const auto& [code, meaning] : codes) item(bold(code), meaning);
  }

  void write_examples() {
    const ManualText* text = manual_text(command_ == nullptr ? "drover" : command_->get_name());
    if (text == nullptr || text->examples.empty()) return;
    section("EXAMPLES");
    bool first = true;
    for (const auto& [purpose, command] : text->examples) {
      if (!purpose.empty()) line("{}{}", first ? "" : ".PP\n", roff(purpose));
      line(".PP\n.nf\n.RS\n{}\n.RE\n.fi", roff(command));
      first = false;
    }
  }

  void write_see_also() {
    section("SEE ALSO");
    std::string all = command_ == nullptr ? "" : "\\fBdrover\\fR(1)";
    for (const CLI::App* command : commands_of(program_)) {
      if (command == command_) continue;
      all += (all.empty() ? "" : ",\n") + bold(page_name(command)) + "(1)";
    }
    line("{}", all);
  }

  const CLI::App& program_;
  const CLI::App* command_;
  const CLI::App& app_;
  std::string out_;
};

// The day of the page: of the sources where a build says so, that it may be repeated bit by bit.
std::string today() {
  const char* given = std::getenv("SOURCE_DATE_EPOCH");
  const std::time_t now =
      given != nullptr ? static_cast<std::time_t>(std::strtoll(given, nullptr, 10)) : std::time({});
  return fmt::format("{:%Y-%m-%d}", fmt::gmtime(now));
}

}  // namespace

std::string manual_page(const CLI::App& program, const CLI::App* command, std::string_view version,
                        std::string_view date) {
  return Page(program, command).write(version, date);
}

void add_man(CLI::App& app) {
  CLI::App* command = app.add_subcommand("man", "Print a manual page, in roff");
  command->group("");  // for those who pack Drover; drover(1) tells of it
  struct Man {
    std::string name, folder;
  };
  const auto man = std::make_shared<Man>();
  CLI::Option* name =
      command->add_option("command", man->name, "The command it is about; the program if unset")
          ->type_name("COMMAND");
  command->add_option("--folder", man->folder, "Write the pages of all commands there instead")
      ->type_name("FOLDER")
      ->excludes(name);
  command->callback([&app, man] {
    const std::string date = today();
    if (!man->folder.empty()) {
      std::vector<const CLI::App*> all = commands_of(app);
      all.push_back(nullptr);
      for (const CLI::App* about : all) {
        write_file(std::filesystem::path(man->folder) / (page_name(about) + ".1"),
                   manual_page(app, about, DROVER_VERSION, date));
      }
      return;
    }
    const CLI::App* about = nullptr;
    for (const CLI::App* other : commands_of(app, /*hidden_too=*/true)) {
      if (other->get_name() == man->name) about = other;
    }
    if (about == nullptr && !man->name.empty()) {
      throw Error(ErrorKind::kUsage,
                  fmt::format("man: expected a command, got {}", printable(man->name)),
                  "`drover --help` names all");
    }
    print_out(manual_page(app, about, DROVER_VERSION, date));
  });
}

}  // namespace drover
