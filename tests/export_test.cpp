// Models written again, as a Hugging Face folder and as GGUF, are the models they were.

#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "model/export_gguf.h"
#include "model/export_huggingface.h"
#include "model/fingerprint.h"
#include "tests/support/expect_error.h"
#include "tests/support/goldens.h"
#include "text/byte_alphabet.h"
#include "text/chat_format.h"

namespace drover {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using namespace testing;

// A golden with its tensors under GGUF's names.
class Source {
 public:
  Source(const TempFolder& folder, const fs::path& golden)
      : model_(Model::load(golden.string())), notes_(notes_of(*model_)) {
    const DType type = model_->weights().layers.front().wq.type;
    Context context(1);
    export_gguf(context, *model_->huggingface(), folder / "source.gguf", type);
    file_.emplace(GgufFile::open(folder / "source.gguf"));
    for (const NamedTensor& tensor : file_->tensors()) {
      if (tensor.name != "rope_freqs.weight") tensors_.push_back(tensor);
    }
  }

  const Model& model() const { return *model_; }
  ModelNotes& notes() { return notes_; }
  DType type() const { return model_->weights().layers.front().wq.type; }
  ModelParts parts(const Vocabulary* vocabulary = nullptr) const {
    const VisionConfig* vision = model_->has_vision() ? &model_->vision().config : nullptr;
    return {model_->config(), vision, tensors_, notes_, vocabulary};
  }

 private:
  std::unique_ptr<Model> model_;
  ModelNotes notes_;
  std::optional<GgufFile> file_;
  std::vector<NamedTensor> tensors_;
};

std::vector<std::string> all_cases() {
  std::vector<std::string> out;
  for (const char* root : {"tests/data/goldens", "tests/data/vision"}) {
    for (const auto& entry : fs::directory_iterator(root)) {
      if (fs::exists(entry.path() / "config.json")) out.push_back(entry.path().string());
    }
  }
  std::sort(out.begin(), out.end());
  return out;
}

class ExportTest : public ::testing::TestWithParam<std::string> {
 protected:
  TempFolder folder_;
};

// The fingerprint is of every tensor and of all that is computed with them.
TEST_P(ExportTest, AFolderWrittenAgainIsTheSameModel) {
  const Source source(folder_, GetParam());
  export_huggingface(source.parts(), "", folder_ / "again", source.type());
  const auto again = Model::load((folder_ / "again").string());
  EXPECT_EQ(fingerprint(*again), fingerprint(source.model()));
  EXPECT_EQ(again->config().context, source.model().config().context);
  EXPECT_EQ(again->generation().temperature, source.model().generation().temperature);
  EXPECT_EQ(again->generation().top_p, source.model().generation().top_p);
  EXPECT_EQ(again->advised_stops(), source.model().advised_stops());
}

TEST_P(ExportTest, AGgufFileOfTheSamePartsComputesTheSame) {
  const Source source(folder_, GetParam());
  Context context(2);
  GgufExport(source.parts(), {.mixture = source.type()}).write(context, folder_ / "a.gguf");
  // Converted from the folder: the same types.
  const auto converted = Model::load((folder_ / "source.gguf").string());
  const auto again = Model::load((folder_ / "a.gguf").string());
  EXPECT_EQ(fingerprint(*again), fingerprint(*converted));
}

INSTANTIATE_TEST_SUITE_P(Goldens, ExportTest, ::testing::ValuesIn(all_cases()),
                         [](const auto& info) {
                           std::string name = info.param.substr(std::string("tests/data/").size());
                           std::replace(name.begin(), name.end(), '/', '_');
                           return name;
                         });

// Control tokens of the Llama 4 format, then letters.
std::string tokenizer_json() {
  json::array added;
  json::object vocab;
  int64_t id = 0;
  for (const char* text : {"<|begin_of_text|>", "<|end_of_text|>", "<|header_start|>",
                           "<|header_end|>", "<|eot|>", "<|pad|>"}) {
    added.push_back({{"id", id++}, {"content", text}, {"special", true}});
  }
  for (const char byte : std::string("\n abcdefghijklmnopqrstuvwxyz")) {
    vocab[bytes_to_alphabet(std::string_view(&byte, 1))] = id++;
  }
  vocab[bytes_to_alphabet("th")] = id++;
  return json::serialize(json::object{
      {"added_tokens", added},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", json::array{"t h"}}}}});
}

TEST(ExportWithATokenizer, KeepsItAndKnowsHowToTalk) {
  const TempFolder folder;
  Source source(folder, kGoldens / "scout");
  const std::string text = tokenizer_json();
  Vocabulary vocabulary = vocabulary_from_tokenizer_json(text, "test", std::nullopt);
  vocabulary.bos = 0;
  vocabulary.eos = 1;
  vocabulary.pad = 5;
  vocabulary.add_bos = true;
  find_stops(vocabulary);
  ASSERT_TRUE(vocabulary.chat_template.empty());
  source.notes().licence.id = "apache-2.0";
  source.notes().generation.temperature = 0.5;
  source.notes().generation.top_k = 7;

  Context context(1);
  export_huggingface(source.parts(&vocabulary), text, folder / "again", DType::kF32);
  GgufExport(source.parts(&vocabulary), {.mixture = DType::kF32})
      .write(context, folder / "again.gguf");
  for (const char* name : {"again", "again.gguf"}) {
    const auto model = Model::load((folder / name).string());
    // GGUF has as many tokens as there are embeddings; those behind ours mean nothing.
    Vocabulary theirs = model->tokenizer().vocabulary();
    ASSERT_GE(theirs.tokens.size(), vocabulary.tokens.size());
    theirs.tokens.resize(vocabulary.tokens.size());
    theirs.kinds.resize(vocabulary.kinds.size());
    EXPECT_EQ(fingerprint(theirs), fingerprint(vocabulary)) << name;
    EXPECT_EQ(model->chat_format(), ChatFormat::kLlama4) << name;
    EXPECT_EQ(model->licence().id, "apache-2.0") << name;
    EXPECT_EQ(model->generation().temperature, 0.5) << name;
    EXPECT_EQ(model->generation().top_k, 7) << name;
    const std::vector<Token> stops = model->stop_tokens(ChatFormat::kLlama4);
    EXPECT_TRUE(std::count(stops.begin(), stops.end(), 4)) << name << ": <|eot|>";
  }
}

TEST(ExportHuggingface, RefusesWhatItsFilesCannotSay) {
  const TempFolder folder;
  const Source source(folder, kGoldens / "scout");
  const auto write = [&](const ModelParts& parts, DType type = DType::kF32) {
    export_huggingface(parts, "", folder / "no", type);
  };
  expect_error(ErrorKind::kUsage, "q8_0", [&] { write(source.parts(), DType::kQ8_0); });
  ModelConfig factors = source.model().config();
  factors.rope_scaling.kind = RopeScaling::Kind::kFactors;
  ModelParts parts = source.parts();
  const ModelParts other = {factors, nullptr, parts.tensors, source.parts().notes};
  expect_error(ErrorKind::kUnsupported, "divisors", [&] { write(other); });
  const ModelParts less = {source.model().config(), nullptr, parts.tensors.subspan(1),
                           source.parts().notes};
  expect_error(ErrorKind::kBadData, "token_embd.weight", [&] { write(less); });
  EXPECT_FALSE(fs::exists(folder / "no"));
}

}  // namespace
}  // namespace drover
