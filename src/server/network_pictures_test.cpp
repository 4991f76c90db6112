// Chats with pictures of other hosts, through the whole server, on a model of random weights.
#include <gtest/gtest.h>
#include <openssl/evp.h>

#include <fstream>
#include <future>

#include "eval/random_model.h"
#include "image/png_writer.h"
#include "server/fetch/fetch_fixture.h"
#include "server/http/raw_client.h"
#include "server/server.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

namespace json = boost::json;
using testing::ScriptedHost;
using testing::ScriptedReply;

class NetworkPicturesTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new testing::TempFolder();
    Context context(2);
    const auto model = *folder_ / "model.gguf";
    write_random_model(context, random_shape("tiny-vision"), *mixture_from_name("f32"), 1, model);
    model_ = Model::load(model.string()).release();
    std::vector<uint8_t> rgb(20 * 10 * 3);
    for (size_t i = 0; i < rgb.size(); ++i) rgb[i] = static_cast<uint8_t>(i * i);
    write_png(*folder_ / "a.png", rgb.data(), 20, 10);
    std::ifstream file(*folder_ / "a.png", std::ios::binary);
    png_ = {std::istreambuf_iterator<char>(file), {}};
  }
  static void TearDownTestSuite() {
    delete model_;
    delete folder_;
  }

  // A server that takes pictures from this host.
  void start(const ScriptedHost& host) {
    ServiceOptions service;
    const std::string hosts[] = {fmt::format("127.0.0.1:{}", host.port())};
    service.names = {"small"};
    service.format = ChatFormat::kLlama4;
    service.pictures.fetch.hosts = AllowedHosts(hosts);
    service.pictures.fetch.allow_private = true;
    service.pictures.fetch.time = std::chrono::seconds(60);
    start(std::move(service));
  }
  void start(ServiceOptions service) {
    ServerOptions options;
    options.http.listeners = {HttpListener{}};
    server_.emplace(std::move(options));
    server_->open(*model_, context_, std::move(service));
  }

  static std::string part(std::string_view url) {
    return fmt::format(R"({{"type":"image_url","image_url":{{"url":"{}"}}}})", url);
  }
  static std::string data_url() {
    std::string base64(4 * ((png_.size() + 2) / 3) + 1, '\0');
    base64.resize(static_cast<size_t>(EVP_EncodeBlock(
        reinterpret_cast<unsigned char*>(base64.data()),
        reinterpret_cast<const unsigned char*>(png_.data()), static_cast<int>(png_.size()))));
    return "data:image/png;base64," + base64;
  }
  static std::string chat(std::string_view parts) {
    const std::string body = fmt::format(
        R"({{"messages":[{{"role":"user","content":[{},{{"type":"text","text":"what is it"}}]}}],)"
        R"("max_tokens":6,"seed":1}})",
        parts);
    return fmt::format(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        "Content-Length: {}\r\n\r\n{}",
        body.size(), body);
  }
  RawClient client() const {
    const std::string address = server_->addresses().front();
    return RawClient(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
  }
  RawAnswer ask(std::string_view bytes) const {
    RawClient one = client();
    one.send(bytes);
    return one.read_answer();
  }
  // What was said, and how long the prompt was.
  static std::pair<std::string, int64_t> said(const RawAnswer& answer) {
    EXPECT_EQ(answer.status, 200) << answer.body;
    if (answer.status != 200) return {};
    const json::value body = json::parse(answer.body);
    return {json::serialize(body.at("choices").at(0).at("message")),
            body.at("usage").at("prompt_tokens").to_number<int64_t>()};
  }
  // The error's message, without a word of what the host said.
  static std::string refusal(const RawAnswer& answer, std::string_view secret = "secret") {
    EXPECT_EQ(answer.status, 400) << answer.body;
    EXPECT_EQ(answer.body.find(secret), std::string::npos) << answer.body;
    const json::value error = json::parse(answer.body).at("error");
    EXPECT_EQ(error.at("param"), "messages[0].content[0]");
    return std::string(error.at("message").as_string());
  }

  static inline testing::TempFolder* folder_ = nullptr;
  static inline Model* model_ = nullptr;
  static inline std::string png_;
  Context context_{2};
  std::optional<Server> server_;
};

TEST_F(NetworkPicturesTest, APictureOfAnotherHostIsTheSameAsInsideTheRequest) {
  const ScriptedHost host([&](const ScriptedReply& reply, const std::string&) {
    reply.answer("200 OK", png_, "Content-Type: text/plain\r\n");
  });
  start(host);
  const auto inside = said(ask(chat(part(data_url()))));
  EXPECT_EQ(said(ask(chat(part(host.url())))), inside);
  EXPECT_EQ(host.connections(), 1);
  // Both in one request, one of them twice, which is brought once.
  const std::string mixed =
      part(data_url()) + "," + part(host.url()) + "," + part(host.url()) + "," + part(data_url());
  const std::string same =
      part(data_url()) + "," + part(data_url()) + "," + part(data_url()) + "," + part(data_url());
  EXPECT_EQ(said(ask(chat(mixed))), said(ask(chat(same))));
  EXPECT_EQ(host.connections(), 2);
}

