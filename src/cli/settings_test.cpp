// Where settings come from, on a small tree of commands; tests/cli/test_settings.py has the
// program.
#include "cli/settings.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "cli/option_tree.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

using testing::expect_error;

// A variable for as long as a test lasts.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) { ::setenv(name, value, 1); }
  ~Variable() { ::unsetenv(name_); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const char* name_;
};

struct Tree {
  CLI::App app{"", "drover"};
  std::string model, socket;
  int queue = 1, port = 80;
  bool share = false;
  std::vector<std::string> names, stops;
  std::vector<int> lengths;
  std::optional<Settings> settings;

  Tree() {
    app.require_subcommand(1);
    CLI::App* serve = app.add_subcommand("serve");
    serve->add_option("model,-m,--model", model)->required();
    serve->add_option("-q,--max-queue,--queue", queue)->check(CLI::Range(1, 1000));
    CLI::Option* port_option = serve->add_option("--port", port);
    serve->add_option("--unix-socket", socket)->excludes(port_option);
    serve->add_flag("--share-prefixes", share);
    serve->add_option("--alias", names)->delimiter(',');
    serve->add_option("--stop", stops)->allow_extra_args(false);
    CLI::App* bench = app.add_subcommand("bench");
    bench->add_option("--prompt", lengths)->delimiter(',');
    bench->add_option("--max-queue", queue);
    CLI::App* run = app.add_subcommand("run");
    run->add_option("model,-m,--model", model);
    run->add_option("--prompt", socket);
    settings.emplace(app);
  }
  void parse(std::vector<std::string> arguments) {
    std::reverse(arguments.begin(), arguments.end());
    app.parse(arguments);
  }
};

// A tree after parsing.
std::unique_ptr<Tree> parsed(std::vector<std::string> arguments) {
  auto tree = std::make_unique<Tree>();
  tree->parse(std::move(arguments));
  return tree;
}

TEST(Settings, AFlagBeatsAVariableWhichBeatsTheFileWhichBeatsTheDefault) {
  const testing::TempFolder folder;
  const std::string file = folder.write("f", "[serve]\nmax-queue = 4\n").string();
  EXPECT_EQ(parsed({"serve", "m"})->queue, 1);
  EXPECT_EQ(parsed({"serve", "m", "--config", file})->queue, 4);
  {
    const Variable variable("DROVER_MAX_QUEUE", "3");
    EXPECT_EQ(parsed({"serve", "m"})->queue, 3);
    EXPECT_EQ(parsed({"serve", "m", "--config", file})->queue, 3);
    EXPECT_EQ(parsed({"serve", "m", "--config", file, "-q", "2"})->queue, 2);
    EXPECT_EQ(parsed({"serve", "m", "--queue=2"})->queue, 2);
  }
  const Variable empty("DROVER_MAX_QUEUE", "");  // as if it were not there
  EXPECT_EQ(parsed({"serve", "m", "--config", file})->queue, 4);
}

TEST(Settings, ACommandsOwnSectionBeatsWhatStandsAboveAll) {
  const testing::TempFolder folder;
  const std::string file =
      folder.write("f", "max-queue = 5\nport = 81\n[bench]\nmax-queue = 6\n[serve]\nport = 82\n")
          .string();
  EXPECT_EQ(parsed({"bench", "--config", file})->queue, 6);
  const auto serve = parsed({"serve", "m", "--config", file});
  EXPECT_EQ(serve->queue, 5);
  EXPECT_EQ(serve->port, 82);
}

TEST(Settings, TheFileIsNamedByTheCommandTheProgramOrAVariable) {
  const testing::TempFolder folder;
  const auto file = [&](const char* name, int queue) {
    return folder.write(name, fmt::format("max-queue = {}\n", queue)).string();
  };
  const Variable variable("DROVER_CONFIG", file("variable", 7).c_str());
  const std::string own = file("own", 8), program = file("program", 9);
  EXPECT_EQ(parsed({"serve", "m"})->queue, 7);
  EXPECT_EQ(parsed({"--config", program, "serve", "m"})->queue, 9);
  EXPECT_EQ(parsed({"--config", program, "serve", "m", "--config", own})->queue, 8);
  expect_error(ErrorKind::kNotFound, "none", [&] {
    parsed({"serve", "m", "--config", (folder / "none").string()});
  });
}

TEST(Settings, WhatHasAPlaceMayComeFromElsewhereToo) {
  const testing::TempFolder folder;
  const std::string file = folder.write("f", "[serve]\nmodel = 'of # file'\n").string();
  EXPECT_EQ(parsed({"serve", "--config", file})->model, "of # file");
  {
    const Variable variable("DROVER_MODEL", "of variable");
    EXPECT_EQ(parsed({"serve", "--config", file})->model, "of variable");
    EXPECT_EQ(parsed({"serve", "here", "--config", file})->model, "here");
  }
  EXPECT_THROW(parsed({"serve"}), CLI::RequiredError);
}

