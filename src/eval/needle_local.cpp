#include "eval/needle_local.h"

#include "base/error.h"

namespace drover {

PromptLayout model_layout(const Tokenizer& tokenizer, ChatFormat format) {
  PromptLayout out;
  out.encode = [tokenizer](std::string_view text) { return tokenizer.encode(text); };
  out.decode = [tokenizer](std::span<const Token> tokens) { return tokenizer.decode(tokens); };
  if (format != ChatFormat::kNone) {
    out.render = [tokenizer, format](std::string_view content) {
      const Message message("user", std::string(content));
      return render_chat(format, tokenizer, {&message, 1}, /*add_generation_prompt=*/true);
    };
  } else {
    out.render = [tokenizer](std::string_view content) {
      std::vector<Token> tokens;
      const Vocabulary& vocabulary = tokenizer.vocabulary();
      if (vocabulary.add_bos && vocabulary.bos) tokens.push_back(*vocabulary.bos);
      tokenizer.encode(fmt::format("{}\nAnswer:", content), tokens);
      return tokens;
    };
  }
  return out;
}

LocalAnswerer::LocalAnswerer(const Model& model, Context& context, const EngineOptions& options,
                             const std::atomic<bool>* cancel)
    : engine_(model, context, options),
      layout_(model_layout(model.tokenizer(), model.chat_format())),
      cancel_(cancel) {
  layout_.chunk = model.config().chunk;
  layout_.context = engine_.context();
  options_.sampling.temperature = 0;
  options_.stop_tokens = model.stop_tokens(model.chat_format());
}

NeedleAnswer LocalAnswerer::answer(const NeedlePrompt& prompt) {
  options_.max_tokens = prompt.max_tokens;
  const Answer answer =
      engine_.generate(prompt.tokens, options_, {.prompt = {}, .text = {}, .cancel = cancel_});
  if (answer.finish == FinishReason::kCancelled) throw_error(ErrorKind::kCancelled, "stopped");
  return {answer.text, answer.prompt_tokens, answer.cached_tokens};
}

}  // namespace drover
