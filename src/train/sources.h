// Makes sources from what a recipe says of them. A kind of source is a function from its settings;
// those in the tree are listed in sources.cpp, and a program that links Drover can add its own.
#pragma once

#include <filesystem>
#include <memory>
#include <string_view>

#include "model/vision_config.h"
#include "text/chat_format.h"
#include "text/tokenizer.h"
#include "train/example.h"

namespace boost::json {
class object;
}

namespace drover {

// What a source is made for. All of it must outlive the source.
struct SourceContext {
  const Tokenizer* tokenizer = nullptr;
  ChatFormat format = ChatFormat::kNone;
  const VisionConfig* vision = nullptr;  // null for a model without eyes
  std::filesystem::path folder;          // what relative file names are relative to
  // Items (files, records, fonts, classes, pairs: what the source says) fall by a hash into those
  // that are learnt and those that are kept to be asked about. A source gives one or the other.
  bool held_out = false;
};

using MakeSource = std::unique_ptr<Source>(const boost::json::object& settings,
                                           const SourceContext& context);

// From {"kind": "text", ...}. kBadData names a setting that is missing, unknown or of another type.
// Null where no item falls on the side that the context asks for: nothing is held out, or all is.
std::unique_ptr<Source> make_source(const boost::json::object& settings,
                                    const SourceContext& context);

// Adds a kind. Not thread-safe; before the first use.
void add_source_kind(std::string_view kind, MakeSource* make);

// Whether the item of this name is held out, of `fraction` of all: by SHA-256 of salt and name.
bool held_out(std::string_view salt, std::string_view item, double fraction);

}  // namespace drover