TEST(Settings, AnotherCommandsVariablesAreNotLookedAt) {
  const Variable variable("DROVER_PROMPT", "no number");
  EXPECT_EQ(parsed({"run"})->socket, "no number");
  EXPECT_EQ(parsed({"serve", "m"})->queue, 1);
  expect_error(ErrorKind::kUsage, "DROVER_PROMPT: ", [] { parsed({"bench"}); });
}

TEST(Settings, AFlagIsGivenByTrueAndTakenBackByFalse) {
  const testing::TempFolder folder;
  const std::string file = folder.write("f", "[serve]\nshare-prefixes = true\n").string();
  EXPECT_TRUE(parsed({"serve", "m", "--config", file})->share);
  for (const char* yes : {"1", "true", "ON", "yes"}) {
    const Variable variable("DROVER_SHARE_PREFIXES", yes);
    EXPECT_TRUE(parsed({"serve", "m"})->share) << yes;
  }
  for (const char* no : {"0", "false", "Off", "no"}) {
    const Variable variable("DROVER_SHARE_PREFIXES", no);
    EXPECT_FALSE(parsed({"serve", "m", "--config", file})->share) << no;
    EXPECT_TRUE(parsed({"serve", "m", "--share-prefixes"})->share) << no;
  }
  const Variable variable("DROVER_SHARE_PREFIXES", "2");
  expect_error(ErrorKind::kUsage, "DROVER_SHARE_PREFIXES: expected true or false, got 2", [] {
    parsed({"serve", "m"});
  });
}

TEST(Settings, SeveralValuesComeWithCommasOrOnLinesOrAsAList) {
  using Values = std::vector<std::string>;
  const testing::TempFolder folder;
  const std::string file =
      folder
          .write("f", "[serve]\nalias = [\"a\", 'b',\n  # and one more\n 'c',\n]\nstop = '[x, y]'")
          .string();
  const auto tree = parsed({"serve", "m", "--config", file});
  EXPECT_EQ(tree->names, (Values{"a", "b", "c"}));
  EXPECT_EQ(tree->stops, (Values{"[x, y]"}));
  const Variable names("DROVER_ALIAS", "a,b"), stops("DROVER_STOP", "one, two\nthree\n");
  const auto other = parsed({"serve", "m", "--config", file});
  EXPECT_EQ(other->names, (Values{"a", "b"}));
  EXPECT_EQ(other->stops, (Values{"one, two", "three"}));
}

TEST(Settings, WhatIsSaidTakesBackWhatExcludesItAndWasSaidMoreWeakly) {
  const testing::TempFolder folder;
  const std::string file = folder.write("f", "[serve]\nunix-socket = 's'\n").string();
  EXPECT_EQ(parsed({"serve", "m", "--config", file})->socket, "s");
  EXPECT_EQ(parsed({"serve", "m", "--config", file, "--port", "1"})->socket, "");
  const std::string both = folder.write("g", "[serve]\nunix-socket = 's'\nport = 1").string();
  EXPECT_THROW(parsed({"serve", "m", "--config", both}), CLI::ExcludesError);
}

TEST(Settings, NamesThatNobodyKnowsAreErrorsWithAHint) {
  const testing::TempFolder folder;
  const auto refuse = [&](std::string_view text, std::string_view words) {
    const std::string file = folder.write("f", text).string();
    expect_error(ErrorKind::kConfig, words, [&] { parsed({"serve", "m", "--config", file}); });
  };
  refuse("\n[serve]\nmax_queue = 4\n",
         "f:3: max_queue: expected a flag of serve without its dashes");
  refuse("[serve]\nmax_queue = 4\n", "perhaps max-queue; `drover serve --help` names all");
  refuse("[serve]\nzzzzzzz = 4\n", "(hint: `drover serve --help` names all)");
  refuse("[bench]\nport = 4\n", "f:2: port: expected a flag of bench");  // of no command that runs
  refuse("max-queu = 4\n", "f:1: max-queu: expected a flag of any command");
  refuse("[server]\n", "f:1: expected a command in [ ], got server (hint: perhaps serve; ");
  refuse("[serve]\nconfig = 'f'\n", "f:2: config: expected a flag");
  refuse("[serve]\nhelp = true\n", "f:2: help: expected a flag");
  refuse("[serve]\nq = 3\n", "f:2: q: expected a flag");  // one name, the long one
}

TEST(Settings, ValuesThatDoNotFitNameTheirSource) {
  const testing::TempFolder folder;
  const auto refuse = [&](std::string_view text, std::string_view words) {
    const std::string file = folder.write("f", text).string();
    expect_error(ErrorKind::kConfig, words, [&] { parsed({"serve", "m", "--config", file}); });
  };
  refuse("\n[serve]\nmax-queue = 'many'\n", "f:3: max-queue: ");
  refuse("[serve]\nmax-queue = 1001\n", "f:2: max-queue: ");
  refuse("[serve]\nmax-queue = [1, 2]\n", "f:2: max-queue: ");
  refuse("[serve]\nmax-queue = 1\nqueue = 2\n", "f:3: queue: ");  // the same by another name
  refuse("[serve]\nshare-prefixes = 'maybe'\n",
         "f:2: share-prefixes: expected true or false, got maybe");
  const Variable variable("DROVER_PORT", "tcp://10.0.0.1:80");  // as container managers set it
  expect_error(ErrorKind::kUsage, "DROVER_PORT: ", [] { parsed({"serve", "m"}); });
}

