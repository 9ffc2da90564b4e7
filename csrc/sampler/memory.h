// The sampler's memory: packed weights (pack.h), which all threads share, and the values and caches of each team of
// threads.
//
// Values are [row of the cache][column][sample][channel]. So the rows of a product are the samples side by side, or
// those of a run of columns, and every tap has them at the same distance from each other. Of a step with a stride only
// the rows and columns are kept where it has values; y and x count those of the grid of codes all the same. Sums over
// early taps and the conditioning map are kept for each of the rows that are drawn side by side.
#pragma once

#include <type_traits>

#include "sampler/barrier.h"
#include "sampler/noise.h"
#include "sampler/sampler.h"
#include "shared/span.h"
#include "simd/activate.h"
#include "simd/tiles.h"

namespace vqfast::VQFAST_ISA {
namespace {

// Where a step's things are: offsets in bytes. Shared ones count from the beginning of memory, a team's from the
// beginning of the team's.
struct StepMemory {
  int64_t tiles, columns;        // of the sums; columns are padded. A tile of pairs has their first and second sums
  int64_t channels, stride;      // of the value; and padded
  int64_t matrix[2], depth[2];   // shared: (tiles, depth, kColumns) of taps that are late [0] and early [1]
  int64_t tables;                // shared: (num_embeddings + 1, columns) for each tap on codes
  int64_t value, factors;        // a team's: the caches of the value, and of what matrices multiply; -1 if not read
  int64_t period, factor_period;  // after so many columns another takes the place of one, in each of these; 0: none does
  int64_t caches, start;         // a team's: where all caches begin; what sums start with, bias and label
  int64_t partial;               // a team's: the sums over early taps of a chunk, by tiles; -1 if the step has none
  int64_t kept_keys, kept_values;  // a team's, of an attention: (samples, channels, row of positions)
};

// Where all else is, as above; and sizes in bytes.
struct MemoryLayout {
  int64_t codes, condition;      // a team's: the caches of codes, int32; the conditioning map of a block of each row
  int64_t condition_room;        // channels of that, padded
  int64_t scratch, scratch_bytes;  // a team's, of each thread
  int64_t runs, gathered, draws, scores;  // in a thread's scratch, which begins with segments: see Worker
  int64_t teams, team_bytes, end;
};

// Some columns of row y of the grid, from x on.
struct Run {
  int64_t y, x, columns;
};

// What an arithmetic reads of values: of each a number, or pairs of neighbouring channels, rounded to bfloat16 or split
// into pieces of that.
template <class Arithmetic>
struct Factoring {
  using Number = typename Arithmetic::Element;
  static constexpr int kPacking = 1, kPieces = 1, kUnit = 1;
  // Numbers, or pairs of pieces, of so many channels, padded.
  static int64_t depth_of(int64_t channels) { return channels; }
  static int64_t pitch_of(int64_t channels) { return channels; }  // distance of rows, in numbers
  static void put(Number number, Number* row, int64_t channel) { row[channel] = number; }
};
template <class Pairs>
  requires(Pairs::kPacking > 1)
struct Factoring<Pairs> : Pairs {
  using Number = typename Pairs::Stored;
  static constexpr int kPacking = Pairs::kPacking, kPieces = kPieceCount<Pairs>;
  static constexpr int kUnit = kTiled<Pairs> ? kTileSteps * kPacking : kPacking;  // channels multiplied at a time
  static int64_t depth_of(int64_t channels) { return ceil_div(channels, kUnit) * kUnit / kPacking * kPieces; }
  static int64_t pitch_of(int64_t channels) { return depth_of(channels) * kPacking + (kPieces > 1 ? kUnit : 0); }
  // Where a channel is in a row.
  static int64_t at(int64_t channel) { return channel / kUnit * kUnit * kPieces + channel % kUnit; }
  static void put(float number, Number* row, int64_t channel) {
    Number factors[(kPieces - 1) * kUnit + VQFAST_ISA::kLanes];
    Pairs::write(number + Floats{}, factors);
    for (int piece = 0; piece < kPieces; ++piece)  // pairs are read as another type
      memcpy(row + at(channel) + piece * kUnit, factors + piece * kUnit, sizeof *factors);
  }
};

// Numbers are of the arithmetic's type; weights of float32 may be given as bfloat16, and stay that in packed matrices,
// so that only what packs and what multiplies knows of them. Where factors are pairs, a row of a packed matrix
// has two channels in bfloat16, side by side in the place of a float32, and values that are multiplied have a second
// cache. Sums and all else are float32. Where tiles multiply, channels of factors and rows of packed matrices are padded
// with zeros to whole tiles. What early taps read may have an arithmetic of its own, and then has both caches.
template <class LateSum, class EarlySum = LateSum>
struct Memory {
  using Late = LateSum;
  using Early = EarlySum;
  using V = typename Late::Register;
  using T = std::remove_reference_t<decltype(V{}[0])>;
  using Element = typename Late::Element;
  using Form = Factoring<Early>;
  using Factor = typename Form::Number;  // of a value
  static constexpr bool kFactors = Form::kPacking > 1, kRounds = Factoring<Late>::kPacking > 1;
  static constexpr int kLanes = Sums<Late>::kLanes, kColumns = Sums<Late>::kColumns;
#if defined(__AMX_TILE__)
  using Shapes = std::conditional_t<kTiled<Early>, Tiles, char>;
#else
  using Shapes = char;
#endif
  static constexpr int kPositions = 4 * kLanes;  // whose scores an attention computes at a time

