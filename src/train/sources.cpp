#include "train/sources.h"

#include <map>
#include <string>

#include "base/error.h"
#include "base/sha256.h"
#include "formats/json.h"
#include "train/data/files.h"
#include "train/data/kinds.h"

namespace drover {
namespace {

using Kinds = std::map<std::string, MakeSource*, std::less<>>;

Kinds& kinds() {
  static Kinds all = {
      {"chat", make_chat_source},
      {"table", make_table_source},
      {"text", make_text_source},
  };
  return all;
}

}  // namespace

std::unique_ptr<Source> make_source(const boost::json::object& settings,
                                    const SourceContext& context) {
  const JsonFields fields = source_fields(settings);
  const std::string_view kind = fields.required_text("kind");
  const auto found = kinds().find(kind);
  if (found == kinds().end()) {
    std::string known;
    for (const auto& [name, make] : kinds()) known += (known.empty() ? "" : ", ") + name;
    throw_error(ErrorKind::kBadData, "{}: kind: expected one of {}, got {}", fields.where(), known,
                printable(kind));
  }
  return found->second(settings, context);
}

void add_source_kind(std::string_view kind, MakeSource* make) {
  kinds().insert_or_assign(std::string(kind), make);
}

bool held_out(std::string_view salt, std::string_view item, double fraction) {
  if (fraction <= 0) return false;  // nothing to hash for
  Sha256 hash;
  hash.update_text(salt);
  hash.update_text(item);
  const Digest digest = hash.finish();
  uint64_t number = 0;
  for (size_t i = 0; i < 8; ++i) number = number << 8 | digest[i];
  return static_cast<double>(number >> 11) * 0x1p-53 < fraction;
}

}  // namespace drover
