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
  char* scratch;      // for a draw: K + kWords float32, then 3 * K numbers of 8 bytes, each padded
  Segment* segments;  // room for the taps of a step
  T* scores;          // of an attention

  // Waits until the whole team is here.
  void meet() const {
    if (threads == 1) return;
    const int32_t now = arrivals[me].arrive();
    for (int64_t other = 0; other < threads; ++other)
      if (other != me) arrivals[other].wait_for(now);
  }

  // Computes this thread's share of a step in row y: at the columns from x up to x + columns that it has values at.
  void compute(int64_t i, bool early, int64_t y, int64_t x, int64_t columns) const {
    const SamplerProblem& s = team.all.s;
    const Step& step = s.steps[i];
    bool alike = true;
    for (int64_t t = step.first_term; t < step.first_term + step.num_terms; ++t)
      alike &= s.stride_of(s.terms[t].source) == step.stride;
    if (alike) return multiply(i, early, y, x, ceil_div(columns, step.stride));
    for (int64_t c = 0; c < columns; c += step.stride) multiply(i, early, y, x + c, 1);
  }

  // Computes this thread's share of a step at `columns` of its columns: some of its tiles, or if these are fewer than
  // threads, some rows of the product.
  void multiply(int64_t i, bool early, int64_t y, int64_t x, int64_t columns) const {
    StepJob<Memory> job{team, i, y, x, early, segments};
    job.find_segments();
    alignas(64) typename StepJob<Memory>::Tile sums;
    Span tiles{0, job.memory().tiles}, rows{0, columns * team.batch};
    if (tiles.end >= threads) tiles = part_of(tiles.end, threads, me);
    else rows = part_of(rows.end, threads, me);
    const int64_t parts = ceil_div(count_of(rows), kTileRows);
    for (int64_t j = tiles.begin; j < tiles.end; ++j)
      for (int64_t n = 0; n < parts; ++n) {
        const Span part = part_of(count_of(rows), parts, n);
        const int64_t m = rows.begin + part.begin;
        job.start(j, m, count_of(part), sums);
        job.multiply(count_of(part), j, m, sums);
        job.finish(j, m, count_of(part), sums);
      }
  }

  // Computes all that can be known when row y starts, or its block from column x on.
  void start_row(int64_t y, int64_t x) const {
    const Memory& all = team.all;
    const SamplerProblem& s = all.s;
    const int64_t early = s.early_column(min(x + s.block, s.width) - 1) + 1;  // columns
    if (x > 0) {  // the next block of one long row: keep the columns that taps reach back to
      for (int64_t i = me; i < s.num_steps; i += threads) {
        if (all.steps[i].value >= 0) pass_on(team.value(i, 0, 0), s.steps[i], all.steps[i].stride);
        if (all.steps[i].factors >= 0) pass_on(team.factors(i, 0, 0), s.steps[i], all.steps[i].stride);
      }
      for (int64_t c = 0; me == 0 && c < s.num_codes; ++c) pass_on(team.codes(kCodes - c, 0, 0), s.code_cache(), 1);
    }
    auto* map = team.template at<typename Memory::Factor>(all.layout->condition);
    const Span samples = part_of(team.batch, threads, me);
    for (int64_t b = samples.begin; b < samples.end; ++b)
      for (int64_t c = 0; c < s.condition_channels; ++c) {
        const T* from = static_cast<const T*>(s.condition) + x / s.condition_stride +
                        (((team.first + b) * s.condition_channels + c) * s.height + y) * s.condition_width();
        for (int64_t n = 0; n < early; ++n)
          Memory::put_factor(from[n], map + (n * team.batch + b) * all.layout->condition_room + c);
      }
    meet();
    for (int64_t i = 0; i < s.num_steps; ++i) {
      if (y % s.steps[i].stride || (s.steps[i].phase != Phase::row && all.steps[i].partial < 0)) continue;
      compute(i, true, y, x, early);
      meet();
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

  // Computes the steps of a phase at a position.
  void compute_phase(Phase phase, int64_t y, int64_t x) const {
    for (int64_t i = 0; i < team.all.s.num_steps; ++i) {
      const Step& step = team.all.s.steps[i];
      if (step.phase != phase || y % step.stride || x % step.stride) continue;
      if (step.attention < 0) multiply(i, false, y, x, 1);
      else attention(i).attend(y, x);
      meet();
    }
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

  // Draws code c of a position for this thread's samples, or takes those that are known.
  void draw_codes(int64_t c, int64_t y, int64_t x) const {
    const Memory& all = team.all;
    const SamplerProblem& s = all.s;
    const int64_t step = s.num_steps - s.num_codes + c, k = s.choices();
    const int64_t first = (y * s.width + x) * s.num_codes, number = first + c;
    const int64_t per_sample = s.height * s.width * s.num_codes;
    const bool mixture = s.num_mixtures > 0;
    float* scores = reinterpret_cast<float*>(scratch);
    double* restricted = reinterpret_cast<double*>(scratch + Memory::padded((k + kWords) * 4));
    const Span samples = part_of(team.batch, threads, me);
    for (int64_t b = samples.begin; b < samples.end; ++b) {
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
    meet();
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
  auto* segments = reinterpret_cast<typename Memory::Segment*>(scratch);
  auto* scores = reinterpret_cast<typename Memory::T*>(scratch + layout.scores);
  const Worker<Memory> worker{
      team, me, count_of(threads), memory.arrivals + threads.begin, scratch + layout.segment_bytes, segments, scores};
  for (int64_t position = first; position < first + count; ++position) {
    const int64_t y = position / s.width, x = position % s.width;
    if (x % s.block == 0) worker.start_row(y, x);
    worker.compute_phase(Phase::position, y, x);
    for (int64_t c = 0; c < s.num_codes; ++c) {
      worker.draw_codes(c, y, x);
      worker.compute_phase(Phase(int64_t(Phase::code) + c), y, x);
    }
    worker.keep(y, x);
  }
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
