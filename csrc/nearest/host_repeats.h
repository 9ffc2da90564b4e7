// Which codes equal an earlier one.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace vqfast {

// codes (k, d), each divided by its length where there are lengths (k) -> (k), 1 for codes that equal an earlier one,
// else 0. Zeros of either sign are equal; codes that aren't finite equal none. Time is k d, by a hash table of 2 k to 4
// k slots.
template <class C>
std::vector<uint8_t> repeats_of(const C* codes, const C* lengths, int64_t k, int64_t d) {
  constexpr int64_t kWays = 4;  // sums that don't wait for each other
  int64_t bits = 1;
  while (int64_t{1} << bits < 2 * k) ++bits;
  std::vector<int32_t> slots(size_t{1} << bits, -1);
  std::vector<uint8_t> repeats(k);
  std::vector<C> room(lengths ? 2 * d : 0);
  const auto code_of = [&](int64_t n, int64_t at) {
    const C* code = codes + n * d;
    if (!lengths) return code;
    C* divided = room.data() + at * d;
    for (int64_t i = 0; i < d; ++i) divided[i] = code[i] / lengths[n];
    return static_cast<const C*>(divided);
  };
  // Whether two codes are equal bit by bit, which is quicker to tell than a hash.
  const auto same = [&](int64_t n, int64_t other) {
    return !std::memcmp(codes + n * d, codes + other * d, d * sizeof(C)) && (!lengths || lengths[n] == lengths[other]);
  };
  int64_t last = -1;  // the last finite code
  for (int64_t n = 0; n < k; ++n) {
    if (last >= 0 && same(n, last)) {
      repeats[n] = 1;
      continue;
    }
    const C* code = code_of(n, 0);
    uint64_t hashes[kWays] = {1, 2, 3, 4};
    const auto mix = [&](uint64_t& hash, C number) {
      uint64_t word = 0;
      number += 0;  // -0 becomes 0
      std::memcpy(&word, &number, sizeof number);
      hash = (hash ^ word) * 0x9e3779b97f4a7c15;
      hash ^= hash >> 32;
    };
    int bad = 0;
    for (int64_t i = 0; i < d; ++i) bad |= !std::isfinite(code[i]);
    if (bad) continue;
    last = n;
    int64_t i = 0;
    for (; i + kWays <= d; i += kWays)
      for (int64_t way = 0; way < kWays; ++way) mix(hashes[way], code[i + way]);
    for (; i < d; ++i) mix(hashes[0], code[i]);
    for (int64_t way = 1; way < kWays; ++way) hashes[0] = (hashes[0] ^ hashes[way]) * 0x9e3779b97f4a7c15;
    size_t slot = hashes[0] >> (64 - bits);
    for (; slots[slot] >= 0; slot = (slot + 1) & (slots.size() - 1)) {
      const C* other = code_of(slots[slot], 1);
      if (std::equal(code, code + d, other)) break;
    }
    repeats[n] = slots[slot] >= 0;
    if (!repeats[n]) slots[slot] = int32_t(n);
  }
  return repeats;
}

}  // namespace vqfast
