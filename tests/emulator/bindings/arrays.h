// Arrays of the test process as the kernels' parameter structs take them: what core/torch_view.h is for
// torch. Free of pybind11, which module.cpp alone includes (it takes seconds a file). bfloat16 crosses as
// uint16.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/sequences.h"
#include "core/slots.h"
#include "core/view.h"

namespace hymba::emulator {

enum class ItemType { float32, uint16, float16, float64, int32, uint8 };
int64_t item_bytes(ItemType type);

class GuardedMemory;

class Array {
 public:
  // On memory of someone else.
  Array(void* data, ItemType type, std::vector<int64_t> shape, std::vector<int64_t> strides);

  void* data() const { return data_; }
  ItemType type() const { return type_; }
  int64_t ndim() const { return static_cast<int64_t>(shape_.size()); }
  int64_t shape(int64_t dimension) const { return shape_.at(dimension); }
  int64_t stride(int64_t dimension) const { return strides_.at(dimension); }  // in elements
  int64_t size() const;
  const std::vector<int64_t>& shape() const { return shape_; }

 private:
  friend Array new_array_of(ItemType type, const std::vector<int64_t>& shape);

  void* data_;
  ItemType type_;
  std::vector<int64_t> shape_, strides_;
  std::shared_ptr<GuardedMemory> memory_;  // what it owns, if anything
};
using OptionalArray = std::optional<Array>;

DType dtype_of(const Array& array);
bool is_f32(const OptionalArray& array);
void* data_or_null(const OptionalArray& array);

RowView row_view(const Array& array);                // 1 to 4 dimensions, the last one is the row
TokensView tokens_view(const OptionalArray& array);  // [B, T, C]; null data for none
TokensView step_view(const Array& array);            // [B, C] or [B, n, C]
int64_t step_tokens(const Array& array);             // n, or 1
Sequences sequences(const Array& x, const OptionalArray& cu_seqlens);  // of x [B, T, C]
Slots slots(const OptionalArray& in, const OptionalArray& out, const Array& state);

// A contiguous result: filled with NaN, between guards, watched for races.
Array new_array(const std::vector<int64_t>& shape, DType dtype);
Array new_array_of(ItemType type, const std::vector<int64_t>& shape);
Array new_like(const Array& array);

// Memory between guards: nothing around it may be touched. It begins `misalignment` bytes behind a 256-byte
// boundary.
class GuardedMemory {
 public:
  GuardedMemory(size_t bytes, size_t misalignment);
  ~GuardedMemory();
  GuardedMemory(const GuardedMemory&) = delete;

  unsigned char* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  void watch();        // conflicting accesses count as races
  void check() const;  // throws when a guard has been written

 private:
  size_t bytes_, block_bytes_;
  unsigned char *block_, *data_;
  bool watched_ = false;
};
// Checks all that exists.
void check_guards();

// Runs an op's launch function on the emulated device.
template <class Params>
void run(int (*launch)(const Params&, void* stream), const Params& params) {
  if (const int error = launch(params, nullptr); error != 0)
    throw std::runtime_error("the launch function returned cudaError_t " + std::to_string(error));
}
// The same for an op with a workspace, which is guarded as results are.
template <class Params>
void run(int (*launch)(const Params&, void* stream), size_t (*workspace_bytes)(const Params&),
         Params params) {
  const Array workspace = new_array_of(ItemType::uint8, {static_cast<int64_t>(workspace_bytes(params))});
  params.workspace = workspace.data();
  run(launch, static_cast<const Params&>(params));
}

}  // namespace hymba::emulator
