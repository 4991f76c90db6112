// Drover's numbers against the reference's: tiny random checkpoints that transformers wrote, with
// the logits that it computed (tests/reference/README.md says what each covers).

#include "tests/support/goldens.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "model/export_gguf.h"

namespace drover {
namespace {

using namespace testing;

// The two judges, float32 and float64, agree to 4e-6; a wrong mechanism moves logits by 1e-2 or
// more.
constexpr double kTolerance = 1e-4;

// All cases; those whose configuration is also there in the older spelling; those stored in f32
// that have no experts; those that the judge also ran in bf16.
class Goldens : public ::testing::TestWithParam<Golden> {};
class OlderGoldens : public Goldens {};
class DenseGoldens : public Goldens {};
class Bf16Goldens : public Goldens {};

std::vector<Golden> goldens_that(const std::function<bool(const Golden&)>& apply) {
  std::vector<Golden> out;
  for (Golden& golden : all_goldens()) {
    if (apply(golden)) out.push_back(std::move(golden));
  }
  return out;
}

std::filesystem::path older_config(const Golden& golden) {
  return golden.folder() / "config.older.json";
}

TEST_P(Goldens, SafetensorsGiveTheReferencesLogits) {
  const Golden& golden = GetParam();
  const auto model = Model::load(golden.folder().string());
  Context context(2);
  const auto logits = logits_of(*model, context, golden.tokens);
  const double difference = relative_difference(logits, golden.logits);
  RecordProperty("relative_difference", std::to_string(difference));
  EXPECT_LE(difference, kTolerance);
}

TEST_P(OlderGoldens, TheOlderSpellingOfTheConfigurationMeansTheSame) {
  const Golden& golden = GetParam();
  TempFolder folder;
  std::filesystem::create_directory(folder / "model");
  for (const auto& entry : std::filesystem::directory_iterator(golden.folder())) {
    std::filesystem::copy(entry.path(), folder / "model" / entry.path().filename());
  }
  std::filesystem::copy(older_config(golden), folder / "model" / "config.json",
                        std::filesystem::copy_options::overwrite_existing);
  const auto model = Model::load(golden.folder().string());
  const auto same = Model::load((folder / "model").string());
  Context context(2);
  EXPECT_EQ(logits_of(*same, context, golden.tokens), logits_of(*model, context, golden.tokens));
}

// Widening a weight is exact, so the file that convert makes in f32 gives the same bits as the
// folder, whatever the folder's type; and in the folder's own type too. Not on the matrix unit,
// which has its own bits for bf16 weights.
TEST_P(Goldens, TheGgufThatConvertMakesGivesTheSameBits) {
  const Golden& golden = GetParam();
  TempFolder folder;
  Context context(2, std::min(detect_isa(), Isa::kAvx512));
  const auto model = Model::load(golden.folder().string());
  const auto expected = logits_of(*model, context, golden.tokens);
  const DType stored = model->weights().layers[0].wq.type;
  for (const DType type : {DType::kF32, stored}) {
    const auto path = folder / (std::string(dtype_name(type)) + ".gguf");
    export_gguf(context, *model->huggingface(), path, type);
    const auto converted = Model::load(path.string());
    EXPECT_EQ(logits_of(*converted, context, golden.tokens), expected) << dtype_name(type);
    EXPECT_EQ(converted->config().layers, model->config().layers);
    EXPECT_EQ(converted->config().chunk, model->config().chunk);
    EXPECT_EQ(converted->config().qk_norm, model->config().qk_norm);
    EXPECT_EQ(converted->config().floor_scale, model->config().floor_scale);
    EXPECT_EQ(converted->config().attn_scale, model->config().attn_scale);
    EXPECT_EQ(converted->config().temperature_tuning, model->config().temperature_tuning);
    EXPECT_EQ(converted->config().rope_frequencies, model->config().rope_frequencies);
  }
}

// A file converted to bf16 has weights that are off by up to 2^-9 of themselves. How far that may
// move the logits depends on the model, and the model tells: rounding to f16 is the same
// disturbance, 2^-12, an eighth as large, and to first order the logits move in proportion. The
// largest of some thousand differences varies from one draw of roundings to the next by less than
// the factor 3 that is left here; a wrong reading of bf16 moves logits by their own size. Only for
// models without experts: choosing another expert is no small disturbance, and bf16 can tip a close
// choice.
TEST_P(DenseGoldens, RoundingToBf16CostsEightTimesWhatRoundingToF16Costs) {
  const Golden& golden = GetParam();
  TempFolder folder;
  Context context(2);
  const auto model = Model::load(golden.folder().string());
  double difference[2];
  for (const DType type : {DType::kF16, DType::kBF16}) {
    const auto path = folder / (std::string(dtype_name(type)) + ".gguf");
    export_gguf(context, *model->huggingface(), path, type);
    const auto converted = Model::load(path.string());
    difference[type == DType::kBF16] =
        relative_difference(logits_of(*converted, context, golden.tokens), golden.logits);
  }
  RecordProperty("f16_difference", std::to_string(difference[0]));
  RecordProperty("bf16_difference", std::to_string(difference[1]));
  EXPECT_GT(difference[1], 0);
  EXPECT_LE(difference[1], 3 * 8 * difference[0]);
}

// The cache alone in bf16 rounds less than everything in bf16, which the judge has measured.
TEST_P(Bf16Goldens, ABf16CacheCostsLessThanBf16Everywhere) {
  const Golden& golden = GetParam();
  const auto model = Model::load(golden.folder().string());
  Context context(2);
  const auto logits = logits_of(*model, context, golden.tokens, DType::kBF16);
  EXPECT_LE(relative_difference(logits, golden.logits), golden.bf16_difference);
}

std::string case_name(const ::testing::TestParamInfo<Golden>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(All, Goldens, ::testing::ValuesIn(all_goldens()), case_name);
INSTANTIATE_TEST_SUITE_P(WithOlderConfig, OlderGoldens,
                         ::testing::ValuesIn(goldens_that([](const Golden& golden) {
                           return std::filesystem::exists(older_config(golden));
                         })),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Dense, DenseGoldens,
                         ::testing::ValuesIn(goldens_that([](const Golden& golden) {
                           return !golden.has_experts && golden.bf16_difference == 0;
                         })),
                         case_name);
INSTANTIATE_TEST_SUITE_P(JudgedInBf16, Bf16Goldens,
                         ::testing::ValuesIn(goldens_that([](const Golden& golden) {
                           return golden.bf16_difference > 0;
                         })),
                         case_name);

}  // namespace
}  // namespace drover
