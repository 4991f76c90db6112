// {"kind": "chat"}: conversations as JSON, one a line.
#include <map>

#include "api/data_url.h"
#include "base/error.h"
#include "base/mapped_file.h"
#include "image/decode.h"
#include "text/tools.h"
#include "train/data/dialogue_source.h"
#include "train/data/files.h"
#include "train/data/kinds.h"

namespace drover {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

// One conversation, pictures in it as data URLs.
constexpr JsonLimits kLineLimits{.bytes = size_t{256} << 20};

// Reads the conversation of one line. With `found` its pictures are not decoded: the names of their
// files go there.
class LineReader {
 public:
  LineReader(const SourceContext& context, fs::path folder, std::string where,
             std::vector<std::string>* found = nullptr)
      : context_(context), folder_(std::move(folder)), where_(std::move(where)), found_(found) {}

  Dialogue read(const json::object& line) {
    const JsonFields fields(line, where_);
    if (const json::value* tools = fields.find("tools")) out_.tools = read_tools(*tools, nullptr);
    for (const JsonFields& message : objects(fields, "messages")) read_message(message);
    return std::move(out_);
  }

 private:
  static std::vector<JsonFields> objects(const JsonFields& fields, std::string_view key) {
    const json::value* value = fields.find(key);
    const json::array* array = value == nullptr ? nullptr : value->if_array();
    if (array == nullptr) fail(fields, key, "an array of objects");
    std::vector<JsonFields> out;
    for (const json::value& item : *array) {
      if (!item.is_object()) fail(fields, key, "an array of objects");
      out.emplace_back(item.get_object(),
                       fmt::format("{}: {}[{}]", fields.where(), key, out.size()));
    }
    return out;
  }

  [[noreturn]] static void fail(const JsonFields& fields, std::string_view key,
                                std::string_view expected) {
    throw_error(ErrorKind::kBadData, "{}: {}: expected {}", fields.where(), key, expected);
  }

  void read_message(const JsonFields& fields) {
    const std::string_view role = fields.required_text("role");
    if (role != "system" && role != "user" && role != "assistant" && role != "tool") {
      fail(fields, "role", "system, user, assistant or tool");
    }
    Message message{std::string(role), std::vector<Part>()};
    if (fields.has("tool_calls")) {
      for (const JsonFields& call : objects(fields, "tool_calls")) {
        const JsonFields function = call.required_fields("function");
        const json::value* given = function.find("arguments");
        json::value arguments = given == nullptr     ? json::value(json::object())
                                : given->is_string() ? read_tool_arguments(given->get_string())
                                                     : *given;
        message.tool_calls.push_back(
            {std::string(function.required_text("name")), std::move(arguments)});
      }
    }
    const json::value* content = fields.find("content");
    if (content != nullptr && content->is_array()) {
      for (const JsonFields& part : objects(fields, "content")) {
        message.content.push_back(read_part(part));
      }
    } else if (content != nullptr || message.tool_calls.empty()) {  // a call may stand alone
      message.content.push_back({std::string(fields.required_text("content"))});
    }
    const double weight = fields.number("weight").value_or(1);
    if (!(weight >= 0 && weight <= 1000)) fail(fields, "weight", "0 to 1000");
    out_.weights.push_back(static_cast<float>(weight));
    out_.messages.push_back(std::move(message));
  }

  Part read_part(const JsonFields& part) {
    const std::string_view type = part.required_text("type");
    if (type == "text") return {std::string(part.required_text("text"))};
    if (type == "image") return read_picture(part, part.required_text("image"));
    if (type != "image_url") fail(part, "type", "text, image or image_url");
    const json::value* url = part.find("image_url");
    const bool inner = url != nullptr && url->is_object();
    return read_picture(part, inner ? part.required_fields("image_url").required_text("url")
                                    : part.required_text("image_url"));
  }

