// Pictures through the whole engine, on a model of random weights: what is seen does not depend on
// company, a picture is encoded once, and an engine tells pictures apart.

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "engine/engine.h"
#include "engine/picture_encoder.h"
#include "eval/random_model.h"
#include "kernels/matmul/matmul.h"
#include "model/export_gguf.h"
#include "tests/support/expect_error.h"
#include "tests/support/sanitized.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

using testing::expect_error;
using Kept = std::shared_ptr<const EncodedPicture>;

class PicturesTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new testing::TempFolder();
    Context context(2);
    for (const char* type : {"f32", "bf16", "q8_0"}) {
      write_random_model(context, random_shape("tiny-vision"), *mixture_from_name(type), 1,
                         file(type));
    }
    write_random_model(context, random_shape("tiny"), *mixture_from_name("f32"), 1, file("text"));
    model_ = Model::load(file("f32")).release();
  }
  static void TearDownTestSuite() {
    delete model_;
    delete folder_;
  }
  static std::filesystem::path file(std::string_view name) {
    return *folder_ / (std::string(name) + ".gguf");
  }

  // A picture of noise on a canvas of so many tiles.
  static TiledImage noise(uint32_t seed, int64_t rows, int64_t cols) {
    const int64_t size = model_->vision().config.tiles.size;
    TiledImage out{{rows, cols, rows * size, cols * size}, size, {}};
    std::mt19937 random(seed);
    out.pixels.resize(static_cast<size_t>(out.layout.tiles() * size * size * 3));
    for (uint8_t& byte : out.pixels) byte = static_cast<uint8_t>(random());
    return out;
  }

  static std::vector<float> features(const Model& model, Context& context,
                                     std::span<const TiledImage> pictures) {
    PictureEncoder encoder(model, context);
    std::vector<float> out;
    for (const Kept& picture : encoder.encode(pictures)) {
      out.insert(out.end(), picture->embeddings.data(),
                 picture->embeddings.data() + picture->embeddings.size());
    }
    return out;
  }

  // "ab", the pictures, "cd".
  Prompt prompt_of(std::vector<Kept> pictures) {
    const Tokenizer& tokenizer = model_->tokenizer();
    Prompt out{tokenizer.encode("ab"), std::move(pictures)};
    for (const Kept& picture : out.pictures) append_picture(tokenizer, picture->tokens, out.tokens);
    tokenizer.encode("cd", out.tokens);
    return out;
  }
  std::vector<Kept> encoded(std::initializer_list<TiledImage> pictures) {
    return PictureEncoder(*model_, context_).encode(std::vector<TiledImage>(pictures));
  }

  std::vector<float> logits(const Prompt& prompt, int64_t batch) {
    Engine engine(*model_, context_, {.batch = batch});
    std::vector<float> out;
    engine.score(prompt, [&](int64_t, ConstMatrixView rows) {
      for (int64_t t = 0; t < rows.rows; ++t) {
        out.insert(out.end(), rows.row(t), rows.row(t) + rows.cols);
      }
    });
    return out;
  }

  static GenerateOptions hot() {
    GenerateOptions options;
    options.sampling = {.temperature = 1.5f, .top_p = 1.0f, .seed = 3};
    options.max_tokens = 12;
    return options;
  }

  static testing::TempFolder* folder_;
  static Model* model_;
  Context context_{2};
};
testing::TempFolder* PicturesTest::folder_ = nullptr;
Model* PicturesTest::model_ = nullptr;

TEST_F(PicturesTest, WhatIsSeenOfATileDoesNotDependOnTheTilesBesideItOrOnThreads) {
  for (const char* type : {"f32", "bf16", "q8_0"}) {
    const auto model = Model::load(file(type));
    const VisionConfig& config = model->vision().config;
    const TiledImage one = noise(1, 1, 1), many = noise(2, 1, 4);
    const size_t per_tile = static_cast<size_t>(config.tile_tokens() * config.embedding);
    for (const Isa isa : available_isas()) {
      if (isa == Isa::kPlain && testing::kSanitized) continue;  // slow
      Context alone(1, isa);
      const std::vector<float> expected = features(*model, alone, {&one, 1});
      ASSERT_EQ(expected.size(), per_tile);
      for (const int threads : {1, 3}) {
        if (isa == Isa::kPlain && threads == 1) continue;  // slow
        Context context(threads, isa);
        const TiledImage pictures[] = {many, one};
        const std::vector<float> together = features(*model, context, pictures);
        ASSERT_EQ(together.size(), 6 * per_tile);
        EXPECT_TRUE(std::equal(expected.begin(), expected.end(), together.end() - per_tile))
            << type << ", " << isa_name(isa) << ", " << threads << " threads";
      }
    }
  }
}

