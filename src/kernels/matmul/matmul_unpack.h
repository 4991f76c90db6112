// From block formats to panels, for any vector width. Included only by the files of an instruction
// set, each with its own vector type V; everything here is local to the including file, so that no
// function compiled for one instruction set can stand in for another's.
//
// A panel holds V::kRows rows side by side: its vectors have one 32-bit lane per row, and a lane
// holds the codes of 4 consecutive values. The formats keep 16 consecutive bytes of a row together;
// transposing 4 x 4 lanes of such pieces puts the rows side by side while the codes are still
// packed, and the nibbles and bits are taken apart after that.
//
// What V provides: Int and Float, vectors of kRows 32-bit lanes, and the operations used below.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/matmul/matmul_kernels.h"
#include "tensor/blocks.h"
#include "tensor/dequantize.h"

namespace drover::internal {
namespace {

// 32 values of V::kRows rows.
template <class V>
struct PanelBlock {
  uint8_t codes[8][4 * V::kRows];  // [j]: values 4j ... 4j + 3 of every row
  float scale[V::kRows];
  float second[V::kRows];   // the scale of the last 16 values, or the minimum
  int32_t steps[V::kRows];  // two minima: m[0] in the lower 16 bits, m[1] in the upper
};

// What the kernel needs to know of a format at compile time. Codes are unsigned numbers of kBits
// bits but for 8 bits, which V may store as it likes; kOffset is what they exceed the weights by.
template <BlockForm kFormOf, int kBitsOf, int kOffsetOf>
struct Kind {
  static constexpr BlockForm kForm = kFormOf;
  static constexpr int kBits = kBitsOf;
  static constexpr int kOffset = kOffsetOf;
};

// Walks through the rows that come next, at the pace at which the current ones are used up, and
// asks for their cache lines: the hardware's prefetchers lose track of 32 short rows. One pass of
// tokens asks while it unpacks, several while they multiply; either in the other's place, all at
// once, cost up to a fifth of the time.
struct Prefetch {
  uintptr_t at;  // may run beyond the weights: fetching early never faults
  int64_t step;  // bytes per block of 32 values

  [[gnu::always_inline]] void advance(int64_t blocks = 1) {
    for (int64_t i = 0; i < blocks * step; i += 64) {
      __builtin_prefetch(reinterpret_cast<const void*>(at + i), /*rw=*/0, /*locality=*/2);
    }
    at += blocks * step;
  }
};

// Calls body(integral_constant<int, 0>) ... body(integral_constant<int, kCount - 1>): a loop whose
// index may be an instruction's immediate.
template <int kCount, class Body>
[[gnu::always_inline]] inline void unrolled(Body&& body) {
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) __attribute__((always_inline)) {
    (body(std::integral_constant<int, kIndex>{}), ...);
  }
  (std::make_integer_sequence<int, kCount>{});
}

// A number of 2 bytes at `offset` of `count` blocks of every row, gathered by plain moves: these
// use no vector unit, and a whole chunk at once hides the way through memory.
template <class V, class Block>
[[gnu::always_inline]] inline void gather_halves(const std::byte* rows, int64_t stride,
                                                 int64_t count, size_t offset,
                                                 uint16_t (*out)[V::kRows]) {
  for (int64_t b = 0; b < count; ++b) {
    const std::byte* p = rows + b * static_cast<int64_t>(sizeof(Block)) + offset;
    for (int r = 0; r < V::kRows; ++r) std::memcpy(&out[b][r], p + r * stride, sizeof(uint16_t));
  }
}

template <class V>
[[gnu::always_inline]] inline void store_nibbles(const typename V::Int packed[4],
                                                 uint8_t codes[8][4 * V::kRows]) {
  const auto mask = V::bytes(15);
  for (int j = 0; j < 4; ++j) {
    V::store(codes[j], V::bit_and(packed[j], mask));
    V::store(codes[4 + j], V::bit_and(V::template shift_right16<4>(packed[j]), mask));
  }
}

// Each format: unpack() writes blocks [0, count) of V::kRows rows to `out`. `rows` points at the
// first of these blocks in the first row. K-quants come in multiples of 8.
//
// Formats of 32 values per block also say how one block is loaded, for products that go straight
// from there to the sums.
template <class V, class Format, class Block>
struct UnpackBlocks {
  static constexpr int64_t kBlockBytes = sizeof(Block);

