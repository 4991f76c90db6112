// A TLS context for a listener: TLS 1.2 and up, HTTP/1.1 by ALPN, a certificate and its key.
// Internal to server/http.
#pragma once

#include <boost/asio/ssl/context.hpp>
#include <memory>
#include <string>

namespace drover {

// Reads PEM files: the certificate with its chain, and the key. Throws Error: kNotFound for a file
// that is not there, kBadData for what is none, kUsage for a key of another certificate.
std::unique_ptr<boost::asio::ssl::context> load_tls_context(const std::string& certificate,
                                                            const std::string& key);

}  // namespace drover
