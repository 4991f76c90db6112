#include "server/http/http_reply.h"

#include "server/http/exchange.h"

namespace drover {

HttpReply::HttpReply(std::shared_ptr<Exchange> exchange) : exchange_(std::move(exchange)) {}

HttpReply& HttpReply::operator=(HttpReply&& other) noexcept {
  if (this != &other) {
    drop();
    exchange_ = std::move(other.exchange_);
  }
  return *this;
}

HttpReply::~HttpReply() { drop(); }

void HttpReply::drop() noexcept {
  if (exchange_) exchange_->drop();
  exchange_.reset();
}

bool HttpReply::send(int status, HttpHeaders headers, std::string body) {
  return exchange_ && exchange_->send({status, std::move(headers), std::move(body)});
}

bool HttpReply::begin(int status, HttpHeaders headers) {
  return exchange_ && exchange_->begin(status, std::move(headers));
}

bool HttpReply::write(std::string_view piece) { return exchange_ && exchange_->write(piece); }

bool HttpReply::end() { return exchange_ && exchange_->end(); }

void HttpReply::when_silent(std::chrono::milliseconds each, std::string piece) {
  if (exchange_) exchange_->when_silent(each, std::move(piece));
}

bool HttpReply::closed() const { return !exchange_ || exchange_->closed(); }

void HttpReply::on_closed(std::function<void()> callback) {
  if (exchange_) exchange_->on_closed(std::move(callback));
}

size_t HttpReply::unsent_bytes() const { return exchange_ ? exchange_->unsent_bytes() : 0; }

}  // namespace drover
