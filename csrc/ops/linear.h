// linear: out = x weight^T + bias + residual. gated_linear: out = silu(x gate_weight^T) * (x weight^T).
#pragma once
#include <cstdint>

#include "core/dtype.h"
#include "core/view.h"
#include "cpu/isa.h"  // HYMBA_CPU_KERNEL

namespace hymba {

// Contiguous rows, [outputs, inner].
struct WeightView {
  const void* data;
  int64_t stride;  // between rows, in elements
};

struct LinearParams {
  RowView x;               // [rows, inner]
  WeightView weight;       // [outputs, inner]
  WeightView gate_weight;  // the same, or null data: no gate
  const void* bias;        // [outputs], or null
  RowView residual;        // [rows, outputs], or null data
  void* out;               // [rows, outputs], contiguous
  int64_t rows;
  int64_t inner;
  int64_t outputs;
  DType dtype;  // of all
};

// What follows a product that the library made, in place: out = silu(gate) * out + residual.
struct LinearEpilogueParams {
  void* out;         // [rows, outputs], contiguous
  const void* gate;  // the same, or null
  RowView residual;  // [rows, outputs], or null data
  int64_t rows;
  int64_t outputs;
  DType dtype;
};

namespace cuda {
// Whether `linear` takes it: few rows in a 16-bit type, in rows of at least 8-byte alignment. The rest is the
// library's.
bool runs_linear(const LinearParams& params);
// Both launch on `stream` (a cudaStream_t) of the current device; return a cudaError_t.
int linear(const LinearParams& params, void* stream);
int linear_epilogue(const LinearEpilogueParams& params, void* stream);
}  // namespace cuda

}  // namespace hymba

HYMBA_CPU_KERNEL(linear, LinearParams)
HYMBA_CPU_KERNEL(linear_epilogue, LinearEpilogueParams)
