#include "eval/needle_endpoint.h"

#include <curl/curl.h>

#include <algorithm>
#include <boost/json.hpp>
#include <chrono>
#include <thread>

#include "base/error.h"
#include "formats/json.h"
#include "text/utf8.h"

namespace drover {
namespace {

namespace json = boost::json;

constexpr size_t kMostBytes = size_t{16} << 20;
constexpr int kRetries = 4;

bool is_cancelled(const std::atomic<bool>* cancel) {
  return cancel != nullptr && cancel->load(std::memory_order_relaxed);
}

extern "C" size_t take_body(char* data, size_t size, size_t count, void* to) {
  auto& body = *static_cast<std::string*>(to);
  if (size * count > kMostBytes - body.size()) return 0;  // ends the transfer
  body.append(data, size * count);
  return size * count;
}

extern "C" int tell_progress(void* cancel, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  return is_cancelled(static_cast<const std::atomic<bool>*>(cancel)) ? 1 : 0;
}

// The endpoint's own words about what is wrong, if it has any.
std::string reason_in(const std::string& body) {
  json::error_code code;
  const json::value value = json::parse(body, code);
  if (!code && value.is_object()) {
    const json::value* error = value.get_object().if_contains("error");
    if (error != nullptr && error->is_object()) error = error->get_object().if_contains("message");
    if (error != nullptr && error->is_string()) return printable(error->get_string(), 300);
  }
  return printable(body, 200);
}

[[noreturn]] void refuse(const std::string& url, long status, const std::string& body) {
  ErrorKind kind = ErrorKind::kIo;
  std::string hint;
  if (status == 401 || status == 403) {
    kind = ErrorKind::kPermission;
    hint = "name the variable that holds the key with --api-key-env";
  } else if (status == 404) {
    kind = ErrorKind::kNotFound;
    hint = "the URL ends before /chat/completions, most often in /v1";
  } else if (status == 400 || status == 413 || status == 422) {
    kind = ErrorKind::kLimit;
    hint = "a prompt longer than the endpoint takes is refused so: try shorter --lengths";
  }
  throw Error(
      kind, fmt::format("{}: expected an answer, got status {}: {}", url, status, reason_in(body)),
      hint);
}

NeedleAnswer answer_in(const std::string& body, const std::string& url) {
  const json::value value = parse_json(body, url, {.bytes = kMostBytes});
  if (!value.is_object()) throw_error(ErrorKind::kBadData, "{}: expected a JSON object", url);
  const JsonFields top(value.get_object(), url);
  const json::value* choices = top.find("choices");
  if (choices == nullptr || !choices->is_array() || choices->get_array().empty() ||
      !choices->get_array()[0].is_object()) {
    throw_error(ErrorKind::kBadData, "{}: 'choices': expected a list with an answer", url);
  }
  const JsonFields message = JsonFields(choices->get_array()[0].get_object(), url + ": choices")
                                 .required_fields("message");
  NeedleAnswer out;
  out.text = message.text("content").value_or("");  // null: it said nothing
  if (const auto usage = top.fields("usage")) {
    out.prompt_tokens = usage->integer("prompt_tokens").value_or(0);
    if (const auto details = usage->fields("prompt_tokens_details")) {
      out.cached_tokens = details->integer("cached_tokens").value_or(0);
    }
  }
  return out;
}

}  // namespace

struct EndpointAnswerer::Connection {
  CURL* handle = curl_easy_init();
  curl_slist* headers = nullptr;

