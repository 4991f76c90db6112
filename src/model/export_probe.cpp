// What tests/reference/export_judge.py talks to.
//
//   export_probe folder MODEL FOLDER TYPE   writes MODEL as a Hugging Face folder
//   export_probe adapter MODEL FOLDER RANK  writes an adapter of random numbers for it
//   export_probe logits MODEL FILE 1,2,3 [ADAPTER ...]  float32 [tokens, vocab] of a prompt
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file_writer.h"
#include "model/export_gguf.h"
#include "model/export_huggingface.h"
#include "tests/support/goldens.h"
#include "tests/support/random_adapter.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

void write_folder(const Model& model, const std::string& out, const std::string& type_name) {
  const DType type = dtype_from_name(type_name).value();
  // By way of a GGUF file, which has the names and the layout that the exporter takes.
  const testing::TempFolder folder;
  Context context(1);
  export_gguf(context, *model.huggingface(), folder / "m.gguf", DType::kF32);
  const GgufFile file = GgufFile::open(folder / "m.gguf");
  std::vector<NamedTensor> tensors;
  for (const NamedTensor& tensor : file.tensors()) {
    if (tensor.name != "rope_freqs.weight") tensors.push_back(tensor);
  }
  const ModelNotes notes = notes_of(model);
  const VisionConfig* vision = model.has_vision() ? &model.vision().config : nullptr;
  export_huggingface({model.config(), vision, tensors, notes}, "", out, type);
}

void write_adapter(const Model& model, const std::string& out, int64_t rank) {
  const auto adapters = testing::random_adapter(model.config(), rank, 1, 0.5f);
  write_peft(
      adapters,
      {.rank = rank, .alpha = 0.5 * static_cast<double>(rank), .multimodal = model.has_vision()},
      model.config(), out);
}

void write_logits(const Model& model, const std::string& out, const std::string& list) {
  std::vector<Token> tokens;
  std::istringstream numbers(list);
  for (std::string number; std::getline(numbers, number, ',');) tokens.push_back(std::stoi(number));
  Context context(1);
  const std::vector<float> logits = testing::logits_of(model, context, tokens);
  const auto bytes = std::as_bytes(std::span(logits));
  write_file(out, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

}  // namespace
}  // namespace drover

int main(int argc, char** argv) {
  using namespace drover;
  if (argc < 5) return 2;
  try {
    const std::string what = argv[1];
    const std::vector<std::string> adapters(argv + 5, argv + argc);
    const auto model = Model::load(argv[2], {}, {}, adapters);
    if (what == "folder") write_folder(*model, argv[3], argv[4]);
    if (what == "adapter") write_adapter(*model, argv[3], std::atoll(argv[4]));
    if (what == "logits") write_logits(*model, argv[3], argv[4]);
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