TEST(Settings, HelpIsThereThoughSettingsAreWrong) {
  const testing::TempFolder folder;
  const std::string file = folder.write("f", "nonsense").string();
  const Variable variable("DROVER_MAX_QUEUE", "many");
  EXPECT_THROW(parsed({"serve", "--help", "--config", file}), CLI::CallForHelp);
  EXPECT_THROW(parsed({"--config", file, "--help"}), CLI::CallForHelp);
}

TEST(Settings, KnowWhatALaterMessageIsAbout) {
  const testing::TempFolder folder;
  const std::string file = folder.write("f", "[serve]\nmax-queue = 4\n").string();
  const Variable variable("DROVER_PORT", "81");
  const auto tree = parsed({"serve", "m", "--config", file});
  EXPECT_EQ(tree->settings->source_of("max queue: expected less"), file + ":2: max-queue");
  EXPECT_EQ(tree->settings->source_of("port: taken"), "DROVER_PORT");
  EXPECT_EQ(tree->settings->source_of("model: expected one"), "");
}

TEST(SettingsFile, ReadsStringsNumbersTruthsAndLists) {
  const SettingsFile file = parse_settings(
      "# a comment\n"
      "a = \"x # \\\"y\\\" \\\\ \\t\"   # not in a string\r\n"
      "\n"
      "  [ one ]  \n"
      "b=-1.5e3\n"
      "c = '\\d \"e\"'\n"
      "d = [ 1, 'two',\n"
      "  true, # three\n"
      "]\n"
      "e = []\n"
      "[two]",
      "name");
  ASSERT_EQ(file.settings.size(), 5u);
  EXPECT_EQ(file.settings[0].values, (std::vector<std::string>{"x # \"y\" \\ \t"}));
  EXPECT_EQ(file.settings[0].section, "");
  EXPECT_EQ(file.settings[1].values, (std::vector<std::string>{"-1.5e3"}));
  EXPECT_EQ(file.settings[1].section, "one");
  EXPECT_EQ(file.settings[1].line, 5);
  EXPECT_EQ(file.settings[2].values, (std::vector<std::string>{"\\d \"e\""}));
  EXPECT_EQ(file.settings[3].values, (std::vector<std::string>{"1", "two", "true"}));
  EXPECT_EQ(file.settings[4].line, 10);
  EXPECT_TRUE(file.settings[4].values.empty());
  ASSERT_EQ(file.sections.size(), 2u);
  EXPECT_EQ(file.sections[1].name, "two");
  EXPECT_EQ(file.sections[1].line, 11);
  EXPECT_TRUE(parse_settings("", "name").settings.empty());
}

TEST(SettingsFile, RefusesWhatItCannotMean) {
  const auto refuse = [](std::string_view text, std::string_view words) {
    expect_error(ErrorKind::kConfig, words, [&] { parse_settings(text, "name"); });
  };
  refuse("a", "name:1: expected = after a, got none");
  refuse("\na 1", "name:2: expected = after a, got 1");
  refuse("a =", "name:1: expected a string in quotes, a number");
  refuse("a = 32K", "got 32K (hint: text stands in quotes");
  refuse("a = 1.", "a number");
  refuse("a = yes", "got yes");
  refuse("a = \"x", "name:1: expected a \" at the string's end");
  refuse("a = 'x\n'", "name:1: expected a ' at the string's end");
  refuse("a = \"\\x\"", "hint: in '...' a backslash is a backslash");
  refuse("a = \"x\\", "expected");
  refuse("a = [1 2]", "expected , or ]");
  refuse("a = [1,\n2", "name:2: expected , or ]");
  refuse("a = [", "expected ]");
  refuse("a = [[1]]", "expected a string");
  refuse("a = 1 2", "expected the end of the line, got 2");
  refuse("a.b = 1", "expected = after a");
  refuse("\"a\" = 1", "expected KEY = VALUE");
  refuse("[]", "expected [COMMAND]");
  refuse("[[serve]]", "expected [COMMAND]");
  refuse("[serve", "expected [COMMAND]");
  refuse("[serve] a = 1", "expected the end of the line");
  refuse("a = 1\nb = 2\na = 3", "name:3: a is there already, in line 1");
  refuse("[s]\n[t]\n[s]", "name:3: section [s] is there already, in line 1");
  refuse(std::string_view("a = '\0'", 7), "zero byte");
}

}  // namespace
}  // namespace drover