// bf16 keeps a 2^-9 part of every value; the 8-bit form a 254th of the largest of 32.
TEST_F(PicturesTest, RoundingToBf16CostsNoMoreThanThe8BitForm) {
  const Isa isa = detect_isa();
  if (!takes_rounded(isa, DType::kQ8_0)) GTEST_SKIP() << "nothing is rounded on " << isa_name(isa);
  const GgufFile quantized = GgufFile::open(file("q8_0"));
  const auto widened = *folder_ / "widened.gguf";
  GgufExport(quantized, {.mixture = DType::kF32}).write(context_, widened);
  const auto exact = Model::load(widened), model = Model::load(file("q8_0"));
  const TiledImage picture = noise(6, 2, 2);
  Context plain(2, Isa::kPlain);
  const std::vector<float> expected = features(*exact, plain, {&picture, 1});
  const auto distance = [&](const std::vector<float>& other) {
    double sum = 0;
    for (size_t i = 0; i < expected.size(); ++i) sum += std::pow(other[i] - expected[i], 2);
    return sum;
  };
  const double rounded = distance(features(*model, context_, {&picture, 1}));
  EXPECT_GT(rounded, 0);
  EXPECT_LT(rounded, distance(features(*model, plain, {&picture, 1})));
}

TEST_F(PicturesTest, APictureIsEncodedOnce) {
  PictureEncoder encoder(*model_, context_);
  const TiledImage pictures[] = {noise(1, 1, 1), noise(2, 1, 2), noise(1, 1, 1)};
  const auto first = encoder.encode(pictures);
  EXPECT_EQ(encoder.encoded(), 2);
  EXPECT_EQ(encoder.reused(), 1);
  EXPECT_EQ(first[0], first[2]);
  const auto second = encoder.encode({pictures + 1, 1});
  EXPECT_EQ(second[0], first[1]);
  EXPECT_EQ(encoder.encoded(), 2);
  // The same pixels on another canvas are another picture.
  TiledImage turned = pictures[1];
  std::swap(turned.layout.rows, turned.layout.cols);
  EXPECT_NE(encoder.encode({&turned, 1})[0]->hash, first[1]->hash);
}

TEST_F(PicturesTest, WhatWasSeenLastIsKeptWithinTheBudget) {
  const VisionConfig& config = model_->vision().config;
  const int64_t tile_bytes = config.tile_tokens() * config.embedding * 4;
  PictureEncoder encoder(*model_, context_, 2 * tile_bytes);
  const TiledImage a = noise(1, 1, 1), b = noise(2, 1, 1), c = noise(3, 1, 1);
  encoder.encode({&a, 1});
  const Kept first = encoder.encode({&b, 1})[0];
  encoder.encode({&a, 1});  // b is now the oldest
  encoder.encode({&c, 1});
  EXPECT_EQ(encoder.encoded(), 3);
  encoder.encode({&a, 1});
  EXPECT_EQ(encoder.encoded(), 3) << "a was used after b";
  const Kept again = encoder.encode({&b, 1})[0];
  EXPECT_EQ(encoder.encoded(), 4) << "b had to make room";
  EXPECT_NE(again, first);
  EXPECT_TRUE(std::equal(first->embeddings.data(),
                         first->embeddings.data() + first->embeddings.size(),
                         again->embeddings.data()))
      << "and is the same bits when it comes back";
}

TEST_F(PicturesTest, ACancelledPictureLeavesNothingBehind) {
  PictureEncoder encoder(*model_, context_);
  const TiledImage picture = noise(1, 2, 2);
  std::atomic<bool> cancel{false};
  const auto stop = [&](uint64_t, uint64_t) { cancel = true; };
  expect_error(ErrorKind::kCancelled, "stopped", [&] {
    encoder.encode({&picture, 1}, stop, &cancel);
  });
  EXPECT_EQ(encoder.encoded(), 0);
  encoder.encode({&picture, 1});
  EXPECT_EQ(encoder.encoded(), 1);
}

TEST_F(PicturesTest, APromptWithPicturesGivesTheSameBitsInSlicesOfAnySize) {
  const Prompt prompt = prompt_of(encoded({noise(1, 1, 2), noise(2, 1, 1)}));
  const std::vector<float> whole = logits(prompt, 4096);
  for (const int64_t batch : {1, 7, 64}) EXPECT_EQ(logits(prompt, batch), whole) << batch;
  // And what is seen matters.
  EXPECT_NE(logits(prompt_of(encoded({noise(1, 1, 2), noise(3, 1, 1)})), 4096), whole);
  EXPECT_NE(logits({prompt.tokens}, 4096), whole) << "patch tokens alone";
}

