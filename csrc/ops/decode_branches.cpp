// decode_branches: decode_attention and mamba_update of one step. They need nothing of each other; on a GPU
// both kernels run at once.
#include "core/counters.h"
#include "core/launch.h"
#include "ops/decode_inputs.h"
#include "ops/ops.h"

namespace hymba {

// What both kernels use is allocated before either is launched, and given back when both are: memory that one
// gave back would be the other's while it still runs.
static void launch_both(const Tensor& like, DecodeAttentionParams& attention, MambaUpdateParams& mamba,
                        OptionalTensor& counters) {
  const int64_t count = decode_attention_counters(attention.attention);
  mamba.counters = counters_for(counters, like, kMambaUpdateCounters + count);
  attention.counters = mamba.counters + kMambaUpdateCounters;
  attention.beside_previous = true;
  const Tensor of_mamba = new_workspace(like, mamba, HYMBA_CUDA(cuda::mamba_update_workspace_bytes));
  const Tensor of_attention =
      new_workspace(like, attention, HYMBA_CUDA(cuda::decode_attention_workspace_bytes));
  launch_cuda(like, static_cast<const MambaUpdateParams&>(mamba), HYMBA_CUDA(cuda::mamba_update));
  launch_cuda(like, static_cast<const DecodeAttentionParams&>(attention), HYMBA_CUDA(cuda::decode_attention));
}

std::tuple<Tensor, Tensor> decode_branches(
    const Tensor& q, const OptionalTensor& k, const OptionalTensor& v, Tensor k_cache, Tensor v_cache,
    const Tensor& lengths, const OptionalTensor& slots, const OptionalTensor& block_table,
    const OptionalTensor& meta_k, const OptionalTensor& meta_v, std::optional<int64_t> window,
    std::optional<double> scale, const OptionalTensor& inv_freq, const Tensor& x, const Tensor& z,
    Tensor conv_state, Tensor ssm_state, const Tensor& conv_weight, const OptionalTensor& conv_bias,
    const Tensor& x_proj_weight, const Tensor& dt_proj_weight, const Tensor& dt_bias, const Tensor& A,
    const Tensor& D, const OptionalTensor& dt_norm, const OptionalTensor& B_norm,
    const OptionalTensor& C_norm, double eps, OptionalTensor counters) {
  const Check check("decode_branches");
  const OptionalTensor all;  // tokens of a row: an SSM state has no fewer
  const DecodeAttentionInputs attention_in{q,     k,           v,      k_cache, v_cache, lengths, all,
                                           slots, block_table, meta_k, meta_v,  window,  scale,   inv_freq};
  const MambaUpdateInputs mamba_in{x,
                                   z,
                                   conv_state,
                                   ssm_state,
                                   conv_weight,
                                   conv_bias,
                                   x_proj_weight,
                                   dt_proj_weight,
                                   dt_bias,
                                   A,
                                   D,
                                   {&dt_norm, &B_norm, &C_norm},
                                   eps,
                                   slots};
  DecodeAttentionParams attention = checked_params(check, attention_in);
  check.same_type("x", x, "q", q);
  check.shape("x", x, "[B, n, C]", {q.size(0), q.size(1), kAnySize});
  MambaUpdateParams mamba = checked_params(check, mamba_in);
  check_counters(check, counters, "q", q,
                 kMambaUpdateCounters + decode_attention_counters(attention.attention));

  if (q.size(0) == 0 || !runs_on_cuda(x, mamba, HYMBA_CUDA(cuda::runs_mamba_update))) {
    const Tensor ssm = q.size(0) == 0 ? new_like(x) : composed_mamba_update(mamba_in);
    return {decode_attention(q, k, v, k_cache, v_cache, lengths, {}, slots, block_table, meta_k, meta_v,
                             window, scale, inv_freq, counters),
            ssm};
  }
  const Tensor attn = new_output(attention_in), ssm = new_like(x);
  attention.attention.out = attn.mutable_data_ptr();
  mamba.out = ssm.mutable_data_ptr();
  launch_both(q, attention, mamba, counters);
  return {attn, ssm};
}

}  // namespace hymba
