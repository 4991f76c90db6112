#include "server/fetch/fetch.h"

#include <sys/socket.h>
#include <unistd.h>

#include <exception>

#include "base/error.h"
#include "server/fetch/public_address.h"

namespace drover {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kMostHeaderBytes = 64 * 1024;

// What the callbacks share; one thread alone comes here.
struct Transfer {
  CURL* handle;
  const FetchOptions& options;
  const std::atomic<bool>* cancel;
  const TakeBytes& take;
  bool private_address = false;
  size_t header_bytes = 0;
  std::exception_ptr error = nullptr;

  long status() const {
    long out = 0;
    curl_easy_getinfo(handle, CURLINFO_RESPONSE_CODE, &out);
    return out;
  }
};

// Not extern "C": such names would be the whole program's, in whatever namespace they stand.
curl_socket_t open_socket(void* of, curlsocktype, curl_sockaddr* address) {
  auto& transfer = *static_cast<Transfer*>(of);
  if (!transfer.options.allow_private && !is_public_address(address->addr)) {
    transfer.private_address = true;
    return CURL_SOCKET_BAD;  // the name's other addresses are tried
  }
  return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

size_t take_header(char*, size_t size, size_t count, void* of) {
  auto& transfer = *static_cast<Transfer*>(of);
  transfer.header_bytes += size * count;
  return transfer.header_bytes > kMostHeaderBytes ? 0 : size * count;
}

size_t take_body(char* data, size_t size, size_t count, void* of) {
  auto& transfer = *static_cast<Transfer*>(of);
  if (transfer.status() != 200) return 0;  // nobody wants to hear the rest
  try {
    transfer.take(std::as_bytes(std::span(data, size * count)));
    return size * count;
  } catch (...) {
    transfer.error = std::current_exception();
    return 0;
  }
}

int tell_progress(void* of, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  const auto* cancel = static_cast<Transfer*>(of)->cancel;
  return cancel != nullptr && cancel->load(std::memory_order_relaxed) ? 1 : 0;
}

[[noreturn]] void throw_too_slow(const std::string& host) {
  throw_error(ErrorKind::kLimit, "{}: the picture takes too long to come", host);
}

// Throws unless it went well.
void judge(const Transfer& transfer, CURLcode code, const std::string& host) {
  if (tell_progress(const_cast<Transfer*>(&transfer), 0, 0, 0, 0) != 0) {
    throw_error(ErrorKind::kCancelled, "stopped");
  }
  if (transfer.error) std::rethrow_exception(transfer.error);
  if (const long status = transfer.status(); status > 200) {
    if (status == 404 || status == 410) {
      throw_error(ErrorKind::kNotFound, "{}: there is no such picture (status {})", host, status);
    }
    if (status >= 300 && status < 400) {
      throw Error(ErrorKind::kUnsupported,
                  fmt::format("{}: expected a picture, got a redirect (status {})", host, status),
                  "give the URL that it leads to");
    }
    throw_error(ErrorKind::kIo, "{}: expected a picture, got status {}", host, status);
  }
  switch (code) {
    case CURLE_OK:
      return;
    case CURLE_COULDNT_CONNECT:
      if (transfer.private_address) {
        throw_error(ErrorKind::kPermission, "{}: its address is not of the public internet", host);
      }
      throw_error(ErrorKind::kIo, "{}: the host does not answer", host);
    case CURLE_OPERATION_TIMEDOUT:
      throw_too_slow(host);
    case CURLE_COULDNT_RESOLVE_HOST:
      throw_error(ErrorKind::kNotFound, "{}: there is no such host", host);
    case CURLE_PEER_FAILED_VERIFICATION:
      throw_error(ErrorKind::kIo, "{}: its certificate is not to be trusted, or another host's",
                  host);
    case CURLE_PARTIAL_FILE:
      throw_error(ErrorKind::kIo, "{}: the picture ends before it is complete", host);
    default:
      throw_error(ErrorKind::kIo, "{}: the picture does not come", host);
  }
}

}  // namespace

PictureUrl expect_allowed(const FetchOptions& options, std::string_view url) {
  PictureUrl out = read_picture_url(url);
  if (!options.hosts.has(out)) {
    throw Error(ErrorKind::kPermission,
                fmt::format("pictures from {}:{} are not fetched here", out.host, out.port),
                "send it as \"data:image/png;base64,...\"; --allow-pictures-from names hosts");
  }
  return out;
}

void fetch(const FetchOptions& options, const std::string& url, Clock::time_point deadline,
           const std::atomic<bool>* cancel, const TakeBytes& take) {
  const PictureUrl from = expect_allowed(options, url);
  const auto left =
      std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
  if (left <= 0) throw_too_slow(from.host);

  const std::unique_ptr<CURL, void (*)(CURL*)> owner(curl_easy_init(), curl_easy_cleanup);
  CURL* handle = owner.get();
  DROVER_CHECK(handle != nullptr);
  Transfer transfer{.handle = handle, .options = options, .cancel = cancel, .take = take};
  const auto set = [&](CURLoption option, auto value) {
    DROVER_CHECK(curl_easy_setopt(handle, option, value) == CURLE_OK);
  };
  set(CURLOPT_CURLU, from.parsed.get());
  set(CURLOPT_PROTOCOLS_STR, "http,https");
  set(CURLOPT_FOLLOWLOCATION, 0L);
  set(CURLOPT_PROXY, "");  // one from the environment would look up the name in our place
  set(CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
  set(CURLOPT_USERAGENT, "drover");
  set(CURLOPT_SSLVERSION, static_cast<long>(CURL_SSLVERSION_TLSv1_2));
  if (!options.authorities.empty()) set(CURLOPT_CAINFO, options.authorities.c_str());
  set(CURLOPT_NOSIGNAL, 1L);
  set(CURLOPT_TIMEOUT_MS, static_cast<long>(left));
  set(CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(options.connect_time.count()));
  // A look-up that outlives the time is left to its thread, which ends by itself; else we waited
  // for it, many seconds where a name server is silent.
  set(CURLOPT_QUICK_EXIT, 1L);
  set(CURLOPT_OPENSOCKETFUNCTION, open_socket);
  set(CURLOPT_OPENSOCKETDATA, &transfer);
  set(CURLOPT_HEADERFUNCTION, take_header);
  set(CURLOPT_HEADERDATA, &transfer);
  set(CURLOPT_WRITEFUNCTION, take_body);
  set(CURLOPT_WRITEDATA, &transfer);
  set(CURLOPT_XFERINFOFUNCTION, tell_progress);
  set(CURLOPT_XFERINFODATA, &transfer);
  set(CURLOPT_NOPROGRESS, 0L);
  judge(transfer, curl_easy_perform(handle), from.host);
}

}  // namespace drover
