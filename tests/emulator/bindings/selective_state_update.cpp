#include "ops/selective_state_update.h"

#include "bindings/arrays.h"
#include "bindings/ops.h"
#include "bindings/scan_operands.h"

namespace hymba::emulator {
namespace {

Array selective_state_update(const Array& state, const Array& x, const Array& dt, const Array& A,
                             const Array& B, const Array& C, const OptionalArray& D, const OptionalArray& z,
                             const OptionalArray& dt_bias, bool dt_softplus, const OptionalArray& slots_in,
                             const OptionalArray& slots_out) {
  const Array out = new_like(x);
  SelectiveStateUpdateParams params{
      .operands = scan_operands(x, dt, A, B, C, D, z, dt_bias, dt_softplus),
      .state = tokens_view(state),
      .slots = slots(slots_in, slots_out, state),
      .batch = x.shape(0),
  };
  params.operands.out = out.data();
  if (out.size() > 0) run(cuda::selective_state_update, params);
  return out;
}

}  // namespace

void bind_selective_state_update(Registry& registry) {
  registry.def("selective_state_update", selective_state_update);
}

}  // namespace hymba::emulator
