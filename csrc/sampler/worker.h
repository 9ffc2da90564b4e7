// What one thread of a team does, row by row and position by position.
#pragma once

#include "sampler/attention.h"
#include "sampler/step.h"

namespace vqfast::VQFAST_ISA {
namespace {

template <class Memory>
struct Worker {
  using T = typename Memory::T;
  using Segment = typename Memory::Segment;

  typename Memory::Team team;
  int64_t me, threads;  // number of this thread, and of the team's threads
  Arrivals* arrivals;  // of the team's threads
  Segment* segments;  // room for the taps of a step
  Run* runs;          // for one of each row
  typename Memory::Element* gathered;
  char* draws;        // for a draw: K + kWords float32, then 3 * K numbers of 8 bytes, each padded
  T* scores;          // of an attention
  typename Memory::Shapes& shapes;

  // Waits until the whole team is here.
  void meet() const {
    if (threads == 1) return;
    const int32_t now = arrivals[me].arrive();
    for (int64_t other = 0; other < threads; ++other)
      if (other != me) arrivals[other].wait_for(now);
  }

  // Computes this thread's share of a step at some runs: at those of their columns that it has values at.
  void compute(int64_t i, bool early, int64_t num_runs) const {
    const SamplerProblem& s = team.all.s;
    const Step& step = s.steps[i];
    bool alike = true;
    for (int64_t t = step.first_term; t < step.first_term + step.num_terms; ++t)
      alike &= s.stride_of(s.terms[t].source) == step.stride;
    const Run run = *runs;  // the only one, if there are strides
    if (alike && step.stride > 1) runs->columns = ceil_div(run.columns, step.stride);
    if (alike) return multiply(i, early, num_runs);
    for (int64_t c = 0; c < run.columns; c += step.stride) {
      *runs = {run.y, run.x + c, 1};
      multiply(i, early, 1);
    }
  }

  // Computes this thread's share of a step at runs whose `columns` count its values: some of its tiles, or if these are
  // fewer than threads, some rows of the product.
  void multiply(int64_t i, bool early, int64_t num_runs) const {
    early ? multiply<typename Memory::Early>(i, true, num_runs) : multiply<typename Memory::Late>(i, false, num_runs);
  }
  template <class Arithmetic>
  void multiply(int64_t i, bool early, int64_t num_runs) const {
    using Job = StepJob<Memory, Arithmetic>;
    Job job{team, i, early, runs, num_runs, segments, gathered};
    job.find_segments();
    Span tiles{0, job.memory().tiles}, rows{0, 0};
    for (int64_t n = 0; n < num_runs; ++n) rows.end += runs[n].columns * team.batch;
    if (tiles.end >= threads) tiles = part_of(tiles.end, threads, me);
    else rows = part_of(rows.end, threads, me);
    const int64_t count = count_of(rows);
    constexpr bool kTiled = Job::kTiled;
    // The CPU's tiles take one or two groups of rows at a time. They want all groups of one size, so that some rows may
    // be in two.
    const int64_t groups = kTiled && count > kMostRows ? 2 : 1;
    const int64_t parts = ceil_div(count, kTiled ? groups * kMostRows : kTileRows);
    const auto part = [&](int64_t n) {
      if (!kTiled) return part_of(count, parts, n);
      const int64_t begin = min(n * job.together, count - job.together);
      return Span{begin, begin + job.together};
    };
    if constexpr (kTiled)
      if (count) {
        const int64_t size = ceil_div(count, groups * parts);
        shapes.have(size);
        job.together = min(groups * size, count), job.second = job.together - size;
      }
    alignas(64) typename Job::Tile sums[Job::kParts];
    const int64_t blocks = ceil_div(parts, Job::kParts);
    for (int64_t block = 0; block < blocks; ++block) {
      const Span numbers = part_of(parts, blocks, block);
      Span own[Job::kParts];
      for (int64_t n = numbers.begin; n < numbers.end; ++n)
        own[n - numbers.begin] = {rows.begin + part(n).begin, rows.begin + part(n).end};
      for (int64_t j = tiles.begin; j < tiles.end; ++j) job.compute(j, own, count_of(numbers), sums);
    }
  }

