// The whole of sampling: every value of the program is computed once, by the tile with samples and positions as its
// rows and channels as its columns.
//
// Floor: of many samples the multiplications; of few the weights, which come from L2 or L3 once for each position. Factors
// in bfloat16 halve the weights' bytes. They halve the multiplications' time where an instruction for pairs has the rate
// of one for float32 (AMD), and leave it where it has half that (Intel).
// For example WaveNet, 64 channels and 30 layers, has 757760 weights: 3 MB in float32, 1.5 MB in bfloat16. A core of an
// Intel Xeon reads 34 GB/s from L3 and 127 GB/s from its 2 MB of L2: 89 us a sample, or 12.

#include "sampler/sampler.h"

#include "sampler/worker.h"

namespace vqfast::VQFAST_ISA {
namespace {

// f(the memory of a problem)
template <class F>
auto with_memory(const SamplerProblem& s, F f) {
#if defined(__AVX512BF16__)
  if (s.factors == Factors::pairs) return f(Memory<Bf16Pairs, float>(s));
#endif
  if (s.factors != Factors::exact) return f(Memory<WidenedPairs, float>(s));
  switch (s.precision) {
    case Precision::f64: return f(Memory<Float64, double>(s));
    case Precision::bf16: return f(Memory<Float32, Bf16>(s));
    default: return f(Memory<Float32, float>(s));
  }
}

}  // namespace

extern const SamplerKernel sampler_kernel;
const SamplerKernel sampler_kernel{
    [](const SamplerProblem& s) { return with_memory(s, [](auto memory) { return memory.lay_out(false).end; }); },
    [](const SamplerProblem& s) { with_memory(s, [](auto memory) { memory.begin(); }); },
    [](const SamplerProblem& s, int64_t step) { with_memory(s, [=](auto memory) { memory.pack(step); }); },
    [](const SamplerProblem& s, int64_t thread, int64_t first, int64_t count) {
      with_memory(s, [=](auto memory) { run(memory, thread, first, count); });
    },
};

}  // namespace vqfast::VQFAST_ISA
