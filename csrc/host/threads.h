// How the host sides use torch's threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <thread>

#include "host/torch.h"
#include "shared/span.h"

namespace vqfast {

// The threads that torch may use.
inline int64_t num_threads() {
  uint32_t count;
  check(torch.torch_get_num_threads(&count));
  return count;
}

// How many threads are worth starting for so many multiplications: one for every 2^21, 10 to 40 us of work. Starting a
// thread takes 5 us, and more where it sleeps.
inline int64_t threads_for(double multiplications) {
  return int64_t(std::clamp(multiplications / (1 << 21), 1.0, double(num_threads())));
}

// f(begin, end) for parts of [begin, end), by torch's threads.
template <class F>
void parallel_for(int64_t begin, int64_t end, const F& f) {
  const auto call = [](int64_t begin, int64_t end, void* f) { (*static_cast<const F*>(f))(begin, end); };
  check(torch.torch_parallel_for(begin, end, 1, call, const_cast<F*>(&f)));
}

// f(part, its span) for `parts` even parts of [0, count), in parallel.
template <class F>
void for_parts(int64_t parts, int64_t count, const F& f) {
  parallel_for(0, parts, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) f(part, part_of(count, parts, part));
  });
}

// Work that threads which are running already do together, once: starting threads takes longer than many a kernel.
class SharedWork {
 public:
  // Every thread calls this. f(n) is called once for each n in [0, count), by any of them; returns when all are done.
  template <class F>
  void run(int64_t count, const F& f) {
    for (int64_t n; (n = next_++) < count; ++done_) f(n);
    while (done_ < count) std::this_thread::yield();
  }

 private:
  std::atomic<int64_t> next_{0}, done_{0};
};

}  // namespace vqfast
