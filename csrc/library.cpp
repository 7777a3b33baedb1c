// Every op's schema and the back ends it has: the table of contents of csrc.
//
// Op X has its parameter struct, checks and allocation in ops/X.h and ops/X.cpp, its kernels in cpu/X.cpp and
// cuda/X.cu, its fake kernel and Python function in hymba_ops/_ops.py and hymba_ops/functional.py, its
// reference in python_reference/, its tests in tests/test_X.py.
#include <torch/csrc/stable/library.h>

#include "ops/ops.h"

STABLE_TORCH_LIBRARY(hymba_ops, m) {
  // Attention branch. lse is empty unless asked for.
  m.def(
      "attention(Tensor q, Tensor k, Tensor v, int? window, int num_meta, float? scale, Tensor? meta_k, "
      "Tensor? meta_v, Tensor? cu_seqlens, Tensor? cu_seqlens_k, bool return_lse) -> (Tensor out, Tensor "
      "lse)");
  // The next few tokens of each row on cached keys: rings of a window, or pages with a block table.
  m.def(
      "decode_attention(Tensor q, Tensor? k, Tensor? v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor "
      "lengths, Tensor? counts, Tensor? slots, Tensor? block_table, Tensor? meta_k, Tensor? meta_v, int? "
      "window, float? scale, Tensor? inv_freq, Tensor(c!)? counters) -> Tensor");
  m.def("rotary(Tensor x, Tensor positions, Tensor inv_freq) -> Tensor");

  // SSM branch. Final states and checkpoints (the state before every 64th token) are empty unless asked for.
  m.def(
      "causal_conv1d(Tensor x, Tensor weight, Tensor? bias, bool silu, Tensor? initial_state, Tensor? "
      "cu_seqlens, "
      "bool return_final_state) -> (Tensor out, Tensor final_state)");
  m.def(
      "selective_scan(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? "
      "dt_bias, "
      "bool dt_softplus, Tensor? initial_state, Tensor? cu_seqlens, bool return_final_state, bool "
      "save_checkpoints) "
      "-> (Tensor out, Tensor final_state, Tensor checkpoints)");

  // One step of the SSM branch: states change in place.
  m.def(
      "causal_conv1d_update(Tensor x, Tensor(a!) state, Tensor weight, Tensor? bias, bool silu, Tensor? "
      "slots_in, "
      "Tensor? slots_out) -> Tensor");
  m.def(
      "selective_state_update(Tensor(a!) state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? "
      "D, "
      "Tensor? z, Tensor? dt_bias, bool dt_softplus, Tensor? slots_in, Tensor? slots_out) -> Tensor");
  // From in_proj's slices to the gated output.
  m.def(
      "mamba_update(Tensor x, Tensor z, Tensor(a!) conv_state, Tensor(b!) ssm_state, Tensor conv_weight, "
      "Tensor? "
      "conv_bias, Tensor x_proj_weight, Tensor dt_proj_weight, Tensor dt_bias, Tensor A, Tensor D, Tensor? "
      "dt_norm, "
      "Tensor? B_norm, Tensor? C_norm, float eps, Tensor? slots, Tensor(c!)? counters) -> Tensor");
  // The two of a step: on a GPU both kernels run at once.
  m.def(
      "decode_branches(Tensor q, Tensor? k, Tensor? v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor "
      "lengths, "
      "Tensor? slots, Tensor? block_table, Tensor? meta_k, Tensor? meta_v, int? window, float? scale, "
      "Tensor? "
      "inv_freq, Tensor x, Tensor z, Tensor(c!) conv_state, Tensor(d!) ssm_state, Tensor conv_weight, "
      "Tensor? "
      "conv_bias, Tensor x_proj_weight, Tensor dt_proj_weight, Tensor dt_bias, Tensor A, Tensor D, Tensor? "
      "dt_norm, Tensor? B_norm, Tensor? C_norm, float eps, Tensor(e!)? counters) -> (Tensor attn, Tensor "
      "ssm)");

  // Join.
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  m.def("norm_average(Tensor attn, Tensor ssm, Tensor attn_weight, Tensor ssm_weight, float eps) -> Tensor");
  m.def(
      "norm_project(Tensor x, Tensor norm_weight, Tensor proj_weight, Tensor? bias, Tensor? residual, float "
      "eps) -> Tensor");
  m.def(
      "norm_average_project(Tensor attn, Tensor ssm, Tensor attn_weight, Tensor ssm_weight, Tensor "
      "proj_weight, Tensor? "
      "bias, Tensor? residual, float eps) -> Tensor");

  // Projections and MLP.
  m.def("linear(Tensor x, Tensor weight, Tensor? bias, Tensor? residual) -> Tensor");
  m.def("gated_linear(Tensor x, Tensor gate_weight, Tensor weight) -> Tensor");
  m.def(
      "gated_mlp(Tensor x, Tensor norm_weight, Tensor gate_weight, Tensor weight, Tensor down_weight, "
      "Tensor? "
      "residual, float eps, Tensor(a!)? counters) -> Tensor");

  // For bench/roofline.py: not part of the API.
  m.def("_exp2_sum(Tensor x, int repeats) -> Tensor");
  m.def("build_info() -> str");
}

// Every op runs on every back end: each function takes the tensors' own device.
template <class Library>
static void implement(Library& m) {
  m.impl("attention", TORCH_BOX(&hymba::attention));
  m.impl("decode_attention", TORCH_BOX(&hymba::decode_attention));
  m.impl("rotary", TORCH_BOX(&hymba::rotary));
  m.impl("causal_conv1d", TORCH_BOX(&hymba::causal_conv1d));
  m.impl("selective_scan", TORCH_BOX(&hymba::selective_scan));
  m.impl("causal_conv1d_update", TORCH_BOX(&hymba::causal_conv1d_update));
  m.impl("selective_state_update", TORCH_BOX(&hymba::selective_state_update));
  m.impl("mamba_update", TORCH_BOX(&hymba::mamba_update));
  m.impl("decode_branches", TORCH_BOX(&hymba::decode_branches));
  m.impl("rms_norm", TORCH_BOX(&hymba::rms_norm));
  m.impl("norm_average", TORCH_BOX(&hymba::norm_average));
  m.impl("norm_project", TORCH_BOX(&hymba::norm_project));
  m.impl("norm_average_project", TORCH_BOX(&hymba::norm_average_project));
  m.impl("linear", TORCH_BOX(&hymba::linear));
  m.impl("gated_linear", TORCH_BOX(&hymba::gated_linear));
  m.impl("gated_mlp", TORCH_BOX(&hymba::gated_mlp));
}

STABLE_TORCH_LIBRARY_IMPL(hymba_ops, CPU, m) {
  implement(m);
  m.impl("_exp2_sum", TORCH_BOX(&hymba::exp2_sum));
}

STABLE_TORCH_LIBRARY_IMPL(hymba_ops, CUDA, m) {
  implement(m);
}

STABLE_TORCH_LIBRARY_IMPL(hymba_ops, CompositeExplicitAutograd, m) {
  m.impl("build_info", TORCH_BOX(&hymba::build_info));
}
