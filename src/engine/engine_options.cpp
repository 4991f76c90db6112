#include "engine/engine_options.h"

#include <unistd.h>

#include <algorithm>
#include <bit>

#include "base/error.h"
#include "model/fingerprint.h"

namespace drover {
namespace {

// Enough for long conversations, and small enough that a model made for ten million tokens does not
// promise memory that a newcomer does not have. More is asked for by name.
constexpr int64_t kDefaultContext = 32768;

}  // namespace

DType choose_cache_type(const Model& model, std::optional<DType> asked) {
  if (asked) {
    if (!is_cache_type(*asked)) {
      throw_error(ErrorKind::kUsage, "cache type: expected f32, bf16 or int8, got {}",
                  dtype_name(*asked));
    }
    return *asked;
  }
  return model.weights().layers.front().wk.type == DType::kF32 ? DType::kF32 : DType::kBF16;
}

ContextIdentity context_identity(const Model& model, const EngineOptions& options) {
  Digest whose = fingerprint(model);
  const CacheLayout layout =
      model.config().cache_layout(choose_cache_type(model, options.cache_type));
  // What a global layer leaves out, the keys and values of the next one show.
  if (options.choice && layout.global_layers() > 1) {
    Sha256 hash;
    hash.update(std::as_bytes(std::span(whose)));
    hash.update_number(static_cast<int64_t>(options.choice->mode));
    hash.update_number(std::bit_cast<int32_t>(options.choice->epsilon));
    hash.update_number(options.choice->pages);
    whose = hash.finish();
  }
  return {.model = whose,
          .tokenizer = fingerprint(model.tokenizer().vocabulary()),
          .vocab = model.config().vocab,
          .layout = layout};
}

int64_t choose_context(const ModelConfig& config, int64_t asked) {
  if (asked < 0)
    throw_error(ErrorKind::kUsage, "context: expected 0 or more tokens, got {}", asked);
  if (asked == 0) return std::min(config.context, kDefaultContext);
  if (asked > config.context) {
    throw Error(ErrorKind::kLimit,
                fmt::format("context: expected at most the model's {} tokens, got {}",
                            config.context, asked),
                "the model was not made for more; choose a smaller --context");
  }
  return asked;
}

int64_t choose_cache_memory(const CacheLayout& layout, int64_t context,
                            const EngineOptions& options) {
  if (options.cache_memory < 0) {
    throw_error(ErrorKind::kUsage, "cache memory: expected 0 or more bytes, got {}",
                options.cache_memory);
  }
  if (options.cache_memory > 0) return options.cache_memory;
  const int64_t one = layout.pages(context) * layout.page_bytes();
  const int64_t machine = ::sysconf(_SC_PHYS_PAGES) * ::sysconf(_SC_PAGESIZE);
  return std::max(2 * one, std::min(std::max<int64_t>(options.parallel, 1) * one, machine / 4));
}

}  // namespace drover
