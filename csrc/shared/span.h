// Parts of something that is counted.
#pragma once

#include <cstdint>

namespace vqfast {

// The numbers from `begin` up to, but without, `end`.
struct Span {
  int64_t begin, end;
};

// Functions are static: each file, and so each instruction set, has its own copy.
static constexpr int64_t count_of(Span span) { return span.end - span.begin; }

// Part number i of [0, count) in `parts` parts, whose sizes differ by one at most.
static constexpr Span part_of(int64_t count, int64_t parts, int64_t i) {
  return {count * i / parts, count * (i + 1) / parts};
}

}  // namespace vqfast
