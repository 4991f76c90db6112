// A server's life: where it listens, how it ends, what it costs while nothing happens.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "server/http/http_server.h"
#include "server/http/server_fixture.h"
#include "server/http/server_sent_events.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

using HttpLifeTest = HttpTest;

TEST_F(HttpLifeTest, AUnixSocketIsForItsOwnerAndCleanedUp) {
  const testing::TempFolder folder;
  const std::string path = folder / "drover.sock";
  HttpOptions options;
  options.listeners = {{.unix_path = path}, HttpListener{}};
  serve(options);
  EXPECT_EQ(server_->addresses()[0], "unix:" + path);
  EXPECT_EQ(server_->addresses()[1], "http://127.0.0.1:" + std::to_string(server_->port(1)));
  struct stat status {};
  ASSERT_EQ(stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
  RawClient client(path);
  client.send(get("/local"));
  EXPECT_EQ(client.read_answer().body, "/local");
  EXPECT_EQ(last().peer, "unix");
  EXPECT_THROW(HttpServer(options, {}), Error) << "a live socket is not taken over";
  client.send(get("/still"));
  EXPECT_EQ(client.read_answer().body, "/still");
  server_.reset();
  EXPECT_FALSE(std::filesystem::exists(path));

  const int dead = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::copy(path.begin(), path.end(), address.sun_path);
  ASSERT_EQ(bind(dead, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ::close(dead);
  serve(options);
  RawClient again(path);
  again.send(get("/again"));
  EXPECT_EQ(again.read_answer().body, "/again") << "one that a dead server left is replaced";
  server_.reset();

  std::ofstream(path) << "precious";
  EXPECT_THROW(HttpServer(options, {}), Error) << "a file that is no socket is left alone";
  EXPECT_TRUE(std::filesystem::exists(path));
}

TEST_F(HttpLifeTest, WhatCannotBeListenedOnIsSaid) {
  serve();
  HttpOptions options;
  options.listeners = {{.port = server_->port()}};
  EXPECT_THROW(HttpServer(options, {}), Error) << "in use";
  options.listeners = {{.host = "no.such.host.invalid"}};
  EXPECT_THROW(HttpServer(options, {}), Error);
  options.listeners = {{.unix_path = std::string(200, 'x')}};
  EXPECT_THROW(HttpServer(options, {}), Error);
  options.listeners = {};
  EXPECT_THROW(HttpServer(options, {}), Error);
  options = {};
  options.threads = 0;
  EXPECT_THROW(HttpServer(options, {}), Error);
}

TEST_F(HttpLifeTest, DrainingFinishesWhatIsBegunAndTakesNothingNew) {
  serve();
  RawClient idle = connect(), busy = connect(), streaming = connect();
  idle.send(get("/"));
  EXPECT_EQ(idle.read_answer().status, 200);
  busy.send(get("/hold") + get("/never"));
  HttpReply reply = taken();
  streaming.send(get("/hold"));
  HttpReply stream = taken();
  stream.begin(200, {});
  stream.write("one");
  streaming.read_until("one");

  EXPECT_FALSE(server_->drain(milliseconds(50))) << "two are at work";
  EXPECT_TRUE(idle.sees_close(milliseconds(500)));
  EXPECT_FALSE(connect().connected());
  EXPECT_EQ(server_->counters().connections_open, 2u);
  reply.send(200, {}, "done");
  const RawAnswer answer = busy.read_answer();
  EXPECT_EQ(answer.body, "done");
  EXPECT_EQ(answer.headers.at("connection"), "close");
  busy.close();
  stream.write("two");
  stream.end();
  EXPECT_NE(streaming.read_until("0\r\n\r\n").find("two"), std::string::npos);
  EXPECT_TRUE(server_->drain(milliseconds(5000)));
  EXPECT_EQ(server_->counters().requests.at(200), 3u) << "/never was not begun";
}

TEST_F(HttpLifeTest, StoppingCutsAtOnceAndRepliesOutliveTheServer) {
  serve();
  RawClient client = connect();
  client.send(get("/hold"));
  HttpReply reply = taken();
  std::atomic<bool> told{false};
  reply.on_closed([&] { told = true; });
  RawClient other = connect();
  other.send(get("/hold"));
  HttpReply stream = taken();
  stream.begin(200, {});
  const auto start = TestClock::now();
  server_->stop();
  EXPECT_LT(since(start), milliseconds(1000));
  EXPECT_TRUE(told);
  EXPECT_EQ(client.read_answer().status, 0);
  server_.reset();
  EXPECT_TRUE(reply.closed());
  EXPECT_FALSE(reply.send(200, {}, "late"));
  EXPECT_FALSE(stream.write("late"));
}

TEST_F(HttpLifeTest, WithoutDescriptorsTheServerWaitsAndRecovers) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "UBSan's check of a virtual call opens a pipe, and takes its failure for a fault";
#endif
  serve();
  expect_alive();
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  RawClient client;
  {
    // The client's descriptor is the last one that there is.
    const int next = fcntl(0, F_DUPFD_CLOEXEC, 0);
    ASSERT_GE(next, 0);
    ::close(next);
    rlimit few = before;
    few.rlim_cur = static_cast<rlim_t>(next) + 1;
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    client = connect();
    std::this_thread::sleep_for(milliseconds(350));
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  }
  ASSERT_TRUE(client.connected()) << "by the system's queue";
  const uint64_t errors = server_->counters().accept_errors;
  EXPECT_GE(errors, 1u);
  EXPECT_LE(errors, 5u) << "a pause of 100 ms after each, in 350 ms";
  client.send(get("/after"));
  EXPECT_EQ(client.read_answer().body, "/after");
}

// Bytes of this process that are in memory.
size_t resident_bytes() {
  size_t pages = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  return resident * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

TEST_F(HttpLifeTest, TwoThousandIdleStreamsAreCheap) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers have a memory of their own";
#endif
  constexpr size_t kStreams = 2000;
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  if (files.rlim_cur < 2 * kStreams + 100) GTEST_SKIP() << "needs 4,100 descriptors";
  serve();
  expect_alive();
  std::vector<RawClient> clients(kStreams);
  std::vector<EventStream> streams;
  streams.reserve(kStreams);
  const size_t before = resident_bytes();
  for (RawClient& client : clients) {
    client = connect();
    client.send(get("/hold"));
    streams.emplace_back(taken());
    streams.back().data("{\"token\": 1}");
    ASSERT_NE(client.read_until("token"), "");
  }
  const size_t each = (resident_bytes() - before) / kStreams;
  RecordProperty("bytes_per_stream", std::to_string(each));
  printf("%zu bytes of memory for each idle stream\n", each);
  EXPECT_LT(each, 30'000u);
  streams.front().data("last");
  EXPECT_NE(clients.front().read_until("last"), "");
}

}  // namespace
}  // namespace drover
