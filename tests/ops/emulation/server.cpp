// Runs the native library of another machine under an emulator, with tensors of its own in the place of torch's.
//
// server LIBRARY: reads calls of ops from stdin and writes their results to stdout, in the byte order of the machine.
// tests/ops/emulation/client.py has the other end, and says what is in a message.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "host/torch.h"

namespace {

struct FakeTensor {
  int references = 1;
  int32_t dtype;
  std::vector<int64_t> sizes, strides;
  int64_t bytes;
  void* data;

  static int64_t item_size(int32_t dtype) {
    const std::map<int32_t, int64_t> known = {{0, 1}, {4, 8}, {5, 2}, {6, 4}, {7, 8}, {15, 2}};
    return known.at(dtype);
  }
  FakeTensor(int32_t type, std::vector<int64_t> shape, std::vector<int64_t> steps)
      : dtype(type), sizes(std::move(shape)), strides(std::move(steps)) {
    int64_t span = 1;
    for (size_t i = 0; i < sizes.size(); ++i) span += (sizes[i] - 1) * strides[i];
    for (const int64_t size : sizes) span = size ? span : 0;
    bytes = span * item_size(dtype);
    data = std::aligned_alloc(64, size_t(bytes / 64 + 1) * 64);
    std::memset(data, 0xff, size_t(bytes));  // NaN, as new memory may hold anything
  }
  ~FakeTensor() { std::free(data); }
};
FakeTensor* of(vqfast::Handle handle) { return reinterpret_cast<FakeTensor*>(handle); }
vqfast::Handle handle_of(FakeTensor* tensor) { return reinterpret_cast<vqfast::Handle>(tensor); }
using List = std::vector<uint64_t>;
List& list_of(vqfast::ListHandle handle) { return *reinterpret_cast<List*>(handle); }

uint32_t threads = 1;
std::vector<std::string> schemas;
std::map<std::string, vqfast::Boxed> ops;

// The functions of torch that the library calls. Those of dtypes return torch's numbers.
int32_t aoti_torch_dtype_uint8() { return 0; }
int32_t aoti_torch_dtype_int64() { return 4; }
int32_t aoti_torch_dtype_float16() { return 5; }
int32_t aoti_torch_dtype_bfloat16() { return 15; }
int32_t aoti_torch_dtype_float32() { return 6; }
int32_t aoti_torch_dtype_float64() { return 7; }
int32_t aoti_torch_device_type_cpu() { return 0; }
int32_t aoti_torch_get_dtype(vqfast::Handle t, int32_t* dtype) { return *dtype = of(t)->dtype, 0; }
int32_t aoti_torch_get_dim(vqfast::Handle t, int64_t* dims) { return *dims = int64_t(of(t)->sizes.size()), 0; }
int32_t aoti_torch_get_numel(vqfast::Handle t, int64_t* count) {
  const auto& sizes = of(t)->sizes;
  *count = std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
  return 0;
}
int32_t aoti_torch_get_sizes(vqfast::Handle t, int64_t** sizes) { return *sizes = of(t)->sizes.data(), 0; }
int32_t aoti_torch_get_strides(vqfast::Handle t, int64_t** strides) { return *strides = of(t)->strides.data(), 0; }
int32_t torch_get_const_data_ptr(vqfast::Handle t, const void** data) { return *data = of(t)->data, 0; }
int32_t torch_get_mutable_data_ptr(vqfast::Handle t, void** data) { return *data = of(t)->data, 0; }
int32_t aoti_torch_empty_strided(int64_t dims, const int64_t* sizes, const int64_t* strides, int32_t dtype, int32_t,
                                 int32_t, vqfast::Handle* made) {
  *made = handle_of(new FakeTensor(dtype, {sizes, sizes + dims}, {strides, strides + dims}));
  return 0;
}
int32_t aoti_torch_zero_(vqfast::Handle t) { return std::memset(of(t)->data, 0, size_t(of(t)->bytes)), 0; }
int32_t aoti_torch_delete_tensor_object(vqfast::Handle t) {
  if (--of(t)->references == 0) delete of(t);
  return 0;
}
int32_t torch_list_size(vqfast::ListHandle list, size_t* size) { return *size = list_of(list).size(), 0; }
int32_t torch_list_get_item(vqfast::ListHandle list, size_t i, uint64_t* item) { return *item = list_of(list)[i], 0; }
int32_t torch_delete_list(vqfast::ListHandle list) { return delete &list_of(list), 0; }
int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t, void (*f)(int64_t, int64_t, void*), void* context) {
  const int64_t parts = std::min<int64_t>(threads, end - begin);
  std::vector<std::thread> others;
  const auto bound = [=](int64_t part) { return begin + (end - begin) * part / parts; };
  for (int64_t part = 1; part < parts; ++part)
    others.emplace_back([=] { f(bound(part), bound(part + 1), context); });
  if (parts > 0) f(begin, bound(1), context);
  for (std::thread& other : others) other.join();
  return 0;
}
int32_t torch_get_num_threads(uint32_t* count) { return *count = threads, 0; }
int32_t aoti_torch_library_init_fragment(const char*, const char*, uint32_t, vqfast::LibraryHandle*) { return 0; }
int32_t aoti_torch_library_init_impl(const char*, const char*, const char*, uint32_t, vqfast::LibraryHandle*) {
  return 0;
}
int32_t aoti_torch_library_def(vqfast::LibraryHandle, const char* schema) { return schemas.push_back(schema), 0; }
int32_t torch_library_impl(vqfast::LibraryHandle, const char* name, vqfast::Boxed f, uint64_t) {
  return ops[name] = f, 0;
}

