// Asks a model two questions at once, through the library: ask MODEL QUESTION QUESTION
#include <cstdio>

#include "engine/advised_options.h"
#include "engine/engine.h"

int main(int argc, char** argv) try {
  if (argc != 4) {
    std::fputs("usage: ask MODEL QUESTION QUESTION\n", stderr);
    return 2;
  }
  using namespace drover;
  const auto model = Model::load(argv[1]);
  Context context(physical_cores());
  Engine engine(*model, context);
  const ChatFormat format = model->chat_format();

  // Both are written in the same steps; neither shows in the other's answer.
  std::vector<std::thread> asking;
  std::string answers[2];
  for (int i = 0; i < 2; ++i) {
    asking.emplace_back([&, i] {
      const Message question("user", argv[2 + i]);
      const Prompt prompt{render_chat(format, model->tokenizer(), {&question, 1}, true)};
      GenerateOptions options = advised_options(*model, format);
      options.max_tokens = 64;
      answers[i] = engine.generate(prompt, options).text;
    });
  }
  for (std::thread& thread : asking) thread.join();
  for (int i = 0; i < 2; ++i) std::printf("%s\n%s\n\n", argv[2 + i], answers[i].c_str());
} catch (const drover::Error& error) {
  std::fprintf(stderr, "ask: %s\n", error.what());
  return drover::exit_code(error.kind());
}
