// The web page as a browser gets it: its files, what may run in them, and who need not fetch them
// again. What the page does is for script/check-page to see.
#include "server/page.h"

#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "server/http/raw_client.h"
#include "server/server.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

HttpRequest request_for(std::string_view path, HttpHeaders headers = {}) {
  HttpRequest out;
  out.method = "GET";
  out.path = path;
  out.headers = std::move(headers);
  return out;
}

std::string header(const HttpAnswer& answer, std::string_view name) {
  const std::string* value = find_header(answer.headers, name);
  return value == nullptr ? "" : *value;
}

// All addresses that the page's files name: those of the document, and imports of modules.
std::set<std::string> named_paths(const Page& page) {
  std::set<std::string> out{"/"}, modules;
  const auto collect = [&](std::string_view text, std::string_view before, std::string_view end,
                           const std::string& folder) {
    for (size_t at = 0; (at = text.find(before, at)) != std::string_view::npos;) {
      at += before.size();
      std::string_view name = text.substr(at, text.find_first_of(end, at) - at);
      if (!name.empty()) out.insert(folder + std::string(name));
    }
  };
  const std::string document = page.answer(request_for("/"))->body;
  collect(document, "href=\"", "\"#", "/");
  collect(document, "src=\"", "\"", "/");
  for (bool more = true; more;) {
    more = false;
    for (const std::string& path : std::set<std::string>(out)) {
      if (!path.ends_with(".js") || !page.has(path) || !modules.insert(path).second) continue;
      collect(page.answer(request_for(path))->body, "from \"./", "\"", "/page/");
      more = true;
    }
  }
  return out;
}

TEST(Page, EveryFileThatItNamesIsThereAndHasItsType) {
  const Page page;
  const std::set<std::string> paths = named_paths(page);
  EXPECT_GE(paths.size(), 8u);
  for (const std::string& path : paths) {
    ASSERT_TRUE(page.has(path)) << path;
    const HttpAnswer answer = *page.answer(request_for(path));
    EXPECT_EQ(answer.status, 200);
    EXPECT_FALSE(answer.body.empty()) << path;
    const std::string type = header(answer, "Content-Type");
    EXPECT_EQ(type, path.ends_with(".js")    ? "text/javascript; charset=utf-8"
                    : path.ends_with(".css") ? "text/css; charset=utf-8"
                    : path.ends_with(".svg") ? "image/svg+xml"
                                             : "text/html; charset=utf-8")
        << path;
  }
  for (const EmbeddedFile& file : page_files()) {
    const std::string path = file.name == "index.html" ? "/" : "/page/" + std::string(file.name);
    EXPECT_TRUE(paths.contains(path)) << path << ": nothing in the page asks for it";
  }
}

TEST(Page, ItsPolicyLetsNothingInAndNoTextBecomeHtml) {
  const Page page;
  for (const EmbeddedFile& file : page_files()) {
    const std::string path = file.name == "index.html" ? "/" : "/page/" + std::string(file.name);
    const HttpAnswer answer = *page.answer(request_for(path));
    const std::string policy = header(answer, "Content-Security-Policy");
    for (const char* part : {"default-src 'none'", "script-src 'self';", "style-src 'self';",
                             "connect-src 'self';", "base-uri 'none'", "form-action 'none'",
                             "frame-ancestors 'none'", "require-trusted-types-for 'script'"}) {
      EXPECT_NE(policy.find(part), std::string::npos) << path << ": " << part;
    }
    EXPECT_EQ(policy.find("unsafe"), std::string::npos) << policy;
    EXPECT_EQ(header(answer, "X-Content-Type-Options"), "nosniff");
    EXPECT_EQ(header(answer, "Referrer-Policy"), "no-referrer");
    for (const char* never : {"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write",
                              "eval(", "new Function", " style=\"", " onclick="}) {
      EXPECT_EQ(file.text.find(never), std::string_view::npos) << path << ": " << never;
    }
  }
}