TEST_F(PicturesTest, AFollowUpReadsAPictureOnlyOnceAndAnswersAsAFreshSessionDoes) {
  const std::vector<Kept> seen = encoded({noise(1, 1, 2)}), other = encoded({noise(4, 1, 2)});
  const Prompt prompt = prompt_of(seen);
  Engine engine(*model_, context_);
  engine.generate(prompt, hot());

  Prompt longer = prompt;
  model_->tokenizer().encode(" and more", longer.tokens);
  const Answer second = engine.generate(longer, hot());
  EXPECT_EQ(second.cached_tokens, static_cast<int64_t>(prompt.tokens.size()));
  Engine fresh(*model_, context_);
  EXPECT_EQ(second.tokens, fresh.generate(longer, hot()).tokens);

  // The same tokens with another picture are read anew from its first patch.
  const Prompt changed{longer.tokens, other};
  const Answer third = engine.generate(changed, hot());
  const Token patch = *model_->vision().config.patch_token;
  const auto first = std::find(changed.tokens.begin(), changed.tokens.end(), patch);
  EXPECT_EQ(third.cached_tokens, first - changed.tokens.begin());
  Engine fresh_again(*model_, context_);
  EXPECT_EQ(third.tokens, fresh_again.generate(changed, hot()).tokens);

  // And so are they without one.
  const Answer fourth = engine.generate(Prompt{longer.tokens}, hot());
  EXPECT_EQ(fourth.cached_tokens, first - changed.tokens.begin());
}

TEST_F(PicturesTest, PatchTokensAndPicturesMustAgree) {
  const std::vector<Kept> seen = encoded({noise(1, 1, 1)});
  Prompt prompt = prompt_of(seen);
  Engine engine(*model_, context_);
  const Token patch = *model_->vision().config.patch_token;
  prompt.tokens.push_back(patch);
  expect_error(ErrorKind::kUsage, "patch tokens", [&] { engine.generate(prompt, hot()); });
  std::erase(prompt.tokens, patch);
  expect_error(ErrorKind::kUsage, "got 0", [&] { engine.generate(prompt, hot()); });
}

TEST_F(PicturesTest, AModelWithoutEyesSaysSo) {
  const auto text = Model::load(file("text"));
  EXPECT_FALSE(text->has_vision());
  expect_error(ErrorKind::kUnsupported, "text only", [&] { PictureEncoder(*text, context_); });
  expect_error(ErrorKind::kUnsupported, "--mmproj", [&] { text->vision(); });
  Engine engine(*text, context_);
  const Prompt prompt = prompt_of(encoded({noise(1, 1, 1)}));
  expect_error(ErrorKind::kUnsupported, "text only", [&] { engine.generate(prompt, hot()); });
}

TEST_F(PicturesTest, AnEncoderInAFileOfItsOwnSeesTheSame) {
  const GgufFile whole = GgufFile::open(file("f32"));
  const auto text = *folder_ / "text-part.gguf", mmproj = *folder_ / "mmproj.gguf";
  GgufExport(whole, {.mixture = DType::kF32, .part = ExportPart::kText}).write(context_, text);
  GgufExport(whole, {.mixture = DType::kF32, .part = ExportPart::kVision}).write(context_, mmproj);
  EXPECT_FALSE(Model::load(text)->has_vision());
  EXPECT_EQ(GgufFile::open(mmproj).string_value("general.architecture"), "clip");
  EXPECT_FALSE(GgufFile::open(text).has("clip.vision.block_count"));

  const auto apart = Model::load(text, {}, mmproj);
  const TiledImage picture = noise(5, 2, 1);
  EXPECT_EQ(features(*apart, context_, {&picture, 1}), features(*model_, context_, {&picture, 1}));
  EXPECT_EQ(apart->vision().config.patch_token, model_->vision().config.patch_token);

  // Such a file can be quantised alone: its matrices, not its embeddings and norms.
  const auto small = *folder_ / "mmproj-q8.gguf";
  const GgufFile source = GgufFile::open(mmproj);
  GgufExport(source, {.mixture = *mixture_from_name("q4_k_m")}).write(context_, small);
  const GgufFile quantized = GgufFile::open(small);
  EXPECT_EQ(quantized.find_tensor("v.blk.0.ffn_up.weight")->type, DType::kQ8_0);
  EXPECT_EQ(quantized.find_tensor("mm.model.fc.weight")->type, DType::kQ8_0);
  EXPECT_EQ(quantized.find_tensor("v.patch_embd.weight")->type, DType::kF32);
  EXPECT_EQ(quantized.find_tensor("v.position_embd.weight")->type, DType::kF32);
  EXPECT_EQ(quantized.find_tensor("v.blk.0.attn_q.bias")->type, DType::kF32);
  EXPECT_TRUE(Model::load(text, {}, small)->has_vision());
}

TEST_F(PicturesTest, AFileForVisionAloneIsNoModelAndATextFileIsNoEncoder) {
  const GgufFile whole = GgufFile::open(file("f32"));
  const auto mmproj = *folder_ / "alone.gguf";
  GgufExport(whole, {.mixture = DType::kF32, .part = ExportPart::kVision}).write(context_, mmproj);
  expect_error(ErrorKind::kUnsupported, "clip", [&] { Model::load(mmproj); });
  expect_error(ErrorKind::kBadData, "expected a vision encoder",
               [&] { Model::load(file("text"), {}, file("text")); });
  const GgufFile text = GgufFile::open(file("text"));
  expect_error(ErrorKind::kUsage, "vision encoder",
               [&] { GgufExport(text, {.mixture = DType::kF32, .part = ExportPart::kVision}); });
}

}  // namespace
}  // namespace drover
