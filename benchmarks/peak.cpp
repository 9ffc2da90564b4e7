// Measures a CPU's peak: float32 multiply-adds on registers alone, on the given number of threads.
// Prints floating-point operations per second.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

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

int main(int, char** arguments) {
  const int threads = std::atoi(arguments[1]);
  double best = 0;
  for (int round = 0; round < 5; ++round) {
    const auto began = std::chrono::steady_clock::now();
    std::vector<std::thread> running;
    for (int t = 0; t < threads; ++t) running.emplace_back(multiply);
    for (auto& thread : running) thread.join();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
    const double rate = 2.0 * kLanes * kSums * kSteps * threads / took.count();
    best = rate > best ? rate : best;
  }
  std::printf("%.0f\n", best);
}
