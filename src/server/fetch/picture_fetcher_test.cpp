#include "server/fetch/picture_fetcher.h"

#include <gtest/gtest.h>

#include <future>

#include "base/error.h"
#include "server/fetch/fetch_fixture.h"
#include "tests/support/expect_error.h"

namespace drover {
namespace {

using testing::expect_error;
using testing::ScriptedHost;
using testing::ScriptedReply;
using Pictures = std::shared_ptr<const FetchedPictures>;

PictureFetcherOptions options(const ScriptedHost& host) {
  const std::string hosts[] = {fmt::format("127.0.0.1:{}", host.port())};
  PictureFetcherOptions out;
  out.fetch.hosts = AllowedHosts(hosts);
  out.fetch.allow_private = true;
  return out;
}

std::future<Pictures> ask(PictureFetcher& fetcher, std::vector<std::string> urls,
                          const std::atomic<bool>* cancel = nullptr) {
  const auto promise = std::make_shared<std::promise<Pictures>>();
  fetcher.fetch(std::move(urls), cancel,
                [promise](Pictures pictures) { promise->set_value(std::move(pictures)); });
  return promise->get_future();
}

std::string text(const Pictures& pictures, const std::string& url) {
  const auto bytes = pictures->bytes(url);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Answers with the path of the request.
void say_path(const ScriptedReply& reply, const std::string& head) {
  reply.answer("200 OK", head.substr(4, head.find(' ', 4) - 4));
}

TEST(PictureFetcher, BringsSeveralAtOnceAndEachOnce) {
  // Nobody is answered before all have come.
  std::mutex mutex;
  std::condition_variable here;
  int come = 0;
  const ScriptedHost host([&](const ScriptedReply& reply, const std::string& head) {
    std::unique_lock lock(mutex);
    ++come;
    here.notify_all();
    here.wait(lock, [&] { return come == 3; });
    say_path(reply, head);
  });
  PictureFetcher fetcher(options(host));
  const std::string a = host.url("127.0.0.1", "/a"), b = host.url("127.0.0.1", "/b"),
                    c = host.url("127.0.0.1", "/c");
  const Pictures pictures = ask(fetcher, {a, b, a, c, b}).get();
  EXPECT_EQ(text(pictures, a), "/a");
  EXPECT_EQ(text(pictures, b), "/b");
  EXPECT_EQ(text(pictures, c), "/c");
  EXPECT_EQ(host.connections(), 3);
}

TEST(PictureFetcher, OneThatFailsIsAloneInIt) {
  const ScriptedHost host([](const ScriptedReply& reply, const std::string& head) {
    head.starts_with("GET /bad") ? reply.answer("404 Not Found", "") : say_path(reply, head);
  });
  PictureFetcher fetcher(options(host));
  const std::string bad = host.url("127.0.0.1", "/bad"), good = host.url("127.0.0.1", "/good");
  const std::string foreign = "http://elsewhere.test/";
  const Pictures pictures = ask(fetcher, {bad, good, foreign}).get();
  EXPECT_EQ(text(pictures, good), "/good");
  expect_error(ErrorKind::kNotFound, "127.0.0.1: there is no such picture",
               [&] { pictures->bytes(bad); });
  expect_error(ErrorKind::kPermission, "elsewhere.test", [&] { pictures->bytes(foreign); });
  expect_error(ErrorKind::kPermission, "elsewhere.test", [&] { fetcher.expect_allowed(foreign); });
  EXPECT_EQ(fetcher.expect_allowed(good).host, "127.0.0.1");
}

TEST(PictureFetcher, TheBytesOfARequestAndOfAllAreLimited) {
  const ScriptedHost host([](const ScriptedReply& reply, const std::string&) {
    reply.answer("200 OK", std::string(1000, 'a'));
  });
  PictureFetcherOptions narrow = options(host);
  narrow.request_bytes = 1500;
  narrow.all_bytes = 2500;
  PictureFetcher fetcher(narrow);
  const std::string a = host.url("127.0.0.1", "/a"), b = host.url("127.0.0.1", "/b");
  {
    const Pictures both = ask(fetcher, {a, b}).get();
    int refused = 0;
    for (const std::string& url : {a, b}) {
      try {
        both->bytes(url);
      } catch (const Error& error) {
        EXPECT_EQ(error.message(), "127.0.0.1: the request's pictures are larger than 1500 bytes");
        ++refused;
      }
    }
    EXPECT_GE(refused, 1);
  }
  // What is held counts, and no longer than that.
  for (int round = 0; round < 3; ++round) {
    const Pictures first = ask(fetcher, {a}).get(), second = ask(fetcher, {a}).get();
    EXPECT_EQ(text(first, a) + text(second, a), std::string(2000, 'a'));
    const Pictures third = ask(fetcher, {a}).get();
    expect_error(ErrorKind::kLimit, "too many pictures are being fetched",
                 [&] { third->bytes(a); });
  }
}

TEST(PictureFetcher, AllPicturesOfARequestShareItsTime) {
  const ScriptedHost host([](const ScriptedReply& reply, const std::string&) { reply.wait(); });
  PictureFetcherOptions hasty = options(host);
  hasty.fetch.time = std::chrono::milliseconds(200);
  hasty.threads = 1;
  PictureFetcher fetcher(hasty);
  std::vector<std::string> urls;
  for (int i = 0; i < 50; ++i) urls.push_back(host.url("127.0.0.1", fmt::format("/{}", i)));
  const Pictures pictures = ask(fetcher, urls).get();
  for (const std::string& url : urls) {
    expect_error(ErrorKind::kLimit, "takes too long", [&] { pictures->bytes(url); });
  }
  // The one thread was with the first until the time was over: the others were not asked.
  EXPECT_EQ(host.connections(), 1);
}

TEST(PictureFetcher, WhoAsksOneThatHasStoppedIsTold) {
  const ScriptedHost host(say_path);
  PictureFetcher fetcher(options(host));
  std::future<Pictures> before = ask(fetcher, {host.url()});
  fetcher.stop();
  EXPECT_EQ(text(before.get(), host.url()), "/a.png");
  const Pictures after = ask(fetcher, {host.url()}).get();
  expect_error(ErrorKind::kCancelled, "stopped", [&] { after->bytes(host.url()); });
}

TEST(PictureFetcher, AsksNobodyForNothing) {
  const ScriptedHost host(say_path);
  PictureFetcher fetcher(options(host));
  EXPECT_NE(ask(fetcher, {}).get(), nullptr);
}

}  // namespace
}  // namespace drover
