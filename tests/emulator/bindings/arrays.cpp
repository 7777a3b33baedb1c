#include "bindings/arrays.h"

#include <cstdlib>
#include <cstring>
#include <memory>

#include "runtime.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace hymba::emulator {
namespace {

constexpr size_t kGuardBytes = 256;
constexpr size_t kAlignment = 256;

// [guard][data][guard], the data beginning anywhere. A guard reads as NaN in float32, bfloat16 and float16.
class GuardedMemory {
 public:
  GuardedMemory(size_t bytes, size_t misalignment) : bytes_(bytes) {
    block_bytes_ = (kGuardBytes + misalignment + bytes + kGuardBytes + kAlignment - 1) / kAlignment * kAlignment;
    block_ = static_cast<unsigned char*>(std::aligned_alloc(kAlignment, block_bytes_));
    data_ = block_ + kGuardBytes + misalignment;
    for (size_t i = 0; i < block_bytes_; ++i) block_[i] = guard_byte(i);
    std::memset(data_, 0xff, bytes);
    poison(block_, data_);
    poison(data_ + bytes, block_ + block_bytes_);
  }
  GuardedMemory(const GuardedMemory&) = delete;
  ~GuardedMemory() {
    if (watched_) unwatch_global(data_);
#ifdef __SANITIZE_ADDRESS__
    ASAN_UNPOISON_MEMORY_REGION(block_, block_bytes_);
#endif
    std::free(block_);
  }

  unsigned char* data() const { return data_; }
  bool holds(const void* p) const { return p >= data_ && p <= data_ + bytes_; }
  void watch() {
    if (!watched_) watch_global(data_, bytes_);
    watched_ = true;
  }
  void check() const {
#ifndef __SANITIZE_ADDRESS__  // there every access is checked
    const auto broken = [&](const unsigned char* p) { return *p != guard_byte(static_cast<size_t>(p - block_)); };
    const std::string where = " of a global buffer (the sanitized mode says where)";
    for (const unsigned char* p = data_; p-- > block_;)
      if (broken(p)) throw Error("a kernel has written " + std::to_string(data_ - p) + " bytes before the beginning" + where);
    for (const unsigned char* p = data_ + bytes_; p < block_ + block_bytes_; ++p)
      if (broken(p)) throw Error("a kernel has written " + std::to_string(p - data_ - bytes_) + " bytes behind the end" + where);
#endif
  }

 private:
  static unsigned char guard_byte(size_t i) { return i % 2 == 0 ? 0xa5 : 0xff; }
  static void poison([[maybe_unused]] unsigned char* begin, [[maybe_unused]] unsigned char* end) {
#ifdef __SANITIZE_ADDRESS__
    ASAN_POISON_MEMORY_REGION(begin, end - begin);
#endif
  }

  size_t bytes_, block_bytes_;
  unsigned char *block_, *data_;
  bool watched_ = false;
};

std::vector<GuardedMemory*> all_memory;

Array guarded_array(const py::dtype& dtype, const std::vector<py::ssize_t>& shape, int misalignment, bool watched) {
  py::ssize_t bytes = dtype.itemsize();
  for (const py::ssize_t n : shape) bytes *= n;
  auto* memory = new GuardedMemory(static_cast<size_t>(bytes), static_cast<size_t>(misalignment));
  all_memory.push_back(memory);
  if (watched) memory->watch();
  const py::capsule owner(memory, [](void* p) {
    std::erase(all_memory, static_cast<GuardedMemory*>(p));
    delete static_cast<GuardedMemory*>(p);
  });
  return Array(dtype, shape, memory->data(), owner);
}

}  // namespace

DType dtype_of(const Array& array) {
  const py::dtype dtype = array.dtype();
  if (dtype.kind() == 'u' && dtype.itemsize() == 2) return DType::bf16;
  if (dtype.kind() == 'f' && dtype.itemsize() == 2) return DType::f16;
  if (dtype.kind() == 'f' && dtype.itemsize() == 4) return DType::f32;
  if (dtype.kind() == 'f' && dtype.itemsize() == 8) return DType::f64;
  throw std::invalid_argument("no kernel takes arrays of " + std::string(py::str(dtype)));
}

bool is_f32(const OptionalArray& array) {
  return array && dtype_of(*array) == DType::f32;
}

void* data_or_null(const OptionalArray& array) {
  return array ? const_cast<void*>(array->data()) : nullptr;
}

int64_t stride(const Array& array, int dimension) {
  return array.strides(dimension) / array.itemsize();
}

RowView row_view(const Array& array) {
  RowView view{const_cast<void*>(array.data()), {1, 1, 1}, {0, 0, 0}};
  const int leading = static_cast<int>(array.ndim()) - 1;
  for (int i = 0; i < leading; ++i) {
    view.size[3 - leading + i] = array.shape(i);
    view.stride[3 - leading + i] = stride(array, i);
  }
  return view;
}

TokensView tokens_view(const OptionalArray& array) {
  if (!array) return {};
  return {data_or_null(array), stride(*array, 0), stride(*array, 1)};
}

TokensView step_view(const Array& array) {
  return {const_cast<void*>(array.data()), stride(array, 0), array.ndim() == 3 ? stride(array, 1) : 0};
}

Sequences sequences(const Array& x, const OptionalArray& cu_seqlens) {
  return {static_cast<const int32_t*>(data_or_null(cu_seqlens)), cu_seqlens ? cu_seqlens->size() - 1 : x.shape(0),
          x.shape(1)};
}

Array new_array(const std::vector<py::ssize_t>& shape, DType dtype) {
  const char* names[] = {"float32", "uint16", "float16", "float64"};  // in DType's order
  return guarded_array(py::dtype(names[static_cast<int>(dtype)]), shape, 0, true);
}

Array new_like(const Array& array) {
  return new_array({array.shape(), array.shape() + array.ndim()}, dtype_of(array));
}

Array new_buffer(py::ssize_t span, int misalignment) {
  return guarded_array(py::dtype("uint8"), {span}, misalignment, false);
}

void watch(const Array& array) {
  for (GuardedMemory* memory : all_memory)
    if (memory->holds(array.data())) return memory->watch();
  throw std::invalid_argument("watch: the array is not in a buffer of new_buffer or new_array");
}

void check_guards() {
  for (const GuardedMemory* memory : all_memory) memory->check();
}

}  // namespace hymba::emulator
