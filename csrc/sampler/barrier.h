// Where the threads of a team wait for each other.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <ctime>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <sched.h>
#endif

namespace vqfast::VQFAST_ISA {
namespace {

// How often a thread has arrived; all zeros at first. Each thread writes a cache line of its own, so that none waits
// for a line before it can go on: with one counter for all, who comes last waits to take it, and the others again for
// what it says. A thread spins for a while, then sleeps: on a busy machine another may be long in coming.
struct alignas(64) Arrivals {
  int32_t count, asleep;  // `asleep`: threads that sleep until this one arrives

  // Says that this thread has arrived. A thread that is about to sleep may be missed: it sleeps for a moment only.
  int32_t arrive() {
    const int32_t now = count + 1;
    __atomic_store_n(&count, now, __ATOMIC_RELEASE);
    if (__atomic_load_n(&asleep, __ATOMIC_RELAXED)) wake();
    return now;
  }
  // Returns when this thread has arrived as often as another one.
  void wait_for(int32_t now) {
    int32_t seen;
    const auto late = [&] { return (seen = __atomic_load_n(&count, __ATOMIC_ACQUIRE)) - now < 0; };
    for (int spins = 0; spins < 2000; ++spins) {
      if (!late()) return;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    __atomic_add_fetch(&asleep, 1, __ATOMIC_SEQ_CST);
    while (late()) sleep(seen);
    __atomic_sub_fetch(&asleep, 1, __ATOMIC_SEQ_CST);
  }
#if defined(__linux__)
  void sleep(int32_t seen) {
    const timespec moment{0, 1000000};
    syscall(SYS_futex, &count, FUTEX_WAIT_PRIVATE, seen, &moment, nullptr, 0);
  }
  void wake() { syscall(SYS_futex, &count, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0); }
#else
  void sleep(int32_t) { sched_yield(); }
  void wake() {}
#endif
};

}  // namespace
}  // namespace vqfast::VQFAST_ISA
