#include "bindings/arrays.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "runtime.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace hymba::emulator {
namespace {

constexpr size_t kGuardBytes = 256;
constexpr size_t kAlignment = 256;

std::vector<const GuardedMemory*> all_memory;

// A guard reads as NaN in float32, bfloat16 and float16.
unsigned char guard_byte(size_t i) {
  return i % 2 == 0 ? 0xa5 : 0xff;
}

void poison([[maybe_unused]] unsigned char* begin, [[maybe_unused]] unsigned char* end) {
#ifdef __SANITIZE_ADDRESS__
  ASAN_POISON_MEMORY_REGION(begin, end - begin);
#endif
}

}  // namespace

int64_t item_bytes(ItemType type) {
  switch (type) {
    case ItemType::float64:
      return 8;
    case ItemType::float32:
    case ItemType::int32:
      return 4;
    case ItemType::uint16:
    case ItemType::float16:
      return 2;
    case ItemType::uint8:
      return 1;
  }
  return 0;
}

Array::Array(void* data, ItemType type, std::vector<int64_t> shape, std::vector<int64_t> strides)
    : data_(data), type_(type), shape_(std::move(shape)), strides_(std::move(strides)) {}

int64_t Array::size() const {
  int64_t size = 1;
  for (const int64_t n : shape_) size *= n;
  return size;
}

DType dtype_of(const Array& array) {
  switch (array.type()) {
    case ItemType::float32:
      return DType::f32;
    case ItemType::uint16:
      return DType::bf16;
    case ItemType::float16:
      return DType::f16;
    case ItemType::float64:
      return DType::f64;
    default:
      throw std::invalid_argument("an array of integers where floating-point numbers belong");
  }
}

bool is_f32(const OptionalArray& array) {
  return array && array->type() == ItemType::float32;
}

void* data_or_null(const OptionalArray& array) {
  return array ? array->data() : nullptr;
}

RowView row_view(const Array& array) {
  RowView view{array.data(), {1, 1, 1}, {0, 0, 0}};
  const int64_t leading = array.ndim() - 1;
  for (int64_t i = 0; i < leading; ++i) {
    view.size[3 - leading + i] = array.shape(i);
    view.stride[3 - leading + i] = array.stride(i);
  }
  return view;
}

TokensView tokens_view(const OptionalArray& array) {
  if (!array) return {};
  return {array->data(), array->stride(0), array->stride(1)};
}

TokensView step_view(const Array& array) {
  return {array.data(), array.stride(0), array.ndim() == 3 ? array.stride(1) : 0};
}

int64_t step_tokens(const Array& array) {
  return array.ndim() == 3 ? array.shape(1) : 1;
}

Slots slots(const OptionalArray& in, const OptionalArray& out, const Array& state) {
  return {static_cast<const int32_t*>(data_or_null(in)), static_cast<const int32_t*>(data_or_null(out)),
          state.shape(0)};
}

Sequences sequences(const Array& x, const OptionalArray& cu_seqlens) {
  return {static_cast<const int32_t*>(data_or_null(cu_seqlens)),
          cu_seqlens ? cu_seqlens->size() - 1 : x.shape(0), x.shape(1)};
}

Array new_array_of(ItemType type, const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size());
  int64_t size = 1;
  for (size_t i = shape.size(); i-- > 0; size *= shape[i]) strides[i] = size;
  auto memory = std::make_shared<GuardedMemory>(static_cast<size_t>(size * item_bytes(type)), 0);
  memory->watch();
  Array array(memory->data(), type, shape, std::move(strides));
  array.memory_ = std::move(memory);
  return array;
}

Array new_array(const std::vector<int64_t>& shape, DType dtype) {
  switch (dtype) {
    case DType::f32:
      return new_array_of(ItemType::float32, shape);
    case DType::bf16:
      return new_array_of(ItemType::uint16, shape);
    case DType::f16:
      return new_array_of(ItemType::float16, shape);
    case DType::f64:
      return new_array_of(ItemType::float64, shape);
  }
  throw std::invalid_argument("no such dtype");
}

Array new_like(const Array& array) {
  return new_array_of(array.type(), array.shape());
}

GuardedMemory::GuardedMemory(size_t bytes, size_t misalignment) : bytes_(bytes) {
  block_bytes_ =
      (kGuardBytes + misalignment + bytes + kGuardBytes + kAlignment - 1) / kAlignment * kAlignment;
  block_ = static_cast<unsigned char*>(std::aligned_alloc(kAlignment, block_bytes_));
  data_ = block_ + kGuardBytes + misalignment;
  for (unsigned char* p = block_; p < data_; ++p) *p = guard_byte(static_cast<size_t>(p - block_));
  for (unsigned char* p = data_ + bytes; p < block_ + block_bytes_; ++p)
    *p = guard_byte(static_cast<size_t>(p - block_));
  std::memset(data_, 0xff, bytes);
  add_buffer(data_, bytes);
  poison(block_, data_);
  poison(data_ + bytes, block_ + block_bytes_);
  all_memory.push_back(this);
}

GuardedMemory::~GuardedMemory() {
  if (watched_) unwatch_global(data_);
  remove_buffer(data_);
  std::erase(all_memory, this);
#ifdef __SANITIZE_ADDRESS__
  ASAN_UNPOISON_MEMORY_REGION(block_, block_bytes_);
#endif
  std::free(block_);
}

void GuardedMemory::watch() {
  if (!watched_) watch_global(data_, bytes_);
  watched_ = true;
}

void GuardedMemory::check() const {
#ifndef __SANITIZE_ADDRESS__  // there every access is checked
  const auto broken = [&](const unsigned char* p) {
    return *p != guard_byte(static_cast<size_t>(p - block_));
  };
  const auto report = [](ptrdiff_t distance, const char* where) {
    throw Error("a kernel has written to global memory " + std::to_string(distance) + " bytes " + where +
                " of a buffer (the mode sanitized says which thread)");
  };
  for (const unsigned char* p = data_; p-- > block_;)
    if (broken(p)) report(data_ - p, "before the beginning");
  for (const unsigned char* p = data_ + bytes_; p < block_ + block_bytes_; ++p)
    if (broken(p)) report(p - data_ - static_cast<ptrdiff_t>(bytes_), "behind the end");
#endif
}

void check_guards() {
  for (const GuardedMemory* memory : all_memory) memory->check();
}

}  // namespace hymba::emulator
