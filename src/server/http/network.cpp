#include "server/http/network.h"

#include <fmt/format.h>

#include <random>

namespace drover {
namespace {

// Those who are told that the house is full, at one time; the rest are closed without a word.
constexpr uint64_t kRefusedAtOnce = 64;

uint64_t random_seed() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

// The output function of SplitMix64 (Steele, Lea, Flood 2014): distinct for distinct inputs.
uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace

Network::Network(HttpOptions options, HttpHandler handler)
    : options(std::move(options)), handler(std::move(handler)), id_seed_(random_seed()) {}

std::shared_ptr<void> Network::enter(const std::string& address, int& status) {
  {
    const std::lock_guard lock(mutex_);
    status = 503;
    if (open_ >= options.limits.connections) return nullptr;
    if (const size_t limit = options.limits.connections_per_address;
        limit > 0 && !address.empty()) {
      size_t& count = by_address_[address];
      status = 429;
      if (count >= limit) return nullptr;
      ++count;
    }
    ++open_;
  }
  ++accepted;
  return {this, [address](Network* network) { network->leave(address); }};
}

std::shared_ptr<void> Network::enter_refused() {
  ++refused;
  {
    const std::lock_guard lock(mutex_);
    if (refused_open_ >= kRefusedAtOnce) return nullptr;
    ++refused_open_;
  }
  return {this, [](Network* network) {
            const std::lock_guard lock(network->mutex_);
            --network->refused_open_;
          }};
}

void Network::leave(const std::string& address) noexcept {
  const std::lock_guard lock(mutex_);
  if (const auto found = by_address_.find(address); found != by_address_.end()) {
    if (--found->second == 0) by_address_.erase(found);
  }
  if (--open_ == 0) empty_.notify_all();
}

bool Network::wait_until_empty(std::chrono::milliseconds patience) {
  std::unique_lock lock(mutex_);
  return empty_.wait_for(lock, patience, [&] { return open_ == 0; });
}

uint64_t Network::open() const {
  const std::lock_guard lock(mutex_);
  return open_;
}

void Network::count_answer(int status) noexcept {
  if (status >= 0 && status < static_cast<int>(answers_.size())) ++answers_[status];
}

HttpCounters Network::counters() const {
  HttpCounters counters;
  counters.connections_open = open();
  counters.connections_accepted = accepted;
  counters.connections_refused = refused;
  counters.accept_errors = accept_errors;
  counters.requests_open = requests_open;
  counters.bytes_in = bytes_in;
  counters.bytes_out = bytes_out;
  counters.handler_errors = handler_errors;
  for (size_t status = 0; status < answers_.size(); ++status) {
    if (const uint64_t count = answers_[status])
      counters.requests[static_cast<int>(status)] = count;
  }
  return counters;
}

HttpAnswer Network::refusal(int status, std::string_view message,
                            const HttpRequest& request) noexcept {
  HttpAnswer answer;
  try {
    if (options.refuse) {
      answer = options.refuse(status, message, request);
    } else {
      answer.headers = {{"Content-Type", "text/plain; charset=utf-8"}};
      answer.body = fmt::format("{}\n", message);
    }
  } catch (...) {
    ++handler_errors;
    answer = {};
  }
  answer.status = status;
  return answer;
}

void Network::log(const HttpAccess& access) noexcept {
  if (!options.access_log) return;
  try {
    options.access_log(access);
  } catch (...) {
    ++handler_errors;
  }
}

std::string Network::new_id() { return fmt::format("req_{:016x}", mix(id_seed_ + ids_++)); }

}  // namespace drover
