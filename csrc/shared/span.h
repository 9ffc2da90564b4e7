// A part of what is counted. Static, as each instruction set has its own functions.
#pragma once

#include <cstdint>

namespace vqfast {

struct Span {
  int64_t begin, end;
};
static constexpr int64_t count_of(Span span) { return span.end - span.begin; }

// The i-th of `parts` even parts of `count`.
static constexpr Span part_of(int64_t count, int64_t parts, int64_t i) {
  return {count * i / parts, count * (i + 1) / parts};
}

}  // namespace vqfast
