// What the host sides of the ops share: the kernels of this CPU, and memory.
#pragma once

#include "host/ops.h"
#include "host/threads.h"
#include "masked_conv/masked_conv.h"
#include "nearest/nearest.h"
#include "residual/projected.h"
#include "residual/residual.h"
#include "sampler/sampler.h"

namespace vqfast {

// All kernels: each is a table of functions, `name_kernel` in the namespace of its instruction set.
#define VQFAST_KERNELS(F)          \
  F(NearestKernel, nearest)        \
  F(ResidualKernel, residual)      \
  F(ProjectedKernel, projected)    \
  F(MaskedConvKernel, masked_conv) \
  F(SamplerKernel, sampler)

// The kernels of one instruction set.
struct Kernels {
#define VQFAST_MEMBER(Kernel, name) const Kernel& name;
  VQFAST_KERNELS(VQFAST_MEMBER)
#undef VQFAST_MEMBER
};

// Those of the instruction set that `vqfast_choose` chose (library.cpp): the best one, or the one asked for.
Kernels best_kernels();

// The ops of each folder.
void add_nearest(const Ops& ops);
void add_residual(const Ops& ops);
void add_projected(const Ops& ops);
void add_masked_conv(const Ops& ops);
void add_sampler(const Ops& ops);

inline Precision precision_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Precision::f32;
    case ScalarType::Double: return Precision::f64;
    case ScalarType::BFloat16: return Precision::bf16;
    case ScalarType::Half: return Precision::f16;
    default: fail("want floating-point numbers");
  }
}

// Bytes of a number that is float64 where tensors are, else float32.
inline int64_t wide_size(Precision precision) {
  return int64_t(precision == Precision::f64 ? sizeof(double) : sizeof(float));
}

// Uninitialised memory for `count` of T. It is torch's, so that it is aligned and counted.
template <class T>
struct Buffer {
  Tensor tensor;
  explicit Buffer(int64_t count) : tensor(empty({count * int64_t(sizeof(T))}, ScalarType::Byte)) {}
  T* data() { return static_cast<T*>(tensor.mutable_data_ptr()); }
};

}  // namespace vqfast
