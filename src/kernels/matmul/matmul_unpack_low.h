// The formats whose codes are less than plain numbers: the 2 and 3 bits of Q2_K and Q3_K, and those
// that look their 4 bits up, IQ4_NL, IQ4_XS and MXFP4. See matmul_unpack.h for what a panel is and
// for who may include this.
#pragma once

#include "kernels/matmul/matmul_unpack.h"

namespace drover::internal {
namespace {

template <class V>
struct UnpackQ2_K {
  // A scale times a code is a whole number up to 15 * 3 = 45.
  using KindOf = Kind<BlockForm::kTwoMinima, 6, 0>;

  static void unpack(const std::byte* rows, int64_t stride, int64_t count, Prefetch& prefetch,
                     PanelBlock<V>* out) {
    const auto two_bits = V::bytes(3), one_of_two = V::dwords(0x000f000f);
    for (int64_t b = 0; b < count; b += 8, rows += sizeof(BlockQ2_K), out += 8) {
      typename V::Int scales[4];  // bytes: scale and minimum of 4 sub-blocks of 16
      V::load_transposed(rows + offsetof(BlockQ2_K, scales), stride, scales);
      const auto both = V::gather(rows + offsetof(BlockQ2_K, d), stride);
      const auto scale = V::low_half_to_float(both);
      const auto minimum = V::negate(V::high_half_to_float(both));
      unrolled<2>([&](auto n) {
        typename V::Int codes[8];  // those of four blocks of 32, two bits each
        V::load_transposed(rows + offsetof(BlockQ2_K, q) + 32 * n, stride, codes);
        V::load_transposed(rows + offsetof(BlockQ2_K, q) + 32 * n + 16, stride, codes + 4);
        unrolled<4>([&](auto s) {
          constexpr int i = 4 * n + s;
          prefetch.advance();
          const auto pair = scales[i / 2];
          V::store(out[i].scale, scale);
          V::store(out[i].second, minimum);
          // The upper halves of two bytes, each to the foot of a 16-bit number.
          constexpr int kShift = 16 * (i % 2);
          V::store(out[i].steps,
                   V::and_or(V::template shift32<4 - kShift>(pair), V::dwords(0x000f0000),
                             V::bit_and(V::template shift32<-4 - kShift>(pair), V::dwords(15))));
          unrolled<2>([&](auto half) {
            // Two codes to a 16-bit number: its product with a scale is both, for neither exceeds a
            // byte.
            const auto own =
                V::bit_and(V::template spread_byte<i % 2 * 2 + half>(pair), one_of_two);
            for (int j = 4 * half; j < 4 * half + 4; ++j) {
              const auto code = V::bit_and(V::template shift16<-2 * s>(codes[j]), two_bits);
              V::store(out[i].codes[j], V::mul16(code, own));
            }
          });
        });
      });
    }
  }
};

template <class V>
struct UnpackQ3_K {
  // Codes of 28 to 35: of the offsets that fit, the one that activations carry the sums for.
  using KindOf = Kind<BlockForm::kTwoScales, 6, 32>;

  static void unpack(const std::byte* rows, int64_t stride, int64_t count, Prefetch& prefetch,
                     PanelBlock<V>* out) {
    const auto low = V::bytes(3), third = V::bytes(4), lift = V::bytes(32 - 4);
    for (int64_t b = 0; b < count; b += 8, rows += sizeof(BlockQ3_K), out += 8) {
      unpack_scales(rows, stride, out);
      typename V::Int high[8];
      V::load_transposed(rows + offsetof(BlockQ3_K, high), stride, high);
      V::load_transposed(rows + offsetof(BlockQ3_K, high) + 16, stride, high + 4);
      unrolled<4>([&](auto piece) {
        prefetch.advance(2);
        constexpr int n = piece / 2, half = piece % 2;  // of the block, of 32 values
        typename V::Int v[4];
        V::load_transposed(rows + offsetof(BlockQ3_K, low) + 32 * n + 16 * half, stride, v);
        for (int j = 0; j < 4; ++j) {
          unrolled<4>([&](auto s) {
            constexpr int i = 4 * n + s;
            const auto code = V::and_or(V::template shift16<2 - i>(high[4 * half + j]), third,
                                        V::bit_and(V::template shift16<-2 * s>(v[j]), low));
            V::store(out[i].codes[4 * half + j], V::add_bytes(code, lift));
          });
        }
      });
    }
  }

