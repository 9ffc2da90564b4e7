// The packing of a step's weights, in the order in which its tiles are multiplied, and what its caches begin with.
#pragma once

#include "sampler/memory.h"
#include "simd/floats.h"

namespace vqfast::VQFAST_ISA {
namespace {

template <class Memory>
struct Packing {
  using T = typename Memory::T;
  static constexpr int kLanes = Memory::kLanes, kColumns = Memory::kColumns;

  const Memory& all;
  int64_t i;  // number of the step
  const Step& step() const { return all.s.steps[i]; }
  const StepMemory& memory() const { return all.steps[i]; }

  // The number of the sum that lane l of register v of tile j holds; -1 for padding. A tile of pairs holds their first
  // sums in one register and their second sums in the other.
  int64_t sum_at(int64_t j, int64_t v, int64_t l) const {
    const bool paired = is_paired(step().activation);
    const int64_t channel = paired ? j * kLanes + l : j * kColumns + v * kLanes + l;
    return channel >= memory().channels ? -1 : channel + (paired ? v * memory().channels : 0);
  }
  // f(number of the tile, of the register, of its first sum, of its sums)
  template <class F>
  void for_registers(const F& f) const {
    for (int64_t j = 0; j < memory().tiles; ++j)
      for (int64_t v = 0; v < kTileRegisters; ++v) {
        int64_t count = 0;
        while (count < kLanes && sum_at(j, v, count) >= 0) ++count;
        f(j, v, sum_at(j, v, 0), count);
      }
  }

  // Puts `count` numbers that are `stride` apart into the lanes of a register, `apart` numbers from each other; zeros
  // into the others.
  template <class From, class To>
  static void put(const From* from, int64_t stride, int64_t count, To* lane, int64_t apart = 1) {
    for (int64_t l = 0; l < count; ++l) lane[l * apart] = rounded<To>(from[l * stride]);
    for (int64_t l = count; l < kLanes; ++l) lane[l * apart] = To{};
  }
  // Puts numbers of all sums into the order of the tiles. Null stands for zeros.
  template <class From>
  void spread(const From* from, int64_t stride, T* to) const {
    for_registers([&](int64_t j, int64_t v, int64_t first, int64_t count) {
      put(from + first * stride, stride, from ? count : 0, to + j * kColumns + v * kLanes);
    });
  }
  template <class To, class From>
  static To rounded(From number) {
    if constexpr (__is_same(To, Bf16) && __is_same(From, float)) return Bf16::nearest(number);
    else return To(number);
  }

  // Packs the matrix (inputs, width) of a tap, from row `row` of the packed one on: register by register, since the
  // numbers of one channel may lie far from each other, and those of one sum together.
  template <class Arithmetic, class Given>
  void pack_matrix(bool early, const Given* from, const Weight& weight, int64_t inputs, int64_t row) const {
    using Form = Factoring<Arithmetic>;
    using Packed = std::conditional_t<(Form::kPacking > 1), Bf16, Given>;
    constexpr int64_t kPacking = Form::kPacking, kRow = kColumns * kPacking;
    const int64_t channels = Form::depth_of(inputs) / Form::kPieces * kPacking;
    const int64_t of_channel = weight.strides[1], of_sum = weight.strides[2];
    Packed* to = all.template shared<Packed>(memory().matrix[early]) + row * kRow;
    for_registers([&](int64_t j, int64_t v, int64_t first, int64_t count) {
      Packed* lanes = to + j * memory().depth[early] * kRow + v * kLanes * kPacking;
      const Given* own = from + first * of_sum;
      const auto put_channel = [&](int64_t c, auto* lane, int64_t apart) {
        put(own + c * of_channel, of_sum, c < inputs ? count : 0, lane, apart);
      };
      if constexpr (Form::kPieces > 1) {  // two channels at a time, which are the halves of words
        for (int64_t c = 0; c < channels; c += 2) {
          Floats pair[2];
          for (int64_t half = 0; half < 2; ++half) put_channel(c + half, reinterpret_cast<float*>(pair + half), 1);
          Bits32 pieces[Form::kPieces];
          split(pair[0], pair[1], pieces);
          for (int piece = 0; piece < Form::kPieces; ++piece)
            store(pieces[piece], lanes + Form::at(c) * kColumns + piece * Form::kUnit * kColumns);
        }
      } else {
        for (int64_t c = 0; c < channels; ++c) put_channel(c, lanes + c / kPacking * kRow + c % kPacking, kPacking);
      }
    });
  }

  // Packs the step's weights, and fills each team's cache with zeros and, once, those of the codes with the number of
  // the code outside the grid, num_embeddings.
  template <class Given>
  void pack() const {
    const SamplerProblem& s = all.s;
    const StepMemory& m = memory();
    const auto numbers_of = [&](int64_t weight) { return static_cast<const Given*>(s.weights[weight].numbers); };
    int64_t row[2] = {};
    T* table = all.template shared<T>(m.tables);
    all.for_taps(step(), [&](const Term& term, const Tap& tap, int64_t n) {
      if (term.weight < 0) return;
      const int64_t inputs = is_codes(term.source) ? s.num_embeddings : term.channels;
      const Weight& weight = s.weights[term.weight];
      const Given* from = numbers_of(term.weight) + n * weight.strides[0];
      if (is_codes(term.source)) {
        for (int64_t k = 0; k <= inputs; ++k, table += m.columns)  // zeros for the code outside the grid
          spread(k < inputs ? from + k * weight.strides[1] : nullptr, weight.strides[2], table);
      } else {
        if (tap.early) pack_matrix<typename Memory::Early>(true, from, weight, inputs, row[1]);
        else pack_matrix<typename Memory::Late>(false, from, weight, inputs, row[0]);
        row[tap.early] += Memory::depth_of(inputs, tap.early);
      }
    });
    for (int64_t t = 0; t < s.teams; ++t) {
      const typename Memory::Team team{all, t};
      memset(team.template at<char>(m.caches), 0, m.start - m.caches);
      T* start = team.template at<T>(m.start);
      for (int64_t b = 0; b < (step().label_bias < 0 ? 1 : team.batch); ++b, start += m.columns) {
        const int64_t bias = step().bias;
        spread(bias < 0 ? nullptr : numbers_of(bias), bias < 0 ? 0 : s.weights[bias].strides[2], start);
        if (step().label_bias < 0) continue;
        const Weight& labels = s.weights[step().label_bias];
        const Given* label = numbers_of(step().label_bias) + s.labels[team.first + b] * labels.strides[1];
        for (int64_t j = 0; j < m.columns; ++j) {
          const int64_t at = sum_at(j / kColumns, j % kColumns / kLanes, j % kLanes);
          if (at >= 0) start[j] += T(label[at * labels.strides[2]]);
        }
      }
      if (i > 0) continue;
      // The last pair of an odd number of channels has a zero in it.
      if (Memory::kFactors) memset(team.template at<char>(all.layout->condition), 0, all.map_bytes(*all.layout));
      int32_t* codes = team.template at<int32_t>(all.layout->codes);
      for (int64_t n = 0; n < s.num_codes * team.code_cells(); ++n) codes[n] = int32_t(s.num_embeddings);
    }
  }
};

}  // namespace
}  // namespace vqfast::VQFAST_ISA
