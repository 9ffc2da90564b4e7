// The part of torch that the host sides use: C functions that are stable since torch 2.10, and a tensor made of them.
// They are declared here, so that a build needs no torch; vqfast/ops/library.py finds them in the torch that runs.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <utility>
#include <vector>

namespace vqfast {

using Handle = struct OpaqueTensor*;
using ListHandle = struct OpaqueList*;
using LibraryHandle = struct OpaqueLibrary*;
// An op as torch calls it: its arguments are on the stack, and its results take their place. Each is one word of 64
// bits.
using Boxed = void (*)(uint64_t* stack, uint64_t arguments, uint64_t results);

// Functions of dtypes and devices return torch's number of that, all others 0 on success.
#define VQFAST_TORCH(F)                                                                                           \
  F(aoti_torch_dtype_uint8, ())                                                                                   \
  F(aoti_torch_dtype_int64, ())                                                                                   \
  F(aoti_torch_dtype_float16, ())                                                                                 \
  F(aoti_torch_dtype_bfloat16, ())                                                                                \
  F(aoti_torch_dtype_float32, ())                                                                                 \
  F(aoti_torch_dtype_float64, ())                                                                                 \
  F(aoti_torch_device_type_cpu, ())                                                                               \
  F(aoti_torch_get_dtype, (Handle, int32_t * dtype))                                                              \
  F(aoti_torch_get_dim, (Handle, int64_t * dims))                                                                 \
  F(aoti_torch_get_numel, (Handle, int64_t * count))                                                              \
  F(aoti_torch_get_sizes, (Handle, int64_t * *sizes))                                                             \
  F(aoti_torch_get_strides, (Handle, int64_t * *strides))                                                         \
  F(torch_get_const_data_ptr, (Handle, const void** data))                                                        \
  F(torch_get_mutable_data_ptr, (Handle, void** data))                                                            \
  F(aoti_torch_empty_strided, (int64_t dims, const int64_t* sizes, const int64_t* strides, int32_t dtype,         \
                               int32_t device_type, int32_t device_index, Handle* made))                          \
  F(aoti_torch_zero_, (Handle))                                                                                   \
  F(aoti_torch_delete_tensor_object, (Handle))                                                                    \
  F(torch_list_size, (ListHandle, size_t * size))                                                                 \
  F(torch_list_get_item, (ListHandle, size_t index, uint64_t * item))                                             \
  F(torch_delete_list, (ListHandle))                                                                              \
  F(torch_parallel_for, (int64_t begin, int64_t end, int64_t grain, void (*f)(int64_t begin, int64_t end, void*), \
                         void* context))                                                                          \
  F(torch_get_num_threads, (uint32_t * count))                                                                    \
  F(aoti_torch_library_init_fragment, (const char* space, const char* file, uint32_t line, LibraryHandle* made))  \
  F(aoti_torch_library_init_impl,                                                                                 \
    (const char* space, const char* key, const char* file, uint32_t line, LibraryHandle* made))                   \
  F(aoti_torch_library_def, (LibraryHandle, const char* schema))                                                  \
  F(torch_library_impl, (LibraryHandle, const char* name, Boxed, uint64_t version))

struct Torch {
#define VQFAST_MEMBER(name, arguments) int32_t(*name) arguments;
  VQFAST_TORCH(VQFAST_MEMBER)
#undef VQFAST_MEMBER
};
inline Torch torch;  // vqfast_register fills it before anything else is called

// Throws. A function of its own, so that what throws isn't compiled at each use.
[[noreturn, gnu::noinline, gnu::cold]] inline void fail(const char* what) { throw std::runtime_error(what); }
// Throws where a function of torch has failed, which then has written its reason to stderr.
inline void check(int32_t error, const char* what = "torch failed in a call of vqfast's native library") {
  if (error != 0) fail(what);
}

// The dtypes that cross.
enum class ScalarType { Byte, Long, Half, BFloat16, Float, Double };
// Bytes of a number.
inline int64_t size_of(ScalarType type) {
  constexpr int64_t sizes[] = {1, 8, 2, 2, 4, 8};
  return sizes[int(type)];
}
// Torch's number of a dtype.
inline int32_t number_of(ScalarType type) {
  switch (type) {
    case ScalarType::Byte: return torch.aoti_torch_dtype_uint8();
    case ScalarType::Long: return torch.aoti_torch_dtype_int64();
    case ScalarType::Half: return torch.aoti_torch_dtype_float16();
    case ScalarType::BFloat16: return torch.aoti_torch_dtype_bfloat16();
    case ScalarType::Float: return torch.aoti_torch_dtype_float32();
    default: return torch.aoti_torch_dtype_float64();
  }
}

// An owned reference to a tensor. Moving it leaves null behind; a null tensor may only be destroyed.
class Tensor {
 public:
  explicit Tensor(Handle handle) : handle_(handle) {}
  Tensor(Tensor&& other) noexcept : handle_(other.release()) {}
  Tensor& operator=(Tensor&& other) noexcept { return std::swap(handle_, other.handle_), *this; }
  ~Tensor() {
    if (handle_) torch.aoti_torch_delete_tensor_object(handle_);
  }
  Handle release() { return std::exchange(handle_, nullptr); }

