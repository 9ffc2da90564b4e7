// One step of a program at some positions: its sums start from bias, codes and early taps, run through the matrices of
// its taps, and leave the registers activated.
#pragma once

#include "sampler/memory.h"

namespace vqfast::VQFAST_ISA {
namespace {

// Step i at some runs of columns: over the taps that are early, when a chunk starts, or over the others. The rows of
// the product are the samples of a column, and then columns and runs, one after another. Of several columns all sources
// have the step's stride, and `columns` counts those where it has values.
template <class Memory, class Arithmetic>
struct StepJob {
  using T = typename Memory::T;
  using V = typename Memory::V;
  using Segment = typename Memory::Segment;
  static constexpr int kLanes = Memory::kLanes, kColumns = Memory::kColumns;
  static constexpr bool kTiled = VQFAST_ISA::kTiled<Arithmetic>;
  static constexpr bool kFactors = Factoring<Arithmetic>::kPacking > 1;
  static constexpr int64_t kPacking = Factoring<Arithmetic>::kPacking, kPieces = Factoring<Arithmetic>::kPieces;
  static constexpr int kPartRows = kTiled ? 2 * kMostRows : kTileRows;  // at most, of a part
  static constexpr int kParts = 96 / kPartRows;  // that are computed side by side: their values stay in L2
  static constexpr int64_t kNearBytes = 16384;   // of weights that stay in L1
  using Tile = T[kPartRows][kColumns];
  struct Rows {  // kColumns numbers each, `stride` apart
    const T* first;
    int64_t stride;
  };

  const typename Memory::Team& team;
  int64_t i;
  bool early;
  const Run* runs;
  int64_t num_runs;
  Segment* segments;  // room for one of each tap
  typename Memory::Element* gathered;  // room for what all taps read of several runs
  int64_t num_segments = 0;
  bool adds = false;  // codes or values as they are
  int64_t together = 0, second = 0;  // rows that tiles take, and the first of the second group; 0 if there is one
  const Step& step() const { return team.all.s.steps[i]; }
  const StepMemory& memory() const { return team.all.steps[i]; }

  // What a tap reads of a run, to be multiplied.
  Segment read(const Run& run, const Term& term, const Tap& tap, int64_t matrix) const {
    using Element = typename Memory::Element;
    const auto depth_of = Factoring<Arithmetic>::depth_of;
    const MemoryLayout& l = *team.all.layout;
    const int64_t depth = depth_of(term.channels);
    if (term.source == kCondition) {  // which is read early alone
      const int64_t stride = Factoring<Arithmetic>::pitch_of(l.condition_room) / kPacking;
      return {team.template at<Element>(l.condition) + team.map_cell(run.y, run.x) * stride, stride, depth, matrix};
    }
    const int64_t stride = Factoring<Arithmetic>::pitch_of(team.all.steps[term.source].stride) / kPacking;
    if constexpr (kFactors) {
      const auto* pairs = team.factors(term.source, run.y + tap.dy, run.x, tap.dx);
      return {reinterpret_cast<const Element*>(pairs), stride, depth, matrix};
    } else {
      return {team.value(term.source, run.y + tap.dy, run.x, tap.dx), stride, depth, matrix};
    }
  }

  // Whether a tap finds a value, not a zero between those of a source with another stride.
  bool finds(const Term& term, const Tap& tap) const {
    const int64_t stride = team.all.s.stride_of(term.source);
    return stride == 1 || ((runs->y + tap.dy) % stride == 0 && (runs->x + tap.dx) % stride == 0);
  }

  void find_segments() {
    int64_t matrix = 0;
    auto* to = gathered;
    team.all.for_taps(step(), [&](const Term& term, const Tap& tap, int64_t) {
      if (tap.early != early) return;
      if (is_codes(term.source) || term.weight < 0) return void(adds = true);
      if (finds(term, tap)) segments[num_segments++] = num_runs == 1 ? read(*runs, term, tap, matrix)
                                                                     : gather(term, tap, matrix, to);
      matrix += Memory::depth_of(term.channels, early);
    });
  }

  // What a tap reads of all runs, copied to `to`, so that rows are at the same distance from each other.
  Segment gather(const Term& term, const Tap& tap, int64_t matrix, typename Memory::Element*& to) const {
    const int64_t depth = Memory::depth_of(term.channels, early);
    const Segment all{to, depth, depth, matrix};
    for (const Run* run = runs; run < runs + num_runs; ++run) {
      const Segment own = read(*run, term, tap, matrix);
      for (int64_t m = 0; m < run->columns * team.batch; ++m, to += depth)
        memcpy((void*)to, (const void*)(own.rows + m * own.stride), depth * sizeof *to);
    }
    return all;
  }

