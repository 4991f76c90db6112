// drover chat MODEL: talk. A line is a question; a line that begins with / is a command.

#include <boost/json.hpp>
#include <cctype>
#include <charconv>
#include <cstdio>
#include <filesystem>

#include "base/file_writer.h"
#include "base/progress.h"
#include "cli/command.h"
#include "cli/line_reader.h"
#include "cli/pictures.h"
#include "formats/json.h"

namespace drover {
namespace {

namespace json = boost::json;

constexpr char kHelp[] =
    "Type a question; \"\"\" begins and ends one of several lines.\n"
    "  /help            this text\n"
    "  /image FILE      show a picture (JPEG, PNG, WebP) before the next question, or where it\n"
    "                   says <image>; without FILE, drop those that wait\n"
    "  /system [TEXT]   set what the model is told first; without TEXT, show it\n"
    "  /clear           forget the conversation\n"
    "  /save FILE       write the conversation as JSON\n"
    "  /load FILE       go on with a saved one\n"
    "  /exit            leave (also /quit, Ctrl-D)\n"
    "Ctrl-C stops an answer, or drops the line that you type.\n";

constexpr std::string_view kFileScheme = "file://";

// "file:///home/a%20b.png" of a path, and back; nothing for another address.
std::string file_url(const std::filesystem::path& path) {
  std::string out(kFileScheme);
  for (const char c : path.string()) {
    const bool plain = std::isalnum(static_cast<unsigned char>(c)) != 0 ||
                       std::string_view("/-._~").find(c) != std::string_view::npos;
    if (plain && static_cast<unsigned char>(c) < 128) {
      out += c;
    } else {
      out += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return out;
}

std::optional<std::string> path_of_url(std::string_view url) {
  if (!url.starts_with(kFileScheme)) return std::nullopt;
  url.remove_prefix(kFileScheme.size());
  std::string out;
  while (!url.empty()) {
    unsigned value = 0;
    const char* digits = url.data() + 1;
    if (url.size() >= 3 && url[0] == '%' &&
        std::from_chars(digits, digits + 2, value, 16).ptr == digits + 2) {
      out += static_cast<char>(value);
      url.remove_prefix(3);
    } else {
      out += url[0];
      url.remove_prefix(1);
    }
  }
  return out;
}

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
        engine_(*model_, *context_, flags.model_flags.engine_options()),
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

  // A picture of the conversation, and the file it came from.
  struct Shown {
    std::string file;
    std::shared_ptr<const EncodedPicture> picture;
  };
  // A turn as it is kept, and in order the pictures that its content places.
  struct Turn {
    std::string role;
    std::vector<Part> content;
    std::vector<Shown> pictures;
  };

  Prompt prompt(const std::vector<Turn>& turns) const {
    Prompt out;
    std::vector<Message> messages;
    if (!system_.empty()) messages.push_back({"system", system_});
    for (const Turn& turn : turns) {
      for (const Shown& shown : turn.pictures) out.pictures.push_back(shown.picture);
      messages.push_back({turn.role, turn.content});
    }
    out.tokens = render_chat(format_, model_->tokenizer(), messages, true);
    return out;
  }

  // Finds out whether a picture can be asked about before it is encoded.
  Shown look_at(const std::string& file) {
    if (file == "-") throw_error(ErrorKind::kUsage, "/image: expected the name of a file");
    const Pictures pictures(*model_, {&file, 1});
    const Message alone("user", std::vector<Part>{{"", pictures.tokens().front()}});
    engine_.expect_room(
        static_cast<int64_t>(render_chat(format_, model_->tokenizer(), {&alone, 1}, true).size()));
    if (!encoder_) encoder_.emplace(*model_, *context_);
    InterruptGuard interrupt(InterruptGuard::Repeat::kIgnored);
    try {
      return {file, pictures.encode(*encoder_).front()};
    } catch (const Error& error) {
      // Ctrl-C drops the picture, not the conversation.
      if (error.kind() != ErrorKind::kCancelled || InterruptGuard::signal() != SIGINT) throw;
      throw_error(ErrorKind::kUsage, "{}: not looked at to the end", printable(file, 300));
    }
  }

  void answer(const std::string& question) {
    std::vector<PictureTokens> places;
    for (const Shown& shown : waiting_) places.push_back(shown.picture->tokens);
    std::vector<Turn> turns = turns_;
    turns.push_back({"user", place_pictures(question, places), waiting_});
    const Prompt shown = prompt(turns);
    Answer answer;
    {
      InterruptGuard interrupt(InterruptGuard::Repeat::kIgnored);
      std::optional<ProgressBar> bar(std::in_place, "reading", "tokens");
      Listener listener{.prompt = bar->callback(), .text = {}, .cancel = &InterruptGuard::flag()};
      listener.text = [&](std::string_view piece) {
        bar.reset();
        print_out(piece);
      };
      answer = engine_.generate(shown, options_, listener);
    }
    print_out("\n");
    if (answer.finish == FinishReason::kCancelled && InterruptGuard::signal() != SIGINT) {
      throw_error(ErrorKind::kCancelled, "stopped");
    }
    // The next answer draws other numbers, and still follows from the seed.
    ++options_.sampling.seed;
    if (answer.finish == FinishReason::kContext) {
      fmt::print(stderr, "[the context of {} tokens is full; /clear begins anew]\n",
                 engine_.context());
    }
    if (!flags_.quiet && lines_.terminal()) fmt::print(stderr, "[{}]\n", speed_line(answer));
    // A question that was stopped before its answer began was not asked.
    if (answer.finish == FinishReason::kCancelled && answer.text.empty()) return;
    turns.push_back({"assistant", {{answer.text}}, {}});
    turns_ = std::move(turns);
    waiting_.clear();
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
      turns_.clear();
      waiting_.clear();
      engine_.forget();
      print_out("Forgotten.\n");
    } else if (command == "/system") {
      if (rest.empty()) {
        print_out(system_.empty() ? "No system text.\n" : system_ + "\n");
      } else {
        system_ = rest;
        print_out("Set.\n");
      }
    } else if (command == "/image") {
      if (rest.empty()) {
        print_out(fmt::format("Dropped {} pictures.\n", waiting_.size()));
        waiting_.clear();
      } else {
        waiting_.push_back(look_at(rest));
        print_out("Seen; ask about it.\n");
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

  // As the OpenAI API has messages; a picture is a part with the address of its file.
  void save(const std::string& file) const {
    if (file.empty()) throw_error(ErrorKind::kUsage, "/save: expected a file name");
    json::array messages;
    if (!system_.empty()) messages.push_back({{"role", "system"}, {"content", system_}});
    for (const Turn& turn : turns_) {
      json::array parts;
      auto shown = turn.pictures.begin();
      for (const Part& part : turn.content) {
        if (part.picture) {
          const std::string url = file_url(std::filesystem::absolute((shown++)->file));
          parts.push_back({{"type", "image_url"}, {"image_url", {{"url", url}}}});
        } else {
          parts.push_back({{"type", "text"}, {"text", part.text}});
        }
      }
      json::value content = std::move(parts);
      if (turn.pictures.empty()) content = turn.content.empty() ? "" : turn.content[0].text;
      messages.push_back({{"role", turn.role}, {"content", std::move(content)}});
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
    std::vector<Turn> turns;
    std::string system;
    for (const json::value& entry : list->get_array()) {
      const json::object* object = entry.if_object();
      const json::value* role = object != nullptr ? object->if_contains("role") : nullptr;
      const json::value* content = object != nullptr ? object->if_contains("content") : nullptr;
      if (role == nullptr || content == nullptr || !role->is_string() ||
          !(content->is_string() || content->is_array())) {
        throw_error(ErrorKind::kBadData, "{}: expected role and content in every message",
                    printable(file, 300));
      }
      Turn turn{std::string(role->get_string()), {}, {}};
      if (content->is_string()) {
        turn.content.push_back({std::string(content->get_string())});
      } else {
        for (const json::value& part : content->get_array()) load_part(part, file, turn);
      }
      if (turn.role == "system" && turns.empty() && system.empty()) {
        if (!turn.pictures.empty()) {
          throw_error(ErrorKind::kUnsupported, "{}: a picture in a system's turn: expected text",
                      printable(file, 300));
        }
        if (!turn.content.empty()) system = turn.content[0].text;
      } else {
        turns.push_back(std::move(turn));
      }
    }
    turns_ = std::move(turns);
    waiting_.clear();
    system_ = std::move(system);
    print_out(fmt::format("Loaded {} messages.\n", turns_.size()));
  }

  void load_part(const json::value& part, const std::string& file, Turn& turn) {
    static const json::object kNothing;
    const JsonFields fields(part.is_object() ? part.get_object() : kNothing,
                            printable(file, 300) + ": a part of a message");
    const std::string_view type = fields.required_text("type");
    if (type == "text") {
      const std::string text(fields.required_text("text"));
      const bool joins = !turn.content.empty() && !turn.content.back().picture;
      if (joins) turn.content.back().text += text;
      if (!joins) turn.content.push_back({text});
      return;
    }
    const std::string url(
        type == "image_url" ? fields.required_fields("image_url").required_text("url") : "");
    const auto path = path_of_url(url);
    if (!path) {
      throw_error(ErrorKind::kUnsupported,
                  "{}: expected a text, or an image_url with file://, got '{}'", fields.where(),
                  printable(url.empty() ? type : url));
    }
    turn.pictures.push_back(look_at(*path));
    turn.content.push_back({"", turn.pictures.back().picture->tokens});
  }

  const ChatFlags& flags_;
  std::unique_ptr<Context> context_;
  std::unique_ptr<Model> model_;
  ChatFormat format_;
  Engine engine_;
  GenerateOptions options_;
  LineReader lines_;
  std::string system_;
  std::vector<Turn> turns_;
  std::vector<Shown> waiting_;  // for the next question
  std::optional<PictureEncoder> encoder_;
};

}  // namespace

void add_chat(CLI::App& app) {
  auto flags = std::make_shared<ChatFlags>();
  CLI::App* command = app.add_subcommand("chat", "Talk with a model");
  flags->model_flags.add_model(*command);
  flags->model_flags.add_mmproj(*command);
  flags->model_flags.add_lora(*command);
  command->add_option("--system", flags->system, "What the model is told first");
  command->add_option("--chat-format", flags->chat_format,
                      "llama4, llama3 or chatml; what the model's file says if unset");
  command->add_flag("-q,--quiet", flags->quiet, "No line about speed");
  flags->model_flags.add_machine(*command);
  flags->model_flags.add_engine(*command);
  flags->sampling.add(*command);
  command->callback([flags] { Chat(*flags).talk(); });
}

}  // namespace drover
