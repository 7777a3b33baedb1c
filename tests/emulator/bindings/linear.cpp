#include "bindings/linear.h"

#include "bindings/ops.h"

namespace hymba::emulator {

LinearParams linear_params(const Array& x, const Array& weight, const OptionalArray& gate_weight,
                           const OptionalArray& bias, const OptionalArray& residual) {
  const RowView rows = row_view(x);
  return {
      .x = rows,
      .weight = {weight.data(), weight.stride(0)},
      .gate_weight = gate_weight ? WeightView{gate_weight->data(), gate_weight->stride(0)} : WeightView{},
      .bias = data_or_null(bias),
      .residual = residual ? row_view(*residual) : RowView{},
      .out = nullptr,
      .rows = row_count(rows),
      .inner = weight.shape(1),
      .outputs = weight.shape(0),
      .dtype = dtype_of(x),
  };
}

std::vector<int64_t> linear_shape(const Array& x, const Array& weight) {
  std::vector<int64_t> shape = x.shape();
  shape.back() = weight.shape(0);
  return shape;
}

namespace {

// linear, or with a gate gated_linear, by the kernels' own product; nothing where that is the library's.
OptionalArray linear(const Array& x, const Array& weight, const OptionalArray& gate_weight,
                     const OptionalArray& bias, const OptionalArray& residual) {
  LinearParams params = linear_params(x, weight, gate_weight, bias, residual);
  if (!cuda::runs_linear(params)) return std::nullopt;
  const Array out = new_array(linear_shape(x, weight), dtype_of(x));
  params.out = out.data();
  run(cuda::linear, params);
  return out;
}

// What linear and gated_linear do behind the library's product `out`, which is contiguous as `gate` is.
void linear_epilogue(const Array& out, const OptionalArray& gate, const OptionalArray& residual) {
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
  registry.def("linear_epilogue", linear_epilogue);
}

}  // namespace hymba::emulator
