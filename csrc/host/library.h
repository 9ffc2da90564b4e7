// What the host sides of the ops share. One library fits every Python and every torch from 2.10 on.
#pragma once

#include <algorithm>
#include <atomic>
#include <thread>

#include "masked_conv/masked_conv.h"
#include "nearest/nearest.h"
#include "residual/projected.h"
#include "residual/residual.h"
#include "sampler/sampler.h"
#include "host/torch.h"

namespace vqfast {

struct Kernels {
  const Kernel& nearest;
  const QuantizeKernel& quantize;
  const MaskedConvKernel& masked_conv;
  const SamplerKernel& sampler;
  const ProjectedKernel& projected;
};

// The best kernels that this CPU runs.
Kernels best_kernels();

void add_masked_conv(const Ops& ops);
void add_nearest(const Ops& ops);
void add_projected(const Ops& ops);
void add_quantize(const Ops& ops);
void add_sampler(const Ops& ops);

inline Type type_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Type::f32;
    case ScalarType::Double: return Type::f64;
    case ScalarType::BFloat16: return Type::bf16;
    case ScalarType::Half: return Type::f16;
    default: throw std::runtime_error("want floating-point numbers");
  }
}

// Uninitialised memory, torch's so that it is aligned and counted.
template <class T>
struct Buffer {
  Tensor tensor;
  explicit Buffer(int64_t count) : tensor(empty({count * int64_t(sizeof(T))}, ScalarType::Byte)) {}
  T* data() { return static_cast<T*>(tensor.mutable_data_ptr()); }
};

// f(part, its span) for `parts` even parts of `count`, in parallel.
template <class F>
void for_parts(int64_t parts, int64_t count, const F& f) {
  parallel_for(0, parts, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) f(part, part_of(count, parts, part));
  });
}

// Work that some threads share on their way. To start them again for what follows takes longer than many a kernel.
class Shared {
 public:
  // f(n) for the next n below `count` until none is left; returns when all are done, whoever did them.
  template <class F>
  void run(int64_t count, const F& f) {
    for (int64_t n; (n = next_++) < count; ++done_) f(n);
    while (done_ < count) std::this_thread::yield();
  }

 private:
  std::atomic<int64_t> next_{0}, done_{0};
};

// A thread for every 2^18 steps: fewer aren't worth its start.
inline int64_t threads_for(double work) {
  return int64_t(std::clamp(work / (1 << 18), 1.0, double(num_threads())));
}

}  // namespace vqfast