TEST(Page, WhoHasAFileIsToldSo) {
  const Page page;
  std::set<std::string> tags;
  for (const EmbeddedFile& file : page_files()) {
    const std::string path = file.name == "index.html" ? "/" : "/page/" + std::string(file.name);
    const std::string tag = header(*page.answer(request_for(path)), "ETag");
    ASSERT_TRUE(tag.size() > 2 && tag.front() == '"' && tag.back() == '"') << tag;
    EXPECT_TRUE(tags.insert(tag).second) << path << ": the tag of another file";
    const auto status = [&](const std::string& known) {
      return page.answer(request_for(path, {{"If-None-Match", known}}))->status;
    };
    for (const std::string& known :
         {tag, "W/" + tag, "\"x\", " + tag, "\"x\" ,\t" + tag + " ,\"y\"", std::string("*")}) {
      EXPECT_EQ(status(known), 304) << known;
    }
    for (const std::string& known :
         {std::string("\"x\""), std::string(), std::string(","), tag.substr(1), tag + "x"}) {
      EXPECT_EQ(status(known), 200) << known;
    }
    const HttpAnswer known = *page.answer(request_for(path, {{"if-none-match", tag}}));
    EXPECT_EQ(header(known, "ETag"), tag);
    EXPECT_TRUE(known.body.empty());
  }
}

TEST(Page, OtherPathsAreNotOfThePage) {
  const Page page;
  for (const char* path : {"", "/index.html", "/page", "/page/", "/page/index.html", "//",
                           "/page/../page/main.js", "/page/main.js/", "/v1/page/main.js"}) {
    EXPECT_FALSE(page.has(path)) << path;
    EXPECT_FALSE(page.answer(request_for(path))) << path;
  }
}

// Without a model: as long as it loads.
class PageServerTest : public ::testing::Test {
 protected:
  void start(ServerOptions options) {
    options.http.listeners = {HttpListener{}};
    server_.emplace(std::move(options));
  }
  RawAnswer ask(std::string_view method, std::string_view path) const {
    const std::string address = server_->addresses().front();
    RawClient client(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
    client.send(
        fmt::format("{} {} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", method, path));
    return client.read_answer(method == "HEAD");
  }

  std::optional<Server> server_;
};

TEST_F(PageServerTest, ThePageIsThereWhileTheModelLoadsAndNeedsNoKey) {
  const testing::TempFolder folder;
  std::ofstream(folder / "keys") << "anna secret\n";
  ServerOptions options;
  options.keys = ApiKeys::load(folder / "keys");
  start(std::move(options));
  for (const char* path : {"/", "/page/main.js", "/?from=elsewhere"}) {
    const RawAnswer whole = ask("GET", path);
    EXPECT_EQ(whole.status, 200) << path;
    EXPECT_TRUE(whole.whole);
    const RawAnswer head = ask("HEAD", path);
    EXPECT_EQ(head.status, 200) << path;
    EXPECT_EQ(head.headers.at("content-length"), std::to_string(whole.body.size()));
    EXPECT_EQ(head.headers.at("etag"), whole.headers.at("etag"));
  }
  EXPECT_EQ(ask("GET", "/health").status, 503);
  EXPECT_EQ(ask("GET", "/v1/models").status, 401);
  EXPECT_EQ(ask("GET", "/page/none.js").status, 401);
  const RawAnswer posted = ask("POST", "/");
  EXPECT_EQ(posted.status, 405);
  EXPECT_EQ(posted.headers.at("allow"), "GET, HEAD");
}

TEST_F(PageServerTest, APageIsOnlyForWhoCallsTheServerByItsName) {
  ServerOptions options;
  options.hosts = {"localhost"};
  start(std::move(options));
  EXPECT_EQ(ask("GET", "/").status, 403);
}

TEST_F(PageServerTest, WithoutAPageThereIsNothing) {
  ServerOptions options;
  options.page = false;
  start(std::move(options));
  EXPECT_EQ(ask("GET", "/").status, 404);
  EXPECT_EQ(ask("GET", "/page/main.js").status, 404);
}

}  // namespace
}  // namespace drover
