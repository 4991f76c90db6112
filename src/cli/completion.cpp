#include "cli/completion.h"

#include <fmt/format.h>

#include "cli/command.h"
#include "cli/option_tree.h"

namespace drover {
namespace {

// What a value may be completed with.
enum class Values { kNone, kChoices, kFiles, kFolders, kModels };

Values values_of(const CLI::Option& option) {
  if (is_flag(option)) return Values::kNone;
  if (!choices_of(option).empty()) return Values::kChoices;
  const std::string name = value_name(option);
  if (name == "MODEL") return Values::kModels;
  if (name == "FOLDER") return Values::kFolders;
  const bool file = name == "FILE" || name == "PATH" || name.find('.') != std::string::npos ||
                    name == "A B" || name == "SHAPE OUT";
  return file ? Values::kFiles : Values::kNone;
}

std::vector<const CLI::Option*> named_options(const CLI::App& app) {
  return app.get_options([](const CLI::Option* option) { return option->nonpositional(); });
}
std::vector<const CLI::Option*> places(const CLI::App& app) {
  return app.get_options([](const CLI::Option* option) { return option->get_positional(); });
}

std::string names_of(const std::vector<const CLI::App*>& commands) {
  std::string out;
  for (const CLI::App* command : commands) out += (out.empty() ? "" : " ") + command->get_name();
  return out;
}

std::string flags_line(const CLI::App& app) {
  std::string out;
  for (const CLI::Option* option : named_options(app)) {
    for (const std::string& flag : flags_of(*option)) out += (out.empty() ? "" : " ") + flag;
  }
  return out;
}

// A text between single quotes of a shell.
std::string shell_quoted(std::string_view text) {
  std::string out = "'";
  for (const char c : text) {
    if (c == '\'') {
      out += "'\\''";
    } else {
      out += c;
    }
  }
  return out + "'";
}

// Where models have a name alone, in the words of bash and zsh.
constexpr std::string_view kModelFolder =
    "${DROVER_MODELS:-${XDG_DATA_HOME:-$HOME/.local/share}/drover/models}";

}  // namespace

std::string bash_completion(const CLI::App& program) {
  const auto commands = commands_of(program);
  std::string out =
      fmt::format(R"sh(# bash completion of drover

_drover_models() {{
  local file
  for file in "{}"/*; do
    [[ -e $file ]] && basename "$file" .gguf
  done
}}

_drover() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} command= i
  # --flag=VALUE comes as three words.
  if [[ $word == "=" ]]; then
    word=
  elif [[ $before == "=" ]]; then
    before=${{COMP_WORDS[COMP_CWORD-2]}}
  fi
  for ((i = 1; i < COMP_CWORD; ++i)); do
    case ${{COMP_WORDS[i]}} in
      {}) command=${{COMP_WORDS[i]}}; break ;;
    esac
  done
  local flags= choices= values=
  case $command in
)sh",
                  kModelFolder, fmt::join(CLI::detail::split(names_of(commands), ' '), "|"));
  const auto arm = [&](const CLI::App& app) {
    fmt::format_to(std::back_inserter(out), "      flags={}\n", shell_quoted(flags_line(app)));
    out += "      case $before in\n";
    for (const CLI::Option* option : named_options(app)) {
      if (is_flag(*option)) continue;
      const std::string pattern = fmt::format("{}", fmt::join(flags_of(*option), "|"));
      switch (values_of(*option)) {
        case Values::kChoices:
          fmt::format_to(std::back_inserter(out), "        {}) values=words; choices={} ;;\n",
                         pattern,
                         shell_quoted(fmt::format("{}", fmt::join(choices_of(*option), " "))));
          break;
        case Values::kFiles:
          fmt::format_to(std::back_inserter(out), "        {}) values=files ;;\n", pattern);
          break;
        case Values::kFolders:
          fmt::format_to(std::back_inserter(out), "        {}) values=folders ;;\n", pattern);
          break;
        case Values::kModels:
          fmt::format_to(std::back_inserter(out), "        {}) values=models ;;\n", pattern);
          break;
        case Values::kNone:
          fmt::format_to(std::back_inserter(out), "        {}) return ;;\n", pattern);
      }
    }
    out += "      esac\n      ;;\n";
  };
  for (const CLI::App* command : commands) {
    fmt::format_to(std::back_inserter(out), "    {})\n", command->get_name());
    arm(*command);
  }
  fmt::format_to(std::back_inserter(out), "    *)\n      choices={}\n",
                 shell_quoted(names_of(commands)));
  arm(program);
  out += R"sh(  esac
  if [[ -z $values ]]; then
    if [[ $word == -* ]]; then
      values=words choices=$flags
    elif [[ -z $command ]]; then
      values=words
    else
      values=models
    fi
  fi
  case $values in
    words) mapfile -t COMPREPLY < <(compgen -W "$choices" -- "$word") ;;
    files) mapfile -t COMPREPLY < <(compgen -f -- "$word") ;;
    folders) mapfile -t COMPREPLY < <(compgen -d -- "$word") ;;
    models)
      mapfile -t COMPREPLY < <(compgen -f -- "$word"; compgen -W "$(_drover_models)" -- "$word")
      ;;
  esac
  [[ $values == words ]] || compopt -o filenames 2>/dev/null || true
}

complete -F _drover drover
)sh";
  return out;
}

namespace {

// Of a description between [ ] of _arguments.
std::string zsh_text(std::string_view text) {
  std::string out;
  for (const char c : on_one_line(text)) {
    if (c == '[' || c == ']' || c == '\\' || c == ':') out += '\\';
    out += c;
  }
  return out;
}

std::string zsh_action(const CLI::Option& option) {
  switch (values_of(option)) {
    case Values::kChoices:
      return fmt::format("({})", fmt::join(choices_of(option), " "));
    case Values::kFiles:
      return "_files";
    case Values::kFolders:
      return "_files -/";
    case Values::kModels:
      return "_drover_models";
    case Values::kNone:
      return " ";
  }
  return " ";
}

void append_zsh_options(std::string& out, const CLI::App& app, std::string_view indent) {
  for (const CLI::Option* option : named_options(app)) {
    const auto flags = flags_of(*option);
    const bool repeats = option->get_items_expected_max() > 1;
    const std::string others = repeats ? "*" : fmt::format("({})", fmt::join(flags, " "));
    for (const std::string& flag : flags) {
      std::string spec = fmt::format("{}{}[{}]", others, flag, zsh_text(option->get_description()));
      if (!is_flag(*option)) {
        spec += fmt::format(":{}:{}", zsh_text(value_name(*option)), zsh_action(*option));
      }
      out += fmt::format(" \\\n{}{}", indent, shell_quoted(spec));
    }
  }
}

}  // namespace

std::string zsh_completion(const CLI::App& program) {
  std::string out = fmt::format(R"sh(#compdef drover
# zsh completion of drover

_drover_models() {{
  local -a models
  models=("{}"/*(N:t))
  compadd -- ${{models%.gguf}}
  _files
}}

_drover() {{
  local context state state_descr line curcontext=$curcontext
  typeset -A opt_args
  local -a commands
  commands=(
)sh",
                                kModelFolder);
  for (const CLI::App* command : commands_of(program)) {
    out += fmt::format("    {}\n", shell_quoted(fmt::format("{}:{}", command->get_name(),
                                                            zsh_text(command->get_description()))));
  }
  out += "  )\n  _arguments -C";
  append_zsh_options(out, program, "    ");
  out += R"sh( \
    '1: :->command' \
    '*:: :->arguments'
  case $state in
    command) _describe -t commands command commands ;;
    arguments)
      case $line[1] in
)sh";
  for (const CLI::App* command : commands_of(program)) {
    out += fmt::format("        {})\n          _arguments -s", command->get_name());
    append_zsh_options(out, *command, "            ");
    for (const CLI::Option* option : places(*command)) {
      const std::string_view where = option->get_items_expected_max() > 1 ? "*" : "";
      out +=
          fmt::format(" \\\n            {}",
                      shell_quoted(fmt::format("{}:{}:{}", where, zsh_text(option->get_name(true)),
                                               zsh_action(*option))));
    }
    out += "\n          ;;\n";
  }
  out += R"sh(      esac
      ;;
  esac
}

if [[ $funcstack[1] == _drover ]]; then
  _drover "$@"
else
  compdef _drover drover
fi
)sh";
  return out;
}

std::string fish_completion(const CLI::App& program) {
  std::string out = fmt::format(R"sh(# fish completion of drover

function __drover_models
    set -l folder $DROVER_MODELS
    test -n "$folder"; or set folder $XDG_DATA_HOME/drover/models
    test -d "$folder"; or set folder $HOME/.local/share/drover/models
    test -d "$folder"; and command ls $folder | string replace -r '\.gguf$' ''
    __fish_complete_path (commandline -ct)
end

set -l commands {}
complete -c drover -f
)sh",
                                names_of(commands_of(program)));
  const auto options = [&](const CLI::App& app, const std::string& condition) {
    for (const CLI::Option* option : named_options(app)) {
      out += fmt::format("complete -c drover -n {}", condition);
      for (const std::string& name : option->get_snames()) out += " -s " + name;
      for (const std::string& name : option->get_lnames()) out += " -l " + name;
      switch (values_of(*option)) {
        case Values::kChoices:
          out += fmt::format(" -x -a {}",
                             shell_quoted(fmt::format("{}", fmt::join(choices_of(*option), " "))));
          break;
        case Values::kFiles:
          out += " -r -F";
          break;
        case Values::kFolders:
          out += " -x -a '(__fish_complete_directories)'";
          break;
        case Values::kModels:
          out += " -x -a '(__drover_models)'";
          break;
        case Values::kNone:
          if (!is_flag(*option)) out += " -x";
      }
      out += fmt::format(" -d {}\n", shell_quoted(on_one_line(option->get_description())));
    }
  };
  options(program, "\"not __fish_seen_subcommand_from $commands\"");
  for (const CLI::App* command : commands_of(program)) {
    out += fmt::format(
        "complete -c drover -n \"not __fish_seen_subcommand_from $commands\" -a {} -d {}\n",
        command->get_name(), shell_quoted(on_one_line(command->get_description())));
    const std::string here = fmt::format("'__fish_seen_subcommand_from {}'", command->get_name());
    options(*command, here);
    for (const CLI::Option* option : places(*command)) {
      const Values values = values_of(*option);
      if (values == Values::kModels) {
        out += fmt::format("complete -c drover -n {} -a '(__drover_models)'\n", here);
      } else if (values == Values::kFiles || values == Values::kFolders) {
        out += fmt::format("complete -c drover -n {} -F\n", here);
      }
    }
  }
  return out;
}

void add_completion(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("completion", "Print a script that completes commands in a shell");
  command->group("");  // for those who pack Drover; drover(1) tells of it
  const auto shell = std::make_shared<std::string>();
  command->add_option("shell", *shell, "The shell: bash, zsh or fish")
      ->type_name("SHELL")
      ->check(CLI::IsMember({"bash", "zsh", "fish"}))
      ->required();
  command->callback([&app, shell] {
    print_out(*shell == "bash"  ? bash_completion(app)
              : *shell == "zsh" ? zsh_completion(app)
                                : fish_completion(app));
  });
}

}  // namespace drover
