// How functions become ops of torch: their arguments and results cross as words of 64 bits.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "host/torch.h"

namespace vqfast {

// An argument of an op, made of its word on the stack. What that owned is then owned here.
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

// The word of a result. What the result owned is then torch's.
template <class T>
uint64_t given(T result) {
  uint64_t value = 0;
  std::memcpy(&value, &result, sizeof result);
  return value;
}
inline uint64_t given(Tensor result) { return given(result.release()); }

// Box<f>::call is the function f as torch calls it.
template <auto f, class Signature = decltype(f)>
struct Box;
template <auto f, class Result, class... Arguments>
struct Box<f, Result (*)(Arguments...)> {
  static void call(uint64_t* stack, uint64_t, uint64_t) {
    [&]<size_t... i>(std::index_sequence<i...>) {
      if constexpr (std::is_void_v<Result>)
        f(Taken<std::remove_cvref_t<Arguments>>::from(stack[i])...);
      else
        give(stack, f(Taken<std::remove_cvref_t<Arguments>>::from(stack[i])...));
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

// The ops of a namespace of torch.ops, for tensors on the CPU. They stay for the life of the process.
class Ops {
 public:
  explicit Ops(const char* space) {
    check(torch.aoti_torch_library_init_fragment(space, __FILE__, __LINE__, &schemas_));
    check(torch.aoti_torch_library_init_impl(space, "CPU", __FILE__, __LINE__, &kernels_));
  }
  // Adds f, whose arguments and results are those of the schema.
  template <auto f>
  void add(const char* schema) const {
    check(torch.aoti_torch_library_def(schemas_, schema));
    const std::string name(schema, std::strchr(schema, '('));
    check(torch.torch_library_impl(kernels_, name.c_str(), Box<f>::call, uint64_t{0x020a} << 48));  // torch 2.10's ABI
  }

 private:
  LibraryHandle schemas_, kernels_;  // never freed: that would take the ops away
};

}  // namespace vqfast
