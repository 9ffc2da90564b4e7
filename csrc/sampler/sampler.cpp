// The whole of sampling: every value of the program is computed once, by the tile with samples and positions as its
// rows and channels as its columns.
//
// Rows of the grid are drawn side by side, each some columns behind the row above it (vqfast/sampling/wavefront.py says
// how far): one reading of a weight, and one meeting of threads, serve a position of each row. Their values lie
// anywhere in the caches, so that what is multiplied is copied first, a twentieth of the products' time.
//
// Floor: of many samples the multiplications; of few the weights, which come from L2 or L3 once for each position.
// Factors in bfloat16 halve the weights' bytes. They halve the multiplications' time where an instruction for pairs has
// the rate of one for float32 (AMD), and leave it where it has half that (Intel). The tiles of Intel's later CPUs
// multiply 16 times as fast as float32: then weights on their way and activations are what takes time.
//
// Tiles also multiply float32, in three pieces of bfloat16: of 128 rows or more, early products. 32 rows x 32 columns x 32
// channels take 220 ns with rows from L2, 140 from L1, and 350 in registers. Late ones stay in registers: their weights
// come from L3 once for each moment, which bounds them, and pieces have half as many bytes again.
//
// Of many rows as many are computed side by side as L2 holds the values of, and of the weights so many at a time as L1
// holds; meanwhile the next values and weights are asked for.
//
// For example WaveNet, 64 channels and 30 layers, has 757760 weights: 3 MB in float32, 1.5 MB in bfloat16. A core of an
// Intel Xeon reads 34 GB/s from L3 and 127 GB/s from its 2 MB of L2: 89 us a sample, or 12.
//
// Side by side: the gated prior of 128 channels and 15 layers has 1.6 million weights that are read at each moment (6.2
// MB), and 3.9 million that are read at each chunk. On a 64x64 grid rows are 24 columns apart: 1576 moments in place of
// 4096. A core of an AMD EPYC that took 103 us for a position's 6.2 MB, at 45 GFLOP/s, needs 68 of them for the
// products, and 95 more for those of the chunk: so it gains little, and more where the third cache is slower and
// products are faster.

#include "sampler/sampler.h"

#include "sampler/pack.h"
#include "sampler/worker.h"

namespace vqfast::VQFAST_ISA {
namespace {

// f(the memory of a problem)
template <class F>
auto with_memory(const SamplerProblem& s, F f) {
#if defined(__AMX_TILE__)
  if (s.factors == Factors::pairs) return f(Memory<Bf16Tiles>(s));
#elif defined(__AVX512BF16__)
  if (s.factors == Factors::pairs) return f(Memory<Bf16Pairs>(s));
#endif
  if (s.factors == Factors::pairs || s.factors == Factors::widened) return f(Memory<WidenedPairs>(s));
#if defined(__AMX_TILE__)
  if (s.factors == Factors::pieces) return f(Memory<Float32, Float32Pieces>(s));
#endif
  return s.precision == Precision::f64 ? f(Memory<Float64>(s)) : f(Memory<Float32>(s));
}

}  // namespace

extern const SamplerKernel sampler_kernel;
const SamplerKernel sampler_kernel{
    [](const SamplerProblem& s) { return with_memory(s, [](auto memory) { return memory.lay_out(false).end; }); },
    [](const SamplerProblem& s) { with_memory(s, [](auto memory) { memory.begin(); }); },
    [](const SamplerProblem& s, int64_t step) { 
      with_memory(s, [=](auto memory) {
        memory.with_weight([&](auto weight) { Packing<decltype(memory)>{memory, step}.template pack<decltype(weight)>(); });
      });
    },
    [](const SamplerProblem& s, int64_t thread, int64_t first, int64_t count) {
      with_memory(s, [=](auto memory) { run(memory, thread, first, count); });
    },
};

}  // namespace vqfast::VQFAST_ISA
