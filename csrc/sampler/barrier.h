// Where the threads of a team wait for each other.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <sched.h>
#endif

namespace vqfast::VQFAST_ISA {
namespace {

// All zeros at first. A thread spins for a while, then sleeps: on a busy machine another may be long in coming.
struct alignas(64) Barrier {
  int32_t arrived, round, asleep;
  // Returns when `threads` threads have called it.
  void wait(int32_t threads) {
    const int32_t now = __atomic_load_n(&round, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == threads) {
      arrived = 0;
      __atomic_store_n(&round, now + 1, __ATOMIC_SEQ_CST);
      if (__atomic_load_n(&asleep, __ATOMIC_SEQ_CST)) wake();
      return;
    }
    for (int spins = 0; spins < 2000; ++spins) {
      if (__atomic_load_n(&round, __ATOMIC_ACQUIRE) != now) return;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    __atomic_add_fetch(&asleep, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&round, __ATOMIC_SEQ_CST) == now) sleep(now);
    __atomic_sub_fetch(&asleep, 1, __ATOMIC_SEQ_CST);
  }
#if defined(__linux__)
  void sleep(int32_t now) { syscall(SYS_futex, &round, FUTEX_WAIT_PRIVATE, now, nullptr, nullptr, 0); }
  void wake() { syscall(SYS_futex, &round, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0); }
#else
  void sleep(int32_t) { sched_yield(); }
  void wake() {}
#endif
};

}  // namespace
}  // namespace vqfast::VQFAST_ISA
