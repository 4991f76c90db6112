// Who may ask now. Requests that wait or are worked on are counted, by number and by tokens, all
// together and by key; beyond a limit a request is refused at once, before any work, with the time
// after which to try again. Thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>

namespace drover {

struct AdmissionLimits {
  int64_t requests = 256;        // in hand
  int64_t tokens = 0;            // of their prompts and answers at most; 0: no such limit
  int64_t requests_per_key = 0;  // 0: no such limit
};

enum class Crowd { kNobody, kKey, kAll };  // whose limit is reached

class Admission {
 public:
  explicit Admission(AdmissionLimits limits) : limits_(limits) {}

  // A request in hand; gone, it no longer counts. Must not outlive its Admission.
  class Ticket {
   public:
    Ticket() = default;
    Ticket(Ticket&& other) noexcept { *this = std::move(other); }
    Ticket& operator=(Ticket&& other) noexcept;
    ~Ticket() { release(); }

    explicit operator bool() const { return admission_ != nullptr; }
    // Counts its tokens once they are known. False: too many together; then it should go.
    bool add_tokens(int64_t tokens);

   private:
    friend class Admission;
    void release();

    Admission* admission_ = nullptr;
    std::string key_;
    int64_t tokens_ = 0;
    std::chrono::steady_clock::time_point since_;
  };

  // An empty ticket where a limit is reached; `crowd` says whose.
  Ticket enter(const std::string& key, Crowd& crowd);
  // Whole seconds after which one of those in hand should have ended: 1 to 60.
  int64_t retry_after() const;

  int64_t requests() const;
  int64_t tokens() const;

 private:
  const AdmissionLimits limits_;
  mutable std::mutex mutex_;
  int64_t requests_ = 0, tokens_ = 0;
  std::map<std::string, int64_t> by_key_;
  double seconds_ = 1;  // that a request takes, lately
};

}  // namespace drover
