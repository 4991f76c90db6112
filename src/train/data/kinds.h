// The kinds of sources that are made of files. What they have in common, as settings of a recipe:
//
//   "files"     names or patterns (* ? []), relative to the recipe's folder; .gz is unpacked
//   "licence"   under which they are used; both are required and stand in the manifest
//   "origin"    where they come from: package and version, address, author
//   "name"      in metrics and errors; the kind if unset
//   "held_out"  the share of items that is kept to be asked about, 0 to 1; 0 if unset
//   "salt"      chooses other ones
#pragma once

#include <boost/json/object.hpp>
#include <memory>

#include "train/sources.h"

namespace drover {

// "text": running text. A document is a file, or, with "split", a part of one between two of these
// texts ("\n\n\n" for groups of lines with two empty lines between). An item is a document: a file
// is named by its name, a part by its text, so that the sides stay when others come and go.
//
// Examples are windows of one document, begun anywhere, every token of the source as likely as any
// other: `length` tokens or the whole document. A window begins with begin-of-text where the
// vocabulary begins texts so, and a document ends with <|end_of_text|> where there is such a token.
// Memory: 2 bytes a token (4 where there are more than 65,536 different ones).
std::unique_ptr<Source> make_text_source(const boost::json::object& settings,
                                         const SourceContext& context);

// "chat": conversations, one JSON object a line:
//   {"messages": [{"role": "user", "content": "..."}, ...], "source": "name of the item"}
// A content is a text, or an array of parts: {"type": "text", "text": ...}, {"type": "image",
// "image": FILE or data URL}, or OpenAI's {"type": "image_url", "image_url": {"url": ...}}. Files
// are relative to that of the line. What is learnt are assistants' turns with the token that ends
// them; "weight" beside such a content is what its loss counts, 1 if unset. An item is named by its
// "source", else by its line.
//
// Examples are conversations, all of them once before any comes again. One that is too long ends
// after an earlier answer; one whose first answer comes too late is passed over: kLimit if all are.
// Every line is read when the source is made, its pictures when their example is: kBadData names
// file and line. Memory: that of the lines.
std::unique_ptr<Source> make_chat_source(const boost::json::object& settings,
                                         const SourceContext& context);

// "table": facts, records of JSONL objects or of CSV (RFC 4180; .tsv: tabs) with a line of names,
// asked by templates:
//   "templates": [{"user": "What is the capital of {country}?", "assistant": "{capital}"}, ...]
//   "item": "country", the field that names a record; all of it if unset
//   "system": a message before each
// A record without one of a template's fields is not asked by it. A template with "held_out": true
// is kept to be asked of all records. {{ and }} are braces. Examples as those of "chat".
std::unique_ptr<Source> make_table_source(const boost::json::object& settings,
                                          const SourceContext& context);

}  // namespace drover