  // f(run, number of its row, number of the tile's row, count) for the parts of rows m .. m + count that are of one
  // run.
  template <class F>
  void for_runs(int64_t m, int64_t count, const F& f) const {
    int64_t r = 0;
    for (const Run* run = runs; r < count; ++run) {
      const int64_t rows = run->columns * team.batch, own = min(rows - m, count - r);
      if (own > 0) f(*run, m, r, own), r += own;
      m = max(m - rows, int64_t(0));
    }
  }

  // The sums over early taps of tile j of a run, from its row m on: those of a tile lie one after another.
  T* partial(const Run& run, int64_t j, int64_t m) const {
    const SamplerProblem& s = team.all.s;
    const int64_t chunk = team.all.chunk_of(step()), rows = s.rows_at_once() * chunk * team.batch;
    const int64_t column = run.y % s.rows_at_once() * chunk + s.early_column(run.x) / step().stride;
    return team.template at<T>(memory().partial) + (j * rows + column * team.batch + m) * kColumns;
  }

  // What rows from row m on of tile j start with before anything is added: sums over early taps, or bias and label.
  Rows first(const Run& run, int64_t j, int64_t m) const {
    const StepMemory& own = memory();
    if (!early && own.partial >= 0) return {partial(run, j, m), kColumns};
    const T* start = team.template at<T>(own.start) + j * kColumns;
    if (step().label_bias < 0) return {start, 0};
    return {start + m % team.batch * own.columns, own.columns};
  }

  // Asks for what rows of a tile will start with, if that lies far from all that is read before.
  void ask_for(int64_t j, int64_t m, int64_t count) const {
    if (early || memory().partial < 0 || num_runs > 1) return;
    const char* from = reinterpret_cast<const char*>(partial(*runs, j, m));
    for (int64_t at = 0; at < count * kColumns * int64_t(sizeof(T)); at += 64) __builtin_prefetch(from + at);
  }

  // Whether all that rows of a tile start with can be read where it lies.
  bool starts_in_place(int64_t m, int64_t count) const {
    const bool label = step().label_bias >= 0 && (early || memory().partial < 0);
    return num_segments > 0 && num_runs == 1 && !adds && (!label || m % team.batch + count <= team.batch);
  }

  // All that is added without a product to `count` rows from row m on of tile j; in `sums` if it isn't in one place.
  Rows start(int64_t j, int64_t m, int64_t count, Tile& sums) const {
    if (starts_in_place(m, count)) return first(*runs, j, m);
    for_runs(m, count, [&](const Run& run, int64_t own, int64_t r, int64_t n) { start(run, j, own, n, sums + r); });
    return {sums[0], kColumns};
  }
  [[gnu::noinline]] void start(const Run& run, int64_t j, int64_t m, int64_t count, T (*sums)[kColumns]) const {
    const Memory& all = team.all;
    const StepMemory& own = memory();
    for (int64_t r = 0; r < count;) {
      const Rows rows = first(run, j, m + r);
      const int64_t sample = (m + r) % team.batch;
      for (const int64_t end = min(count, r + team.batch - sample), from = r; r < end; ++r)
        memcpy(sums[r], rows.first + (r - from) * rows.stride, sizeof sums[r]);
    }
    const auto add = [&](const T* more, int64_t r, int64_t v) {
      store(load(sums[r] + v * kLanes) + load(more), sums[r] + v * kLanes);
    };
    const T* table = all.template shared<T>(own.tables) + j * kColumns;
    const bool paired = is_paired(step().activation);
    all.for_taps(step(), [&](const Term& term, const Tap& tap, int64_t) {
      if (is_codes(term.source) && tap.early == early) {
        const int32_t* codes = team.codes(term.source, run.y + tap.dy, run.x, tap.dx) + m;
        for (int64_t r = 0; r < count; ++r)
          for (int64_t v = 0; v < kTileRegisters; ++v) add(table + codes[r] * own.columns + v * kLanes, r, v);
      } else if (term.weight < 0 && tap.early == early) {
        const int64_t stride = all.steps[term.source].stride;
        const T* at = team.value(term.source, run.y + tap.dy, run.x, tap.dx) + m * stride;
        at += j * (paired ? kLanes : kColumns);
        for (int64_t r = 0; r < count; ++r)
          for (int64_t v = 0; v < kTileRegisters; ++v)
            add(at + r * stride + v * (paired ? own.channels : kLanes), r, v);
      }
      if (is_codes(term.source)) table += (all.s.num_embeddings + 1) * own.columns;
    });
  }