  // Values that are multiplied by a matrix: `depth` numbers, or pairs, for each row of the product, the rows `stride`
  // apart. The tap's own rows of the packed matrix begin at row `matrix`.
  struct Segment {
    const Element* rows;
    int64_t stride, depth, matrix;
  };

  const SamplerProblem& s;
  MemoryLayout* layout;
  StepMemory* steps;
  Arrivals* arrivals;  // of each thread

  explicit Memory(const SamplerProblem& problem) : s(problem) {
    layout = reinterpret_cast<MemoryLayout*>(s.memory);
    arrivals = reinterpret_cast<Arrivals*>(s.memory + padded(sizeof(MemoryLayout)));
    steps = reinterpret_cast<StepMemory*>(arrivals + s.threads);
  }

  // f(a weight as it is given), which is one of a packed matrix too; where factors are pairs, as large as kPacking of
  // those.
  template <class F>
  auto with_weight(const F& f) const {
    if constexpr (__is_same(T, float) && !kFactors)
      if (s.precision == Precision::bf16) return f(Bf16{});
    return f(T{});
  }

  static int64_t padded(int64_t bytes) { return ceil_div(bytes, 64) * 64; }
  // Bytes for `count` numbers, and for the registers that are loaded past their end.
  template <class Number = T>
  static int64_t room(int64_t count) { return padded((count + kColumns) * int64_t(sizeof(Number))); }
  // Of a row with a number for each position of the grid, padded so that blocks of registers fit.
  // Rows of a power of two would compete for the same lines of the cache.
  int64_t row_of_positions() const { return ceil_div(s.height * s.width, kPositions) * kPositions + kLanes; }
  static int64_t channels_of(const Step& step) { return is_paired(step.activation) ? step.width / 2 : step.width; }
  int64_t max_samples() const { return ceil_div(s.batch, s.teams); }  // of the largest team
  // Columns of a block where a step of this stride, or the codes, have values; and those that a cache has.
  int64_t columns_of(int64_t stride) const { return ceil_div(s.block, stride); }
  int64_t chunk_of(const Step& step) const { return ceil_div(s.entries_of(s.chunk), step.stride); }
  template <class Cache>
  int64_t row_of(const Cache& cache) const { return cache.left + columns_of(cache.stride) + cache.right; }
  // After how many columns another one may take the place of a value of step i, as it is, or as a factor too; 0 if all
  // of a block are kept. One is enough if each is read only while its position is drawn, and in a sequence as many as
  // taps reach back to: so what is read is soon written again, and stays in the caches.
  int64_t period_of(int64_t i, bool multiplied) const {
    const Step& step = s.steps[i];
    if (step.phase == Phase::row || step.stride > 1 || s.rows_at_once() > 1) return 0;
    int64_t left = 0;
    bool near = true;  // whether all is read later, and in the same row
    for (int64_t n = 0; n < s.num_steps; ++n)
      for_taps(s.steps[n], [&](const Term& term, const Tap& tap, int64_t) {
        if (term.source != i || (!multiplied && term.weight >= 0)) return;
        near &= !tap.early && !tap.dy && tap.dx <= 0;
        left = max(left, -tap.dx);
      });
    return near && (left == 0 || s.height == 1) ? left + 1 : 0;
  }

