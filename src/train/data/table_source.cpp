// {"kind": "table"}: facts, asked by templates.
#include <algorithm>
#include <set>

#include "base/error.h"
#include "train/data/dialogue_source.h"
#include "train/data/files.h"
#include "train/data/kinds.h"
#include "train/data/records.h"

namespace drover {
namespace {

namespace json = boost::json;

struct Question {
  Template user, assistant;
  bool held_out;

  bool suits(const Record& record) const {
    const auto has = [&](const std::string& field) { return record.contains(field); };
    return std::all_of(user.fields().begin(), user.fields().end(), has) &&
           std::all_of(assistant.fields().begin(), assistant.fields().end(), has);
  }
};

std::vector<Question> read_questions(const JsonFields& fields) {
  const json::value* value = fields.find("templates");
  const json::array* array = value == nullptr ? nullptr : value->if_array();
  std::vector<Question> out;
  for (size_t i = 0; array != nullptr && i < array->size(); ++i) {
    const std::string where = fmt::format("{}: templates[{}]", fields.where(), i);
    if (!(*array)[i].is_object()) throw_error(ErrorKind::kBadData, "{}: expected an object", where);
    const JsonFields one((*array)[i].get_object(), where);
    expect_only(one, {"user", "assistant", "held_out"});
    out.push_back({Template(one.required_text("user"), where + ": user"),
                   Template(one.required_text("assistant"), where + ": assistant"),
                   one.boolean("held_out").value_or(false)});
  }
  if (out.empty()) {
    throw_error(ErrorKind::kBadData, "{}: templates: expected an array of at least one",
                fields.where());
  }
  return out;
}

std::vector<Record> read_records(const std::string& name, std::string_view text) {
  const std::string_view plain =
      std::string_view(name).substr(0, name.size() - 3 * name.ends_with(".gz"));
  if (plain.ends_with(".csv")) return read_separated(text, ',', printable(name, 300));
  if (plain.ends_with(".tsv")) return read_separated(text, '\t', printable(name, 300));
  return read_json_lines(text, printable(name, 300));
}

class TableSource final : public DialogueSource {
 public:
  TableSource(const JsonFields& fields, DataFiles data, const SourceContext& context)
      : DialogueSource(data.source, context),
        questions_(read_questions(fields)),
        system_(fields.text("system").value_or("")) {
    for (size_t file = 0; file < data.paths.size(); ++file) {
      std::vector<Record> more = read_records(data.files[file].name, read_data(data, file));
      std::move(more.begin(), more.end(), std::back_inserter(records_));
    }
    check_fields(fields);
    for (size_t record = 0; record < records_.size(); ++record) {
      const std::string name = name_of(record, fields.text("item"));
      const bool kept = held_out(data.salt, name, data.fraction);
      for (size_t question = 0; question < questions_.size(); ++question) {
        if (!questions_[question].suits(records_[record])) continue;
        if ((kept || questions_[question].held_out) != data.want_held_out) continue;
        asked_.push_back({record, question});
        Dialogue one = dialogue(asked_.size() - 1);
        std::string all;
        for (const Message& message : one.messages) all += message.content[0].text + '\n';
        add(std::move(one), {fmt::format("{}, template {}", name, question), digest_of(all)});
      }
    }
    facts_.files = std::move(data.files);
  }

 private:
  struct Asked {
    size_t record, question;
  };

  // A field that no record has is a mistake in the recipe.
  void check_fields(const JsonFields& fields) const {
    std::set<std::string, std::less<>> known, used;
    for (const Record& record : records_) {
      for (const auto& [name, value] : record) known.insert(name);
    }
    for (const Question& question : questions_) {
      used.insert(question.user.fields().begin(), question.user.fields().end());
      used.insert(question.assistant.fields().begin(), question.assistant.fields().end());
    }
    if (const auto item = fields.text("item")) used.emplace(*item);
    for (const std::string& name : used) {
      if (known.contains(name)) continue;
      throw_error(ErrorKind::kBadData, "{}: {{{}}}: expected a field of the records: {}",
                  fields.where(), printable(name), fmt::join(known, ", "));
    }
  }

  std::string name_of(size_t record, std::optional<std::string_view> item) const {
    if (item) {
      const auto found = records_[record].find(*item);
      return found == records_[record].end() ? "" : found->second;
    }
    std::string out;
    for (const auto& [name, value] : records_[record]) {
      out += (out.empty() ? "" : ", ") + name + ": " + value;
    }
    return out;
  }

  Dialogue dialogue(size_t i) const override {
    const Record& record = records_[asked_[i].record];
    const Question& question = questions_[asked_[i].question];
    Dialogue out;
    if (!system_.empty()) out.messages.emplace_back("system", system_);
    out.messages.emplace_back("user", question.user.fill(record));
    out.messages.emplace_back("assistant", question.assistant.fill(record));
    return out;
  }

  std::vector<Question> questions_;
  std::string system_;
  std::vector<Record> records_;
  std::vector<Asked> asked_;
};

}  // namespace

std::unique_ptr<Source> make_table_source(const json::object& settings,
                                          const SourceContext& context) {
  const JsonFields fields = source_fields(settings);
  DataFiles data = data_files(fields, context, {"templates", "item", "system"});
  auto out = std::make_unique<TableSource>(fields, std::move(data), context);
  if (out->empty()) return nullptr;
  return out;
}

}  // namespace drover