void get(void* to, size_t bytes) {
  if (std::fread(to, 1, bytes, stdin) != bytes) std::exit(0);  // the client has ended
}
template <class T>
T get() {
  T value;
  get(&value, sizeof value);
  return value;
}
std::string get_text() {
  std::string text(get<uint32_t>(), ' ');
  return get(text.data(), text.size()), text;
}
std::vector<int64_t> get_numbers() {
  std::vector<int64_t> numbers(get<uint32_t>());
  return get(numbers.data(), numbers.size() * sizeof(int64_t)), numbers;
}
template <class T>
void put(const T& value) {
  std::fwrite(&value, sizeof value, 1, stdout);
}
void put_text(const std::string& text) {
  put(uint32_t(text.size()));
  std::fwrite(text.data(), 1, text.size(), stdout);
}

// The word of an argument on the stack. Tensors that the op writes to are kept in `written`.
uint64_t get_argument(std::vector<FakeTensor*>& written) {
  const char kind = get<char>();
  if (kind == 'n') return 0;  // an optional argument that isn't given
  if (kind == 'o') return reinterpret_cast<uint64_t>(new uint64_t(get_argument(written)));
  if (kind == 'w') return get<uint64_t>();
  if (kind == 'l') {
    auto* list = new List(get<uint32_t>());
    for (uint64_t& item : *list) item = get_argument(written);
    return reinterpret_cast<uint64_t>(list);
  }
  const auto dtype = get<int32_t>();
  const auto sizes = get_numbers(), strides = get_numbers();
  auto* tensor = new FakeTensor(dtype, sizes, strides);
  get(tensor->data, size_t(tensor->bytes));
  if (kind == 'm') written.push_back(tensor), ++tensor->references;
  return reinterpret_cast<uint64_t>(tensor);
}

void put_data(FakeTensor* tensor) {
  std::fwrite(tensor->data, 1, size_t(tensor->bytes), stdout);
  aoti_torch_delete_tensor_object(handle_of(tensor));
}
void put_tensor(FakeTensor* tensor) {
  put(tensor->dtype);
  put(uint32_t(tensor->sizes.size()));
  for (const auto* numbers : {&tensor->sizes, &tensor->strides})
    for (const int64_t number : *numbers) put(number);
  put_data(tensor);
}

void serve() {
  const vqfast::Boxed op = ops.at(get_text());
  threads = get<uint32_t>();
  const auto results = get<uint32_t>(), arguments = get<uint32_t>();
  std::vector<FakeTensor*> written;
  std::vector<uint64_t> stack(arguments + results);
  for (uint32_t i = 0; i < arguments; ++i) stack[i] = get_argument(written);
  std::string error;
  try {
    op(stack.data(), arguments, results);
  } catch (const std::exception& raised) {
    error = *raised.what() ? raised.what() : "an error without words";
  }
  put_text(error);
  for (FakeTensor* tensor : written) put_data(tensor);
  for (uint32_t i = 0; error.empty() && i < results; ++i) put_tensor(reinterpret_cast<FakeTensor*>(stack[i]));
  std::fflush(stdout);
}

template <class F>
F* function(void* library, const char* name) {
  if (void* found = dlsym(library, name)) return reinterpret_cast<F*>(found);
  throw std::runtime_error(dlerror());
}

}  // namespace

int main(int, char** argv) {
  void* library = dlopen(argv[1], RTLD_NOW);
  if (!library) return std::fprintf(stderr, "%s\n", dlerror()), 1;
#define FUNCTION(name, arguments) {#name, reinterpret_cast<void*>(&name)},
  const std::map<std::string, void*> functions = {VQFAST_TORCH(FUNCTION)};
  std::vector<void*> pointers;
  for (const char* const* name = function<const char* const*()>(library, "vqfast_torch_functions")(); *name; ++name)
    pointers.push_back(functions.at(*name));
  const std::string asked = get_text();
  const char* chosen = function<const char*(const char*)>(library, "vqfast_choose")(asked.c_str());
  if (!chosen) return std::fprintf(stderr, "no %s kernels\n", asked.c_str()), 1;
  if (!function<bool(void* const*)>(library, "vqfast_register")(pointers.data())) return 1;
  put_text(chosen);
  put_text(function<const char*()>(library, "vqfast_contract")());
  put(uint32_t(schemas.size()));
  for (const std::string& schema : schemas) put_text(schema);
  std::fflush(stdout);
  while (true) serve();
}
