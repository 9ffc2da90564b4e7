// Attention at a position: the mean of the values of earlier positions, weighted by softmax(scale * query . key).
//
// A team keeps the keys and values of its samples as [sample][channel][position]. So scores are computed for a register
// of positions at a time, whatever the number of channels, and sums over positions likewise.
#pragma once

#include "sampler/memory.h"

namespace vqfast::VQFAST_ISA {
namespace {

// Step i, an attention, for some of the pairs of a sample and a head; pair number sample * heads + head.
template <class Memory>
struct AttentionJob {
  using T = typename Memory::T;
  using V = typename Memory::V;
  static constexpr int kLanes = Memory::kLanes, kPositions = Memory::kPositions, kRegisters = kPositions / kLanes;

  const typename Memory::Team& team;
  int64_t i;
  Span pairs;
  T* scores;  // room for a row of positions
  const Attention& attention() const { return team.all.s.attentions[team.all.s.steps[i].attention]; }
  // Channels of a head.
  int64_t depth(int64_t step) const { return team.all.steps[step].channels / attention().heads; }

  // The channels of a pair at position (y, x) of a step's value.
  T* channels(int64_t step, int64_t pair, int64_t y, int64_t x) const {
    const int64_t sample = pair / attention().heads, head = pair % attention().heads;
    return team.value(step, y, x) + sample * team.all.steps[step].stride + head * depth(step);
  }
  // The first of the rows of positions that are kept of a pair: one for each channel.
  T* kept(int64_t offset, int64_t pair, int64_t depth) const {
    return team.template at<T>(offset) + pair * depth * team.all.row_of_positions();
  }

  // Keeps the keys and values of position (y, x).
  void append(int64_t y, int64_t x) const {
    const StepMemory& own = team.all.steps[i];
    append(attention().key, own.kept_keys, y, x);
    append(attention().value, own.kept_values, y, x);
  }
  void append(int64_t step, int64_t offset, int64_t y, int64_t x) const {
    const int64_t row = team.all.row_of_positions();
    for (int64_t pair = pairs.begin; pair < pairs.end; ++pair) {
      const T* from = channels(step, pair, y, x);
      T* to = kept(offset, pair, depth(step)) + y * team.all.s.width + x;
      for (int64_t c = 0; c < depth(step); ++c) to[c * row] = from[c];
    }
  }

  // Computes the value at position (y, x).
  void attend(int64_t y, int64_t x) const {
    const Attention& a = attention();
    if (a.own) append(y, x);
    const int64_t count = y * team.all.s.width + x + a.own;
    const int64_t width = depth(i);
    for (int64_t pair = pairs.begin; pair < pairs.end; ++pair) {
      T* to = channels(i, pair, y, x);
      if (count == 0) {
        memset(to, 0, width * sizeof(T));
      } else {
        score(channels(a.query, pair, y, x), kept(team.all.steps[i].kept_keys, pair, depth(a.key)), count);
        const T total = exponentiate(count);
        const T* values = kept(team.all.steps[i].kept_values, pair, width);
        for (int64_t c = 0; c < width; ++c) to[c] = weighted(values + c * team.all.row_of_positions(), count) / total;
      }
      if (team.all.steps[i].factors < 0) continue;
      const int64_t stride = team.all.steps[i].stride, at = to - team.value(i, y, x);
      auto* factors = team.factors(i, y, x) + at / stride * Memory::Form::pitch_of(stride);
      for (int64_t c = 0; c < width; ++c) Memory::Form::put(to[c], factors, at % stride + c);
    }
  }

  // Sets the scores of the positions before `count`, and of those up to the next block's to -infinity.
  [[gnu::noinline]] void score(const T* query, const T* keys, int64_t count) const {
    const T scale = T(__builtin_bit_cast(double, attention().scale));
    const int64_t row = team.all.row_of_positions(), channels = depth(attention().key);
    for (int64_t n = 0; n < count; n += kPositions) {
      V sums[kRegisters] = {};
      for (int64_t c = 0; c < channels; ++c)
#pragma GCC unroll 4
        for (int v = 0; v < kRegisters; ++v) sums[v] += query[c] * load(keys + c * row + n + v * kLanes);
      for (int v = 0; v < kRegisters; ++v) store(sums[v] * scale, scores + n + v * kLanes);
    }
    for (int64_t n = count; n % kPositions; ++n) scores[n] = -T(__builtin_inf());
  }

  // Replaces scores by their exponentials, relative to the largest, and returns the sum of these.
  [[gnu::noinline]] T exponentiate(int64_t count) const {
    V largest = load(scores), sum = {};
    for (int64_t n = kLanes; n < count; n += kLanes) {
      const V score = load(scores + n);
      largest = score > largest ? score : largest;
    }
    T highest = largest[0];
    for (int l = 1; l < kLanes; ++l) highest = largest[l] > highest ? largest[l] : highest;
    const V none = V{} - T(__builtin_inf());
    for (int64_t n = 0; n < ceil_div(count, kPositions) * kPositions; n += kLanes) {
      const V score = load(scores + n), power = score == none ? V{} : exp_less<0>(score - highest);
      sum += power;
      store(power, scores + n);
    }
    return sum_lanes(sum);
  }

  // The sum of a row of positions, times the weights in `scores`.
  T weighted(const T* row, int64_t count) const {
    V sums[kRegisters] = {};
    for (int64_t n = 0; n < count; n += kPositions)
#pragma GCC unroll 4
      for (int v = 0; v < kRegisters; ++v) sums[v] += load(row + n + v * kLanes) * load(scores + n + v * kLanes);
    return sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
};

}  // namespace
}  // namespace vqfast::VQFAST_ISA
