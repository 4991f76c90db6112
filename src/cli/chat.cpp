// drover chat MODEL: talk. A line is a question; a line that begins with / is a command.

#include <boost/json.hpp>
#include <cstdio>

#include "base/file_writer.h"
#include "base/progress.h"
#include "cli/command.h"
#include "cli/line_reader.h"
#include "formats/json.h"

namespace drover {
namespace {

namespace json = boost::json;

constexpr char kHelp[] =
    "Type a question; \"\"\" begins and ends one of several lines.\n"
    "  /help            this text\n"
    "  /system [TEXT]   set what the model is told first; without TEXT, show it\n"
    "  /clear           forget the conversation\n"
    "  /save FILE       write the conversation as JSON\n"
    "  /load FILE       go on with a saved one\n"
    "  /exit            leave (also /quit, Ctrl-D)\n"
    "Ctrl-C stops an answer, or drops the line that you type.\n";

struct ChatFlags {
  ModelFlags model_flags;
  SamplingFlags sampling;
  std::string system;
  std::string chat_format;
  bool quiet = false;
};

class Chat {
 public:
  explicit Chat(const ChatFlags& flags)
      : flags_(flags),
        context_(flags.model_flags.make_context()),
        model_(flags.model_flags.load()),
        format_(choose_chat_format(*model_, flags.chat_format)),
        session_(*model_, *context_, flags.model_flags.session_options()),
        options_(flags.sampling.options(*model_, format_)),
        lines_(history_file()),
        system_(flags.system) {
    if (format_ == ChatFormat::kNone) {
      throw Error(ErrorKind::kUnsupported,
                  fmt::format("{}: its file names no chat format", model_->path().string()),
                  "choose one with --chat-format, or continue texts with `drover run --raw`");
    }
  }

  void talk() {
    if (lines_.terminal()) print_out("/help shows the commands.\n");
    for (;;) {
      std::string line;
      const LineReader::Result got = lines_.read("> ", line);
      if (got == LineReader::Result::kEnd) return;
      if (got == LineReader::Result::kDropped) continue;
      try {
        if (line.starts_with('/')) {
          if (!obey(line)) return;
        } else if (read_block(line)) {
          answer(line);
        }
      } catch (const Error& error) {
        // A slip in one line does not end the conversation; a reader that is gone does.
        if (error.kind() == ErrorKind::kCancelled || std::ferror(stdout) != 0) throw;
        fmt::print(stderr, "{}\n", printable(error.what(), 10000));
      }
    }
  }

 private:
  // A line that begins with """ goes on to the line that ends with it. False if there is nothing to
  // answer: a blank text, or a block that was dropped.
  bool read_block(std::string& line) {
    if (line.starts_with("\"\"\"")) {
      line.erase(0, 3);
      std::string next;
      while (!line.ends_with("\"\"\"")) {
        const LineReader::Result got = lines_.read(". ", next);
        if (got == LineReader::Result::kDropped) return false;
        if (got == LineReader::Result::kEnd) break;
        line += '\n' + next;
      }
      if (line.ends_with("\"\"\"")) line.resize(line.size() - 3);
    }
    return line.find_first_not_of(" \t\r\n") != std::string::npos;
  }

  std::vector<Message> with_system(std::vector<Message> messages) const {
    if (!system_.empty()) messages.insert(messages.begin(), {"system", system_});
    return messages;
  }

  void answer(const std::string& question) {
    std::vector<Message> messages = messages_;
    messages.push_back({"user", question});
    const auto tokens = render_chat(format_, model_->tokenizer(), with_system(messages), true);
    Answer answer;
    {
      InterruptGuard interrupt(InterruptGuard::Repeat::kIgnored);
      std::optional<ProgressBar> bar(std::in_place, "reading", "tokens");
      Listener listener{.prompt = bar->callback(), .text = {}, .cancel = &InterruptGuard::flag()};
      listener.text = [&](std::string_view piece) {
        bar.reset();
        print_out(piece);
      };
      answer = session_.generate(tokens, options_, listener);
    }
    print_out("\n");
    if (answer.finish == FinishReason::kCancelled && InterruptGuard::signal() != SIGINT) {
      throw_error(ErrorKind::kCancelled, "stopped");
    }
    // The next answer draws other numbers, and still follows from the seed.
    ++options_.sampling.seed;
    if (answer.finish == FinishReason::kContext) {
      fmt::print(stderr, "[the context of {} tokens is full; /clear begins anew]\n",
                 session_.context());
    }
    if (!flags_.quiet && lines_.terminal()) fmt::print(stderr, "[{}]\n", speed_line(answer));
    // A question that was stopped before its answer began was not asked.
    if (answer.finish == FinishReason::kCancelled && answer.text.empty()) return;
    messages.push_back({"assistant", answer.text});
    messages_ = std::move(messages);
  }