  static void unpack(const std::byte* rows, int64_t stride, int64_t count, Prefetch& prefetch,
                     PanelBlock<V>* out) {
    for (int64_t b = 0; b < count; ++b) {
      prefetch.advance();
      Format::load(rows + b * kBlockBytes, stride, out[b]);
    }
  }
};

template <class V>
struct UnpackQ8_0 : UnpackBlocks<V, UnpackQ8_0<V>, BlockQ8_0> {
  using KindOf = Kind<BlockForm::kOneScale, 8, 128>;

  [[gnu::always_inline]] static void load(const std::byte* block, int64_t stride,
                                          PanelBlock<V>& out) {
    for (int half = 0; half < 2; ++half) {
      typename V::Int v[4];
      V::load_transposed(block + offsetof(BlockQ8_0, q) + 16 * half, stride, v);
      for (int j = 0; j < 4; ++j) V::store(out.codes[4 * half + j], V::signed_codes(v[j]));
    }
    V::store(out.scale, V::low_half_to_float(V::gather(block, stride)));
  }
};

template <class V>
struct UnpackQ4_0 : UnpackBlocks<V, UnpackQ4_0<V>, BlockQ4_0> {
  using KindOf = Kind<BlockForm::kOneScale, 4, 8>;

  [[gnu::always_inline]] static void load(const std::byte* block, int64_t stride,
                                          PanelBlock<V>& out) {
    typename V::Int v[4];
    V::load_transposed(block + offsetof(BlockQ4_0, q), stride, v);
    store_nibbles<V>(v, out.codes);
    V::store(out.scale, V::low_half_to_float(V::gather(block, stride)));
  }
};

// d and m of Q4_1 and Q5_1 stand side by side.
template <class V>
[[gnu::always_inline]] inline void load_scale_and_minimum(const std::byte* block, int64_t stride,
                                                          PanelBlock<V>& out) {
  const auto both = V::gather(block, stride);
  V::store(out.scale, V::low_half_to_float(both));
  V::store(out.second, V::high_half_to_float(both));
}

template <class V>
struct UnpackQ4_1 : UnpackBlocks<V, UnpackQ4_1<V>, BlockQ4_1> {
  using KindOf = Kind<BlockForm::kWithMinimum, 4, 0>;

  [[gnu::always_inline]] static void load(const std::byte* block, int64_t stride,
                                          PanelBlock<V>& out) {
    typename V::Int v[4];
    V::load_transposed(block + offsetof(BlockQ4_1, q), stride, v);
    store_nibbles<V>(v, out.codes);
    load_scale_and_minimum<V>(block, stride, out);
  }
};

// The codes of Q5_0 and Q5_1: bit j of a row's 32 goes to bit 4 of the byte of code j.
template <class V, class Block>
[[gnu::always_inline]] inline void load_five_bits(const std::byte* block, int64_t stride,
                                                  uint8_t codes[8][4 * V::kRows]) {
  typename V::Int packed[4];
  V::load_transposed(block + offsetof(Block, q), stride, packed);
  const auto even = V::gather(block + offsetof(Block, high), stride);  // of codes[0, 2, 4, 6]
  const auto odd = V::template shift_right16<4>(even);  // of the others, both in low nibbles
  const auto bit_of_byte = V::dwords(0x08040201), mask = V::bytes(15);
  unrolled<8>([&](auto j) {
    // All four bytes of a lane get the byte that has their bits; each keeps its own; 16 where set.
    const auto bytes = V::template spread_byte<j / 2>(j % 2 ? odd : even);
    const auto fifth = V::sixteen_if_set(V::bit_and(bytes, bit_of_byte));
    const auto nibbles = j < 4 ? packed[j % 4] : V::template shift_right16<4>(packed[j % 4]);
    V::store(codes[j], V::and_or(nibbles, mask, fifth));
  });
}

template <class V>
struct UnpackQ5_0 : UnpackBlocks<V, UnpackQ5_0<V>, BlockQ5_0> {
  using KindOf = Kind<BlockForm::kOneScale, 5, 16>;