  ~Connection() {
    curl_slist_free_all(headers);
    curl_easy_cleanup(handle);
  }
};

EndpointAnswerer::EndpointAnswerer(Endpoint endpoint, PromptLayout layout,
                                   const std::atomic<bool>* cancel)
    : endpoint_(std::move(endpoint)),
      layout_(std::move(layout)),
      cancel_(cancel),
      connection_(std::make_unique<Connection>()) {
  std::string& url = endpoint_.url;
  if (!url.starts_with("http://") && !url.starts_with("https://")) {
    throw_error(ErrorKind::kUsage, "endpoint: expected an http or https URL, got {}",
                printable(url, 300));
  }
  if (!(endpoint_.timeout > 0 && endpoint_.timeout <= 1e6)) {
    throw_error(ErrorKind::kUsage, "timeout: expected 0 to 1000000 seconds, got {}",
                endpoint_.timeout);
  }
  const auto control = [](unsigned char c) { return c < 0x20 || c == 0x7f; };
  if (std::any_of(endpoint_.api_key.begin(), endpoint_.api_key.end(), control)) {
    throw_error(ErrorKind::kUsage, "api key: expected no line breaks or other control characters");
  }
  while (url.ends_with('/')) url.pop_back();
  url += "/chat/completions";

  DROVER_CHECK(connection_->handle != nullptr);
  CURL* handle = connection_->handle;
  const auto add_header = [&](const std::string& line) {
    connection_->headers = curl_slist_append(connection_->headers, line.c_str());
  };
  add_header("Content-Type: application/json");
  if (!endpoint_.api_key.empty()) add_header("Authorization: Bearer " + endpoint_.api_key);
  curl_easy_setopt(handle, CURLOPT_URL, url.c_str());
  curl_easy_setopt(handle, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(handle, CURLOPT_FOLLOWLOCATION, 0L);
  curl_easy_setopt(handle, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(handle, CURLOPT_HTTPHEADER, connection_->headers);
  curl_easy_setopt(handle, CURLOPT_CONNECTTIMEOUT_MS, 10'000L);
  curl_easy_setopt(handle, CURLOPT_TIMEOUT_MS, static_cast<long>(1000 * endpoint_.timeout));
  curl_easy_setopt(handle, CURLOPT_WRITEFUNCTION, take_body);
  curl_easy_setopt(handle, CURLOPT_XFERINFOFUNCTION, tell_progress);
  curl_easy_setopt(handle, CURLOPT_XFERINFODATA, const_cast<std::atomic<bool>*>(cancel_));
  curl_easy_setopt(handle, CURLOPT_NOPROGRESS, 0L);
}

EndpointAnswerer::~EndpointAnswerer() = default;

NeedleAnswer EndpointAnswerer::answer(const NeedlePrompt& prompt) {
  const std::string request = json::serialize(json::object{
      {"model", as_utf8(endpoint_.model)},
      {"messages", {{{"role", "user"}, {"content", as_utf8(prompt.content)}}}},
      {"max_tokens", prompt.max_tokens},
      {"temperature", 0},
      {"stream", false}});
  CURL* handle = connection_->handle;
  curl_easy_setopt(handle, CURLOPT_POSTFIELDS, request.c_str());
  curl_easy_setopt(handle, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(request.size()));
  const std::string& url = endpoint_.url;
  for (int attempt = 0;; ++attempt) {
    std::string body;
    curl_easy_setopt(handle, CURLOPT_WRITEDATA, &body);
    const CURLcode code = curl_easy_perform(handle);
    if (is_cancelled(cancel_)) throw_error(ErrorKind::kCancelled, "stopped");
    if (code != CURLE_OK) {
      throw Error(ErrorKind::kIo,
                  fmt::format("{}: expected an answer, got none: {}", printable(url, 300),
                              code == CURLE_WRITE_ERROR ? "it is longer than 16 MB"
                                                        : curl_easy_strerror(code)),
                  code == CURLE_OPERATION_TIMEDOUT ? "long prompts take long: raise --timeout"
                                                   : "is the endpoint running, and the URL right?");
    }
    long status = 0;
    curl_easy_getinfo(handle, CURLINFO_RESPONSE_CODE, &status);
    if (status == 200) return answer_in(body, printable(url, 300));
    if ((status != 429 && status != 503) || attempt == kRetries) {
      refuse(printable(url, 300), status, body);
    }
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(1 << attempt);
    while (std::chrono::steady_clock::now() < until) {
      if (is_cancelled(cancel_)) throw_error(ErrorKind::kCancelled, "stopped");
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  }
}

}  // namespace drover
