// drover batch MODEL IN.jsonl OUT.jsonl: many requests from a file, in OpenAI's batch form.

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <fstream>
#include <mutex>
#include <unordered_set>

#include "api/answer.h"
#include "api/ask.h"
#include "api/errors.h"
#include "base/progress.h"
#include "cli/command.h"
#include "engine/engine.h"
#include "engine/picture_encoder.h"
#include "formats/json.h"

namespace drover {
namespace {

namespace json = boost::json;

// The longest line: a dozen large pictures.
constexpr size_t kLongestLine = size_t{256} << 20;

// Calls each(number, line) for the lines of a file that are not empty, numbered from 1.
template <typename Each>
void for_lines(const std::filesystem::path& path, Each each) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw_errno("read", path.native(), errno);
  std::string line;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    if (line.find_first_not_of(" \t\r") != std::string::npos) each(number, line);
  }
  if (in.bad()) throw_error(ErrorKind::kIo, "{}: cannot read", printable(path.native(), 300));
}

// The file of answers: whole lines, each there as soon as it is written.
class AnswerFile {
 public:
  // Opens or creates the file, locks it, cuts off a line that a killed run left unfinished, and
  // finds out whose answers are there.
  explicit AnswerFile(const std::filesystem::path& path) : name_(printable(path.native(), 300)) {
    file_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file_ < 0) throw_errno("write", path.native(), errno);
    if (::flock(file_, LOCK_EX | LOCK_NB) != 0) {
      throw Error(ErrorKind::kCannotWrite, name_ + ": another process writes to it",
                  "wait for it, or choose another file");
    }
    int64_t whole = 0;
    std::ifstream in(path, std::ios::binary);
    std::string line;
    for (int64_t number = 1; std::getline(in, line) && !in.eof(); ++number) {
      whole += static_cast<int64_t>(line.size()) + 1;
      const std::string where = fmt::format("{}: line {}", name_, number);
      const json::value value = parse_json(line, where, {.bytes = kLongestLine});
      if (!value.is_object()) throw_error(ErrorKind::kBadData, "{}: expected an object", where);
      done_.emplace(JsonFields(value.get_object(), where).required_text("custom_id"));
    }
    if (::ftruncate(file_, whole) != 0 || ::lseek(file_, whole, SEEK_SET) < 0) {
      throw_errno("write", path.native(), errno);
    }
  }
  ~AnswerFile() { ::close(file_); }
  AnswerFile(const AnswerFile&) = delete;
  AnswerFile& operator=(const AnswerFile&) = delete;

  bool has(const std::string& id) const { return done_.contains(id); }
  int64_t size() const { return static_cast<int64_t>(done_.size()); }

  void append(const json::object& answer) {
    const std::string line = json::serialize(answer) + '\n';
    for (size_t at = 0; at < line.size();) {
      const ssize_t n = ::write(file_, line.data() + at, line.size() - at);
      if (n < 0 && errno != EINTR) throw_errno("write", name_, errno);
      at += n > 0 ? static_cast<size_t>(n) : 0;
    }
  }

 private:
  std::string name_;
  int file_ = -1;
  std::unordered_set<std::string> done_;
};

// What comes back from the engine's thread.
struct Finished {
  std::string custom_id;
  std::shared_ptr<const ApiRequest> request;
  std::vector<std::vector<Answer>> answers;
  std::exception_ptr error;
};

class FinishedQueue {
 public:
  void push(Finished finished) {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(finished));
    there_.notify_one();
  }
  // Waits for one.
  Finished pop() {
    std::unique_lock lock(mutex_);
    there_.wait(lock, [&] { return !queue_.empty(); });
    Finished out = std::move(queue_.front());
    queue_.pop_front();
    return out;
  }
  bool empty() {
    const std::lock_guard lock(mutex_);
    return queue_.empty();
  }

 private:
  std::mutex mutex_;
  std::condition_variable there_;
  std::deque<Finished> queue_;
};

struct Batch {
  ModelFlags model_flags;
  std::string in, out, chat_format;
  int64_t parallel = 64;
  uint64_t seed = 0;
  bool json = false;

  void operator()() const;
};

