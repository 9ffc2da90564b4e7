// Measures a CPU's peak on the given number of threads: float32 multiply-adds on registers alone, or, given a number of
// bytes, how fast the threads read them again and again, each its own share, from the cache that holds that.
// Prints floating-point operations, or bytes, per second.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Vec __attribute__((vector_size(4 * kLanes)));

constexpr long kSteps = 20'000'000;
constexpr int kSums = 12;

static void multiply() {
  Vec sums[kSums] = {}, a = Vec{} + 0.999f, b = Vec{} + 0.001f;
  asm volatile("" : "+x"(a), "+x"(b));
  for (long i = 0; i < kSteps; ++i)
#pragma GCC unroll 12
    for (Vec& sum : sums) {
      sum = sum * a + b;
      asm volatile("" : "+x"(sum));  // keeps each sum apart, in a register
    }
}

// Reads so many registers, a multiple of 4.
static void read(const Vec* from, long count) {
  Vec sums[4] = {};
  for (long i = 0; i < count; i += 4) {
    for (int n = 0; n < 4; ++n) sums[n] += from[i + n];
    asm volatile("" : "+x"(sums[0]), "+x"(sums[1]), "+x"(sums[2]), "+x"(sums[3]));
  }
}

// Memory on large pages, where the system has them: else finding addresses takes part of the time.
static Vec* large(long bytes) {
  constexpr long kPage = 1 << 21;
  void* memory = std::aligned_alloc(kPage, (bytes / kPage + 1) * kPage);
#if defined(__linux__)
  madvise(memory, (bytes / kPage + 1) * kPage, MADV_HUGEPAGE);
#endif
  for (long i = 0; i < bytes / long(sizeof(float)); ++i) static_cast<float*>(memory)[i] = 0;
  return static_cast<Vec*>(memory);
}

// The shortest of some times of `work(thread)` on all threads at once.
template <class Work>
static double shortest(int threads, const Work& work) {
  double best = 1e9;
  for (int round = 0; round < 5; ++round) {
    const auto began = std::chrono::steady_clock::now();
    std::vector<std::thread> running;
    for (int t = 0; t < threads; ++t) running.emplace_back(work, t);
    for (auto& thread : running) thread.join();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
    best = took.count() < best ? took.count() : best;
  }
  return best;
}

int main(int count, char** arguments) {
  const int threads = std::atoi(arguments[1]);
  if (count == 2) {
    const double took = shortest(threads, [](int) { multiply(); });
    std::printf("%.0f\n", 2.0 * kLanes * kSums * kSteps * threads / took);
    return 0;
  }
  const long registers = std::atol(arguments[2]) / threads / long(4 * sizeof(Vec)) * 4 + 4;
  const long bytes = registers * long(sizeof(Vec)), times = (1L << 30) / bytes + 1;
  std::vector<Vec*> shares;
  for (int t = 0; t < threads; ++t) shares.push_back(large(bytes));
  const double took = shortest(threads, [&](int t) {
    for (long n = 0; n < times; ++n) read(shares[t], registers);
  });
  std::printf("%.0f\n", double(bytes) * times * threads / took);
}
