// Fetches the pictures that a request names, several at once, on threads of its own: neither the
// network, nor the engine, nor the reading of other requests waits for a slow host.
//
//   PictureFetcher fetcher(options);
//   fetcher.fetch(urls, &cancel, [](std::shared_ptr<const FetchedPictures> pictures) {
//     pictures->bytes(url);  // or throws what went wrong with this one
//   });
#pragma once

#include <atomic>
#include <boost/asio/thread_pool.hpp>
#include <cstddef>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "server/fetch/fetch.h"

namespace drover {

struct PictureFetcherOptions {
  FetchOptions fetch;
  size_t request_bytes = size_t{64} << 20;  // of one request's pictures together
  size_t all_bytes = size_t{1} << 30;       // of all that are held; beyond, they are refused
  int threads = 16;                         // as many come at once
};

// What became of each; counts against `all_bytes` as long as it is there.
class FetchedPictures {
 public:
  explicit FetchedPictures(std::atomic<size_t>& all) : all_(all) {}
  ~FetchedPictures() { all_ -= bytes_; }
  FetchedPictures(const FetchedPictures&) = delete;
  FetchedPictures& operator=(const FetchedPictures&) = delete;

  // Throws what went wrong. The URL must be one that was asked for.
  std::span<const std::byte> bytes(std::string_view url) const;

 private:
  friend class PictureFetcher;
  struct Picture {
    std::vector<std::byte> bytes;
    std::exception_ptr error;
  };

  std::atomic<size_t>& all_;
  std::atomic<size_t> bytes_{0};
  std::map<std::string, Picture, std::less<>> pictures_;  // each thread writes to its own
};

class PictureFetcher {
 public:
  explicit PictureFetcher(PictureFetcherOptions options);
  // As stop(). All FetchedPictures must be gone.
  ~PictureFetcher();

  using Done = std::function<void(std::shared_ptr<const FetchedPictures> pictures)>;

  // Throws what is wrong with a URL before anybody is asked.
  PictureUrl expect_allowed(std::string_view url) const;
  // Returns at once; `done` comes on one of the fetcher's threads, and must not throw. All of them
  // together have the time that fetch() has for one. `cancel` must live until then. Thread-safe.
  void fetch(std::vector<std::string> urls, const std::atomic<bool>* cancel, Done done);

  // Waits for those that are being fetched; those who ask from now on are told kCancelled, by a
  // `done` that comes before fetch() returns.
  void stop();

 private:
  struct Batch;

  void fetch_one(Batch& batch, const std::string& url, FetchedPictures::Picture& out);

  const PictureFetcherOptions options_;
  std::atomic<size_t> all_{0};  // bytes
  std::mutex mutex_;
  bool stopped_ = false;
  boost::asio::thread_pool threads_;
};

}  // namespace drover
