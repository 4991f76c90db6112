#include "base/sha256.h"

#include <openssl/evp.h>

#include "base/error.h"

namespace drover {

struct Sha256::State {
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context{EVP_MD_CTX_new(),
                                                                  EVP_MD_CTX_free};
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  DROVER_CHECK(state_->context != nullptr &&
               EVP_DigestInit_ex(state_->context.get(), EVP_sha256(), nullptr) == 1);
}

Sha256::~Sha256() = default;

void Sha256::update(std::span<const std::byte> bytes) {
  DROVER_CHECK(EVP_DigestUpdate(state_->context.get(), bytes.data(), bytes.size()) == 1);
}

void Sha256::update_text(std::string_view text) {
  update_number(static_cast<int64_t>(text.size()));
  update(std::as_bytes(std::span(text)));
}

void Sha256::update_number(int64_t number) {
  std::array<std::byte, 8> bytes;
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<std::byte>(static_cast<uint64_t>(number) >> (8 * i));
  }
  update(bytes);
}

Digest Sha256::finish() {
  Digest out;
  unsigned size = 0;
  DROVER_CHECK(EVP_DigestFinal_ex(state_->context.get(), out.data(), &size) == 1 &&
               size == out.size());
  return out;
}

Digest sha256(std::span<const std::byte> bytes) {
  Sha256 hash;
  hash.update(bytes);
  return hash.finish();
}

std::string hex(const Digest& digest) {
  std::string out;
  for (const uint8_t byte : digest) out += fmt::format("{:02x}", byte);
  return out;
}

std::string short_hex(const Digest& digest) { return hex(digest).substr(0, 12); }

}  // namespace drover
