// Which kernels this CPU runs, and the C functions that vqfast/ops/library.py calls when it loads the library.
#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstring>
#include <optional>
#include <vector>

#include "host/library.h"

// GCC's headers call this function since GCC 11. Older versions of libstdc++ lack it, and torch's wheels run with them.
#if defined(__GLIBCXX__) && _GLIBCXX_RELEASE >= 11
void std::__throw_bad_array_new_length() { throw std::bad_alloc(); }
#endif

namespace vqfast {

// The kernels of each instruction set. They are weak: one that wasn't compiled is null.
#define VQFAST_WEAK(Kernel, name) extern const Kernel name##_kernel __attribute__((weak));
#define VQFAST_IS_THERE(Kernel, name) &name##_kernel&&
#define VQFAST_REFERENCE(Kernel, name) name##_kernel,
#define VQFAST_INSTRUCTION_SET(isa)                                                   \
  namespace isa {                                                                     \
  VQFAST_KERNELS(VQFAST_WEAK)                                                         \
  static bool are_there() { return VQFAST_KERNELS(VQFAST_IS_THERE) true; }            \
  static Kernels kernels() { return {VQFAST_KERNELS(VQFAST_REFERENCE)}; }             \
  }
VQFAST_INSTRUCTION_SET(portable)
#if defined(__x86_64__)
VQFAST_INSTRUCTION_SET(avx2)
VQFAST_INSTRUCTION_SET(avx512)
VQFAST_INSTRUCTION_SET(avx512bf16)
VQFAST_INSTRUCTION_SET(amx)
#elif defined(__aarch64__)
VQFAST_INSTRUCTION_SET(neon)
#endif

struct InstructionSet {
  const char* name;
  bool runs;  // on this CPU
  bool (*are_there)();
  Kernels (*kernels)();
};

#if defined(__x86_64__)
// Whether the CPU has tiles with products of int8 and bfloat16, and the system lets this process use them.
static bool may_use_tiles() {
#if defined(__linux__)
  constexpr unsigned kNeeded = 1u << 22 | 1u << 24 | 1u << 25;  // amx_bf16, amx_tile, amx_int8
  constexpr long kAllow = 0x1023, kTileData = 18;               // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
  unsigned a, b, c, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kNeeded) == kNeeded &&
         !syscall(SYS_arch_prctl, kAllow, kTileData);
#else
  return false;
#endif
}
#endif

// All of them, the best one first.
static std::vector<InstructionSet> instruction_sets() {
#define VQFAST_CHOICE(isa, runs) InstructionSet{#isa, runs, isa::are_there, isa::kernels}
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool avx512bf16 = avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  return {VQFAST_CHOICE(amx, avx512bf16 && may_use_tiles()), VQFAST_CHOICE(avx512bf16, avx512bf16),
          VQFAST_CHOICE(avx512, avx512), VQFAST_CHOICE(avx2, avx2), VQFAST_CHOICE(portable, true)};
#elif defined(__aarch64__)
  return {VQFAST_CHOICE(neon, true), VQFAST_CHOICE(portable, true)};
#else
  return {VQFAST_CHOICE(portable, true)};
#endif
}

static std::optional<InstructionSet> chosen;

Kernels best_kernels() { return chosen.value().kernels(); }

}  // namespace vqfast

#define VQFAST_EXPORT extern "C" __attribute__((visibility("default")))

// Chooses the kernels of the instruction set `name`; given null, of the best one. Only those count that the library
// holds and this CPU runs. Returns the name, or null if there is none. Called before `vqfast_register`.
VQFAST_EXPORT const char* vqfast_choose(const char* name) {
  for (const vqfast::InstructionSet& set : vqfast::instruction_sets()) {
    if ((name && std::strcmp(name, set.name)) || !set.runs || !set.are_there()) continue;
    vqfast::chosen = set;
    return set.name;
  }
  return nullptr;
}

// Whether pairs of bfloat16 numbers are multiplied at twice the rate of float32 or more: by tiles, and by AMD's
// instruction; Intel's has the same rate as float32.
VQFAST_EXPORT bool vqfast_multiplies_pairs() {
#if defined(__x86_64__)
  if (vqfast::chosen && !std::strcmp(vqfast::chosen->name, "amx")) return true;
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_is("amd");
#else
  return false;
#endif
}

// The names of torch's functions that the library calls, and a null behind them.
VQFAST_EXPORT const char* const* vqfast_torch_functions() {
#define VQFAST_NAME(name, arguments) #name,
  static const char* const names[] = {VQFAST_TORCH(VQFAST_NAME) nullptr};
  return names;
}

// Given those functions, in that order, registers torch.ops.vqfast_native. Returns false if torch refuses an op.
VQFAST_EXPORT bool vqfast_register(void* const* functions) {
  std::memcpy(&vqfast::torch, functions, sizeof vqfast::torch);
  try {
    const vqfast::Ops ops("vqfast_native");
    for (const auto add : {vqfast::add_nearest, vqfast::add_residual, vqfast::add_projected, vqfast::add_masked_conv,
                           vqfast::add_sampler})
      add(ops);
  } catch (const std::exception&) {
    return false;
  }
  return true;
}
