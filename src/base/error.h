// The one exception type of Drover. It is thrown where a fault is seen and caught at the edge: the
// command line turns it into a sentence and an exit code, the server into a status and a body.
#pragma once

#include <fmt/format.h>

#include <exception>
#include <string>
#include <string_view>
#include <utility>

namespace drover {

enum class ErrorKind {
  kUsage,        // the caller's words are off: an unknown flag value, a contradiction
  kNotFound,     // a file, folder or name that is not there
  kBadData,      // bytes that break their format's rules
  kUnsupported,  // valid, but not something Drover does; the message names it
  kLimit,        // would exceed a limit: context, memory, size
  kIo,           // the system could not read
  kCannotWrite,  // the system could not create or write
  kPermission,   // the system said no
  kCancelled,    // the user stopped it
  kConfig,       // a file of settings that says what cannot be
  kInternal,     // a broken invariant: a bug of ours
};

// The word for a kind, for `--json` and logs: "usage", "not_found", ...
std::string_view error_kind_name(ErrorKind kind);

// The process exit code for a kind: 2 for usage, else the sysexits value that fits exactly, else 1.
int exit_code(ErrorKind kind);

// what() is "message" or "message (hint: hint)". A message says what, where, what was expected and
// what was found; a hint says what to do.
class Error : public std::exception {
 public:
  Error(ErrorKind kind, std::string message, std::string hint = {});

  ErrorKind kind() const { return kind_; }
  const std::string& message() const { return message_; }
  const std::string& hint() const { return hint_; }
  const char* what() const noexcept override { return what_.c_str(); }

 private:
  ErrorKind kind_;
  std::string message_;
  std::string hint_;
  std::string what_;
};

// throw_error(ErrorKind::kBadData, "{}: expected {}, got {}", path, a, b);
template <typename... Args>
[[noreturn]] void throw_error(ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(kind, fmt::format(format, std::forward<Args>(args)...));
}

// An Error from errno after a failed call on a path: the kind follows from the code.
[[noreturn]] void throw_errno(std::string_view doing, std::string_view path, int code);

// Text from outside (a tensor name, a token, a path) made safe to print in a message: control and
// non-UTF-8 bytes escaped, cut at `limit` bytes.
std::string printable(std::string_view text, size_t limit = 80);

// An invariant of ours. Always on; a failure is a bug and says where.
#define DROVER_CHECK(condition)                                                              \
  do {                                                                                       \
    if (!(condition))                                                                        \
      ::drover::throw_error(::drover::ErrorKind::kInternal, "broken invariant at {}:{}: {}", \
                            __FILE_NAME__, __LINE__, #condition);                            \
  } while (false)

}  // namespace drover
