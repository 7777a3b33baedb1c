#include "ops/rotary.h"

#include "core/launch.h"
#include "ops/ops.h"

namespace hymba {

Tensor rotary(const Tensor& x, const Tensor& positions, const Tensor& inv_freq) {
  const Check check("rotary");
  check.floating("x", x);
  check.shape("x", x, "[B, T, H, D]", {kAnySize, kAnySize, kAnySize, kAnySize});
  const int64_t B = x.size(0), T = x.size(1), H = x.size(2), D = x.size(3);
  check.that(D >= 2 && D % 2 == 0, "x", "have an even head dim", D);
  check.int32("positions", positions, "x", x);
  const bool shared = positions.dim() == 1;
  if (shared) {
    check.shape("positions", positions, "[T] or [B, T]", {T});
  } else {
    check.shape("positions", positions, "[T] or [B, T]", {B, T});
  }
  check.same_device("inv_freq", inv_freq, "x", x);
  check.that(is_f32(inv_freq), "inv_freq", "be float32", dtype_name(inv_freq));
  check.floating("inv_freq", inv_freq);
  check.shape("inv_freq", inv_freq, "[D / 2]", {D / 2});

  const Tensor out = new_like(x);
  const RotaryParams params{
      .x = x.const_data_ptr(),
      .x_batch_stride = x.stride(0),
      .x_token_stride = x.stride(1),
      .x_head_stride = x.stride(2),
      .out = out.mutable_data_ptr(),
      .positions = positions.const_data_ptr<int32_t>(),
      .position_stride = shared ? 0 : positions.stride(0),
      .inv_freq = inv_freq.const_data_ptr<float>(),
      .batch = B,
      .tokens = T,
      .heads = H,
      .dim = D,
      .dtype = dtype_of(x),
  };
  if (B * T * H > 0) launch(x, params, cpu::rotary, HYMBA_CUDA(cuda::rotary));
  return out;
}

}  // namespace hymba
