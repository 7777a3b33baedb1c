// Between numpy arrays and the kernels' parameter structs: what core/torch_view.h is for torch. bfloat16 crosses as uint16.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <vector>

#include "core/dtype.h"
#include "core/sequences.h"
#include "core/view.h"

namespace hymba::emulator {

namespace py = pybind11;
using Array = py::array;
using OptionalArray = std::optional<py::array>;

DType dtype_of(const Array& array);
bool is_f32(const OptionalArray& array);
void* data_or_null(const OptionalArray& array);

// Strides in elements.
int64_t stride(const Array& array, int dimension);
RowView row_view(const Array& array);        // 1 to 4 dimensions, the last one is the row
TokensView tokens_view(const OptionalArray& array);  // [B, T, C]; null data for none
TokensView step_view(const Array& array);    // [B, C] or [B, n, C]
Sequences sequences(const Array& x, const OptionalArray& cu_seqlens);  // of x [B, T, C]

// A contiguous result: filled with NaN, between guards that are checked after the launch, watched for races.
Array new_array(const std::vector<py::ssize_t>& shape, DType dtype);
Array new_like(const Array& array);

// Space of `span` bytes for an argument, beginning `misalignment` bytes behind a 256-byte boundary; between guards.
Array new_buffer(py::ssize_t span, int misalignment);
// Conflicting accesses to the bytes of `array` (made by one of the above) count as races.
void watch(const Array& array);
// Throws when a guard has been written.
void check_guards();

// Runs an op's launch function on the emulated device.
template <class Params>
void run(int (*launch)(const Params&, void* stream), const Params& params) {
  if (const int error = launch(params, nullptr); error != 0)
    throw std::runtime_error("the launch function returned cudaError_t " + std::to_string(error));
}
// The same for an op with a workspace, which is allocated as an array is.
template <class Params>
void run(int (*launch)(const Params&, void* stream), size_t (*workspace_bytes)(const Params&), Params params) {
  const Array workspace = new_array({static_cast<py::ssize_t>(workspace_bytes(params) / sizeof(float))}, DType::f32);
  params.workspace = const_cast<void*>(workspace.data());
  run(launch, static_cast<const Params&>(params));
}

}  // namespace hymba::emulator
