// POST /tokenize and /detokenize, in the forms of vLLM (prompt, messages) and of llama.cpp
// (content), and GET /tokenizer_info, as vLLM has it. Pure functions, thread-safe.
#pragma once

#include <boost/json.hpp>

#include "model/model.h"

namespace drover {

// {"prompt" or "content": TEXT} or {"messages": [...], "add_generation_prompt": true}, to
// {count, max_model_len, tokens}. add_special_tokens or add_special: begin-of-text comes first
// where the vocabulary adds it; true for a prompt, as it is read, and false for a content, which
// may be a piece of one. parse_special: the text of a control token is that token.
// return_token_strs: the tokens' texts as token_strs. Throws as read_api_request().
boost::json::object tokenize_answer(const boost::json::object& body, const Model& model,
                                    ChatFormat format, int64_t context);

// What lm-eval asks before it uses the two others: {bos_token, eos_token, pad_token, add_bos_token,
// chat_template, model_max_length}; texts that there are not are null.
boost::json::object tokenizer_info(const Model& model, int64_t context);

// {"tokens": [...]} to their text, control tokens shown: {prompt, content}, the same twice.
boost::json::object detokenize_answer(const boost::json::object& body, const Model& model);

}  // namespace drover
