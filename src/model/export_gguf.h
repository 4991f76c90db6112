// Writes a model as one GGUF file that maps, in the types that one asks for: from a Hugging Face
// folder or from another GGUF file. For Drover, and for other readers of the format as far as they
// know the configuration (spec sections 9.2 and 9.3).
#pragma once

#include <deque>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/progress.h"
#include "formats/gguf.h"
#include "formats/gguf_writer.h"
#include "formats/huggingface.h"
#include "kernels/context.h"
#include "model/adapter.h"
#include "model/export_huggingface.h"
#include "model/importance.h"
#include "model/quantize_mixture.h"
#include "model/tensor_table.h"

namespace drover {

// "PATTERN=TYPE": tensors by name. The pattern is a glob as in a shell (*, ?, [...]) and must match
// the whole name.
struct TensorRule {
  std::string pattern;
  DType type = DType::kF32;

  // Throws kUsage for a text without '=' or a type that is no weight type.
  static TensorRule parse(std::string_view text);
};

// What of a model goes into the file: the format's own readers want vision in a file apart (spec
// section 9.4), Drover takes both from one.
enum class ExportPart { kWhole, kText, kVision };

struct ExportOptions {
  Mixture mixture = DType::kBF16;
  std::vector<TensorRule> rules = {};      // against the mixture; of several that match, the last
  const Importance* importance = nullptr;  // steers the rounding; must outlive the export
  ExportPart part = ExportPart::kWhole;
  const Adapter* adapter = nullptr;  // is merged into the weights; must outlive the export
};

// A model about to be written: all is decided and checked before a byte is computed.
class GgufExport {
 public:
  // One tensor of the new file.
  struct Tensor {
    TensorSource source = {};
    DType type = DType::kF32;
    const InputStatistics* statistics = nullptr;  // of its inputs, or none
    const Adapter::Factors* factors = nullptr;    // of the adapter that is merged, or none

    int64_t bytes() const {
      return source.matrices() * source.rows() * row_bytes(type, source.cols());
    }
  };

  // The source must outlive the object. A GGUF file's metadata and those of its tensors that no
  // mixture concerns go along as they are; a folder's norms and routers become f32.
  //
  // Throws what config and weights throw for a damaged model; kUsage for a rule that matches no
  // tensor that could be quantised, for an importance matrix of another model, and for the vision
  // part of a model without one. A file for vision alone has no other part.
  GgufExport(const HuggingfaceFolder& folder, const ExportOptions& options);
  GgufExport(const GgufFile& file, const ExportOptions& options);
  // Its tensors must be those of its configuration; norms and routers become f32.
  GgufExport(const ModelParts& model, const ExportOptions& options);
  GgufExport(const GgufExport&) = delete;
  GgufExport& operator=(const GgufExport&) = delete;

  const std::vector<Tensor>& tensors() const { return tensors_; }

  // Sentences about what may not be what was hoped for: weights that are rounded a second time,
  // rows that do not fit the type, experts that the importance matrix does not know.
  const std::vector<std::string>& warnings() const { return warnings_; }

  // Converts rows on all threads, a slice at a time: memory stays at one slice beside what the
  // system keeps of the source, whatever the model's size. The same bits on any number of threads.
  // The file appears under its name when it is whole. Progress counts bytes written.
  void write(Context& context, const std::filesystem::path& out, const Progress& progress = {});

 private:
  void plan(const ModelConfig& config, std::vector<TensorSource> sources, bool keeps_floats,
            const ExportOptions& options);
  const InputStatistics* find_statistics(const TensorSource& source, const Importance& importance);

  void add_rope_freqs(const ModelConfig& config, std::vector<TensorSource>& sources);

  GgufWriter out_;
  const Adapter* adapter_ = nullptr;
  bool mapped_ = true;                      // what is read can be forgotten and read again
  std::vector<float> divisors_;             // of rope_freqs.weight, where a file needs it
  std::optional<NamedTensor> rope_freqs_;   // a view of them
  std::deque<InputStatistics> rearranged_;  // made from the importance matrix
  std::vector<Tensor> tensors_;
  std::vector<std::string> warnings_;
};

// The folder in one type (see Mixture), written at once.
void export_gguf(Context& context, const HuggingfaceFolder& folder,
                 const std::filesystem::path& out, DType type, const Progress& progress = {});

}  // namespace drover
