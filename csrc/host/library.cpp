// Which kernels this CPU runs, and what vqfast/ops/library.py calls when it loads the library.
#include "host/library.h"

// GCC's headers call it since GCC 11; a libstdc++ from before, which torch's own wheels get along with, has none.
#if defined(__GLIBCXX__) && _GLIBCXX_RELEASE >= 11
void std::__throw_bad_array_new_length() { throw std::bad_alloc(); }
#endif

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
#if defined(__x86_64__)
VQFAST_VARIANT(avx2)
VQFAST_VARIANT(avx512)
VQFAST_VARIANT(avx512bf16)
#endif

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
  VQFAST_RETURN(portable)
  throw std::runtime_error("the library holds no kernels that this CPU runs");
}

}  // namespace vqfast

#define VQFAST_EXPORT extern "C" __attribute__((visibility("default")))

// The names of the functions of torch's that are wanted, and a null.
VQFAST_EXPORT const char* const* vqfast_wanted() {
#define VQFAST_NAME(name, arguments) #name,
  static const char* const names[] = {VQFAST_TORCH(VQFAST_NAME) nullptr};
  return names;
}

// Given those functions, in that order, registers torch.ops.vqfast_native. Returns whether that went well.
VQFAST_EXPORT bool vqfast_register(void* const* functions) {
  std::memcpy(&vqfast::torch, functions, sizeof vqfast::torch);
  try {
    vqfast::best_kernels();
    const vqfast::Ops ops("vqfast_native");
    for (const auto add : {vqfast::add_masked_conv, vqfast::add_nearest, vqfast::add_projected, vqfast::add_quantize,
                           vqfast::add_sampler})
      add(ops);
  } catch (const std::exception&) {
    return false;
  }
  return true;
}
