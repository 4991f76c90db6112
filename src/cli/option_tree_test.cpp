// The tree of commands and options as it is, and what is made from it: nothing is left out.
#include "cli/option_tree.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "base/mapped_file.h"
#include "cli/completion.h"
#include "cli/manual.h"
#include "cli/program.h"
#include "cli/settings_file.h"

namespace drover {
namespace {

std::vector<const CLI::App*> program_and_commands(const CLI::App& program) {
  auto out = commands_of(program, /*hidden_too=*/true);
  out.push_back(&program);
  return out;
}

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

// As the manual writes it.
std::string bold(std::string_view flag) {
  std::string out = "\\fB";
  for (const char c : flag) out += c == '-' ? "\\-" : std::string(1, c);
  return out + "\\fR";
}

TEST(OptionTree, EveryOptionSaysWhatItIsForAndHasALongName) {
  Program program;
  for (const CLI::App* app : program_and_commands(program.app())) {
    EXPECT_FALSE(app->get_description().empty()) << app->get_name();
    for (const CLI::Option* option : app->get_options({})) {
      const std::string name = app->get_name() + " " + option->get_name(true, true);
      EXPECT_FALSE(option->get_description().empty()) << name;
      EXPECT_FALSE(option->nonpositional() && option->get_lnames().empty()) << name;
      EXPECT_TRUE(option->get_envname().empty()) << name << ": settings.h reads variables";
    }
  }
}

TEST(OptionTree, HelpShowsEveryVariable) {
  Program program;
  for (const CLI::App* command : commands_of(program.app(), /*hidden_too=*/true)) {
    const std::string help = command->help();
    for (const CLI::Option* option : command->get_options({})) {
      const std::string variable = variable_of(*option);
      EXPECT_TRUE(variable.empty() || contains(help, "[$" + variable + "]")) << variable;
    }
  }
  EXPECT_TRUE(contains(program.app().get_subcommand("serve")->help(), "[$DROVER_MAX_QUEUE]"));
}

// One variable serves all commands. Where it means different things to them, that is known and
// told (docs/deploy.md); anything new here is a name to think about.
TEST(OptionTree, AVariableMeansTheSameToAllCommandsButForTheseFew) {
  const std::set<std::string> known = {
      "DROVER_JSON", "DROVER_LORA", "DROVER_OUT",     "DROVER_PARALLEL", "DROVER_PROMPT",
      "DROVER_SEED", "DROVER_TEXT", "DROVER_THREADS", "DROVER_TILES",    "DROVER_TOKENS"};
  Program program;
  std::map<std::string, std::set<std::string>> meanings;
  for (const CLI::App* command : commands_of(program.app(), /*hidden_too=*/true)) {
    for (const CLI::Option* option : command->get_options({})) {
      const std::string variable = variable_of(*option);
      if (!variable.empty()) meanings[variable].insert(value_name(*option));
    }
  }
  for (const auto& [variable, types] : meanings) {
    if (types.size() == 1) continue;
    std::string all;
    for (const std::string& type : types) all += (type.empty() ? "(flag)" : type) + " ";
    EXPECT_TRUE(known.contains(variable)) << variable << ": " << all;
  }
}

TEST(OptionTree, TextIsBrokenAtSpaces) {
  EXPECT_EQ(wrapped("one two\nthree", 7), "one two\nthree");
  EXPECT_EQ(wrapped("one two three", 6), "one\ntwo\nthree");
  EXPECT_EQ(wrapped("longer-than-that x", 6), "longer-than-that\nx");
  EXPECT_EQ(wrapped("", 6), "");
}

TEST(Manual, HasEveryOptionOfEveryCommandWithVariableAndDefault) {
  Program program;
  for (const CLI::App* command : commands_of(program.app(), /*hidden_too=*/true)) {
    const std::string page = manual_page(program.app(), command, "1.2.3", "2026-01-02");
    for (const CLI::Option* option : command->get_options({})) {
      for (const std::string& flag : flags_of(*option)) {
        EXPECT_TRUE(contains(page, bold(flag))) << command->get_name() << " " << flag;
      }
      const std::string variable = variable_of(*option);
      EXPECT_TRUE(variable.empty() || contains(page, "\\fB" + variable + "\\fR")) << variable;
    }
    for (const char* section : {"NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "ENVIRONMENT",
                                "FILES", "EXIT STATUS", "EXAMPLES", "SEE ALSO"}) {
      EXPECT_TRUE(contains(page, fmt::format("\n.SH {}\n", section)))
          << command->get_name() << ": " << section;
    }
  }
  const CLI::App* serve = program.app().get_subcommand("serve");
  const std::string page = manual_page(program.app(), serve, "1.2.3", "2026-01-02");
  EXPECT_TRUE(page.starts_with(
      ".TH DROVER\\-SERVE 1 2026-01-02 \"drover 1.2.3\" \"Drover manual\"\n.SH NAME\n"
      "drover\\-serve \\- answer the OpenAI API over HTTP\n"))
      << page.substr(0, 200);
  EXPECT_TRUE(contains(page, "\n1 to 1000000.\nIf unset: \\fB256\\fR.\n"));
  EXPECT_TRUE(contains(page, "One of \\fBtext\\fR, \\fBjson\\fR, \\fBoff\\fR."));
}

TEST(Manual, OfTheProgramHasEveryCommandAndEveryCommandHasAText) {
  Program program;
  const std::string page = manual_page(program.app(), nullptr, "1.2.3", "2026-01-02");
  ASSERT_NE(manual_text("drover"), nullptr);
  for (const CLI::App* command : commands_of(program.app(), /*hidden_too=*/true)) {
    const ManualText* text = manual_text(command->get_name());
    ASSERT_NE(text, nullptr) << command->get_name();
    EXPECT_FALSE(text->examples.empty()) << command->get_name();
    EXPECT_TRUE(contains(page, "\n\\fB" + command->get_name() + "\\fR\n")) << command->get_name();
  }
}

// A line that begins with . or ' is a request to the formatter; ours are these.
TEST(Manual, NoTextIsTakenForARequest) {
  const std::set<std::string> ours = {".TH", ".SH", ".SS", ".TP", ".PP",
                                      ".nf", ".fi", ".RS", ".RE"};
  Program program;
  auto commands = commands_of(program.app(), /*hidden_too=*/true);
  commands.push_back(nullptr);
  for (const CLI::App* command : commands) {
    const std::string page = manual_page(program.app(), command, "1.2.3", "2026-01-02");
    for (const std::string& line : CLI::detail::split(page, '\n')) {
      EXPECT_FALSE(line.starts_with('\'')) << line;
      EXPECT_TRUE(!line.starts_with('.') || ours.contains(line.substr(0, 3))) << line;
    }
  }
}

TEST(Completion, HasEveryCommandAndFlagInEveryShell) {
  Program program;
  const std::string bash = bash_completion(program.app()), zsh = zsh_completion(program.app()),
                    fish = fish_completion(program.app());
  for (const CLI::App* command : commands_of(program.app())) {
    const std::string name = command->get_name();
    const size_t in_bash = bash.find(fmt::format("\n    {})\n", name));
    const size_t in_zsh = zsh.find(fmt::format("\n        {})\n", name));
    ASSERT_NE(in_bash, std::string::npos) << name;
    ASSERT_NE(in_zsh, std::string::npos) << name;
    EXPECT_TRUE(contains(fish, fmt::format(" -a {} -d ", name))) << name;
    const std::string_view of_bash =
        std::string_view(bash).substr(in_bash, bash.find("\n      ;;\n", in_bash) - in_bash);
    const std::string_view of_zsh =
        std::string_view(zsh).substr(in_zsh, zsh.find("\n          ;;\n", in_zsh) - in_zsh);
    for (const CLI::Option* option : command->get_options({})) {
      for (const std::string& flag : flags_of(*option)) {
        EXPECT_TRUE(contains(of_bash, flag)) << name << " " << flag;
        EXPECT_TRUE(contains(of_zsh, flag + "[")) << name << " " << flag;
      }
      for (const std::string& long_name : option->get_lnames()) {
        EXPECT_TRUE(contains(fish, " -l " + long_name + " ")) << name << " " << long_name;
      }
    }
  }
}

// What stands in the package's file of settings, in comments too, must be there to be set.
TEST(OptionTree, ThePackagedSettingsAreKnown) {
  std::string text = read_file("packaging/drover.toml", 1 << 16);
  for (size_t at = 0; (at = text.find("\n#", at)) != std::string::npos; ++at) {
    if (text[at + 2] != ' ') text.erase(at + 1, 1);  // "#key = value", not "# a sentence"
  }
  const SettingsFile file = parse_settings(text, "packaging/drover.toml");
  EXPECT_GT(file.settings.size(), 8u);
  Program program;
  for (const Setting& setting : file.settings) {
    EXPECT_EQ(setting.section, "serve");
    EXPECT_NE(program.app().get_subcommand("serve")->get_option_no_throw("--" + setting.key),
              nullptr)
        << setting.key;
  }
}

}  // namespace
}  // namespace drover
