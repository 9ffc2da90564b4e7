// The part of torch that the host sides use: C functions that are stable since torch 2.10. They are declared here, so
// that a build needs no torch; vqfast/ops/library.py finds them in the torch that runs. And what wraps them: tensors,
// threads, and how an op's arguments and results cross.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace vqfast {

using Handle = struct OpaqueTensor*;
using ListHandle = struct OpaqueList*;
using LibraryHandle = struct OpaqueLibrary*;
using Boxed = void (*)(uint64_t* stack, uint64_t arguments, uint64_t results);  // an op, as torch calls it

// Each returns 0 on success, those of dtypes and devices a number of torch's.
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
inline Torch torch;  // set before anything is called

// Torch has written its own reason to stderr.
inline void check(int32_t error, const char* what = "torch failed in a call of vqfast's native library") {
  if (error != 0) throw std::runtime_error(what);
}

enum class ScalarType { Byte, Long, Half, BFloat16, Float, Double };
inline int64_t size_of(ScalarType type) {
  constexpr int64_t sizes[] = {1, 8, 2, 2, 4, 8};
  return sizes[int(type)];
}
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

// An owned reference to a tensor.
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
  ScalarType scalar_type() const {
    const auto number = got<int32_t>(torch.aoti_torch_get_dtype);
    for (const ScalarType type : {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half,
                                  ScalarType::Long, ScalarType::Byte})
      if (number == number_of(type)) return type;
    throw std::runtime_error("a tensor's dtype is none that vqfast's native library takes");
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

// Uninitialised and contiguous.
inline Tensor empty(const int64_t* sizes, int64_t dims, ScalarType type) {
  std::vector<int64_t> strides(dims, 1);
  for (int64_t i = dims - 2; i >= 0; --i) strides[i] = strides[i + 1] * (sizes[i + 1] > 0 ? sizes[i + 1] : 1);
  Handle made;
  const int32_t error = torch.aoti_torch_empty_strided(
      dims, sizes, strides.data(), number_of(type), torch.aoti_torch_device_type_cpu(), 0, &made);
  check(error, "out of memory in a call of vqfast's native library");  // as vqfast/sampling/memory.py reads it
  return Tensor(made);
}
inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType type) {
  return empty(sizes.begin(), int64_t(sizes.size()), type);
}

inline int64_t num_threads() {
  uint32_t count;
  check(torch.torch_get_num_threads(&count));
  return count;
}

// f(begin, end) for parts of what is counted, by torch's threads.
template <class F>
void parallel_for(int64_t begin, int64_t end, const F& f) {
  const auto call = [](int64_t begin, int64_t end, void* f) { (*static_cast<const F*>(f))(begin, end); };
  check(torch.torch_parallel_for(begin, end, 1, call, const_cast<F*>(&f)));
}

// An argument of an op; what it owned is ours.
template <class T>
struct Taken {
  static T from(uint64_t value) {
    T taken;
    std::memcpy(&taken, &value, sizeof taken);
    return taken;
  }
};
template <>
struct Taken<Tensor> {
  static Tensor from(uint64_t value) { return Tensor(Taken<Handle>::from(value)); }
};
template <class T>
struct Taken<std::optional<T>> {
  static std::optional<T> from(uint64_t value) {
    auto* held = Taken<uint64_t*>::from(value);
    if (!held) return std::nullopt;
    std::optional<T> taken(Taken<T>::from(*held));
    delete held;
    return taken;
  }
};
template <class T>
struct Taken<std::vector<T>> {
  static std::vector<T> from(uint64_t value) {
    const auto list = Taken<ListHandle>::from(value);
    size_t size;
    check(torch.torch_list_size(list, &size));
    std::vector<T> taken;
    taken.reserve(size);
    for (size_t i = 0; i < size; ++i) {
      uint64_t item;
      check(torch.torch_list_get_item(list, i, &item));
      taken.push_back(Taken<T>::from(item));
    }
    check(torch.torch_delete_list(list));
    return taken;
  }
};

// A result of an op; what it owns is torch's.
template <class T>
uint64_t given(T result) {
  uint64_t value = 0;
  std::memcpy(&value, &result, sizeof result);
  return value;
}
inline uint64_t given(Tensor result) { return given(result.release()); }

template <auto f, class Signature = decltype(f)>
struct Box;
template <auto f, class Result, class... Arguments>
struct Box<f, Result (*)(Arguments...)> {
  static void call(uint64_t* stack, uint64_t, uint64_t) {
    [&]<size_t... i>(std::index_sequence<i...>) {
      std::tuple<std::remove_cvref_t<Arguments>...> arguments{Taken<std::remove_cvref_t<Arguments>>::from(stack[i])...};
      if constexpr (std::is_void_v<Result>)
        f(std::get<i>(std::move(arguments))...);
      else
        give(stack, f(std::get<i>(std::move(arguments))...));
    }(std::index_sequence_for<Arguments...>());
  }

 private:
  template <class T>
  static void give(uint64_t* stack, T result) {
    *stack = given(std::move(result));
  }
  template <class... T>
  static void give(uint64_t* stack, std::tuple<T...> results) {
    std::apply([&](T&... result) { ((*stack++ = given(std::move(result))), ...); }, results);
  }
};

// The ops of a namespace, for tensors on the CPU.
class Ops {
 public:
  explicit Ops(const char* space) {
    check(torch.aoti_torch_library_init_fragment(space, __FILE__, __LINE__, &schemas_));
    check(torch.aoti_torch_library_init_impl(space, "CPU", __FILE__, __LINE__, &kernels_));
  }
  template <auto f>
  void add(const char* schema) const {
    check(torch.aoti_torch_library_def(schemas_, schema));
    const std::string name(schema, std::strchr(schema, '('));
    check(torch.torch_library_impl(kernels_, name.c_str(), Box<f>::call, uint64_t{0x020a} << 48));  // of torch 2.10
  }

 private:
  LibraryHandle schemas_, kernels_;  // never freed: that would take the ops away
};

}  // namespace vqfast