  // False to leave.
  bool obey(const std::string& line) {
    const size_t space = line.find(' ');
    const std::string command = line.substr(0, space);
    const size_t first = space == std::string::npos ? space : line.find_first_not_of(' ', space);
    const std::string rest = first == std::string::npos ? "" : line.substr(first);
    if (command == "/exit" || command == "/quit" || command == "/bye") return false;
    if (command == "/help") {
      print_out(kHelp);
    } else if (command == "/clear") {
      messages_.clear();
      session_.clear();
      print_out("Forgotten.\n");
    } else if (command == "/system") {
      if (rest.empty()) {
        print_out(system_.empty() ? "No system text.\n" : system_ + "\n");
      } else {
        system_ = rest;
        print_out("Set.\n");
      }
    } else if (command == "/save") {
      save(rest);
    } else if (command == "/load") {
      load(rest);
    } else {
      fmt::print(stderr, "{}: no such command; /help shows them\n", printable(command));
    }
    return true;
  }

  void save(const std::string& file) const {
    if (file.empty()) throw_error(ErrorKind::kUsage, "/save: expected a file name");
    json::array messages;
    for (const Message& message : with_system(messages_)) {
      messages.push_back({{"role", message.role}, {"content", message.content}});
    }
    write_file(file, json::serialize(json::object{{"messages", messages}}) + "\n");
    print_out(fmt::format("Saved {} messages.\n", messages.size()));
  }

  void load(const std::string& file) {
    if (file.empty()) throw_error(ErrorKind::kUsage, "/load: expected a file name");
    const json::object root = read_json_object(file);
    const json::value* list = root.if_contains("messages");
    if (list == nullptr || !list->is_array()) {
      throw_error(ErrorKind::kBadData, "{}: expected {{\"messages\": [...]}}",
                  printable(file, 300));
    }
    std::vector<Message> messages;
    std::string system;
    for (const json::value& entry : list->get_array()) {
      const json::object* object = entry.if_object();
      const json::value* role = object != nullptr ? object->if_contains("role") : nullptr;
      const json::value* content = object != nullptr ? object->if_contains("content") : nullptr;
      if (role == nullptr || content == nullptr || !role->is_string() || !content->is_string()) {
        throw_error(ErrorKind::kBadData, "{}: expected role and content in every message",
                    printable(file, 300));
      }
      Message message{std::string(role->get_string()), std::string(content->get_string())};
      if (message.role == "system" && messages.empty() && system.empty()) {
        system = message.content;
      } else {
        messages.push_back(std::move(message));
      }
    }
    messages_ = std::move(messages);
    system_ = std::move(system);
    print_out(fmt::format("Loaded {} messages.\n", messages_.size()));
  }

  const ChatFlags& flags_;
  std::unique_ptr<Context> context_;
  std::unique_ptr<Model> model_;
  ChatFormat format_;
  Session session_;
  GenerateOptions options_;
  LineReader lines_;
  std::string system_;
  std::vector<Message> messages_;
};

}  // namespace

void add_chat(CLI::App& app) {
  auto flags = std::make_shared<ChatFlags>();
  CLI::App* command = app.add_subcommand("chat", "Talk with a model");
  flags->model_flags.add_model(*command);
  command->add_option("--system", flags->system, "What the model is told first");
  command->add_option("--chat-format", flags->chat_format,
                      "llama4, llama3 or chatml; what the model's file says if unset");
  command->add_flag("-q,--quiet", flags->quiet, "No line about speed");
  flags->model_flags.add_machine(*command);
  flags->model_flags.add_session(*command);
  flags->sampling.add(*command);
  command->callback([flags] { Chat(*flags).talk(); });
}

}  // namespace drover
