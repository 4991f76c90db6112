#include "train/write_model.h"

#include <unordered_map>

#include "base/error.h"
#include "model/export_gguf.h"
#include "model/export_metadata.h"
#include "model/vision_weights.h"

namespace drover {
namespace {

// The values by name, with the shapes that files give them.
std::vector<NamedTensor> tensors_of(const Parameters& parameters) {
  std::vector<ExpectedTensor> expected = expected_tensors(parameters.config());
  if (parameters.vision_config()) {
    for (ExpectedTensor& tensor : expected_vision_tensors(*parameters.vision_config())) {
      expected.push_back(std::move(tensor));
    }
  }
  std::unordered_map<std::string_view, const Parameter*> by_name;
  for (const Parameter& parameter : parameters.all()) by_name[parameter.name] = &parameter;
  std::vector<NamedTensor> out;
  for (const ExpectedTensor& tensor : expected) {
    const auto found = by_name.find(tensor.name);
    DROVER_CHECK(found != by_name.end());
    const Parameter& parameter = *found->second;
    const int64_t bytes = tensor_bytes(DType::kF32, tensor.shape).value();
    DROVER_CHECK(bytes == parameter.size() * static_cast<int64_t>(sizeof(float)));
    const auto* data = reinterpret_cast<const std::byte*>(parameter.value.data());
    out.push_back({parameter.name, DType::kF32, tensor.shape, data, bytes});
  }
  return out;
}

ModelParts parts_of(const Parameters& parameters, std::span<const NamedTensor> tensors,
                    const ModelNotes& notes, const Vocabulary& vocabulary) {
  const auto& vision = parameters.vision_config();
  return {parameters.config(), vision ? &*vision : nullptr, tensors, notes,
          vocabulary.tokens.empty() ? nullptr : &vocabulary};
}

}  // namespace

void write_gguf(Context& context, const Parameters& parameters, const ModelNotes& notes,
                const Vocabulary& vocabulary, const std::filesystem::path& path,
                const Mixture& mixture, const Progress& progress) {
  const std::vector<NamedTensor> tensors = tensors_of(parameters);
  GgufExport(parts_of(parameters, tensors, notes, vocabulary), {.mixture = mixture})
      .write(context, path, progress);
}

void write_huggingface(const Parameters& parameters, const ModelNotes& notes,
                       const Vocabulary& vocabulary, std::string_view tokenizer_json,
                       const std::filesystem::path& folder, DType type, const Progress& progress) {
  const std::vector<NamedTensor> tensors = tensors_of(parameters);
  export_huggingface(parts_of(parameters, tensors, notes, vocabulary), tokenizer_json, folder, type,
                     progress);
}

}  // namespace drover
