#include "base/error.h"

#include <cerrno>
#include <cstring>

namespace drover {

std::string_view error_kind_name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kUsage:
      return "usage";
    case ErrorKind::kNotFound:
      return "not_found";
    case ErrorKind::kBadData:
      return "bad_data";
    case ErrorKind::kUnsupported:
      return "unsupported";
    case ErrorKind::kLimit:
      return "limit";
    case ErrorKind::kIo:
      return "io";
    case ErrorKind::kCannotWrite:
      return "cannot_write";
    case ErrorKind::kPermission:
      return "permission";
    case ErrorKind::kCancelled:
      return "cancelled";
    case ErrorKind::kConfig:
      return "config";
    case ErrorKind::kInternal:
      return "internal";
  }
  return "unknown";
}

int exit_code(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kUsage:
      return 2;
    case ErrorKind::kNotFound:
      return 66;  // EX_NOINPUT
    case ErrorKind::kBadData:
      return 65;  // EX_DATAERR
    case ErrorKind::kUnsupported:
      return 1;
    case ErrorKind::kLimit:
      return 1;
    case ErrorKind::kIo:
      return 74;  // EX_IOERR
    case ErrorKind::kCannotWrite:
      return 73;  // EX_CANTCREAT
    case ErrorKind::kPermission:
      return 77;  // EX_NOPERM
    case ErrorKind::kCancelled:
      return 130;  // as a shell reports SIGINT
    case ErrorKind::kConfig:
      return 78;  // EX_CONFIG
    case ErrorKind::kInternal:
      return 70;  // EX_SOFTWARE
  }
  return 1;
}

Error::Error(ErrorKind kind, std::string message, std::string hint)
    : kind_(kind), message_(std::move(message)), hint_(std::move(hint)) {
  what_ = hint_.empty() ? message_ : message_ + " (hint: " + hint_ + ")";
}

void throw_errno(std::string_view doing, std::string_view path, int code) {
  ErrorKind kind = ErrorKind::kIo;
  std::string hint;
  if (code == ENOENT || code == ENOTDIR) kind = ErrorKind::kNotFound;
  if (code == EACCES || code == EPERM) kind = ErrorKind::kPermission;
  if (code == ENOSPC || code == EROFS || code == EDQUOT || code == EFBIG)
    kind = ErrorKind::kCannotWrite;
  if (code == ENOENT) hint = "check the spelling of the path";
  throw Error(kind, fmt::format("{}: cannot {}: {}", printable(path, 300), doing, strerror(code)),
              hint);
}

std::string printable(std::string_view text, size_t limit) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    if (out.size() >= limit) return out + "...";
    const auto lead = static_cast<unsigned char>(text[i]);
    // Length of the UTF-8 sequence that starts here, 0 if none does.
    size_t length = lead < 0x20 || lead == 0x7f   ? 0
                    : lead < 0x80                 ? 1
                    : lead >= 0xc2 && lead < 0xe0 ? 2
                    : lead >= 0xe0 && lead < 0xf0 ? 3
                    : lead >= 0xf0 && lead < 0xf5 ? 4
                                                  : 0;
    if (length > text.size() - i) length = 0;
    for (size_t k = 1; k < length; ++k) {
      if ((static_cast<unsigned char>(text[i + k]) & 0xc0) != 0x80) length = 0;
    }
    // C1 control characters (U+0080 to U+009F) drive some terminals.
    if (length == 2 && lead == 0xc2 && static_cast<unsigned char>(text[i + 1]) < 0xa0) length = 0;
    if (length == 0) {
      out += fmt::format("\\x{:02x}", lead);
      i += 1;
    } else {
      out.append(text.substr(i, length));
      i += length;
    }
  }
  return out;
}

}  // namespace drover
