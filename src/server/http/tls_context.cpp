#include "server/http/tls_context.h"

#include <unistd.h>

#include <string_view>

#include "base/error.h"

namespace drover {
namespace {

namespace ssl = boost::asio::ssl;

void expect_readable(const std::string& path) {
  if (access(path.c_str(), R_OK) != 0) throw_errno("reading", path, errno);
}

// The one protocol there is here; clients that only speak others go on without, as HTTP/1.1.
int choose_protocol(SSL*, const unsigned char** out, unsigned char* out_bytes,
                    const unsigned char* in, unsigned in_bytes, void*) {
  static constexpr std::string_view kOurs = "\x08http/1.1";
  unsigned char* chosen = nullptr;
  const int result = SSL_select_next_proto(&chosen, out_bytes,
                                           reinterpret_cast<const unsigned char*>(kOurs.data()),
                                           kOurs.size(), in, in_bytes);
  if (result != OPENSSL_NPN_NEGOTIATED) return SSL_TLSEXT_ERR_NOACK;
  *out = chosen;
  return SSL_TLSEXT_ERR_OK;
}

}  // namespace

std::unique_ptr<ssl::context> load_tls_context(const std::string& certificate,
                                               const std::string& key) {
  auto context = std::make_unique<ssl::context>(ssl::context::tls_server);
  SSL_CTX* native = context->native_handle();
  SSL_CTX_set_min_proto_version(native, TLS1_2_VERSION);
  SSL_CTX_set_options(native, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
  // Idle connections give their record buffers back.
  SSL_CTX_set_mode(native, SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_alpn_select_cb(native, choose_protocol, nullptr);

  boost::system::error_code error;
  expect_readable(certificate);
  context->use_certificate_chain_file(certificate, error);
  if (error) {
    throw_error(ErrorKind::kBadData, "{}: expected a PEM certificate: {}", certificate,
                error.message());
  }
  expect_readable(key);
  context->use_private_key_file(key, ssl::context::pem, error);
  if (error) {
    const bool mismatch =
        error.value() != 0 && ERR_GET_REASON(error.value()) == X509_R_KEY_VALUES_MISMATCH;
    throw_error(mismatch ? ErrorKind::kUsage : ErrorKind::kBadData, "{}: {}", key,
                mismatch ? "this key does not belong to the certificate " + certificate
                         : "expected a PEM private key: " + error.message());
  }
  return context;
}

}  // namespace drover
