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

  // Puts from[width] into the order of the tiles, `apart` numbers from each other; tile j goes to to + j * distance.
  // Null stands for zeros.
  template <class From, class To>
  void spread(const From* from, To* to, int64_t distance, int64_t apart = 1) const {
    for_registers([&](int64_t j, int64_t v, int64_t first, int64_t count) {
      To* lane = to + j * distance + v * kLanes * apart;
      for (int64_t l = 0; l < kLanes; ++l, lane += apart)
        *lane = from && l < count ? rounded<To>(from[first + l]) : To{};
    });
  }
  template <class To, class From>
  static To rounded(From number) {
    if constexpr (__is_same(To, Bf16) && __is_same(From, float)) return Bf16::nearest(number);
    else return To(number);
  }

  // Packs the matrix (inputs, width) of a tap, from row `row` of the packed one on.
  template <class Arithmetic, class Given>
  void pack_matrix(bool early, const Given* from, int64_t inputs, int64_t row) const {
    using Form = Factoring<Arithmetic>;
    using Packed = std::conditional_t<(Form::kPacking > 1), Bf16, Given>;
    constexpr int64_t kPacking = Form::kPacking, kRow = kColumns * kPacking;
    const int64_t channels = Form::depth_of(inputs) / Form::kPieces * kPacking;
    Packed* to = all.template shared<Packed>(memory().matrix[early]) + row * kRow;
    const int64_t distance = memory().depth[early] * kRow;
    if constexpr (Form::kPieces > 1) return pack_pieces<Form>(from, inputs, channels, to, distance);
    else
      for (int64_t c = 0; c < channels; ++c)
        spread(c < inputs ? from + c * step().width : nullptr, to + c / kPacking * kRow + c % kPacking, distance,
               kPacking);
  }
  // As above, in pieces: two channels at a time, which are the halves of words.
  template <class Form>
  void pack_pieces(const float* from, int64_t inputs, int64_t channels, Bf16* to, int64_t distance) const {
    for_registers([&](int64_t j, int64_t v, int64_t first, int64_t count) {
      const auto channel = [&](int64_t c) {
        return c < inputs && count ? load_part<Floats>(from + c * step().width + first, count) : Floats{};
      };
      for (int64_t c = 0; c < channels; c += 2) {
        Bf16* words = to + j * distance + Form::at(c) * kColumns + v * kLanes * 2;
        Bits32 pieces[Form::kPieces];
        split(channel(c), channel(c + 1), pieces);
        for (int piece = 0; piece < Form::kPieces; ++piece) store(pieces[piece], words + piece * Form::kUnit * kColumns);
      }
    });
  }

  // Packs the step's weights, and fills each team's cache with zeros and, once, those of the codes with the number of
  // the code outside the grid, num_embeddings.
  template <class Given>
  void pack() const {
    const SamplerProblem& s = all.s;
    const StepMemory& m = memory();
    const auto* weights = static_cast<const Given*>(s.weights);
    int64_t row[2] = {};
    T* table = all.template shared<T>(m.tables);
    all.for_taps(step(), [&](const Term& term, const Tap& tap, int64_t n) {
      if (term.weight < 0) return;
      const int64_t inputs = is_codes(term.source) ? s.num_embeddings : term.channels;
      const Given* from = weights + term.weight + n * inputs * step().width;
      if (is_codes(term.source)) {
        for (int64_t k = 0; k <= inputs; ++k, table += m.columns)  // zeros for the code outside the grid
          spread(k < inputs ? from + k * step().width : nullptr, table, kColumns);
      } else {
        if (tap.early) pack_matrix<typename Memory::Early>(true, from, inputs, row[1]);
        else pack_matrix<typename Memory::Late>(false, from, inputs, row[0]);
        row[tap.early] += Memory::depth_of(inputs, tap.early);
      }
    });
    for (int64_t t = 0; t < s.teams; ++t) {
      const typename Memory::Team team{all, t};
      memset(team.template at<char>(m.caches), 0, m.start - m.caches);
      T* start = team.template at<T>(m.start);
      for (int64_t b = 0; b < (step().label_bias < 0 ? 1 : team.batch); ++b, start += m.columns) {
        spread(step().bias < 0 ? nullptr : weights + step().bias, start, kColumns);
        if (step().label_bias < 0) continue;
        const Given* label = weights + step().label_bias + s.labels[team.first + b] * step().width;
        for (int64_t j = 0; j < m.columns; ++j) {
          const int64_t at = sum_at(j / kColumns, j % kColumns / kLanes, j % kLanes);
          if (at >= 0) start[j] += T(label[at]);
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