  // Computes all that can be known when the rows that are drawn at a moment begin their chunks.
  void start_chunks(int64_t moment) const {
    const SamplerProblem& s = team.all.s;
    const Span rows = s.rows_at(moment);
    for (int64_t y = rows.begin; y < rows.end; ++y) {
      const int64_t x = moment - y * s.distance;
      if (x % s.block == 0) start_block(y, x);
    }
    meet();
    for (int64_t i = 0; i < s.num_steps; ++i) {
      const Step& step = s.steps[i];
      if (rows.begin % step.stride || (step.phase != Phase::row && team.all.steps[i].partial < 0)) continue;
      int64_t num_runs = 0;
      for (int64_t y = rows.begin; y < rows.end; ++y) {
        const int64_t x = moment - y * s.distance, begin = x ? x + step.lead : 0;
        const int64_t last = min(s.width, x + s.chunk + step.lead) - 1;
        if (begin > last) continue;
        runs[num_runs++] = {y, begin, last / s.condition_stride - begin / s.condition_stride + 1};
      }
      if (num_runs) compute(i, true, num_runs);
      meet();
    }
  }

  // Fills the conditioning map of a row, or of its block from column x on.
  void start_block(int64_t y, int64_t x) const {
    const Memory& all = team.all;
    const SamplerProblem& s = all.s;
    if (x > 0) {  // the next block of one long row: keep the columns that taps reach back to
      for (int64_t i = me; i < s.num_steps; i += threads) {
        const StepMemory& m = all.steps[i];
        if (m.value >= 0 && !m.period) pass_on(team.value(i, 0, 0), s.steps[i], m.stride);
        if (m.factors >= 0 && !m.factor_period) pass_on(team.factors(i, 0, 0), s.steps[i], Memory::Form::pitch_of(m.stride));
      }
      for (int64_t c = 0; me == 0 && c < s.num_codes; ++c) pass_on(team.codes(kCodes - c, 0, 0), s.code_cache(), 1);
    }
    const int64_t entries = s.map_column(min(x + s.block, s.width) - 1) + 1;
    auto* map = team.template at<typename Memory::Factor>(all.layout->condition);
    const int64_t stride = Memory::Form::pitch_of(all.layout->condition_room);
    map += team.map_cell(y, x) * stride;
    const Span samples = part_of(team.batch, threads, me);
    for (int64_t b = samples.begin; b < samples.end; ++b)
      for (int64_t c = 0; c < s.condition_channels; ++c) {
        const T* from = static_cast<const T*>(s.condition) + x / s.condition_stride +
                        (((team.first + b) * s.condition_channels + c) * s.height + y) * s.condition_width();
        for (int64_t n = 0; n < entries; ++n)
          Memory::Form::put(from[n], map + (n * team.batch + b) * stride, c);
      }
  }

  // Moves the last columns of a cache's block, which begins at `origin`, to the left of the next. `size` is that of a
  // sample.
  template <class U, class Cache>
  void pass_on(U* origin, const Cache& cache, int64_t size) const {
    const int64_t kept = cache.left * team.batch * size;
    const int64_t passed = team.all.columns_of(cache.stride) * team.batch * size;
    memmove(origin - kept, origin - kept + passed, kept * sizeof(U));
  }

  // Computes the steps of a phase at the positions of a moment.
  void compute_phase(Phase phase, int64_t moment) const {
    const SamplerProblem& s = team.all.s;
    const Span rows = s.rows_at(moment);
    const int64_t y = rows.begin, x = moment - y * s.distance;  // the only position, if there are strides or attentions
    for (int64_t n = 0; n < count_of(rows); ++n) runs[n] = {y + n, x - n * s.distance, 1};
    for (int64_t i = 0; i < s.num_steps; ++i) {
      const Step& step = s.steps[i];
      if (step.phase != phase || y % step.stride || x % step.stride) continue;
      if (i + 1 < s.num_steps && s.steps[i + 1].phase == phase) ask_for_columns(i + 1);
      if (step.attention < 0) multiply(i, false, count_of(rows));
      else attention(i).attend(y, x);
      meet();
    }
  }

  // Asks for what step i reads of earlier columns, which of a long row lie in memory: it answers while the step before
  // is computed. Of a few samples these are a few lines.
  void ask_for_columns(int64_t i) const {
    if (team.batch < kTileRows / 2) return;
    const StepJob<Memory, typename Memory::Late> job{team, i, false, runs, 1, segments, gathered};
    team.all.for_taps(job.step(), [&](const Term& term, const Tap& tap, int64_t) {
      if (tap.early || tap.dx >= 0 || term.source < 0 || term.weight < 0 || job.step().stride > 1) return;
      const Segment read = job.read(*runs, term, tap, 0);
      const char* from = reinterpret_cast<const char*>(read.rows);
      const int64_t bytes = team.batch * read.stride * sizeof *read.rows;
      for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at, 0, 2);
    });
  }