  // Computes tile j of the rows in `parts`, which have a place each in `sums`: segments whose weights fit the first cache
  // for all parts, and then the next ones.
  void compute(int64_t j, const Span* parts, int64_t num_parts, Tile* sums) const {
    const Segment *begin = segments, *const all = segments + num_segments;
    do {
      const Segment* end = num_parts > 1 && !kTiled ? near(begin) : all;
      for (int64_t n = 0; n < num_parts; ++n) {
        const int64_t m = parts[n].begin, count = count_of(parts[n]);
        Rows rows{sums[n][0], kColumns};
        if (begin == segments) {
          const bool last = n + 1 == num_parts;
          const Span& next = parts[last ? 0 : n + 1];
          rows = start(j, m, count, sums[n]);
          ask_for(j + last, next.begin, count_of(next));
        }
        if (begin < end) multiply(count, {begin, end, j, m, n, num_parts}, rows, sums[n]);
#if defined(__AMX_TILE__)
        if constexpr (kPieces > 1)
          if (has_nan(sums[n][0], count * kColumns)) multiply_joined(j, m, count, sums[n]);
#endif
        if (end == all) finish(j, m, count, sums[n]);
      }
      begin = end;
    } while (begin < all);
  }
  // The end of those segments from `begin` on.
  const Segment* near(const Segment* begin) const {
    const Segment* end = begin;
    for (int64_t depth = 0; end < segments + num_segments; ++end) {
      depth += end->depth;
      if (end > begin && depth * kColumns * int64_t(sizeof(T)) > kNearBytes) break;
    }
    return end;
  }

  // Some segments of tile j from row m on: of part number `part`.
  struct Product {
    const Segment *begin, *end;
    int64_t j, m, part, parts;
  };

  // Adds the products for kR rows to what these start with; there is a segment. A function of its own, so that all
  // registers are free for it. Meanwhile it asks for what the rows behind these read, and for its share of as many
  // weights behind its own.
  template <class Weight, int kR>
  [[gnu::noinline]] void multiply(const Product& of, Rows start, Tile& tile) const {
    const StepMemory& own = memory();
    const Weight* matrix = team.all.template shared<Weight>(own.matrix[early]);
    matrix += of.j * own.depth[early] * kColumns;
    Sums<Arithmetic, kR> sums;
#pragma GCC unroll 16
    for (int r = 0; r < kR; ++r)
      for (int v = 0; v < kTileRegisters; ++v) sums.of[r][v] = load(start.first + r * start.stride + v * kLanes);
    const int64_t end = of.end[-1].matrix + of.end[-1].depth, depth = end - of.begin->matrix;
    const int64_t pace = kColumns * sizeof *matrix / of.parts;
    const char* weights = reinterpret_cast<const char*>(matrix + end * kColumns) + of.part * depth * pace;
    const Segment* segment = of.begin;
    do {
      if (segment->depth <= 0) __builtin_unreachable();  // else sums would go to memory and back
      const auto* rows = segment->rows + of.m * segment->stride;
      const auto* values = rows + kR * segment->stride;
      sums.add(segment->depth, rows, segment->stride, 1, matrix + segment->matrix * kColumns, [&] {
        __builtin_prefetch(values), values += kR;
        __builtin_prefetch(weights, 0, 2), weights += pace;
      });
    } while (++segment < of.end);
#pragma GCC unroll 16
    for (int r = 0; r < kR; ++r)
      for (int v = 0; v < kTileRegisters; ++v) store(sums.of[r][v], tile[r] + v * kLanes);
  }
#if defined(__AMX_TILE__)
  // As above, of the rows that tiles take, kG groups.
  template <int kG>
  [[gnu::noinline]] void multiply_tiles(const Product& of, Rows start, Tile& tile) const {
    const StepMemory& own = memory();
    const float* matrix = team.all.template shared<float>(own.matrix[early]) + of.j * own.depth[early] * kColumns;
    const T* first = start.first + second * start.stride;
    asm volatile("" ::: "memory");  // else the compiler may write what tiles load after that
    _tile_loadd(0, start.first, start.stride * sizeof(T));
    _tile_loadd(1, start.first + kLanes, start.stride * sizeof(T));
    if constexpr (kG > 1) _tile_loadd(2, first, start.stride * sizeof(T));
    if constexpr (kG > 1) _tile_loadd(3, first + kLanes, start.stride * sizeof(T));
    for (const Segment* segment = of.begin; segment < of.end; ++segment) {
      const auto* rows = segment->rows + of.m * segment->stride;
      const float* columns = matrix + segment->matrix * kColumns;
      if constexpr (kPieces > 1)
        add_products_of_pieces<kG, kTileRegisters>(
            segment->depth / kBlockWords, rows, segment->stride, second * segment->stride, columns);
      else
        add_products<kG, kTileRegisters>(
            segment->depth / kTileSteps, rows, segment->stride, second * segment->stride, kTileSteps, columns);
    }
    _tile_stored(0, tile[0], sizeof tile[0]);
    _tile_stored(1, tile[0] + kLanes, sizeof tile[0]);
    if constexpr (kG > 1) _tile_stored(2, tile[second], sizeof tile[0]);
    if constexpr (kG > 1) _tile_stored(3, tile[second] + kLanes, sizeof tile[0]);
  }