  [[gnu::always_inline]] static void load(const std::byte* block, int64_t stride,
                                          PanelBlock<V>& out) {
    load_five_bits<V, BlockQ5_0>(block, stride, out.codes);
    V::store(out.scale, V::low_half_to_float(V::gather(block, stride)));
  }
};

template <class V>
struct UnpackQ5_1 : UnpackBlocks<V, UnpackQ5_1<V>, BlockQ5_1> {
  using KindOf = Kind<BlockForm::kWithMinimum, 5, 0>;

  [[gnu::always_inline]] static void load(const std::byte* block, int64_t stride,
                                          PanelBlock<V>& out) {
    load_five_bits<V, BlockQ5_1>(block, stride, out.codes);
    load_scale_and_minimum<V>(block, stride, out);
  }
};

// The 16 bytes at the head of a Q4_K or Q5_K block: d, dmin, and 8 scales and minima of 6 bits
// each, for every row at once. The four bytes of a lane hold four of the packed numbers.
template <class V>
[[gnu::always_inline]] inline void unpack_k_scales(const std::byte* head, int64_t stride,
                                                   PanelBlock<V>* out) {
  typename V::Int v[4];
  V::load_transposed(head, stride, v);
  const auto d = V::low_half_to_float(v[0]);
  const auto dmin = V::negate(V::high_half_to_float(v[0]));
  const auto six_bits = V::bytes(0x3f), low = V::bytes(0x0f), top = V::bytes(0x30);
  // Four numbers per lane: of sub-blocks 0 to 3 and 4 to 7.
  const auto top_of_scales = V::bit_and(V::template shift_right16<2>(v[1]), top);
  const auto top_of_mins = V::bit_and(V::template shift_right16<2>(v[2]), top);
  const typename V::Int scales[2] = {V::bit_and(v[1], six_bits),
                                     V::and_or(v[3], low, top_of_scales)};
  const typename V::Int mins[2] = {V::bit_and(v[2], six_bits),
                                   V::and_or(V::template shift_right16<4>(v[3]), low, top_of_mins)};
  unrolled<8>([&](auto s) {
    V::store(out[s].scale, V::mul(d, V::template unsigned_byte<s % 4>(scales[s / 4])));
    V::store(out[s].second, V::mul(dmin, V::template unsigned_byte<s % 4>(mins[s / 4])));
  });
}

template <class V>
struct UnpackQ4_K {
  using KindOf = Kind<BlockForm::kWithMinimum, 4, 0>;

  static void unpack(const std::byte* rows, int64_t stride, int64_t count, Prefetch& prefetch,
                     PanelBlock<V>* out) {
    const auto mask = V::bytes(15);
    for (int64_t b = 0; b < count; b += 8, rows += sizeof(BlockQ4_K), out += 8) {
      unpack_k_scales<V>(rows, stride, out);
      for (int g = 0; g < 4; ++g) {
        prefetch.advance(2);
        for (int half = 0; half < 2; ++half) {
          typename V::Int v[4];
          V::load_transposed(rows + offsetof(BlockQ4_K, q) + 32 * g + 16 * half, stride, v);
          for (int j = 0; j < 4; ++j) {
            V::store(out[2 * g].codes[4 * half + j], V::bit_and(v[j], mask));
            V::store(out[2 * g + 1].codes[4 * half + j],
                     V::bit_and(V::template shift_right16<4>(v[j]), mask));
          }
        }
      }
    }
  }
};

template <class V>
struct UnpackQ5_K {
  using KindOf = Kind<BlockForm::kWithMinimum, 5, 0>;

