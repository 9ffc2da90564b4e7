// The inner loop of every kernel: the product of a few rows with a few registers of columns, summed in registers.
#pragma once

#include "simd/registers.h"

namespace vqfast::VQFAST_ISA {
namespace {

// An arithmetic says how one step of the inner loop multiplies:
// - Element: a number of the rows, which is broadcast to all lanes;
// - Register: a register of columns and of sums;
// - Stored: the numbers as they are in memory, kPacking of them in the place of one Element;
// - add(sum, row, column): sum + row * column, lane by lane, over all kPacking numbers;
// - write(numbers, to): rounds a register of float32 to Stored at `to` and returns what it wrote, as float32.
struct Float32 {
  using Element = float;
  using Stored = float;
  using Register = Floats;
  static constexpr int kPacking = 1;
  static Floats add(Floats sum, float row, Floats column) { return sum + row * column; }
  static Floats write(Floats numbers, Stored* to) { return memcpy(to, &numbers, sizeof numbers), numbers; }
};
struct Float64 {
  using Element = double;
  using Register = Doubles;
  static Doubles add(Doubles sum, double row, Doubles column) { return sum + row * column; }
};
// Pairs of numbers that bfloat16 holds, multiplied in float32. Columns are as those of Bf16Pairs.
struct WidenedPairs {
  struct Element { float first, second; };
  using Stored = float;
  using Register = Floats;
  static constexpr int kPacking = 2;
  static Floats add(Floats sum, Element row, Floats column) {
    const Bits32 bits = (Bits32)column;
    sum += row.first * (Floats)(bits << 16);
    return sum + row.second * (Floats)(bits & 0xffff0000u);
  }
  static Floats write(Floats numbers, Stored* to) {
    const Floats rounded = (Floats)(narrow_to_bf16((Bits32)numbers) << 16);
    memcpy(to, &rounded, sizeof rounded);
    return rounded;
  }
};
#if defined(VQFAST_INTEGERS)
// Integers. Sums are int32 in the place of float32: `begin` makes them of the integer that they start with, `value`
// converts them to float32. The largest number of D channels is `most(D)`; columns have kOffset added.
struct Integers {
  using Element = float;
  using Register = Floats;
  static Floats begin(int32_t sum) { return (Floats)(sum - Ints{}); }
  static Floats value(Floats sum) { return __builtin_convertvector((Ints)sum, Floats); }
};
#endif
#if defined(__AVX512BF16__)
struct Bf16Pairs {
  using Element = float;
  using Stored = Bf16;
  using Register = Floats;
  static constexpr int kPacking = 2;
  static Floats add(Floats sum, float row, Floats column) {
    return _mm512_dpbf16_ps(sum, __m512bh(_mm512_set1_ps(row)), __m512bh(column));
  }
  static Floats write(Floats numbers, Stored* to) {
    const __m256bh rounded = _mm512_cvtneps_pbh(numbers);
    memcpy(to, &rounded, sizeof rounded);
    return load(to);
  }
};
// Rows hold int8, columns uint8, which the CPU's instruction wants.
struct Int8Quads : Integers {
  using Stored = int8_t;
  static constexpr int kPacking = 4, kOffset = 128;
  static float most(int64_t) { return 127; }
  static Floats add(Floats sum, float row, Floats column) {
    // Not the intrinsic: with that the compiler spills sums to memory.
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(column), "v"(_mm512_set1_ps(row)));
    return sum;
  }
  static Floats write(Floats numbers, Stored* to) {
    const __m512i rounded = _mm512_cvtps_epi32(numbers);
    _mm_storeu_si128((__m128i*)to, _mm512_cvtsepi32_epi8(rounded));
    return _mm512_cvtepi32_ps(rounded);
  }
};
constexpr int kMaxPacking = Int8Quads::kPacking;
#elif defined(VQFAST_INTEGERS)
struct Int16Pairs : Integers {
  using Stored = int16_t;
  static constexpr int kPacking = 2, kOffset = 0;
  // A power of two with D most^2 <= 2^30; D >= 4.
  static float most(int64_t d) { return float(1 << (30 - (64 - __builtin_clzll(uint64_t(d - 1)))) / 2); }
  static Floats add(Floats sum, float row, Floats column) {
    return (Floats)add_pairs((Ints)sum, (Ints)column, __builtin_bit_cast(int32_t, row) - Ints{});
  }
  // Two columns. A tile takes all registers: the compiler, which spills sums to memory, is told which are free.
  static void add(Floats& first, Floats& second, const float* row, Floats column, Floats next) {
    asm("vpbroadcastd %2, %%ymm15\n\t"
        "vpmaddwd %3, %%ymm15, %%ymm14\n\t"
        "vpmaddwd %4, %%ymm15, %%ymm15\n\t"
        "vpaddd %%ymm14, %0, %0\n\t"
        "vpaddd %%ymm15, %1, %1"
        : "+x"(first), "+x"(second)
        : "m"(*row), "x"(column), "x"(next)
        : "xmm14", "xmm15");
  }
  static Floats write(Floats numbers, Stored* to) {
    const Ints rounded = integers(numbers);
    const Bits16 narrow = __builtin_convertvector(rounded, Bits16);
    memcpy(to, &narrow, sizeof narrow);
    return __builtin_convertvector(rounded, Floats);
  }
};
constexpr int kMaxPacking = Int16Pairs::kPacking;
#else
constexpr int kMaxPacking = Float32::kPacking;
#endif

// Whether an arithmetic multiplies integers.
template <class Arithmetic>
constexpr bool kIntegers = requires { Arithmetic::most(0); };

// The sums of kR rows by kV registers of columns. They stay in registers as long as kR * kV of them fit there.
template <class Arithmetic, int kR = kTileRows, int kV = kTileRegisters>
struct Sums {
  using T = typename Arithmetic::Element;
  using Register = typename Arithmetic::Register;
  static constexpr int kLanes = sizeof(Register) / sizeof(Register{}[0]), kColumns = kV * kLanes;
  Register of[kR][kV];

