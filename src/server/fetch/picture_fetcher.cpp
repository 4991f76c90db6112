#include "server/fetch/picture_fetcher.h"

#include <algorithm>
#include <boost/asio/post.hpp>

#include "base/error.h"

namespace drover {

std::span<const std::byte> FetchedPictures::bytes(std::string_view url) const {
  const auto found = pictures_.find(url);
  DROVER_CHECK(found != pictures_.end());
  if (found->second.error) std::rethrow_exception(found->second.error);
  return found->second.bytes;
}

// The pictures of one request.
struct PictureFetcher::Batch {
  std::shared_ptr<FetchedPictures> pictures;
  std::chrono::steady_clock::time_point deadline;
  const std::atomic<bool>* cancel;
  std::atomic<size_t> open;
  Done done;

  void one_ended() {
    if (--open == 0) done(std::move(pictures));
  }
};

PictureFetcher::PictureFetcher(PictureFetcherOptions options)
    : options_(std::move(options)), threads_(static_cast<size_t>(options_.threads)) {}

PictureFetcher::~PictureFetcher() { stop(); }

PictureUrl PictureFetcher::expect_allowed(std::string_view url) const {
  return drover::expect_allowed(options_.fetch, url);
}

void PictureFetcher::fetch(std::vector<std::string> urls, const std::atomic<bool>* cancel,
                           Done done) {
  std::sort(urls.begin(), urls.end());
  urls.erase(std::unique(urls.begin(), urls.end()), urls.end());
  auto batch = std::make_shared<Batch>();
  batch->pictures = std::make_shared<FetchedPictures>(all_);
  batch->deadline = std::chrono::steady_clock::now() + options_.fetch.time;
  batch->cancel = cancel;
  batch->open = urls.size() + 1;  // this function's part is one
  batch->done = std::move(done);
  auto& pictures = batch->pictures->pictures_;
  for (std::string& url : urls) pictures.try_emplace(std::move(url));
  {
    const std::lock_guard lock(mutex_);
    for (auto& [url, picture] : pictures) {
      if (stopped_) {
        picture.error = std::make_exception_ptr(Error(ErrorKind::kCancelled, "stopped"));
        --batch->open;
        continue;
      }
      boost::asio::post(threads_, [this, batch, &url = url, &picture = picture] {
        fetch_one(*batch, url, picture);
        batch->one_ended();
      });
    }
  }
  batch->one_ended();
}

void PictureFetcher::fetch_one(Batch& batch, const std::string& url,
                               FetchedPictures::Picture& out) {
  FetchedPictures& all = *batch.pictures;
  try {
    drover::fetch(
        options_.fetch, url, batch.deadline, batch.cancel, [&](std::span<const std::byte> bytes) {
          all_ += bytes.size();
          const size_t mine = all.bytes_ += bytes.size();
          if (mine > options_.request_bytes) {
            throw_error(ErrorKind::kLimit, "{}: the request's pictures are larger than {} bytes",
                        read_picture_url(url).host, options_.request_bytes);
          }
          if (all_ > options_.all_bytes) {
            throw_error(ErrorKind::kLimit,
                        "{}: too many pictures are being fetched; try again later",
                        read_picture_url(url).host);
          }
          out.bytes.insert(out.bytes.end(), bytes.begin(), bytes.end());
        });
  } catch (...) {
    out.error = std::current_exception();
    out.bytes = {};
  }
}

void PictureFetcher::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  threads_.join();
}

}  // namespace drover
