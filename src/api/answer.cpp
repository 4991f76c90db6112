#include "api/answer.h"

#include "api/anthropic.h"
#include "api/embeddings.h"
#include "api/responses.h"
#include "text/tool_calls.h"
#include "text/utf8.h"

namespace drover {
namespace {

namespace json = boost::json;

json::value logprobs_json(const ApiRequest& request, const Request& asked, const Answer& answer,
                          const Tokenizer& tokenizer) {
  if (!asked.options.logprobs) return nullptr;
  const std::span<const ChoiceLogprobs> said = answer.logprobs;
  if (request.kind == ApiKind::kChat) {
    return chat_logprobs(tokenizer, said.first(answer.tokens.size()));
  }
  CompletionLogprobs out(tokenizer, asked.options.show_special);
  if (request.echo && answer.prompt_logprobs) add_prompt(asked, *answer.prompt_logprobs, out);
  for (const ChoiceLogprobs& token : said) out.add(token);
  return out.take();
}

// The message of a choice: what was said, and what was called.
json::object message_json(const ApiRequest& request, const std::string& text, const ApiName& name,
                          size_t choice) {
  json::object out{{"role", "assistant"}, {"content", text}, {"refusal", nullptr}};
  if (request.tools.empty()) return out;
  ToolCallParser parser(
      {.names = request.tools, .stream_arguments = false, .max_calls = request.most_calls});
  std::string said;
  json::array calls;
  const auto hear = [&](const std::vector<ToolEvent>& events) {
    for (const ToolEvent& event : events) {
      switch (event.kind) {
        case ToolEvent::Kind::kText:
          said += event.text;
          break;
        case ToolEvent::Kind::kCallBegin:
          calls.push_back({{"id", tool_call_id(name, choice, event.index)},
                           {"type", "function"},
                           {"function", {{"name", event.text}, {"arguments", ""}}}});
          break;
        case ToolEvent::Kind::kArguments: {
          json::string& arguments =
              calls.back().get_object()["function"].get_object()["arguments"].get_string();
          arguments += event.text;
          break;
        }
        case ToolEvent::Kind::kCallEnd:
          break;
      }
    }
  };
  hear(parser.push(text));
  hear(parser.finish());
  out["content"] = said.empty() && !calls.empty() ? json::value(nullptr) : json::value(said);
  if (!calls.empty()) out["tool_calls"] = std::move(calls);
  return out;
}

}  // namespace

std::string_view api_finish(FinishReason reason, bool called) {
  return reason != FinishReason::kStop ? "length" : called ? "tool_calls" : "stop";
}

std::string_view stem_of(const ApiName& name) {
  return std::string_view(name.id).substr(name.id.find_first_of("-_") + 1);
}

std::string tool_call_id(const ApiName& name, size_t choice, int64_t call) {
  return fmt::format("call_{}_{}_{}", stem_of(name), choice, call);
}

std::string echo_of(const Request& request, const Tokenizer& tokenizer) {
  return as_utf8(tokenizer.decode(request.prompt.tokens, request.options.show_special));
}

void add_prompt(const Request& request, std::span<const ChoiceLogprobs> logprobs,
                CompletionLogprobs& out) {
  out.add_first(request.prompt.tokens.front());
  for (const ChoiceLogprobs& token : logprobs) out.add(token);
  out.end_prompt();
}

void ApiUsage::add(std::span<const Answer> answers) {
  if (answers.empty()) return;
  prompt += answers[0].prompt_tokens;
  cached += answers[0].cached_tokens;
  for (const Answer& answer : answers) completion += static_cast<int64_t>(answer.tokens.size());
}

boost::json::object ApiUsage::json() const {
  return {{"prompt_tokens", prompt},
          {"completion_tokens", completion},
          {"total_tokens", prompt + completion},
          {"prompt_tokens_details", boost::json::object{{"cached_tokens", cached}}}};
}

json::object api_answer(const ApiRequest& request, std::span<const std::vector<Answer>> answers,
                        const Tokenizer& tokenizer, const ApiName& name) {
  switch (request.kind) {
    case ApiKind::kEmbedding:
      return embedding_answer(request, answers, name.model);
    case ApiKind::kResponse:
      return ResponseStream(request, tokenizer, name, nullptr, /*whole=*/true).whole(answers[0][0]);
    case ApiKind::kMessage:
      return MessageStream(request, name, nullptr, /*whole=*/true).whole(answers[0][0]);
    case ApiKind::kChat:
    case ApiKind::kCompletion:
      break;
  }
  const bool chat = request.kind == ApiKind::kChat;
  json::array choices;
  ApiUsage usage;
  for (size_t prompt = 0; prompt < answers.size(); ++prompt) {
    const Request& asked = request.requests[prompt];
    const std::string echo = request.echo ? echo_of(asked, tokenizer) : "";
    for (const Answer& answer : answers[prompt]) {
      // Whole characters already, but for the names of odd control tokens.
      const std::string text = echo + as_utf8(answer.text);
      json::object choice{{"index", choices.size()}};
      bool called = false;
      if (chat) {
        json::object message = message_json(request, text, name, choices.size());
        called = message.contains("tool_calls");
        choice["message"] = std::move(message);
      } else {
        choice["text"] = text;
      }
      choice["logprobs"] = logprobs_json(request, asked, answer, tokenizer);
      choice["finish_reason"] = api_finish(answer.finish, called);
      choices.push_back(std::move(choice));
    }
    usage.add(answers[prompt]);
  }
  return {{"id", name.id},
          {"object", chat ? "chat.completion" : "text_completion"},
          {"created", name.created},
          {"model", name.model},
          {"choices", std::move(choices)},
          {"usage", usage.json()}};
}

}  // namespace drover
