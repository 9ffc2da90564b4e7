// A thread's memory in nearest.cpp.
#pragma once

#include "nearest/vectors.h"

namespace vqfast::VQFAST_ISA {
namespace {

constexpr int64_t kManyRows = 64;  // fewer are sooner compared with all codes than anything else is tried

// How a thread's search goes.
struct State {
  const uint8_t* repeats;  // of the codebook, if they are known
  int64_t spare;           // rows that may have too many candidates before it is worth while to ask for repeats
  int64_t lost;            // rows that have too many
  Work work;
};

// A thread's memory.
struct Scratch {
  State* state;
  Row* rows;                         // (block)
  Row** list;                        // (block) those that a pass is for
  Candidate* candidates;             // (block, candidates)
  float *columns;                    // (block / kTile, steps, kTile) rows
  float *low, *length, *residual;    // (block) of the columns: low as above, lengths of a~ and of a~ - a^
  float* unit;                       // (block) of the columns: of integers
  float* codes;                      // (chunk, group_size)
  Group* groups;                     // (chunk)
  float *scores, *high;              // (chunk, kRows, kTile) and their maxima (chunk, kTile)
  void *row, *code;                  // (D) one row as it is given, float64 or float32; room for a code
  double* wide;                      // (kRows, D) codes to be compared
};

template <class T>
T* take(char*& at, int64_t count) {
  T* taken = reinterpret_cast<T*>(at);
  at += ceil_div(count * int64_t(sizeof(T)), 64) * 64;
  return taken;
}

Scratch carve(const Problem& p, char* begin, char*& at) {
  at = begin;
  Scratch s;
  s.state = take<State>(at, 1);
  s.rows = take<Row>(at, p.block);
  s.list = take<Row*>(at, p.block);
  s.candidates = take<Candidate>(at, p.block * p.candidates);
  s.columns = take<float>(at, p.block * p.d);
  s.low = take<float>(at, p.block);
  s.length = take<float>(at, p.block);
  s.residual = take<float>(at, p.block);
  s.unit = take<float>(at, p.block);
  s.codes = take<float>(at, p.chunk * group_size(p.d, 1));
  s.groups = take<Group>(at, p.chunk);
  s.scores = take<float>(at, (p.keep ? p.chunk : 1) * kRows * kTile);
  s.high = take<float>(at, p.chunk * kTile);
  s.row = take<double>(at, p.d + kLanes);
  s.code = take<double>(at, p.d);
  s.wide = take<double>(at, kRows * p.d);
  return s;
}

int64_t scratch(const Problem& p) {
  char* end;
  carve(p, nullptr, end);
  return end - static_cast<char*>(nullptr);
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
