// The program `drover`: the option tree, and the edge where every error becomes a sentence and an
// exit code.

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <clocale>
#include <cstdio>
#include <memory>
#include <new>
#include <string>
#include <string_view>

#include "cli/command.h"

namespace {

// A mapped file that shrinks under us, or a disk that fails, arrives as a signal. It is an I/O
// error like any other; all that can be done here is to say so.
extern "C" void on_bus_error(int) {
  constexpr char kMessage[] =
      "drover: a mapped file could not be read: it was cut short or its disk failed\n";
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, kMessage, sizeof(kMessage) - 1);
  ::_exit(74);
}

// A standard stream that came closed would give its number to the next file we open, and what is
// printed would go there. Opened for reading only, an output that nobody wanted says that it fails.
void keep_standard_streams() {
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(stream, F_GETFD) == -1) ::open("/dev/null", O_RDONLY);
  }
}

// Characters of more than one byte are edited and printed as such. Where no locale is set, as in
// most containers, terminals still speak UTF-8.
void choose_locale() {
  const char* locale = std::setlocale(LC_CTYPE, "");
  if (locale == nullptr || std::string_view(locale) == "C" || std::string_view(locale) == "POSIX") {
    std::setlocale(LC_CTYPE, "C.UTF-8");
  }
}

// Help that says of a flag its value and default, what it is for, and the variable that sets it
// too.
class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_option_opts(const CLI::Option* option) const override {
    if (option->get_type_size() == 0) return {};
    const std::string start = option->get_default_str();
    return " " + option->get_type_name() + (start.empty() ? "" : "=" + start);
  }
  std::string make_option_desc(const CLI::Option* option) const override {
    const std::string variable = option->get_envname();
    return option->get_description() + (variable.empty() ? "" : " [$" + variable + "]");
  }
};

int fail(const drover::Error& error) {
  // A standard error that is gone is no reason to fail differently.
  const std::string message = drover::printable(error.message(), 10000);
  std::fputs(fmt::format("drover: {}\n", message).c_str(), stderr);
  if (!error.hint().empty()) {
    std::fputs(fmt::format("  hint: {}\n", error.hint()).c_str(), stderr);
  }
  if (error.kind() == drover::ErrorKind::kCancelled) return 128 + drover::InterruptGuard::signal();
  return drover::exit_code(error.kind());
}

}  // namespace

int main(int argc, char** argv) {
  keep_standard_streams();
  choose_locale();
  signal(SIGBUS, on_bus_error);
  signal(SIGXFSZ, SIG_IGN);  // a file that may not grow is an error like any other, of write()

  CLI::App app("Runs and measures models of the Llama 4 family.", "drover");
  app.formatter(std::make_shared<HelpFormatter>());
  app.get_formatter()->column_width(34);
  app.set_version_flag("--version", DROVER_VERSION);
  app.require_subcommand(1);
  app.fallthrough(false);
  drover::add_run(app);
  drover::add_chat(app);
  drover::add_serve(app);
  drover::add_batch(app);
  drover::add_inspect(app);
  drover::add_tokenize(app);
  drover::add_detokenize(app);
  drover::add_score(app);
  drover::add_convert(app);
  drover::add_quantize(app);
  drover::add_bench(app);
  drover::add_plan(app);
  drover::add_needle(app);

  try {
    app.parse(argc, argv);
    return 0;
  } catch (const drover::Verdict& verdict) {
    return verdict.code;
  } catch (const CLI::Success& success) {
    return app.exit(success);  // --help and --version
  } catch (const CLI::ParseError& error) {
    const auto chosen = app.get_subcommands();
    const std::string command = chosen.empty() ? "" : " " + chosen.front()->get_name();
    std::string message = error.what();
    if (chosen.empty() && argc > 1) {
      message = fmt::format("{}: expected a subcommand, got none that there is",
                            drover::printable(argv[1]));
    }
    return fail(drover::Error(drover::ErrorKind::kUsage, message,
                              fmt::format("`drover{} --help` explains what there is", command)));
  } catch (const drover::Error& error) {
    return fail(error);
  } catch (const std::bad_alloc&) {
    return fail(drover::Error(drover::ErrorKind::kLimit, "out of memory",
                              "use a smaller --context or --batch, or a smaller model"));
  } catch (const std::exception& error) {
    return fail(drover::Error(drover::ErrorKind::kInternal, error.what()));
  }
}
