// One file from another server by http or https, for a client who named it: nothing is done that a
// hostile client or a hostile server could turn against us or our neighbours.
//
// On libcurl, which the house has already: it asks us for each socket with the address in hand, so
// the address that is checked is the one that is connected to, and it brings TLS with names, limits
// on time and no redirects by one option each.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <functional>
#include <span>
#include <string>

#include "server/fetch/picture_url.h"

namespace drover {

struct FetchOptions {
  AllowedHosts hosts;
  bool allow_private = false;              // addresses that are not of the public internet
  std::chrono::milliseconds time{10'000};  // for the whole, the name's look-up included
  std::chrono::milliseconds connect_time{5'000};
  std::string authorities =
      {};  // a PEM file of those who may vouch for a host; empty: the system's
};

// Gets the next bytes of the body; what it throws ends the transfer.
using TakeBytes = std::function<void(std::span<const std::byte>)>;

// Fetches and waits, until `deadline` at most. Errors name the host, and neither its address nor
// what it said: kPermission for a host that is not allowed, or whose address is not public;
// kNotFound for a status of 404 or 410 and a name that there is not; kUnsupported for a redirect;
// kLimit for what takes too long; kIo for all other statuses and failures; kCancelled. Throws as
// read_picture_url(), and what `take` throws. Thread-safe.
void fetch(const FetchOptions& options, const std::string& url,
           std::chrono::steady_clock::time_point deadline, const std::atomic<bool>* cancel,
           const TakeBytes& take);

// Throws what fetch() would say of this URL before it asks anybody.
PictureUrl expect_allowed(const FetchOptions& options, std::string_view url);

}  // namespace drover
