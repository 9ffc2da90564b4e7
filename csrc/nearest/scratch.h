// The memory of a thread that searches.
#pragma once

#include "nearest/vectors.h"

namespace vqfast::VQFAST_ISA {
namespace {

// Of fewer vectors, a comparison with all codes takes less than any attempt to avoid it.
constexpr int64_t kManyVectors = 64;

// How a thread's search goes.
struct State {
  const uint8_t* repeats;  // the codebook's, once they are known
  int64_t spare;           // vectors that may still have too many candidates before repeats are looked for
  int64_t lost;            // vectors that have too many
  SearchCounts counts;
};

// A thread's memory, for the vectors of one block. Columns are the vectors that a pass is for, in the order of `list`;
// low, length, residual and unit say for each column what `Vector` and `pack_vectors` say.
struct Scratch {
  State* state;
  Vector* vectors;                 // (max_block)
  Vector** list;                   // (max_block), the vectors that a pass is for
  Candidate* candidates;           // (max_block, max_candidates)
  float* columns;                  // (max_block / kTileColumns, ceil(D / packing), kTileColumns) words; or the vectors
  float *low, *length, *residual;  // (max_block); low is NaN where no candidates are wanted: no score reaches that
  float* unit;                     // (max_block)
  float* fitted;                   // (6, kTileColumns): units, residuals and words of a tile in a chunk (tally.h)
  float* codes;                    // (chunk, group_size), the numbers of a chunk that isn't prepared
  CodeGroup* groups;               // (chunk)
  float* scores;                   // (chunk, kTileRows, kTileColumns), or of one group
  float* high;                     // (chunk, kTileColumns), the largest score of a group, then that + its error
  void* vector;                    // (D), one vector in the type of the codes
  void* code;                      // (D), one code divided by its length
  double* wide;                    // (kTileRows, D), codes that are compared in float64
};

// The next `count` of T from `at`, which moves on by whole cache lines.
template <class T>
T* take(char*& at, int64_t count) {
  T* taken = reinterpret_cast<T*>(at);
  at += ceil_div(count * int64_t(sizeof(T)), 64) * 64;
  return taken;
}

// Lays a scratch out from `begin` on; `at` becomes its end.
Scratch carve(const NearestProblem& p, char* begin, char*& at) {
  at = begin;
  Scratch s;
  s.state = take<State>(at, 1);
  s.vectors = take<Vector>(at, p.max_block);
  s.list = take<Vector*>(at, p.max_block);
  s.candidates = take<Candidate>(at, p.max_block * p.max_candidates);
  s.columns = take<float>(at, p.max_block * (p.d + (p.direct ? kLanes : p.tallied ? ceil_div(p.d, 4) : 0)));
  s.low = take<float>(at, p.max_block);
  s.length = take<float>(at, p.max_block);
  s.residual = take<float>(at, p.max_block);
  s.unit = take<float>(at, p.max_block);
  s.fitted = take<float>(at, p.tallied ? 6 * kTileColumns : 0);
  s.codes = take<float>(at, max(p.chunk * group_size(p.d, 1), p.tallied ? short_size(p.d, p.chunk) : 0));
  s.groups = take<CodeGroup>(at, p.chunk);
  s.scores = take<float>(at, (p.keep_scores ? p.chunk : 1) * kTileRows * kTileColumns);
  s.high = take<float>(at, p.chunk * kTileColumns);
  s.vector = take<double>(at, p.d + kLanes);
  s.code = take<double>(at, p.d);
  s.wide = take<double>(at, kTileRows * p.d);
  return s;
}

int64_t scratch_bytes(const NearestProblem& p) {
  char* end;
  carve(p, nullptr, end);
  return end - static_cast<char*>(nullptr);
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