  // Begins with from[r * row_stride + column]; with a stride of 0 every row begins with the same numbers.
  [[gnu::always_inline]] void start(const T* from, int64_t row_stride = 0) {
#pragma GCC unroll 16
    for (int r = 0; r < kR; ++r)
      for (int v = 0; v < kV; ++v) of[r][v] = load(from + r * row_stride + v * kLanes);
  }

  // Adds, for each of `steps` steps, rows[r * row_stride + step * step_stride] * columns[step * kColumns + column].
  // Reads all kColumns columns of every step, and prefetches beyond them. Of many sums each() is called at every step.
  template <class Stored, class Each>
  [[gnu::always_inline]] void add(
      int64_t steps, const T* rows, int64_t row_stride, int64_t step_stride, const Stored* columns, const Each& each) {
    // Few sums would wait for each other, so that every kWays-th step has its own; those of integers are soon ready.
    // Few rows wait for the columns, which are prefetched 2 KB ahead.
    constexpr int kWays = kIntegers<Arithmetic> || kR * kV >= 8 ? 1 : kR * kV >= 4 ? 2 : 4;
    constexpr int kBytes = kWays * kColumns * sizeof(Stored);
    if constexpr (kWays > 1) {
      Register apart[kWays][kR][kV] = {};
      for (; steps >= kWays; steps -= kWays) {
#pragma GCC unroll 8
        for (int at = 0; at < kBytes; at += 64) __builtin_prefetch((const char*)columns + 2048 + at);
#pragma GCC unroll 4
        for (int way = 0; way < kWays; ++way, rows += step_stride, columns += kColumns)
          step(apart[way], rows, row_stride, columns);
      }
#pragma GCC unroll 4
      for (int way = 0; way < kWays; ++way)
        for (int r = 0; r < kR; ++r)
          for (int v = 0; v < kV; ++v) of[r][v] += apart[way][r][v];
    }
    for (; steps > 0; --steps, rows += step_stride, columns += kColumns) {
      step(of, rows, row_stride, columns);
      if (kWays == 1) each();
    }
  }
  template <class Stored>
  [[gnu::always_inline]] void add(
      int64_t steps, const T* rows, int64_t row_stride, int64_t step_stride, const Stored* columns) {
    add(steps, rows, row_stride, step_stride, columns, [] {});
  }

  template <class Stored>
  [[gnu::always_inline]] static void step(
      Register (&sums)[kR][kV], const T* rows, int64_t row_stride, const Stored* columns) {
    Register column[kV];
    for (int v = 0; v < kV; ++v) column[v] = load(columns + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kR; ++r) {
      const T* row = rows + r * row_stride;
      if constexpr (kV == 2 && requires { Arithmetic::add(sums[r][0], sums[r][1], row, column[0], column[1]); })
        Arithmetic::add(sums[r][0], sums[r][1], row, column[0], column[1]);
      else
        for (int v = 0; v < kV; ++v) sums[r][v] = Arithmetic::add(sums[r][v], *row, column[v]);
    }
  }
};

}  // namespace
}  // namespace vqfast::VQFAST_ISA
