#include "ops/linear.h"
#include "bindings/arrays.h"
#include "bindings/ops.h"

namespace hymba::emulator {
namespace {

// What linear and gated_linear do behind the library's product `out`, which is contiguous as `gate` is.
void linear(const Array& out, const OptionalArray& gate, const OptionalArray& residual) {
  const RowView rows = row_view(out);
  const LinearEpilogueParams params{
      .out = out.data(),
      .gate = data_or_null(gate),
      .residual = residual ? row_view(*residual) : RowView{},
      .rows = row_count(rows),
      .outputs = out.shape(out.ndim() - 1),
      .dtype = dtype_of(out),
  };
  run(cuda::linear_epilogue, params);
}

}  // namespace

void bind_linear(Registry& registry) {
  registry.def("linear", linear);
}

}  // namespace hymba::emulator
