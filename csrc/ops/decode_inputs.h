// Torch's side of the two branches of a decode step. Each by itself is an op, and both at once are
// decode_branches.
#pragma once
#include "core/check.h"
#include "ops/decode_attention.h"
#include "ops/mamba_update.h"

namespace hymba {

struct DecodeAttentionInputs {
  const Tensor& q;
  const OptionalTensor &k, &v;
  const Tensor &k_cache, &v_cache, &lengths;
  const OptionalTensor &counts, &slots, &block_table, &meta_k, &meta_v;
  std::optional<int64_t> window;
  std::optional<double> scale;
  const OptionalTensor& inv_freq;
};

struct MambaUpdateInputs {
  const Tensor &x, &z, &conv_state, &ssm_state, &conv_weight;
  const OptionalTensor& conv_bias;
  const Tensor &x_proj, &dt_proj, &dt_bias, &A, &D;
  const OptionalTensor* norms[3];  // of dt, B and C
  double eps;
  const OptionalTensor& slots;
};

// Both check everything, `check` naming the op in errors, and leave out, workspace and counters to be set.
DecodeAttentionParams checked_params(const Check& check, const DecodeAttentionInputs& in);
MambaUpdateParams checked_params(const Check& check, const MambaUpdateInputs& in);

// [B, n, Hq, Dv]
Tensor new_output(const DecodeAttentionInputs& in);

// mamba_update where no one kernel takes it: op by op.
Tensor composed_mamba_update(const MambaUpdateInputs& in);

}  // namespace hymba