  // Computes sums of joined pieces, number by number: one of them is infinite in float32, or not a number.
  [[gnu::noinline]] void multiply_joined(int64_t j, int64_t m, int64_t count, Tile& sums) const {
    const StepMemory& own = memory();
    const auto joined_at = [](const Bf16* first, int64_t apart) {
      return joined(float(first[0]), float(first[apart]), float(first[2 * apart]));
    };
    const Bf16* matrix = team.all.template shared<Bf16>(own.matrix[early]) + j * own.depth[early] * kColumns * 2;
    const Rows from = start(j, m, count, sums);
    for (int64_t r = 0; r < count; ++r) {
      memmove(sums[r], from.first + r * from.stride, sizeof sums[r]);
      for (const Segment* segment = segments; segment < segments + num_segments; ++segment) {
        const auto* row = reinterpret_cast<const Bf16*>(segment->rows + (m + r) * segment->stride);
        for (int64_t c = 0; c < segment->depth / kPieces * 2; ++c) {
          const int64_t at = Memory::Form::at(c);
          const float x = joined_at(row + at, kBlockChannels);
          const Bf16* weights = matrix + (segment->matrix + at / 2) * kColumns * 2 + at % 2;
          for (int64_t l = 0; l < kColumns; ++l)
            sums[r][l] += x * joined_at(weights + 2 * l, kTileSteps * kColumns * 2);
        }
      }
    }
  }
#endif
  using Multiply = void (StepJob::*)(const Product& of, Rows start, Tile& tile) const;
  template <class Weight, int... kI>
  static const Multiply* multiply_all(std::integer_sequence<int, kI...>) {
    static constexpr Multiply kOf[] = {&StepJob::template multiply<Weight, kI + 1>...};
    return kOf;
  }
  // As above, of any rows of a part.
  void multiply(int64_t rows, const Product& of, Rows start, Tile& tile) const {
#if defined(__AMX_TILE__)
    if constexpr (kTiled)
      second ? multiply_tiles<2>(of, start, tile) : multiply_tiles<1>(of, start, tile);
    else
#endif
      (this->*team.all.with_weight([](auto weight) {
        return multiply_all<decltype(weight)>(std::make_integer_sequence<int, kTileRows>{});
      })[rows - 1])(of, start, tile);
  }

  // Activates the sums and writes the values; sums over early taps that late ones follow are kept as they are.
  void finish(int64_t j, int64_t m, int64_t count, const Tile& sums) const {
    for_runs(m, count, [&](const Run& run, int64_t own, int64_t r, int64_t n) { finish(run, j, own, n, sums + r); });
  }
  [[gnu::noinline]] void finish(const Run& run, int64_t j, int64_t m, int64_t count, const T (*sums)[kColumns]) const {
    const StepMemory& own = memory();
    if (early && own.partial >= 0) {
      memcpy(partial(run, j, m), sums, count * sizeof *sums);
      return;
    }
    const Activation activation = step().activation;
    const int64_t from = step().residual;
    const bool paired = is_paired(activation);
    const int64_t channel = j * (paired ? kLanes : kColumns);
    const int64_t stride = from < 0 ? 0 : team.all.steps[from].stride;
    T* to = own.value < 0 ? nullptr : team.value(i, run.y, run.x) + m * own.stride + channel;
    const T* residual = from < 0 ? nullptr : team.value(from, run.y, run.x) + m * stride + channel;
    const int64_t pitch = Memory::Form::pitch_of(own.stride);
    auto* factors = own.factors < 0 ? nullptr : team.factors(i, run.y, run.x) + m * pitch;
    for (int64_t r = 0; r < count; ++r)
      for (int64_t v = 0; v < (paired ? 1 : kTileRegisters); ++v) {
        V out = load(sums[r] + v * kLanes);
        out = paired ? activated(activation, out, load(sums[r] + kLanes)) : activated(activation, out);
        if (residual) out += load(residual + r * stride + v * kLanes);
        if (!Memory::kFactors || to) store(out, to + r * own.stride + v * kLanes);
        if constexpr (Memory::kFactors)
          if (factors) Memory::Early::write(out, factors + r * pitch + Memory::Form::at(channel + v * kLanes));
      }
    // Factors beyond the last channel are multiplied by zeros: so they are zeros too, not infinite.
    if (Memory::kFactors && factors && j == own.tiles - 1)
      for (int64_t r = 0; r < count; ++r)
        for (int64_t c = own.channels; c < own.stride; ++c) Memory::Form::put(0, factors + r * pitch, c);
  }
};

}  // namespace
}  // namespace vqfast::VQFAST_ISA
