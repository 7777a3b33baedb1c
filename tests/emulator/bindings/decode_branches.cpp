#include "bindings/decode.h"
#include "bindings/ops.h"

namespace hymba::emulator {
namespace {

Array workspace(size_t bytes) {
  return new_array_of(ItemType::uint8, {static_cast<int64_t>(bytes)});
}

// Both launches, one behind the other, as csrc/ops/decode_branches.cpp has them; nothing where a GPU takes
// the single ops.
std::pair<OptionalArray, OptionalArray> decode_branches(
    const Array& q, const OptionalArray& k, const OptionalArray& v, const Array& k_cache,
    const Array& v_cache, const Array& lengths, const Array& x, const Array& z, const Array& conv_state,
    const Array& ssm_state, const Array& conv_weight, const OptionalArray& conv_bias,
    const Array& x_proj_weight, const Array& dt_proj_weight, const Array& dt_bias, const Array& A,
    const Array& D, const OptionalArray& slots, const OptionalArray& block_table, const OptionalArray& meta_k,
    const OptionalArray& meta_v, std::optional<int64_t> window, std::optional<double> scale,
    const OptionalArray& inv_freq, const OptionalArray& dt_norm, const OptionalArray& B_norm,
    const OptionalArray& C_norm, double eps, const Array& counters) {
  const OptionalArray all;
  const DecodeAttentionArrays in{q,     k,           v,      k_cache, v_cache, lengths, all,
                                 slots, block_table, meta_k, meta_v,  window,  scale,   inv_freq};
  DecodeAttentionParams attention = decode_attention_params(in);
  MambaUpdateParams mamba =
      mamba_update_params({x, z, conv_state, ssm_state, conv_weight, conv_bias, x_proj_weight, dt_proj_weight,
                           dt_bias, A, D, dt_norm, B_norm, C_norm, eps, slots});
  if (!cuda::runs_mamba_update(mamba)) return {std::nullopt, std::nullopt};
  const Array attn = decode_attention_result(in), ssm = new_like(x);
  if (q.shape(0) == 0) return {attn, ssm};
  const Array of_mamba = workspace(cuda::mamba_update_workspace_bytes(mamba)),
              of_attention = workspace(cuda::decode_attention_workspace_bytes(attention));
  mamba.out = ssm.data();
  mamba.workspace = of_mamba.data();
  mamba.counters = static_cast<uint32_t*>(counters.data());
  attention.attention.out = attn.data();
  attention.workspace = of_attention.data();
  attention.counters = mamba.counters + kMambaUpdateCounters;
  attention.beside_previous = true;
  run(cuda::mamba_update, mamba);
  run(cuda::decode_attention, attention);
  return {attn, ssm};
}

}  // namespace

void bind_decode_branches(Registry& registry) {
  registry.def("decode_branches", decode_branches);
}

}  // namespace hymba::emulator