  int64_t map_bytes(const MemoryLayout& l) const {  // of a block of the conditioning map, for each row that is drawn
    return room<Factor>(s.rows_at_once() * s.entries_of(s.block) * max_samples() * Form::pitch_of(l.condition_room));
  }
  static int64_t depth_of(int64_t channels, bool early) {
    return early ? Form::depth_of(channels) : Factoring<Late>::depth_of(channels);
  }
  // Whether a tap reads the value of step i, to multiply it by a matrix or to add it as it is.
  template <class Which>
  bool is_read(int64_t i, const Which& which) const {
    bool read = false;
    for (int64_t n = 0; n < s.num_steps; ++n)
      for_taps(s.steps[n], [&](const Term& term, const Tap& tap, int64_t) {
        read |= term.source == i && which(term.weight >= 0, tap.early != 0);
      });
    return read;
  }
  bool has_factors(int64_t i) const {
    return kFactors && is_read(i, [](bool multiplied, bool early) { return multiplied && (kRounds || early); });
  }
  // Whether the value of step i is read in another way than as a factor.
  bool is_kept(int64_t i) const {
    bool kept = !kFactors || i >= s.num_steps - s.num_codes || s.steps[i].attention >= 0;
    kept |= is_read(i, [](bool multiplied, bool early) { return !multiplied || !(kRounds || early); });
    for (int64_t n = 0; n < s.num_steps; ++n) {
      kept |= s.steps[n].residual == i;
      if (s.steps[n].attention < 0) continue;
      const Attention& a = s.attentions[s.steps[n].attention];
      kept |= a.query == i || a.key == i || a.value == i;
    }
    return kept;
  }

  // The last step that reads the value of step i, if all read it where they are computed, while a chunk of the same row
  // starts; else -1.
  int64_t last_reader(int64_t i) const {
    const Step& step = s.steps[i];
    if (step.phase != Phase::row || step.rows > 1 || step.left || step.right || i >= s.num_steps - s.num_codes) return -1;
    int64_t last = i;
    for (int64_t n = i + 1; n < s.num_steps; ++n) {
      const Step& reader = s.steps[n];
      if (reader.attention >= 0) {
        const Attention& a = s.attentions[reader.attention];
        if (a.query == i || a.key == i || a.value == i) return -1;
      }
      if (reader.residual == i && reader.phase != Phase::row) return -1;
      if (reader.residual == i) last = n;
      for (int64_t t = reader.first_term; t < reader.first_term + reader.num_terms; ++t)
        if (s.terms[t].source == i) last = n;
    }
    return last;
  }

  // A place for the value of a step, and of another one once nothing reads that: so it stays in the second cache.
  struct Place {
    int64_t at, bytes, last;
  };

  // Places everything. Writes to memory only if `store` says that it is there.
  MemoryLayout lay_out(bool store) const {
    MemoryLayout l{};
    int64_t shared =
        padded(sizeof(MemoryLayout)) + s.threads * sizeof(Arrivals) + padded(s.num_steps * sizeof(StepMemory));
    const int64_t weight_bytes = with_weight([](auto weight) { return int64_t(sizeof weight); });
    int64_t own = 0, score_bytes = 0, segment_bytes = 0, gathered_bytes = 0;
    const auto take = [](int64_t& at, int64_t bytes) { return (at += bytes) - bytes; };
    Place places[4] = {};
    const auto place = [&](int64_t i, int64_t bytes) {
      const int64_t last = last_reader(i);
      if (last < 0) return take(own, bytes);
      for (Place& p : places)
        if (p.last < i && p.bytes >= bytes) return p.last = last, p.at;
      for (Place& p : places)
        if (!p.bytes) return p = {take(own, bytes), bytes, last}, p.at;
      return take(own, bytes);
    };
    l.codes = take(own, padded(s.num_codes * s.code_rows * row_of(s.code_cache()) * max_samples() * 4));
    l.condition_room = ceil_div(s.condition_channels, kColumns) * kColumns;
    l.condition = take(own, map_bytes(l));
    for (int64_t i = 0; i < s.num_steps; ++i) {
      const Step& step = s.steps[i];
      StepMemory m{};
      const bool paired = is_paired(step.activation);
      m.channels = channels_of(step);
      m.tiles = paired ? ceil_div(m.channels, kLanes) : ceil_div(step.width, kColumns);
      m.columns = m.tiles * kColumns;
      m.stride = paired ? ceil_div(m.tiles * kLanes, Form::kUnit) * Form::kUnit : m.columns;
      int64_t tables = 0, early = 0, count = 0;
      for_taps(step, [&](const Term& term, const Tap& tap, int64_t) {
        ++count;
        early |= tap.early;
        if (is_codes(term.source)) ++tables;
        else if (term.weight >= 0) m.depth[tap.early] += depth_of(term.channels, tap.early);
      });
      for (int e = 0; e < 2; ++e) m.matrix[e] = take(shared, padded(m.depth[e] * m.columns * weight_bytes));
      m.tables = take(shared, room(tables * (s.num_embeddings + 1) * m.columns));
      m.factor_period = period_of(i, true), m.period = period_of(i, !kRounds);
      const auto cells = [&](int64_t period) {
        return (period ? period : step.rows * row_of(step)) * max_samples();
      };
      m.caches = own;
      m.value = is_kept(i) ? place(i, room(cells(m.period) * m.stride)) : -1;
      m.factors = has_factors(i) ? place(i, room<Factor>(cells(m.factor_period) * Form::pitch_of(m.stride))) : -1;
      if (step.attention >= 0) {
        const int64_t a_row = max_samples() * row_of_positions();
        m.kept_keys = take(own, room(a_row * channels_of(s.steps[s.attentions[step.attention].key])));
        m.kept_values = take(own, room(a_row * step.width));
        score_bytes = room(row_of_positions());
      }
      m.start = take(own, room((step.label_bias < 0 ? 1 : max_samples()) * m.columns));
      const int64_t sums = s.rows_at_once() * chunk_of(step) * max_samples() * m.columns;
      m.partial = early && step.phase != Phase::row ? take(own, room(sums)) : -1;
      segment_bytes = max(segment_bytes, padded(count * sizeof(Segment)));
      for (int e = 0; s.rows_at_once() > 1 && e < 2; ++e) {
        const int64_t rows = s.rows_at_once() * max_samples() * (e ? s.chunk + step.lead : 1);
        gathered_bytes = max(gathered_bytes, padded(rows * m.depth[e] * sizeof(Element)));
      }
      if (store) steps[i] = m;
    }
    int64_t scratch = segment_bytes;
    l.runs = take(scratch, padded(s.rows_at_once() * sizeof(Run)));
    l.gathered = take(scratch, gathered_bytes);
    l.draws = take(scratch, padded((s.choices() + kWords) * 4) + 3 * padded(s.choices() * 8));
    l.scores = take(scratch, score_bytes);
    l.scratch_bytes = scratch;
    l.scratch = take(own, l.scratch_bytes * s.threads);
    l.teams = shared;
    l.team_bytes = own;
    l.end = shared + own * s.teams;
    return l;
  }

