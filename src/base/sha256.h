// SHA-256, by OpenSSL. A Sha256 takes bytes in pieces; one thread at a time uses it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace drover {

using Digest = std::array<uint8_t, 32>;

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void update(std::span<const std::byte> bytes);
  // A text with its length before it, so that no two lists of texts give the same bytes.
  void update_text(std::string_view text);
  // The same 8 bytes, lowest first, on every machine.
  void update_number(int64_t number);

  // What was taken in so far. Nothing may be added afterwards.
  Digest finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

Digest sha256(std::span<const std::byte> bytes);

// 64 digits; short_hex: the first 12, for messages.
std::string hex(const Digest& digest);
std::string short_hex(const Digest& digest);

}  // namespace drover