 private:
  static void unpack_scales(const std::byte* block, int64_t stride, PanelBlock<V>* out) {
    // The last 16 bytes of the block: two that do not matter, 12 of scales, d.
    static_assert(offsetof(BlockQ3_K, d) == sizeof(BlockQ3_K) - 2);
    typename V::Int v[4];
    V::load_transposed(block + sizeof(BlockQ3_K) - 16, stride, v);
    const auto d = V::high_half_to_float(v[3]);
    auto aligned = [&](int i) {
      return V::bit_or(V::template shift32<-16>(v[i]), V::template shift32<16>(v[i + 1]));
    };
    const auto a = aligned(0), b = aligned(1), c = aligned(2);
    const auto low = V::bytes(15), top = V::bytes(0x30), minus_32 = V::bytes(-32);
    auto put_together = [&](typename V::Int lower, typename V::Int upper) {
      return V::add_bytes(V::and_or(upper, top, V::bit_and(lower, low)), minus_32);
    };
    const typename V::Int scales[4] = {
        put_together(a, V::template shift16<4>(c)), put_together(b, V::template shift16<2>(c)),
        put_together(V::template shift_right16<4>(a), c),
        put_together(V::template shift_right16<4>(b), V::template shift_right16<2>(c))};
    unrolled<8>([&](auto i) {
      const auto four = scales[i / 2];
      V::store(out[i].scale, V::mul(d, V::template signed_byte<i % 2 * 2>(four)));
      V::store(out[i].second, V::mul(d, V::template signed_byte<i % 2 * 2 + 1>(four)));
    });
  }
};

// The codes of 32 values from the 16 bytes of each row, looked up.
template <class V>
[[gnu::always_inline]] inline void load_looked_up(const std::byte* q, int64_t stride,
                                                  typename V::Int table,
                                                  uint8_t codes[8][4 * V::kRows]) {
  typename V::Int v[4];
  V::load_transposed(q, stride, v);
  const auto mask = V::bytes(15);
  for (int j = 0; j < 4; ++j) {
    V::store(codes[j], V::lookup(table, V::bit_and(v[j], mask)));
    V::store(codes[4 + j], V::lookup(table, V::bit_and(V::template shift_right16<4>(v[j]), mask)));
  }
}

template <class V>
struct UnpackIQ4_NL : UnpackBlocks<V, UnpackIQ4_NL<V>, BlockIQ4_NL> {
  using KindOf = Kind<BlockForm::kOneScale, 8, 128>;

  [[gnu::always_inline]] static void load(const std::byte* block, int64_t stride,
                                          PanelBlock<V>& out) {
    const auto table = V::signed_codes(V::table(kIq4Values));
    load_looked_up<V>(block + offsetof(BlockIQ4_NL, q), stride, table, out.codes);
    V::store(out.scale, V::low_half_to_float(V::gather(block, stride)));
  }
};

template <class V>
struct UnpackIQ4_XS {
  using KindOf = Kind<BlockForm::kOneScale, 8, 128>;

  static void unpack(const std::byte* rows, int64_t stride, int64_t count, Prefetch& prefetch,
                     PanelBlock<V>* out) {
    const auto table = V::signed_codes(V::table(kIq4Values));
    const auto low = V::dwords(0x0f), top = V::dwords(0x30), minus_32 = V::dwords(-32);
    for (int64_t b = 0; b < count; b += 8, rows += sizeof(BlockIQ4_XS), out += 8) {
      // d and the upper bits of the scales; their lower bits; 8 bytes of codes to no purpose.
      typename V::Int head[4];
      V::load_transposed(rows, stride, head);
      const auto d = V::low_half_to_float(head[0]);
      unrolled<8>([&](auto s) {
        prefetch.advance();
        const auto six_bits = V::and_or(V::template shift32<-12 - 2 * s>(head[0]), top,
                                        V::bit_and(V::template shift32<-4 * s>(head[1]), low));
        V::store(out[s].scale, V::mul(d, V::to_float(V::add32(six_bits, minus_32))));
        load_looked_up<V>(rows + offsetof(BlockIQ4_XS, q) + 16 * s, stride, table, out[s].codes);
      });
    }
  }
};

template <class V>
struct UnpackMXFP4 : UnpackBlocks<V, UnpackMXFP4<V>, BlockMXFP4> {
  // Doubled values of -12 to 12. An offset of 12 would do, but activations carry the sum for 16.
  using KindOf = Kind<BlockForm::kOneScale, 5, 16>;

  [[gnu::always_inline]] static void load(const std::byte* block, int64_t stride,
                                          PanelBlock<V>& out) {
    const auto table = V::add_bytes(V::table(kMxfp4Values), V::bytes(16));
    load_looked_up<V>(block + offsetof(BlockMXFP4, q), stride, table, out.codes);
    // half_e8m0 of every row: as signed numbers, the right one of its two is the larger.
    const auto e = V::bit_and(V::gather(block, stride), V::dwords(0xff));
    const auto normal = V::template shift32<23>(V::add32(e, V::dwords(-1)));
    const auto subnormal = V::template shift32<21>(V::add32(e, V::dwords(1)));
    V::store(out.scale, V::as_float(V::max32(normal, subnormal)));
  }
};

}  // namespace
}  // namespace drover::internal
