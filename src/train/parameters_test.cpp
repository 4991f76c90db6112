// What a trainer's parameters hold beside their values.

#include "train/parameters.h"

#include <gtest/gtest.h>

#include <vector>

#include "tensor/dequantize.h"

namespace drover {
namespace {

ModelConfig tiny_mixture() {
  ModelConfig config;
  config.architecture = "llama4";
  config.vocab = 40;
  config.hidden = 24;
  config.heads = 2;
  config.kv_heads = 1;
  config.head_dim = 8;
  config.expert_width = 16;
  config.experts = 3;
  config.experts_used = 1;
  config.layers = {{.moe = true}};
  return config;
}

// A gradient passes through every matrix to what it read, routers with the others.
TEST(Parameters, EveryMatrixHasItselfTransposedInTheTypeThatProductsTake) {
  for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
    Context context(2, Isa::kPlain);  // on the matrix unit both are packed
    Parameters parameters(tiny_mixture(), {}, precision);
    initialize(parameters, {.seed = 3});
    parameters.refresh(context);
    int matrices = 0;
    for (const Parameter& p : parameters.all()) {
      if (p.kind == Parameter::Kind::kVector) continue;
      ++matrices;
      for (int64_t m = 0; m < p.matrices; ++m) {
        const WeightView w = p.view(m), transposed = p.transposed_view(m);
        const bool rounds = precision == Precision::kBF16 && p.kind != Parameter::Kind::kRouter;
        ASSERT_EQ(w.type, rounds ? DType::kBF16 : DType::kF32) << p.name;
        ASSERT_EQ(transposed.type, w.type) << p.name;
        ASSERT_EQ(p.transposed.size(), static_cast<size_t>(p.matrices * transposed.bytes()))
            << p.name;
        const auto values = [](const WeightView& view) {
          std::vector<float> out(static_cast<size_t>(view.rows * view.cols));
          for (int64_t r = 0; r < view.rows; ++r) {
            dequantize_row(view.type, view.row(r),
                           {out.data() + r * view.cols, static_cast<size_t>(view.cols)});
          }
          return out;
        };
        const auto a = values(w), b = values(transposed);
        for (int64_t r = 0; r < w.rows; ++r) {
          for (int64_t c = 0; c < w.cols; ++c) {
            ASSERT_EQ(a[static_cast<size_t>(r * w.cols + c)],
                      b[static_cast<size_t>(c * w.rows + r)])
                << p.name << ", matrix " << m << ", row " << r << ", column " << c;
          }
        }
      }
    }
    EXPECT_EQ(matrices,
              13);  // two tables, four of attention, router, three shared, three of experts
  }
}

// What is frozen does not change, and copying it in every step would cost as much as teaching it.
TEST(Parameters, OnlyCopiesOfWhatChangedAreMadeAgain) {
  for (const Isa isa : available_isas()) {
    Context context(2, isa);
    Parameters parameters(tiny_mixture(), {}, Precision::kBF16);
    initialize(parameters, {.seed = 3});
    parameters.refresh(context);
    const auto copy_of = [](const Parameter& p) {
      std::vector<std::byte> out(p.working.data(), p.working.data() + p.working.size());
      for (const auto* all : {&p.packed, &p.packed_transposed}) {
        for (const RoundedRows& each : *all) {
          out.insert(out.end(), each.block(0, 0), each.block(0, 0) + RoundedRows::kBlockBytes);
        }
      }
      return out;
    };
    std::vector<Parameter*> matrices;
    std::vector<std::vector<std::byte>> before;
    for (Parameter& p : parameters.all()) {
      if (p.kind != Parameter::Kind::kMatrix) continue;
      matrices.push_back(&p);
      before.push_back(copy_of(p));
      ASSERT_FALSE(before.back().empty());
      for (float& value : p.value.span()) value += 1;
    }
    Parameter* const changed = matrices[1];
    parameters.refresh(context, {&changed, 1});
    for (size_t i = 0; i < matrices.size(); ++i) {
      EXPECT_EQ(copy_of(*matrices[i]) == before[i], matrices[i] != changed) << matrices[i]->name;
    }
  }
}

}  // namespace
}  // namespace drover
