#include "ops/rotary.h"

#include "bindings/arrays.h"
#include "bindings/ops.h"

namespace hymba::emulator {
namespace {

Array rotary(const Array& x, const Array& positions, const Array& inv_freq) {
  const Array out = new_like(x);
  const RotaryParams params{
      .x = x.data(),
      .x_batch_stride = x.stride(0),
      .x_token_stride = x.stride(1),
      .x_head_stride = x.stride(2),
      .out = out.data(),
      .positions = static_cast<const int32_t*>(positions.data()),
      .position_stride = positions.ndim() == 1 ? 0 : positions.stride(0),
      .inv_freq = static_cast<const float*>(inv_freq.data()),
      .batch = x.shape(0),
      .tokens = x.shape(1),
      .heads = x.shape(2),
      .dim = x.shape(3),
      .dtype = dtype_of(x),
  };
  if (out.size() > 0) run(cuda::rotary, params);
  return out;
}

}  // namespace

void bind_rotary(Registry& registry) {
  registry.def("rotary", rotary);
}

}  // namespace hymba::emulator
