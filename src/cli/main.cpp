// The program `drover`: the option tree, and the edge where every error becomes a sentence and an
// exit code.

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <new>

#include "cli/command.h"

namespace {

// A mapped file that shrinks under us, or a disk that fails, arrives as a signal. It is an I/O error
// like any other; all that can be done here is to say so.
extern "C" void on_bus_error(int) {
  constexpr char kMessage[] =
      "drover: a mapped file could not be read: it was cut short or its disk failed\n";
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, kMessage, sizeof(kMessage) - 1);
  ::_exit(74);
}

int fail(const drover::Error& error) {
  fmt::print(stderr, "drover: {}\n", error.message());
  if (!error.hint().empty()) fmt::print(stderr, "  hint: {}\n", error.hint());
  return drover::exit_code(error.kind());
}

}  // namespace

int main(int argc, char** argv) {
  signal(SIGBUS, on_bus_error);
  signal(SIGPIPE, SIG_IGN);  // a closed pipe is a write error, seen where we write

  CLI::App app("Runs, serves, checks and teaches models of the Llama 4 family.", "drover");
  app.set_version_flag("--version", DROVER_VERSION);
  app.require_subcommand(1);
  app.fallthrough(false);
  drover::add_run(app);
  drover::add_chat(app);
  drover::add_inspect(app);
  drover::add_tokenize(app);
  drover::add_detokenize(app);
  drover::add_score(app);
  drover::add_convert(app);

  try {
    app.parse(argc, argv);
    if (std::fflush(stdout) != 0) drover::throw_errno("write", "standard output", errno);
    return 0;
  } catch (const CLI::Success& success) {
    return app.exit(success);  // --help and --version
  } catch (const CLI::ParseError& error) {
    app.exit(error);
    return drover::exit_code(drover::ErrorKind::kUsage);
  } catch (const drover::Error& error) {
    return fail(error);
  } catch (const std::bad_alloc&) {
    return fail(drover::Error(drover::ErrorKind::kLimit, "out of memory",
                              "use a smaller --context or --batch, or a smaller model"));
  } catch (const std::exception& error) {
    return fail(drover::Error(drover::ErrorKind::kInternal, error.what()));
  }
}