// One run over the file.
class BatchRun {
 public:
  BatchRun(const Batch& flags, const Model& model, Context& context)
      : flags_(flags),
        model_(model),
        format_(choose_chat_format(model, flags.chat_format)),
        answers_(flags.out),
        engine_(model, context, options(flags)),
        bar_("answering", "requests") {
    if (model.has_vision()) encoder_.emplace(model, context);
  }

  void run() {
    count();
    for_lines(flags_.in, [&](int64_t number, const std::string& line) {
      if (!InterruptGuard::flag()) start(number, line);
      // Enough ahead that the engine never waits for this thread.
      while (open_ > 2 * flags_.parallel || !finished_.empty()) take();
    });
    while (open_ > 0) take();
    report();
    if (InterruptGuard::flag()) {
      throw Error(ErrorKind::kCancelled,
                  fmt::format("stopped; {} of {} requests are answered", done_, total_),
                  "the same command goes on where it stopped");
    }
  }

 private:
  static EngineOptions options(const Batch& flags) {
    EngineOptions out = flags.model_flags.engine_options();
    out.parallel = flags.parallel;
    return out;
  }

  // Every request has a name of its own, and the file of answers belongs to this one.
  void count() {
    std::unordered_set<std::string> ids;
    int64_t known = 0;
    for_lines(flags_.in, [&](int64_t number, const std::string& line) {
      const json::value value = parse(number, line);
      const std::string id(fields(value, number).required_text("custom_id"));
      if (!ids.insert(id).second) {
        throw_error(ErrorKind::kBadData, "{}: custom_id: {} stands there twice", where(number),
                    printable(id));
      }
      known += answers_.has(id);
    });
    if (known != answers_.size()) {
      throw Error(ErrorKind::kUsage,
                  fmt::format("{}: expected answers to {} alone, got {} to others",
                              printable(flags_.out, 300), printable(flags_.in, 300),
                              answers_.size() - known),
                  "name another file for the answers");
    }
    total_ = static_cast<int64_t>(ids.size());
    done_ = known;
  }

  std::string where(int64_t number) const {
    return fmt::format("{}: line {}", printable(flags_.in, 300), number);
  }
  json::value parse(int64_t number, const std::string& line) const {
    return parse_json(line, where(number), {.bytes = kLongestLine});
  }
  JsonFields fields(const json::value& value, int64_t number) const {
    if (!value.is_object())
      throw_error(ErrorKind::kBadData, "{}: expected an object", where(number));
    return {value.get_object(), where(number)};
  }

  void start(int64_t number, const std::string& line) {
    const json::value value = parse(number, line);
    const JsonFields request = fields(value, number);
    const std::string id(request.required_text("custom_id"));
    if (answers_.has(id)) return;
    ++open_;
    auto read = std::make_shared<ApiRequest>();
    try {
      if (request.text("method").value_or("POST") != "POST") {
        throw_error(ErrorKind::kUsage, "method: expected POST");
      }
      read->kind = api_kind(request.required_text("url"));
      const JsonFields body = request.required_fields("body");
      *read = read_api_request(read->kind, body.object(), model_, format_);
      if (read->stream) {
        throw_error(ErrorKind::kUnsupported, "stream: expected false, a file has no stream");
      }
      for (Request& one : read->requests) {
        if (!read->seeded) one.options.sampling.seed = flags_.seed;
      }
      if (!read->pictures.empty()) {
        engine_.call([&] {
          read->requests[0].prompt.pictures = encoder_->encode(read->pictures);
          read->pictures.clear();
        });
      }
      ApiEvents events;
      events.cancel = &InterruptGuard::flag();
      events.done = [this, id, read](std::vector<std::vector<Answer>> answers,
                                     std::exception_ptr error) {
        finished_.push({id, read, std::move(answers), error});
      };
      ask(engine_, read->requests, std::move(events));
    } catch (const Error&) {
      finished_.push({id, read, {}, std::current_exception()});
    }
  }

