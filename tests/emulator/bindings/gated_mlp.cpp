#include "ops/gated_mlp.h"

#include "bindings/linear.h"
#include "bindings/ops.h"

namespace hymba::emulator {
namespace {

// Nothing where there is no one kernel for it.
OptionalArray gated_mlp(const Array& x, const Array& weight_of_norm, const Array& gate_weight,
                        const Array& weight, const Array& down_weight, const OptionalArray& residual,
                        double eps, const Array& counters) {
  const Array inner = new_array(linear_shape(x, weight), dtype_of(x));
  GatedMlpParams params{
      .gate_up = {linear_params(x, weight, gate_weight, {}, {}), {norm_weight(weight_of_norm), {}, {}, eps}},
      .down = linear_params(inner, down_weight, {}, {}, residual),
      .counters = static_cast<uint32_t*>(counters.data()),
  };
  if (!cuda::runs_gated_mlp(params)) return std::nullopt;
  const Array out = new_array(linear_shape(x, down_weight), dtype_of(x));
  params.gate_up.linear.out = inner.data();
  params.down.out = out.data();
  run(cuda::gated_mlp, params);
  return out;
}

}  // namespace

void bind_gated_mlp(Registry& registry) {
  registry.def("gated_mlp", gated_mlp);
}

}  // namespace hymba::emulator
