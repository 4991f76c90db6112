// The edge of the program `drover`, where every error becomes a sentence and an exit code.

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <clocale>
#include <cstdio>
#include <new>
#include <string>
#include <string_view>

#include "base/error.h"
#include "cli/command.h"
#include "cli/program.h"

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

  drover::Program program;
  CLI::App& app = program.app();
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
    const std::string source = program.settings().source_of(error.message());
    if (error.kind() != drover::ErrorKind::kUsage || !error.hint().empty() || source.empty()) {
      return fail(error);
    }
    return fail(drover::Error(error.kind(), error.message(), "it comes from " + source));
  } catch (const std::bad_alloc&) {
    return fail(drover::Error(drover::ErrorKind::kLimit, "out of memory",
                              "use a smaller --context or --batch, or a smaller model"));
  } catch (const std::exception& error) {
    return fail(drover::Error(drover::ErrorKind::kInternal, error.what()));
  }
}