TEST_F(NetworkPicturesTest, ASlowHostHoldsNobodyElse) {
  std::promise<void> asked, told;
  std::shared_future<void> go = told.get_future().share();
  const ScriptedHost host([&](const ScriptedReply& reply, const std::string&) {
    asked.set_value();
    go.wait();
    reply.answer("200 OK", png_);
  });
  start(host);
  const auto inside = said(ask(chat(part(data_url()))));
  RawClient waiting = client();
  waiting.send(chat(part(host.url())));
  asked.get_future().wait();
  EXPECT_EQ(said(ask(chat(part(data_url())))), inside);
  told.set_value();
  EXPECT_EQ(said(waiting.read_answer()), inside);
}

TEST_F(NetworkPicturesTest, WhatIsWrongWithAPictureIsSaidWithItsHostAndNothingThatItSaid) {
  const ScriptedHost host([&](const ScriptedReply& reply, const std::string& head) {
    reply.answer(head.starts_with("GET /none") ? "404 Not Found" : "200 OK", "a secret");
  });
  start(host);
  const auto refused = [&](const std::string& url) { return refusal(ask(chat(part(url)))); };
  EXPECT_NE(refused(host.url("127.0.0.1", "/none"))
                .find("messages[0].content[0]: picture not read: 127.0.0.1: there is no such "
                      "picture (status 404)"),
            std::string::npos);
  EXPECT_NE(refused(host.url()).find("messages[0].content[0]: picture not read: 127.0.0.1: "),
            std::string::npos);
  EXPECT_NE(refused("http://127.0.0.1:1/a.png").find("pictures from 127.0.0.1:1 are not fetched"),
            std::string::npos);
  EXPECT_NE(refused("https://example.org/a.png").find("pictures from example.org:443"),
            std::string::npos);
  EXPECT_NE(refused("file:///etc/passwd").find("expected http"), std::string::npos);
  EXPECT_NE(refused("http://u:p@127.0.0.1/").find("user name"), std::string::npos);
  EXPECT_EQ(host.connections(), 2);
}

TEST_F(NetworkPicturesTest, ARequestThatIsWrongElsewhereAsksNobody) {
  const ScriptedHost host(
      [&](const ScriptedReply& reply, const std::string&) { reply.answer("200 OK", png_); });
  start(host);
  EXPECT_EQ(ask(chat(part(host.url()) + R"(,{"type":"sound"})")).status, 400);
  EXPECT_EQ(ask(chat(part(host.url()) + "," + part("http://127.0.0.1:1/"))).status, 400);
  std::string many = part(host.url());
  for (size_t i = 0; i < kMostPictures; ++i) many += "," + part(host.url());
  const RawAnswer answer = ask(chat(many));
  EXPECT_EQ(answer.status, 400);
  EXPECT_NE(answer.body.find("expected at most 64 pictures in a request"), std::string::npos)
      << answer.body;
  EXPECT_EQ(host.connections(), 0);
}

TEST_F(NetworkPicturesTest, WithoutAListOfHostsThereIsNone) {
  const ScriptedHost host(
      [&](const ScriptedReply& reply, const std::string&) { reply.answer("200 OK", png_); });
  ServiceOptions service;
  service.names = {"small"};
  service.format = ChatFormat::kLlama4;
  start(std::move(service));
  EXPECT_NE(refusal(ask(chat(part(host.url())))).find("expected a data URL"), std::string::npos);
  EXPECT_EQ(host.connections(), 0);
}

TEST_F(NetworkPicturesTest, AServerThatEndsLeavesAHostThatIsSlow) {
  std::promise<void> asked;
  const ScriptedHost host([&](const ScriptedReply& reply, const std::string&) {
    asked.set_value();
    reply.wait();
  });
  start(host);
  RawClient waiting = client();
  waiting.send(chat(part(host.url())));
  asked.get_future().wait();
  EXPECT_FALSE(server_->drain(std::chrono::milliseconds(0)));
  const RawAnswer answer = waiting.read_answer();
  EXPECT_EQ(answer.status, 503);
  EXPECT_NE(answer.body.find("the server is about to end"), std::string::npos) << answer.body;
}

TEST_F(NetworkPicturesTest, WhoLeavesNeedsNoPicture) {
  std::promise<void> asked, left;
  const ScriptedHost host([&](const ScriptedReply& reply, const std::string&) {
    asked.set_value();
    reply.wait();
    left.set_value();
  });
  start(host);
  RawClient waiting = client();
  waiting.send(chat(part(host.url())));
  asked.get_future().wait();
  waiting.reset();
  // Far within the minute that the host would have.
  EXPECT_EQ(left.get_future().wait_for(std::chrono::seconds(30)), std::future_status::ready);
}

}  // namespace
}  // namespace drover
