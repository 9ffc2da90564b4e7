// The memory of a thread that searches.
#pragma once

#include "nearest/vectors.h"

namespace vqfast::VQFAST_ISA {
namespace {

// Of fewer vectors, a comparison with all codes takes less than any attempt to avoid it.
constexpr int64_t kManyVectors = 64;

// Tallies: an entry of what is noted is column * kNoted + group. So many entries are scored at once.
constexpr uint32_t kNoted = 256;
constexpr int64_t kManyNoted = 256;
static_assert(kMaxTallied <= kNoted);

// How a thread's search goes.
struct State {
  const uint8_t* repeats;  // the codebook's, once they are known
  int64_t spare;           // vectors that may still have too many candidates before repeats are looked for
  int64_t lost;            // vectors that have too many
  bool equal;              // whether many vectors of the next block may equal the one before them
  float started;           // the vectors' unit that `starts` are for, or 0
  int64_t noted;           // entries of `noted`
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
  int32_t* starts;                 // (chunk, kGroupRows) and a register more: what tallies begin with
  uint32_t* noted;                 // columns * kNoted + groups of a chunk that are to be scored again
  float* codes;                    // (chunk, group_size), the numbers of a chunk that isn't prepared
  CodeGroup* groups;               // (chunk)
  float* scores;                   // (chunk, kGroupRows, kTileColumns), or of two groups
  float* high;                     // (chunk, kTileColumns), the largest score or tally of a group; then score + error
  float *fours, *limits;           // (chunk / 4, kTileColumns), (kTileColumns), see tally.h
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
  s.columns = take<float>(at, p.max_block * (most_words(p.d) + (p.direct ? kLanes : 0)));
  s.low = take<float>(at, p.max_block);
  s.length = take<float>(at, p.max_block);
  s.residual = take<float>(at, p.max_block);
  s.unit = take<float>(at, p.max_block);
  s.starts = take<int32_t>(at, p.tallied ? p.chunk * kGroupRows + kLanes : 0);
  s.noted = take<uint32_t>(at, p.tallied ? kManyNoted + (p.chunk + 1) * kTileColumns : 0);
  s.codes = take<float>(at, max(p.chunk * group_size(p.d, 1), p.tallied ? short_size(p.d, p.chunk) : 0));
  s.groups = take<CodeGroup>(at, p.chunk);
  s.scores = take<float>(at, (p.keep_scores ? p.chunk + 1 : 2) * kGroupRows * kTileColumns);
  s.high = take<float>(at, (p.chunk + 3) * kTileColumns);
  s.fours = take<float>(at, p.tallied ? ceil_div(p.chunk, 4) * kTileColumns : 0);
  s.limits = take<float>(at, p.tallied ? kTileColumns : 0);
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
