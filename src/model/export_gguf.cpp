#include "model/export_gguf.h"

#include <fnmatch.h>

#include <algorithm>

#include "base/error.h"
#include "model/config.h"
#include "model/export_metadata.h"
#include "model/vision_weights.h"
#include "model/weights.h"
#include "tensor/dequantize.h"
#include "tensor/quantize.h"

namespace drover {
namespace {

// Converts `count` rows of one matrix to its type. Each worker takes a stripe of rows.
// importance: one number per column, or none. adapter: of the tensor's factors, if it has any.
void convert_rows(Context& context, const GgufExport::Tensor& planned, const Adapter* adapter,
                  int64_t index, int64_t first, int64_t count, std::span<const float> importance,
                  std::byte* out) {
  const TensorSource& tensor = planned.source;
  const DType type = planned.type;
  const int64_t cols = tensor.cols(), bytes = row_bytes(type, cols);
  const int64_t source_bytes = row_bytes(tensor.from->type, cols);
  constexpr int64_t kStripe = 32;  // the squares that read_rows transposes
  context.threads.run((count + kStripe - 1) / kStripe, [&](int64_t stripe, int worker) {
    const int64_t row = stripe * kStripe, n = std::min(kStripe, count - row);
    if (tensor.from->type == type && planned.factors == nullptr) {
      return read_rows(tensor, index, first + row, n, out + row * bytes);
    }
    float* values = context.scratch<float>(worker, cols + (n * source_bytes + 3) / 4);
    std::byte* source = reinterpret_cast<std::byte*>(values + cols);
    read_rows(tensor, index, first + row, n, source);
    for (int64_t r = 0; r < n; ++r) {
      const std::span<float> floats(values, static_cast<size_t>(cols));
      dequantize_row(tensor.from->type, source + r * source_bytes, floats);
      if (planned.factors != nullptr) {
        adapter->merge(*planned.factors, index, first + row + r, 1, floats);
      }
      quantize_row(type, floats, out + (row + r) * bytes, importance);
    }
  });
}

// The bytes of the source that were read for rows [first, first + count) of one matrix, or, where
// they stand in another order there, for the whole matrix once its last rows are done.
std::span<const std::byte> finished_bytes(const TensorSource& tensor, int64_t index, int64_t first,
                                          int64_t count) {
  const int64_t matrix = tensor.from->bytes / tensor.matrices();
  if (tensor.layout == TensorSource::Layout::kAsIs) {
    const int64_t row = matrix / tensor.rows();
    return {tensor.from->data + index * matrix + first * row, static_cast<size_t>(count * row)};
  }
  if (first + count < tensor.rows()) return {};
  return {tensor.from->data + index * matrix, static_cast<size_t>(matrix)};
}

bool fits(DType type, const TensorSource& source) {
  return source.cols() % dtype_info(type).block_values == 0;
}

}  // namespace

TensorRule TensorRule::parse(std::string_view text) {
  const size_t equals = text.rfind('=');
  if (equals == std::string_view::npos || equals == 0) {
    throw_error(ErrorKind::kUsage, "tensor rule: expected PATTERN=TYPE, got '{}'", printable(text));
  }
  const auto type = dtype_from_name(text.substr(equals + 1));
  if (!type || !dtype_info(*type).is_weight) {
    throw Error(ErrorKind::kUsage,
                fmt::format("tensor rule '{}': expected a type of weights, got '{}'",
                            printable(text), printable(text.substr(equals + 1))),
                "one tensor has one type, such as q6_k; mixtures such as q4_k_m are for --type");
  }
  return {std::string(text.substr(0, equals)), *type};
}

namespace {

[[noreturn]] void no_vision(const std::string& source) {
  throw_error(ErrorKind::kUsage, "{}: expected a model with a vision encoder, got one without",
              printable(source, 300));
}

}  // namespace

GgufExport::GgufExport(const HuggingfaceFolder& folder, const ExportOptions& options) {
  const ModelConfig config =
      config_from_huggingface(folder.config, (folder.path / "config.json").string());
  const bool with_vision = options.part != ExportPart::kText;
  const std::optional<Vision> vision =
      with_vision ? vision_from_huggingface(folder, config.hidden) : std::nullopt;
  std::vector<TensorSource> sources = decoder_tensors(folder, config);
  if (options.part == ExportPart::kVision) {
    if (!vision) no_vision(folder.path.string());
    write_general(out_, "clip", "mmproj", folder_name(folder), licence_of(folder));
  } else {
    write_folder_metadata(out_, folder, config);
  }
  add_rope_freqs(config, sources);
  if (vision) {
    write_vision_config(out_, vision->config);
    for (TensorSource& source : vision_tensors(folder, vision->config)) {
      sources.push_back(std::move(source));
    }
  }
  plan(config, std::move(sources), /*keeps_floats=*/false, options);
}

GgufExport::GgufExport(const GgufFile& file, const ExportOptions& options) {
  // A file for vision alone has no decoder.
  const bool apart = file.string_value("general.architecture") == "clip";
  const ModelConfig config = apart ? ModelConfig() : config_from_gguf(file);
  if (!apart) weights_from_gguf(file, config);  // throws for a file that would not run
  std::optional<Vision> vision;
  if (apart || options.part != ExportPart::kText) {
    vision = vision_from_gguf(file, apart ? std::nullopt : std::optional(config.hidden));
  }
  if (!vision && (apart || options.part == ExportPart::kVision)) no_vision(file.path());
  if (apart && options.part == ExportPart::kText) {
    throw_error(ErrorKind::kUsage, "{}: expected a model, got a vision encoder alone",
                printable(file.path(), 300));
  }
  std::vector<TensorSource> sources;
  for (const NamedTensor& tensor : file.tensors()) {
    sources.push_back({std::string(tensor.name), tensor.shape, &tensor});
  }
  if (options.part == ExportPart::kVision && !apart) {
    write_general(out_, "clip", "mmproj", config.name, licence_of(file));
    write_vision_config(out_, vision->config);
  } else {
    const bool all = options.part != ExportPart::kText;
    out_.copy_metadata(file, [&](std::string_view key) {
      return all || !(key.starts_with("clip.") || key.starts_with("drover.vision."));
    });
  }
  plan(config, std::move(sources), /*keeps_floats=*/true, options);
}

GgufExport::GgufExport(const ModelParts& model, const ExportOptions& options) : mapped_(false) {
  const ModelConfig& config = model.config;
  write_general(out_, config.architecture, "model", model.notes.name, model.notes.licence);
  write_config(out_, config);
  write_advice(out_, model.notes.generation, model.notes.stops);
  if (model.vocabulary != nullptr) {
    write_vocabulary(out_, *model.vocabulary, config.vocab);
    const std::string_view chat_template = chat_template_of(*model.vocabulary);
    if (!chat_template.empty()) out_.set("tokenizer.chat_template", chat_template);
  }
  if (model.vision != nullptr) write_vision_config(out_, *model.vision);
  std::vector<TensorSource> sources;
  for (const NamedTensor& tensor : model.tensors) {
    sources.push_back({std::string(tensor.name), tensor.shape, &tensor});
  }
  add_rope_freqs(config, sources);
  plan(config, std::move(sources), /*keeps_floats=*/false, options);
}

void GgufExport::add_rope_freqs(const ModelConfig& config, std::vector<TensorSource>& sources) {
  const RopeScaling::Kind kind = config.rope_scaling.kind;
  if (kind != RopeScaling::Kind::kLlama3 && kind != RopeScaling::Kind::kFactors) return;
  divisors_ = rope_divisors(config);
  const auto bytes = std::as_bytes(std::span(divisors_));
  rope_freqs_ = {"rope_freqs.weight",
                 DType::kF32,
                 {static_cast<int64_t>(divisors_.size())},
                 bytes.data(),
                 static_cast<int64_t>(bytes.size())};
  sources.push_back({std::string(rope_freqs_->name), rope_freqs_->shape, &*rope_freqs_});
}

// Decides the type of every tensor, and says what is to be said about it.
void GgufExport::plan(const ModelConfig& config, std::vector<TensorSource> sources,
                      bool keeps_floats, const ExportOptions& options) {
  const Importance* importance = options.importance;
  adapter_ = options.adapter;
  std::vector<bool> used(options.rules.size());
  int64_t unfit = 0, rounded_twice = 0, guided = 0, unknown = 0;
  std::string twice_from;
  for (TensorSource& source : sources) {
    const bool other_part = is_vision_tensor(source.name) ? options.part == ExportPart::kText
                                                          : options.part == ExportPart::kVision;
    Tensor tensor{.type = keeps_floats ? source.from->type : DType::kF32};
    if (!stays_float(source.name, source.shape)) {
      DType wanted = options.mixture.base;
      tensor.type = mixture_type(options.mixture, config, source.name, source.shape, importance);
      for (size_t i = 0; i < options.rules.size(); ++i) {
        if (::fnmatch(options.rules[i].pattern.c_str(), source.name.c_str(), 0) != 0) continue;
        wanted = options.rules[i].type;
        tensor.type = fitting_type(wanted, source.cols());
        used[i] = true;  // in whichever file it stands
      }
      if (other_part) continue;
      unfit += !fits(wanted, source) && !is_vision_tensor(source.name);
      if (is_quantized(tensor.type)) {
        if (is_quantized(source.from->type) && source.from->type != tensor.type) {
          ++rounded_twice;
          twice_from = dtype_name(source.from->type);
        }
        if (importance != nullptr) tensor.statistics = find_statistics(source, *importance);
        (tensor.statistics != nullptr ? guided : unknown) += source.name.starts_with("blk.");
      }
    }
    if (other_part) continue;
    if (adapter_ != nullptr) tensor.factors = adapter_->find(source.name);
    out_.add_tensor(source.name, tensor.type, source.shape);
    tensor.source = std::move(source);
    tensors_.push_back(std::move(tensor));
  }
  for (size_t i = 0; i < used.size(); ++i) {
    if (used[i]) continue;
    throw Error(ErrorKind::kUsage,
                fmt::format("tensor rule: expected '{}' to match a tensor that can be quantised, "
                            "it matches none",
                            printable(options.rules[i].pattern)),
                "a pattern matches whole names, as '*.attn_v.weight' does; `drover inspect MODEL "
                "--tensors` lists them");
  }

  if (rounded_twice > 0) {
    warnings_.push_back(fmt::format(
        "{} tensors were quantised already ({}) and are rounded a second time; a file in "
        "f32, f16 or bf16 would lose less",
        rounded_twice, twice_from));
  }
  if (unfit > 0) {
    warnings_.push_back(
        fmt::format("{} tensors have rows that are no whole number of {}'s blocks; they get a type "
                    "with smaller blocks",
                    unfit, options.mixture.name));
  }
  if (importance != nullptr && guided == 0 && unknown > 0) {
    throw Error(ErrorKind::kUsage,
                fmt::format("{}: expected data about this model's tensors, got none",
                            printable(importance->source, 300)),
                "it may have been made with another model");
  }
  if (importance != nullptr) {
    if (unknown > 0) {
      warnings_.push_back(fmt::format("{} tensors of {} are not in the importance matrix", unknown,
                                      guided + unknown));
    }
    for (const std::string& gap : importance->gaps()) {
      warnings_.push_back(gap + "; rounded without importance");
    }
    if (!importance->dataset.empty()) out_.set("quantize.imatrix.dataset", importance->dataset);
    out_.set("quantize.imatrix.file",
             std::filesystem::path(importance->source).filename().string());
    out_.set("quantize.imatrix.entries_count", static_cast<uint32_t>(importance->maps.size()));
    out_.set("quantize.imatrix.chunks_count", static_cast<uint32_t>(importance->windows));
  }
  out_.set("general.file_type", options.mixture.file_type);
  if (std::any_of(tensors_.begin(), tensors_.end(),
                  [](const Tensor& tensor) { return is_quantized(tensor.type); })) {
    out_.set("general.quantization_version", uint32_t{2});
  }
}

const InputStatistics* GgufExport::find_statistics(const TensorSource& source,
                                                   const Importance& importance) {
  const auto found = importance.maps.find(source.name);
  if (found == importance.maps.end()) return nullptr;
  const InputStatistics& statistics = found->second;
  const int64_t matrices = source.matrices();
  if (statistics.cols == source.cols() && statistics.matrices() == matrices) return &statistics;
  // Older files have one count for all experts.
  if (statistics.matrices() == 1 && statistics.cols % matrices == 0 &&
      statistics.cols / matrices == source.cols()) {
    InputStatistics& apart = rearranged_.emplace_back(statistics);
    apart.cols = source.cols();
    apart.counts.assign(static_cast<size_t>(matrices), statistics.counts[0]);
    return &apart;
  }
  throw Error(ErrorKind::kUsage,
              fmt::format("{}: '{}': expected {} inputs of {} matrices, got {} of {}",
                          printable(importance.source, 300), source.name, source.cols(), matrices,
                          statistics.cols, statistics.matrices()),
              "it may have been made with another model");
}

void GgufExport::write(Context& context, const std::filesystem::path& path,
                       const Progress& progress) {
  AlignedArray<std::byte> buffer;
  std::vector<float> weights;
  out_.write(
      path,
      [&](size_t number, const TensorSink& sink) {
        const Tensor& tensor = tensors_[number];
        const auto& [source, type, statistics, factors] = tensor;
        const int64_t bytes = row_bytes(type, source.cols());
        // 16 MB at a time, of what is read or written: enough for all threads, little beside the
        // model.
        const int64_t larger = std::max(bytes, row_bytes(source.from->type, source.cols()));
        const int64_t rows = std::clamp<int64_t>((int64_t{16} << 20) / larger, 1, source.rows());
        buffer.reserve_discarding(rows * bytes);
        for (int64_t index = 0; index < source.matrices(); ++index) {
          weights.clear();
          if (statistics != nullptr && statistics->enough(index)) {
            weights.resize(static_cast<size_t>(source.cols()));
            statistics->weights(index, weights);
          }
          for (int64_t first = 0; first < source.rows(); first += rows) {
            const int64_t n = std::min(rows, source.rows() - first);
            convert_rows(context, tensor, adapter_, index, first, n, weights, buffer.data());
            sink({buffer.data(), static_cast<size_t>(n * bytes)});
            // Only what is mapped can be read again; the divisors are our own memory.
            const bool own = !mapped_ || (rope_freqs_ && source.from == &*rope_freqs_);
            if (!own) MappedFile::forget(finished_bytes(source, index, first, n));
          }
        }
      },
      progress);
}

void export_gguf(Context& context, const HuggingfaceFolder& folder,
                 const std::filesystem::path& path, DType type, const Progress& progress) {
  GgufExport(folder, {.mixture = type}).write(context, path, progress);
}

}  // namespace drover