  // Writes what is finished, waiting for it.
  void take() {
    const Finished finished = finished_.pop();
    --open_;
    json::object response;
    try {
      if (finished.error) std::rethrow_exception(finished.error);
      for (const std::vector<Answer>& answers : finished.answers) {
        for (const Answer& answer : answers) {
          // Not an answer: the next run gives it.
          if (answer.finish == FinishReason::kCancelled) return;
        }
      }
      for (const std::vector<Answer>& answers : finished.answers) usage_.add(answers);
      const int64_t now = std::chrono::duration_cast<std::chrono::seconds>(
                              std::chrono::system_clock::now().time_since_epoch())
                              .count();
      response = {{"status_code", 200},
                  {"request_id", "req-" + finished.custom_id},
                  {"body", api_answer(*finished.request, finished.answers, model_.tokenizer(),
                                      {.id = "cmpl-" + finished.custom_id,
                                       .model = model_.path().filename().string(),
                                       .created = now})}};
    } catch (const Error& error) {
      ++failed_;
      const ApiError shown = api_error(error, finished.request->kind);
      response = {{"status_code", shown.status},
                  {"request_id", "req-" + finished.custom_id},
                  {"body", error_body(shown, ApiDialect::kOpenAi)}};
    }
    answers_.append({{"id", "batch-" + finished.custom_id},
                     {"custom_id", finished.custom_id},
                     {"response", std::move(response)},
                     {"error", nullptr}});
    ++done_;
    bar_.note(fmt::format("{:.1f} tokens/s", speed()));
    bar_.update(static_cast<uint64_t>(done_), static_cast<uint64_t>(total_));
  }

  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  // Tokens read and written.
  double speed() const {
    return static_cast<double>(usage_.prompt - usage_.cached + usage_.completion) / seconds();
  }

  void report() const {
    if (flags_.json) {
      print_out(json::serialize(json::object{{"requests", total_},
                                             {"answered", done_},
                                             {"failed", failed_},
                                             {"prompt_tokens", usage_.prompt},
                                             {"cached_tokens", usage_.cached},
                                             {"answer_tokens", usage_.completion},
                                             {"seconds", seconds()},
                                             {"tokens_per_second", speed()}}) +
                '\n');
      return;
    }
    fmt::print(stderr,
               "{} of {} requests answered, {} with an error; {} tokens read ({} known), {} "
               "written, {:.1f} tokens/s\n",
               done_, total_, failed_, usage_.prompt, usage_.cached, usage_.completion, speed());
  }

  const Batch& flags_;
  const Model& model_;
  const ChatFormat format_;
  AnswerFile answers_;
  FinishedQueue finished_;  // outlives the engine, which pushes to it
  std::optional<PictureEncoder> encoder_;
  Engine engine_;
  ProgressBar bar_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  int64_t total_ = 0, done_ = 0, failed_ = 0, open_ = 0;
  ApiUsage usage_;
};

void Batch::operator()() const {
  if (parallel < 1)
    throw_error(ErrorKind::kUsage, "parallel: expected at least 1, got {}", parallel);
  const auto context = model_flags.make_context();
  InterruptGuard interrupt;
  const auto model = model_flags.load();
  BatchRun(*this, *model, *context).run();
}

}  // namespace

void add_batch(CLI::App& app) {
  auto batch = std::make_shared<Batch>();
  CLI::App* command = app.add_subcommand(
      "batch", "Answer a file of requests in OpenAI's batch form; goes on after an interruption");
  batch->model_flags.add_model(*command);
  command->add_option("in", batch->in, "Requests, one JSON object a line: custom_id, url, body")
      ->required()
      ->type_name("IN.jsonl");
  command
      ->add_option("out", batch->out, "Answers, one a line, as they are done; what is there stays")
      ->required()
      ->type_name("OUT.jsonl");
  batch->model_flags.add_mmproj(*command);
  batch->model_flags.add_lora(*command);
  command->add_option("--chat-format", batch->chat_format,
                      "llama4, llama3, chatml or none; what the model's file says if unset");
  command->add_option("--parallel", batch->parallel, "Answers that are written at the same time")
      ->capture_default_str();
  command->add_option("--seed", batch->seed, "Of requests that name none")->capture_default_str();
  command->add_flag("--json", batch->json, "Print one JSON object when done");
  batch->model_flags.add_machine(*command);
  batch->model_flags.add_engine(*command);
  command->callback([batch] { (*batch)(); });
}

}  // namespace drover