  // f(term, tap, number of the tap in its term), in the order in which matrices are packed.
  template <class F>
  void for_taps(const Step& step, const F& f) const {
    for (int64_t t = step.first_term; t < step.first_term + step.num_terms; ++t)
      for (int64_t n = 0; n < s.terms[t].num_taps; ++n) f(s.terms[t], s.taps[s.terms[t].first_tap + n], n);
  }

  void begin() const {
    *layout = lay_out(true);
    for (int64_t thread = 0; thread < s.threads; ++thread) arrivals[thread] = {};
  }

  template <class U>
  U* shared(int64_t offset) const { return reinterpret_cast<U*>(s.memory + offset); }

  // Some threads, the samples that they draw, and their part of memory.
  struct Team {
    const Memory& all;
    char* memory;
    int64_t first, batch;  // number of the first sample, and of samples

    Team(const Memory& memory_of_all, int64_t team) : all(memory_of_all) {
      const Span own = part_of(all.s.batch, all.s.teams, team);
      first = own.begin, batch = count_of(own);
      memory = all.s.memory + all.layout->teams + team * all.layout->team_bytes;
    }
    template <class U>
    U* at(int64_t offset) const { return reinterpret_cast<U*>(memory + offset); }

    // Where the position dx columns from (y, x) is in a cache, counted in samples. Both coordinates are multiples of
    // the cache's stride.
    template <class Cache>
    int64_t cell(const Cache& cache, int64_t y, int64_t x, int64_t dx, int64_t period = 0) const {
      if (period) return period > 1 ? (x + dx + period) % period * batch : 0;
      const int64_t row = (y / cache.stride + cache.rows) % cache.rows;
      return (row * all.row_of(cache) + cache.left + (x % all.s.block + dx) / cache.stride) * batch;
    }
    // Where the entry for (y, x) is in the map.
    int64_t map_cell(int64_t y, int64_t x) const {
      return (y % all.s.rows_at_once() * all.s.entries_of(all.s.block) + all.s.map_column(x)) * batch;
    }
    int64_t code_cells() const {  // of the cache of one code of each position
      return all.s.code_rows * all.row_of(all.s.code_cache()) * batch;
    }
    // The value of step i at a position, of the first sample; that as a factor; and the code there that is this source.
    T* value(int64_t i, int64_t y, int64_t x, int64_t dx = 0) const {
      const StepMemory& m = all.steps[i];
      return at<T>(m.value) + cell(all.s.steps[i], y, x, dx, m.period) * m.stride;
    }
    Factor* factors(int64_t i, int64_t y, int64_t x, int64_t dx = 0) const {
      const StepMemory& m = all.steps[i];
      return at<Factor>(m.factors) + cell(all.s.steps[i], y, x, dx, m.factor_period) * Form::pitch_of(m.stride);
    }
    int32_t* codes(int64_t source, int64_t y, int64_t x, int64_t dx = 0) const {
      return at<int32_t>(all.layout->codes) + (kCodes - source) * code_cells() + cell(all.s.code_cache(), y, x, dx);
    }
  };
};

}  // namespace
}  // namespace vqfast::VQFAST_ISA