  static void unpack(const std::byte* rows, int64_t stride, int64_t count, Prefetch& prefetch,
                     PanelBlock<V>* out) {
    const auto low = V::bytes(15), fifth = V::bytes(16);
    for (int64_t b = 0; b < count; b += 8, rows += sizeof(BlockQ5_K), out += 8) {
      unpack_k_scales<V>(rows, stride, out);
      typename V::Int high[8];
      V::load_transposed(rows + offsetof(BlockQ5_K, high), stride, high);
      V::load_transposed(rows + offsetof(BlockQ5_K, high) + 16, stride, high + 4);
      unrolled<4>([&](auto g) {
        prefetch.advance(2);
        for (int half = 0; half < 2; ++half) {
          typename V::Int v[4];
          V::load_transposed(rows + offsetof(BlockQ5_K, q) + 32 * g + 16 * half, stride, v);
          for (int j = 0; j < 4; ++j) {
            // Bits 2g and 2g + 1 of the byte become bit 4 of the codes.
            const auto h = high[4 * half + j];
            V::store(out[2 * g].codes[4 * half + j],
                     V::and_or(V::template shift16<4 - 2 * g>(h), fifth, V::bit_and(v[j], low)));
            V::store(out[2 * g + 1].codes[4 * half + j],
                     V::and_or(V::template shift16<3 - 2 * g>(h), fifth,
                               V::bit_and(V::template shift_right16<4>(v[j]), low)));
          }
        }
      });
    }
  }
};

template <class V>
struct UnpackQ6_K {
  using KindOf = Kind<BlockForm::kTwoScales, 6, 32>;

  static void unpack(const std::byte* rows, int64_t stride, int64_t count, Prefetch& prefetch,
                     PanelBlock<V>* out) {
    uint16_t d[kPanelBlocks / 8][V::kRows];
    gather_halves<V, BlockQ6_K>(rows, stride, count / 8, offsetof(BlockQ6_K, d), d);
    const auto mask = V::bytes(15), top = V::bytes(0x30);
    for (int64_t b = 0; b < count; b += 8, rows += sizeof(BlockQ6_K), out += 8) {
      typename V::Int scales[4];
      V::load_transposed(rows + offsetof(BlockQ6_K, scales), stride, scales);
      const auto shared = V::halves_to_float(d[b / 8]);
      unrolled<8>([&](auto s) {
        const auto pair = scales[s / 2];  // four signed bytes: two sub-blocks' two scales
        V::store(out[s].scale, V::mul(shared, V::template signed_byte<s % 2 * 2>(pair)));
        V::store(out[s].second, V::mul(shared, V::template signed_byte<s % 2 * 2 + 1>(pair)));
      });
      for (int piece = 0; piece < 4; ++piece) {
        prefetch.advance(2);
        const int n = piece / 2, half = piece % 2;  // of the block, of 32 values
        const std::byte* low = rows + offsetof(BlockQ6_K, low) + 64 * n + 16 * half;
        const std::byte* high = rows + offsetof(BlockQ6_K, high) + 32 * n + 16 * half;
        typename V::Int even[4], odd[4], h[4];
        V::load_transposed(low, stride, even);
        V::load_transposed(low + 32, stride, odd);
        V::load_transposed(high, stride, h);
        for (int j = 0; j < 4; ++j) {
          auto put = [&](int s, typename V::Int lower, typename V::Int upper) {
            V::store(out[4 * n + s].codes[4 * half + j],
                     V::and_or(upper, top, V::bit_and(lower, mask)));
          };
          put(0, even[j], V::template shift16<4>(h[j]));
          put(1, odd[j], V::template shift16<2>(h[j]));
          put(2, V::template shift_right16<4>(even[j]), h[j]);
          put(3, V::template shift_right16<4>(odd[j]), V::template shift16<-2>(h[j]));
        }
      }
    }
  }
};

}  // namespace
}  // namespace drover::internal
