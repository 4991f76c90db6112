// scripted_server MODEL: a server whose model says what its client wants to hear, so that tests can
// show real clients every form that a model's answer may take. Only the choice of tokens is forced,
// by a constraint of the sampler; prompts, tokens, the finding of calls, streams and HTTP are those
// of `drover serve`.
//
// The script stands in the last message of a user, after a line "Say:". Its parts are separated by
// lines of ---: the first is the answer to that message, the second what is said after the results
// of the first one's calls, and so on. $1 is the first of these results, $2 the second. Where a
// message has no script, the model speaks for itself. MODEL has to talk in Llama 4's format.

#include <signal.h>

#include <boost/json.hpp>
#include <cmath>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "model/model.h"
#include "server/server.h"

namespace drover {
namespace {

constexpr std::string_view kUser = "<|header_start|>user<|header_end|>";
constexpr std::string_view kAssistant = "<|header_start|>assistant<|header_end|>";
constexpr std::string_view kTool = "<|header_start|>ipython<|header_end|>\n\n";
constexpr std::string_view kEndOfTurn = "<|eot|>";
constexpr std::string_view kSay = "Say:\n", kThen = "\n---\n";

// Cuts off and returns what stands before the mark; all of it where there is none.
std::string_view take_until(std::string_view& text, std::string_view mark) {
  const size_t at = text.find(mark);
  const std::string_view out = text.substr(0, at);
  text.remove_prefix(at == std::string_view::npos ? text.size() : at + mark.size());
  return out;
}

// What comes next in this conversation, if its last user has a script.
std::optional<std::string> next_line(std::string_view conversation) {
  const size_t user = conversation.rfind(kUser);
  if (user == std::string_view::npos) return std::nullopt;
  std::string_view after = conversation.substr(user);
  std::string_view script = take_until(after, kEndOfTurn);
  if (script.find(kSay) == std::string_view::npos) return std::nullopt;
  take_until(script, kSay);

  std::vector<std::string> results;
  std::string_view line = take_until(script, kThen);
  // The last header of an assistant is the one that this answer follows.
  for (std::string_view turns = after; !turns.empty();) {
    std::string_view turn = take_until(turns, kEndOfTurn);
    if (turn.starts_with(kTool)) {
      turn.remove_prefix(kTool.size());
      results.emplace_back(boost::json::parse({turn.data(), turn.size()}).as_string());
    } else if (turn.starts_with(kAssistant) && !turns.empty()) {
      if (script.empty()) throw Error(ErrorKind::kUsage, "the script has no further part");
      line = take_until(script, kThen);
    }
  }
  std::string out(line);
  for (size_t i = results.size(); i > 0; --i) {
    const std::string mark = "$" + std::to_string(i);
    for (size_t at; (at = out.find(mark)) != std::string::npos;) {
      out.replace(at, mark.size(), results[i - 1]);
    }
  }
  return out;
}

void force(Request& request, const Tokenizer& tokenizer) {
  const auto line = next_line(tokenizer.decode(request.prompt.tokens, /*show_special=*/true));
  if (!line) return;
  std::vector<Token> script = tokenizer.encode_special(*line);
  script.push_back(tokenizer.special(kEndOfTurn).value());
  request.options.sampling.constraint = [script = std::move(script)](std::span<const Token> answer,
                                                                     std::span<float> logits) {
    const auto wanted = static_cast<size_t>(script.at(answer.size()));
    for (size_t token = 0; token < logits.size(); ++token) {
      logits[token] = token == wanted ? 0.0f : -INFINITY;
    }
  };
}

void serve(const char* path) {
  // Before there are threads, so that none of them gets these.
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGTERM);
  sigaddset(&ends, SIGINT);
  pthread_sigmask(SIG_BLOCK, &ends, nullptr);

  const auto model = Model::load(path);
  Context context(1);  // the model is small, and tests run side by side
  ServerOptions options;
  options.http.listeners = {HttpListener{}};
  options.version = "scripted";
  Server server(std::move(options));
  ServiceOptions service;
  service.names = {"scripted"};
  service.format = ChatFormat::kLlama4;
  service.prepare = [&](Request& request) { force(request, model->tokenizer()); };
  server.open(*model, context, std::move(service));
  std::fprintf(stderr, "listening on %s\nready\n", server.addresses().front().c_str());
  int signal = 0;
  sigwait(&ends, &signal);
  server.drain(std::chrono::seconds(30));
}

}  // namespace
}  // namespace drover

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: scripted_server MODEL\n");
    return 2;
  }
  try {
    drover::serve(argv[1]);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "scripted_server: %s\n", error.what());
    return 1;
  }
}
