// What a model and a tokenizer are, in 32 bytes: to bind what was read (cache/context_file.h) to
// what read it. SHA-256 throughout; pure and thread-safe.
#pragma once

#include "base/sha256.h"
#include "model/config.h"
#include "model/model.h"
#include "model/vision_weights.h"
#include "model/weights.h"
#include "text/vocabulary.h"

namespace drover {

// The mathematics of the configuration, and of every tensor as it is multiplied with, by the
// paper's names: type, shape, and 32 blocks of 4 KiB of its data, evenly spread from the first to
// the last (all of a tensor that is no larger than these). With a vision encoder or an adapter, the
// same of it.
//
// The same weights in another file (a Hugging Face folder and its conversion of equal types,
// another file name, a renamed model) have the same fingerprint, for they compute the same.
//
// What it does not see: a change in a large tensor that touches none of the 32 blocks. Training,
// quantising, merging and pruning change values everywhere and are seen; the edit of a few rows, of
// single experts in a large mixture, or damage on the disk may not be. Nor does it see the context
// length that the makers advise, names, licences, or the chat template.
//
// 64 MB are read for a model of 500 tensors, whatever its size: 4 KiB at a time, 32 at once.
Digest fingerprint(const Model& model);
Digest fingerprint(const ModelConfig& config, const Weights& weights, const Vision* vision);

// All that decides how text becomes tokens: every token's bytes and kind, the merges in order, the
// pre-tokenizer, and the beginning, ending and padding tokens. Not the chat template, which decides
// which text is asked for.
Digest fingerprint(const Vocabulary& vocabulary);

}  // namespace drover
