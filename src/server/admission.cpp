#include "server/admission.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace drover {

Admission::Ticket& Admission::Ticket::operator=(Ticket&& other) noexcept {
  if (this == &other) return *this;
  release();
  admission_ = std::exchange(other.admission_, nullptr);
  key_ = std::move(other.key_);
  tokens_ = other.tokens_;
  since_ = other.since_;
  return *this;
}

bool Admission::Ticket::add_tokens(int64_t tokens) {
  const std::lock_guard lock(admission_->mutex_);
  const int64_t limit = admission_->limits_.tokens;
  // One request alone is never too much: whether it fits at all, the engine knows.
  if (limit > 0 && admission_->tokens_ > 0 && admission_->tokens_ + tokens > limit) return false;
  admission_->tokens_ += tokens;
  tokens_ += tokens;
  return true;
}

void Admission::Ticket::release() {
  if (admission_ == nullptr) return;
  Admission& all = *std::exchange(admission_, nullptr);
  const std::lock_guard lock(all.mutex_);
  --all.requests_;
  all.tokens_ -= tokens_;
  const auto mine = all.by_key_.find(key_);
  if (--mine->second == 0) all.by_key_.erase(mine);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - since_;
  all.seconds_ += (took.count() - all.seconds_) / 8;
}

Admission::Ticket Admission::enter(const std::string& key, Crowd& crowd) {
  Ticket out;
  const std::lock_guard lock(mutex_);
  const auto mine = by_key_.find(key);
  crowd = requests_ >= limits_.requests ? Crowd::kAll
          : limits_.requests_per_key > 0 && mine != by_key_.end() &&
                  mine->second >= limits_.requests_per_key
              ? Crowd::kKey
              : Crowd::kNobody;
  if (crowd != Crowd::kNobody) return out;
  ++requests_;
  ++by_key_[key];
  out.admission_ = this;
  out.key_ = key;
  out.since_ = std::chrono::steady_clock::now();
  return out;
}

int64_t Admission::retry_after() const {
  const std::lock_guard lock(mutex_);
  // Those in hand end one after the other, spread over the time that one takes.
  const double next = seconds_ / static_cast<double>(std::max<int64_t>(1, requests_));
  return std::clamp<int64_t>(std::llround(std::ceil(next)), 1, 60);
}

int64_t Admission::requests() const {
  const std::lock_guard lock(mutex_);
  return requests_;
}

int64_t Admission::tokens() const {
  const std::lock_guard lock(mutex_);
  return tokens_;
}

}  // namespace drover
