// The ops' C++ signatures, in the order of library.cpp.
#pragma once
#include <string>
#include <tuple>

#include "core/check.h"

namespace hymba {

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                     std::optional<int64_t> window, int64_t num_meta,
                                     std::optional<double> scale, const OptionalTensor& meta_k,
                                     const OptionalTensor& meta_v, const OptionalTensor& cu_seqlens,
                                     const OptionalTensor& cu_seqlens_k, bool return_lse);
Tensor decode_attention(const Tensor& q, const OptionalTensor& k, const OptionalTensor& v, Tensor k_cache,
                        Tensor v_cache, const Tensor& lengths, const OptionalTensor& counts,
                        const OptionalTensor& slots, const OptionalTensor& block_table,
                        const OptionalTensor& meta_k, const OptionalTensor& meta_v,
                        std::optional<int64_t> window, std::optional<double> scale,
                        const OptionalTensor& inv_freq, OptionalTensor counters);
std::tuple<Tensor, Tensor> decode_branches(
    const Tensor& q, const OptionalTensor& k, const OptionalTensor& v, Tensor k_cache, Tensor v_cache,
    const Tensor& lengths, const OptionalTensor& slots, const OptionalTensor& block_table,
    const OptionalTensor& meta_k, const OptionalTensor& meta_v, std::optional<int64_t> window,
    std::optional<double> scale, const OptionalTensor& inv_freq, const Tensor& x, const Tensor& z,
    Tensor conv_state, Tensor ssm_state, const Tensor& conv_weight, const OptionalTensor& conv_bias,
    const Tensor& x_proj_weight, const Tensor& dt_proj_weight, const Tensor& dt_bias, const Tensor& A,
    const Tensor& D, const OptionalTensor& dt_norm, const OptionalTensor& B_norm,
    const OptionalTensor& C_norm, double eps, OptionalTensor counters);
Tensor rotary(const Tensor& x, const Tensor& positions, const Tensor& inv_freq);

std::tuple<Tensor, Tensor> causal_conv1d(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                         bool silu, const OptionalTensor& initial_state,
                                         const OptionalTensor& cu_seqlens, bool return_final_state);
std::tuple<Tensor, Tensor, Tensor> selective_scan(const Tensor& x, const Tensor& dt, const Tensor& A,
                                                  const Tensor& B, const Tensor& C, const OptionalTensor& D,
                                                  const OptionalTensor& z, const OptionalTensor& dt_bias,
                                                  bool dt_softplus, const OptionalTensor& initial_state,
                                                  const OptionalTensor& cu_seqlens, bool return_final_state,
                                                  bool save_checkpoints);

Tensor causal_conv1d_update(const Tensor& x, Tensor state, const Tensor& weight, const OptionalTensor& bias,
                            bool silu, const OptionalTensor& slots_in, const OptionalTensor& slots_out);
Tensor selective_state_update(Tensor state, const Tensor& x, const Tensor& dt, const Tensor& A,
                              const Tensor& B, const Tensor& C, const OptionalTensor& D,
                              const OptionalTensor& z, const OptionalTensor& dt_bias, bool dt_softplus,
                              const OptionalTensor& slots_in, const OptionalTensor& slots_out);

// The whole SSM branch of a step, conv to gate. dt_norm, B_norm and C_norm: all or none.
Tensor mamba_update(const Tensor& x, const Tensor& z, Tensor conv_state, Tensor ssm_state,
                    const Tensor& conv_weight, const OptionalTensor& conv_bias, const Tensor& x_proj_weight,
                    const Tensor& dt_proj_weight, const Tensor& dt_bias, const Tensor& A, const Tensor& D,
                    const OptionalTensor& dt_norm, const OptionalTensor& B_norm, const OptionalTensor& C_norm,
                    double eps, const OptionalTensor& slots, OptionalTensor counters);

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps);
Tensor norm_average(const Tensor& attn, const Tensor& ssm, const Tensor& attn_weight,
                    const Tensor& ssm_weight, double eps);
Tensor norm_project(const Tensor& x, const Tensor& norm_weight, const Tensor& proj_weight,
                    const OptionalTensor& bias, const OptionalTensor& residual, double eps);
Tensor norm_average_project(const Tensor& attn, const Tensor& ssm, const Tensor& attn_weight,
                            const Tensor& ssm_weight, const Tensor& proj_weight, const OptionalTensor& bias,
                            const OptionalTensor& residual, double eps);

Tensor linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
              const OptionalTensor& residual);
Tensor gated_linear(const Tensor& x, const Tensor& gate_weight, const Tensor& weight);
Tensor gated_mlp(const Tensor& x, const Tensor& norm_weight, const Tensor& gate_weight, const Tensor& weight,
                 const Tensor& down_weight, const OptionalTensor& residual, double eps,
                 OptionalTensor counters);

Tensor exp2_sum(const Tensor& x, int64_t repeats);
std::string build_info();

}  // namespace hymba