  int64_t dim() const { return got<int64_t>(torch.aoti_torch_get_dim); }
  int64_t numel() const { return got<int64_t>(torch.aoti_torch_get_numel); }
  const int64_t* sizes() const { return got<int64_t*>(torch.aoti_torch_get_sizes); }
  const int64_t* strides() const { return got<int64_t*>(torch.aoti_torch_get_strides); }
  int64_t size(int64_t i) const { return sizes()[i]; }
  int64_t stride(int64_t i) const { return strides()[i]; }
  const void* const_data_ptr() const { return got<const void*>(torch.torch_get_const_data_ptr); }
  void* mutable_data_ptr() const { return got<void*>(torch.torch_get_mutable_data_ptr); }
  bool is_contiguous() const {
    int64_t before = 1;  // numbers of the dimensions after one
    for (int64_t i = dim() - 1; i >= 0; before *= size(i--))
      if (size(i) != 1 && stride(i) != before) return numel() == 0;
    return true;
  }
  ScalarType scalar_type() const {
    const auto number = got<int32_t>(torch.aoti_torch_get_dtype);
    for (const ScalarType type : {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half,
                                  ScalarType::Long, ScalarType::Byte})
      if (number == number_of(type)) return type;
    fail("a tensor's dtype is none that vqfast's native library takes");
  }
  void zero() { check(torch.aoti_torch_zero_(handle_)); }

 private:
  template <class T>
  T got(int32_t (*get)(Handle, T*)) const {
    T value;
    check(get(handle_, &value));
    return value;
  }

  Handle handle_;
};

// A new tensor on the CPU, uninitialised.
inline Tensor empty_strided(const int64_t* sizes, const int64_t* strides, int64_t dims, ScalarType type) {
  Handle made;
  const int32_t error = torch.aoti_torch_empty_strided(
      dims, sizes, strides, number_of(type), torch.aoti_torch_device_type_cpu(), 0, &made);
  // vqfast/sampling/memory.py looks for these words.
  check(error, "out of memory in a call of vqfast's native library");
  return Tensor(made);
}
inline Tensor empty_like(const Tensor& t) { return empty_strided(t.sizes(), t.strides(), t.dim(), t.scalar_type()); }
// Contiguous.
inline Tensor empty(const int64_t* sizes, int64_t dims, ScalarType type) {
  std::vector<int64_t> strides(dims, 1);
  for (int64_t i = dims - 2; i >= 0; --i) strides[i] = strides[i + 1] * (sizes[i + 1] > 0 ? sizes[i + 1] : 1);
  return empty_strided(sizes, strides.data(), dims, type);
}
inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType type) {
  return empty(sizes.begin(), int64_t(sizes.size()), type);
}

}  // namespace vqfast
