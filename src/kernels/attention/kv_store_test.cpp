// Keys and values as the cache keeps them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "kernels/attention/attention_fixture.h"

namespace drover {
namespace {

TEST(KvStore, KeepsWhatTheTypeSays) {
  for (const Isa isa : available_isas()) {
    Context context(2, isa);
    for (const DType type : kTypes) {
      for (const int64_t d : {1, 15, 16, 17, 63, 64, 65, 128, 200}) {
        const int64_t positions = 131;
        Sequence s({3, 1, d}, type, positions);
        s.store(context);
        for (int64_t row = 0; row < positions * 3; ++row) {
          for (const bool is_value : {false, true}) {
            const float* x = &(is_value ? s.values : s.keys)[row * d];
            float most = 0;
            for (int64_t i = 0; i < d; ++i) most = std::max(most, std::fabs(x[i]));
            const float scale = s.scale(is_value, row / 3, row % 3);
            if (type == DType::kI8) {
              ASSERT_EQ(scale, most / 127);
            }
            for (int64_t i = 0; i < d; ++i) {
              const float kept = s.element(is_value, row / 3, row % 3, i);
              const float expected = type == DType::kF32    ? x[i]
                                     : type == DType::kBF16 ? to_float(to_bf16(x[i]))
                                                            : std::nearbyint(x[i] * (127 / most));
              ASSERT_EQ(kept, expected) << isa_name(isa) << ", " << dtype_name(type) << ", d " << d;
            }
          }
        }
      }
    }
  }
}

TEST(KvStore, PiecesOfAnySizeLeaveTheSamePages) {
  for (const DType type : kTypes) {
    for (const int64_t d : {7, 64}) {
      const Shape shape{2, 1, d};
      const int64_t positions = kPageTokens + 90;
      Context plain(1, Isa::kPlain);
      Sequence whole(shape, type, positions);
      whole.store(plain);
      for (const Isa isa : available_isas()) {
        Context context(2, isa);
        for (const int64_t size : {1, 2, 15, 16, 17, 63, 64, 65, 300}) {
          Sequence pieces(shape, type, positions);
          for (int64_t t = 0; t < positions; t += size) {
            pieces.store(context, t, std::min(size, positions - t));
          }
          for (size_t p = 0; p < pieces.memory.size(); ++p) {
            EXPECT_EQ(std::memcmp(pieces.memory[p].data(), whole.memory[p].data(),
                                  whole.memory[p].size()),
                      0)
                << isa_name(isa) << ", " << dtype_name(type) << ", d " << d << ", pieces of "
                << size;
          }
        }
      }
    }
  }
}

TEST(KvStore, Int8OfExtremesIsDefined) {
  for (const Isa isa : available_isas()) {
    Context context(1, isa);
    Sequence s({1, 1, 33}, DType::kI8, 5);
    const float rows[] = {0.0f, 0x1p-121f, 3e38f, NAN, -INFINITY};
    for (int64_t t = 0; t < 5; ++t) {
      std::fill_n(s.keys.begin() + t * 33, 33, 0.0f);
      s.keys[t * 33 + 32] = s.keys[t * 33 + 3] = rows[t];
    }
    s.store(context);
    for (int64_t t = 0; t < 5; ++t) {
      const float scale = s.scale(false, t, 0);
      EXPECT_EQ(s.element(false, t, 0, 3), t == 2 ? 127 : 0) << isa_name(isa) << t;
      EXPECT_EQ(s.element(false, t, 0, 32), t == 2 ? 127 : 0) << isa_name(isa) << t;
      EXPECT_EQ(s.element(false, t, 0, 0), 0);
      if (t < 2) {
        EXPECT_EQ(scale, 0.0f);
      } else if (t == 2) {
        EXPECT_EQ(scale, 3e38f / 127);
      } else {
        EXPECT_TRUE(std::isnan(scale));
      }
    }
  }
}

// Numbers that are hard to round, through the vector code and by the definition.
TEST(KvStore, Bf16RoundsLikeTheDefinition) {
  std::mt19937 random(17);
  for (const Isa isa : available_isas()) {
    Context context(1, isa);
    Sequence s({1, 1, 64}, DType::kBF16, 200);
    for (float& x : s.keys) {
      uint32_t bits = random();
      if (bits % 3 == 0) bits = (bits & 0xffff0000) | 0x8000;       // a tie
      if (bits % 50 == 1) bits |= 0x7f800000;                       // NaN
      if (bits % 50 == 2) bits = (bits & 0x80000000) | 0x7f7fffff;  // rounds to infinity
      std::memcpy(&x, &bits, sizeof(x));
    }
    s.store(context);
    for (int64_t t = 0; t < 200; ++t) {
      for (int64_t i = 0; i < 64; ++i) {
        const float kept = s.element(false, t, 0, i),
                    expected = to_float(to_bf16(s.keys[t * 64 + i]));
        EXPECT_EQ(std::memcmp(&kept, &expected, sizeof(float)), 0) << isa_name(isa) << kept;
      }
    }
  }
}

}  // namespace
}  // namespace drover