  Part read_picture(const JsonFields& part, std::string_view name) {
    if (context_.vision == nullptr) fail(part, "type", "text alone: the model has no eyes");
    const bool inside = name.starts_with("data:");
    if (!inside && name.find("://") != std::string_view::npos) {
      fail(part, "picture", "a file or a data URL");
    }
    const fs::path path = folder_ / name;
    if (found_ != nullptr) {
      std::error_code ignored;
      if (!inside && !fs::is_regular_file(path, ignored)) {
        throw_error(ErrorKind::kBadData, "{}: picture: expected a file, got none at {}",
                    part.where(), printable(path.string(), 300));
      }
      if (!inside) found_->emplace_back(name);
      return {"", PictureTokens{.per_tile = context_.vision->tile_tokens()}};
    }
    const ImageLimits limits;
    std::vector<std::byte> bytes;
    if (inside) {
      bytes = bytes_of_data_url(name, part.where());
    } else {
      const std::string file = read_file(path, static_cast<size_t>(limits.bytes));
      const auto view = std::as_bytes(std::span(file));
      bytes.assign(view.begin(), view.end());
    }
    return picture_part(context_, decode_image(bytes, part.where(), limits), out_.pictures);
  }

  const SourceContext& context_;
  fs::path folder_;
  std::string where_;
  std::vector<std::string>* found_;
  Dialogue out_;
};

// What is wrong with a line is wrong with the data, whoever noticed.
template <typename Body>
auto naming_line(const std::string& where, Body body) {
  try {
    return body();
  } catch (const Error& error) {
    const bool outside = error.kind() == ErrorKind::kIo || error.kind() == ErrorKind::kPermission ||
                         error.kind() == ErrorKind::kInternal;
    if (outside) throw;
    const bool named = error.message().starts_with(where);
    throw Error(ErrorKind::kBadData,
                named ? error.message() : fmt::format("{}: {}", where, error.message()),
                error.hint());
  }
}

class ChatSource final : public DialogueSource {
 public:
  ChatSource(DataFiles data, const SourceContext& context)
      : DialogueSource(data.source, context), data_(std::move(data)) {
    for (size_t file = 0; file < data_.paths.size(); ++file) {
      const std::string text = read_data(data_, file);
      for_each_line(text, [&](std::string_view line, int64_t number) {
        take(line, {.file = file, .number = number, .begin = text_.size(), .size = line.size()});
      });
    }
    text_.shrink_to_fit();
    facts_.files = data_.files;
    // What is learnt of a line changes with the pictures that it names.
    for (const auto& [name, path] : pictures_) {
      const MappedFile file(path);
      facts_.files.push_back(
          {name, static_cast<int64_t>(file.bytes().size()), sha256(file.bytes())});
    }
    pictures_.clear();
  }

 private:
  struct Line {
    size_t file;
    int64_t number;
    size_t begin, size;  // in text_
  };

  std::string where(const Line& line) const {
    return fmt::format("{}:{}", printable(data_.files[line.file].name, 300), line.number);
  }

  json::object parse(std::string_view text, const Line& line) const {
    json::value value = parse_json(text, where(line), kLineLimits);
    if (!value.is_object()) throw_error(ErrorKind::kBadData, "expected a JSON object");
    return std::move(value.get_object());
  }

  fs::path folder_of(const Line& line) const { return data_.paths[line.file].parent_path(); }

  void take(std::string_view text, Line line) {
    naming_line(where(line), [&] {
      const json::object object = parse(text, line);
      const JsonFields fields(object, where(line));
      const std::string name(fields.text("source").value_or(text));
      // Those of the other side are read too: a damaged file is found out at once.
      std::vector<std::string> pictures;
      Dialogue dialogue =
          LineReader(context_, folder_of(line), where(line), &pictures).read(object);
      for (const std::string& picture : pictures) {
        const fs::path name = fs::path(data_.files[line.file].name).parent_path() / picture;
        pictures_.emplace(name.string(), folder_of(line) / picture);
      }
      if (!data_.takes(name)) {
        teach(context_, std::move(dialogue));
        return;
      }
      add(std::move(dialogue), {fields.has("source") ? name : where(line), digest_of(text)});
      lines_.push_back(line);
      text_ += text;
    });
  }

  Dialogue dialogue(size_t i) const override {
    const Line& line = lines_[i];
    return naming_line(where(line), [&] {
      const auto text = std::string_view(text_).substr(line.begin, line.size);
      return LineReader(context_, folder_of(line), where(line)).read(parse(text, line));
    });
  }

  DataFiles data_;
  std::vector<Line> lines_;
  std::string text_;                          // of this side's lines
  std::map<std::string, fs::path> pictures_;  // files, by the names that facts give them
};

}  // namespace

std::unique_ptr<Source> make_chat_source(const json::object& settings,
                                         const SourceContext& context) {
  auto out =
      std::make_unique<ChatSource>(data_files(source_fields(settings), context, {}), context);
  if (out->empty()) return nullptr;
  return out;
}

}  // namespace drover
