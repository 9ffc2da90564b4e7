// Which kernels this CPU runs.
#include "library.h"

namespace vqfast {

// Weak: a variant that the compiler couldn't build is null.
#define VQFAST_VARIANT(name)                                                   \
  namespace name {                                                             \
  extern const Kernel kernel __attribute__((weak));                            \
  extern const QuantizeKernel quantize_kernel __attribute__((weak));           \
  extern const MaskedConvKernel masked_conv_kernel __attribute__((weak));      \
  extern const SamplerKernel sampler_kernel __attribute__((weak));             \
  extern const ProjectedKernel projected_kernel __attribute__((weak));         \
  }
VQFAST_VARIANT(portable)
VQFAST_VARIANT(avx2)
VQFAST_VARIANT(avx512)
VQFAST_VARIANT(avx512bf16)

Kernels best_kernels() {
#define VQFAST_KERNELS(name)                                                   \
  {name::kernel, name::quantize_kernel, name::masked_conv_kernel, name::sampler_kernel, name::projected_kernel}
#define VQFAST_RETURN(name)                                                    \
  if (&name::kernel && &name::quantize_kernel && &name::masked_conv_kernel && &name::sampler_kernel && \
      &name::projected_kernel)                                                 \
    return VQFAST_KERNELS(name);
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) VQFAST_RETURN(avx512bf16)
  if (avx512) VQFAST_RETURN(avx512)
  if (avx2) VQFAST_RETURN(avx2)
#endif
  return VQFAST_KERNELS(portable);
}

}  // namespace vqfast
