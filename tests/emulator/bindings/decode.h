// Parameters of the two branches of a decode step, for the bindings of both and of decode_branches.
#pragma once
#include "bindings/arrays.h"
#include "ops/decode_attention.h"
#include "ops/mamba_update.h"

namespace hymba::emulator {

struct DecodeAttentionArrays {
  const Array& q;
  const OptionalArray &k, &v;
  const Array &k_cache, &v_cache, &lengths;
  const OptionalArray &counts, &slots, &block_table, &meta_k, &meta_v;
  std::optional<int64_t> window;
  std::optional<double> scale;
  const OptionalArray& inv_freq;
};
struct MambaUpdateArrays {
  const Array &x, &z, &conv_state, &ssm_state, &conv_weight;
  const OptionalArray& conv_bias;
  const Array &x_proj_weight, &dt_proj_weight, &dt_bias, &A, &D;
  const OptionalArray &dt_norm, &B_norm, &C_norm;
  double eps;
  const OptionalArray& slots;
};

// Without results, workspace and counters.
DecodeAttentionParams decode_attention_params(const DecodeAttentionArrays& in);
MambaUpdateParams mamba_update_params(const MambaUpdateArrays& in);

Array decode_attention_result(const DecodeAttentionArrays& in);

}  // namespace hymba::emulator