  // This thread's share of an attention: always the same samples and heads.
  AttentionJob<Memory> attention(int64_t i) const {
    const int64_t heads = team.all.s.attentions[team.all.s.steps[i].attention].heads;
    return {team, i, part_of(team.batch * heads, threads, me), scores};
  }

  // Keeps a position, all of whose values are known, for the attentions that haven't read it yet.
  void keep(int64_t y, int64_t x) const {
    for (int64_t i = 0; i < team.all.s.num_steps; ++i) {
      const int64_t number = team.all.s.steps[i].attention;
      if (number >= 0 && !team.all.s.attentions[number].own) attention(i).append(y, x);
    }
  }

  // Draws code c of the positions of a moment, or takes those that are known: this thread's share of the samples.
  void draw_codes(int64_t c, int64_t moment) const {
    const Span rows = team.all.s.rows_at(moment), own = part_of(count_of(rows) * team.batch, threads, me);
    for (int64_t n = own.begin; n < own.end; ++n) {
      const int64_t y = rows.begin + n / team.batch;
      draw_code(c, y, moment - y * team.all.s.distance, n % team.batch);
    }
    meet();
  }

  void draw_code(int64_t c, int64_t y, int64_t x, int64_t b) const {
    const Memory& all = team.all;
    const SamplerProblem& s = all.s;
    const int64_t step = s.num_steps - s.num_codes + c, k = s.choices();
    const int64_t first = (y * s.width + x) * s.num_codes, number = first + c;
    const int64_t per_sample = s.height * s.width * s.num_codes;
    const bool mixture = s.num_mixtures > 0;
    float* scores = reinterpret_cast<float*>(draws);
    double* restricted = reinterpret_cast<double*>(draws + Memory::padded((k + kWords) * 4));
    const int64_t at = (team.first + b) * per_sample + number;
    const T* logits = team.value(step, y, x) + b * all.steps[step].stride;
    const uint64_t sample = uint64_t(s.numbers[team.first + b]), seed = uint64_t(s.seed);
    Counter counter{uint32_t(mixture ? first : number), uint32_t(sample), uint32_t(sample >> 32), uint32_t(seed),
                    uint32_t(seed >> 32)};
    int64_t drawn;
    if (s.restrict_to) {
      for (int64_t i = 0; i < k; ++i) restricted[i] = logits[i];
      s.restrict_to(s, restricted, reinterpret_cast<char*>(restricted) + Memory::padded(k * 8));
      drawn = draw(restricted, k, s.temperature, counter, scores);
    } else {
      drawn = draw(logits, k, s.temperature, counter, scores);
    }
    if (mixture && drawn >= 0) {  // the component; the noise of all codes of a position chooses the same one
      counter.position = uint32_t(number);
      drawn = draw_value(logits[k + drawn], logits[2 * k + drawn], s.temperature, s.num_embeddings, counter, k);
    }
    s.codes[at] = s.known[at] < 0 ? drawn : s.known[at];
    team.codes(kCodes - c, y, x)[b] = int32_t(max(0, s.codes[at]));
  }
};

// See SamplerKernel.
template <class Memory>
void run(const Memory& memory, int64_t thread, int64_t first, int64_t count) {
  const SamplerProblem& s = memory.s;
  const MemoryLayout& layout = *memory.layout;
  int64_t number = 0;
  while (part_of(s.threads, s.teams, number).end <= thread) ++number;
  const Span threads = part_of(s.threads, s.teams, number);
  const typename Memory::Team team{memory, number};
  const int64_t me = thread - threads.begin;
  char* scratch = team.template at<char>(layout.scratch) + me * layout.scratch_bytes;
  typename Memory::Shapes shapes;
  const Worker<Memory> worker{
      team,
      me,
      count_of(threads),
      memory.arrivals + threads.begin,
      reinterpret_cast<typename Memory::Segment*>(scratch),
      reinterpret_cast<Run*>(scratch + layout.runs),
      reinterpret_cast<typename Memory::Element*>(scratch + layout.gathered),
      scratch + layout.draws,
      reinterpret_cast<typename Memory::T*>(scratch + layout.scores),
      shapes};
  for (int64_t moment = first; moment < first + count; ++moment) {
    const int64_t y = s.rows_at(moment).begin, x = moment - y * s.distance;
    if (x % s.chunk == 0) worker.start_chunks(moment);
    worker.compute_phase(Phase::position, moment);
    for (int64_t c = 0; c < s.num_codes; ++c) {
      worker.draw_codes(c, moment);
      worker.compute_phase(Phase(int64_t(Phase::code) + c), moment);
    }
    worker.keep(y, x);
  }
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
