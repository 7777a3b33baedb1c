#include "ops/attention.h"

#include <cmath>

#include "bindings/arrays.h"
#include "bindings/heads.h"
#include "bindings/ops.h"
#include "cuda/attention_sm90.h"

namespace hymba::emulator {
namespace {

// Without results.
AttentionParams attention_params(const Array& q, const Array& k, const Array& v,
                                 std::optional<int64_t> window, int64_t num_meta, std::optional<double> scale,
                                 const OptionalArray& meta_k, const OptionalArray& meta_v,
                                 const OptionalArray& cu_seqlens, const OptionalArray& cu_seqlens_k) {
  const int64_t B = q.shape(0), Dk = q.shape(3);
  const int64_t meta_len = meta_k ? meta_k->shape(0) : 0;
  return {
      .q = heads_view(q),
      .k = heads_view(k),
      .v = heads_view(v),
      .meta_k = meta_view(meta_k),
      .meta_v = meta_view(meta_v),
      .out = nullptr,
      .lse = nullptr,
      .cu_seqlens_q = static_cast<const int32_t*>(data_or_null(cu_seqlens)),
      .cu_seqlens_k = static_cast<const int32_t*>(data_or_null(cu_seqlens_k ? cu_seqlens_k : cu_seqlens)),
      .batch = B,
      .sequences = cu_seqlens ? cu_seqlens->size() - 1 : B,
      .q_len = q.shape(1),
      .k_len = k.shape(1),
      .q_heads = q.shape(2),
      .kv_heads = k.shape(2),
      .k_dim = Dk,
      .v_dim = v.shape(3),
      .meta_len = meta_len,
      .mask = {window ? std::min(*window, kMaxPosition) : kNoWindow, num_meta + meta_len},
      .scale = scale ? *scale : 1.0 / std::sqrt(static_cast<double>(Dk)),
      .dtype = dtype_of(q),
      .cache = {},
      .workspace = nullptr,
  };
}

std::tuple<Array, OptionalArray> attention(const Array& q, const Array& k, const Array& v,
                                           std::optional<int64_t> window, int64_t num_meta,
                                           std::optional<double> scale, const OptionalArray& meta_k,
                                           const OptionalArray& meta_v, const OptionalArray& cu_seqlens,
                                           const OptionalArray& cu_seqlens_k, bool return_lse) {
  AttentionParams params =
      attention_params(q, k, v, window, num_meta, scale, meta_k, meta_v, cu_seqlens, cu_seqlens_k);
  const Array out = new_array({params.batch, params.q_len, params.q_heads, params.v_dim}, params.dtype);
  OptionalArray lse;
  if (return_lse)
    lse = new_array({params.batch, params.q_len, params.q_heads},
                    params.dtype == DType::f64 ? DType::f64 : DType::f32);
  params.out = out.data();
  params.lse = data_or_null(lse);
  if (params.batch > 0 && params.q_len > 0) run(cuda::attention, cuda::attention_workspace_bytes, params);
  return {out, lse};
}

// Why the Hopper kernel does not take a call; empty: it does.
std::vector<std::string> attention_sm90_refusal(const Array& q, const Array& k, const Array& v,
                                                std::optional<int64_t> window, int64_t num_meta,
                                                std::optional<double> scale, const OptionalArray& meta_k,
                                                const OptionalArray& meta_v, const OptionalArray& cu_seqlens,
                                                const OptionalArray& cu_seqlens_k, bool) {
  const char* reason = cuda::attention_sm90_refusal(
      attention_params(q, k, v, window, num_meta, scale, meta_k, meta_v, cu_seqlens, cu_seqlens_k));
  return reason == nullptr ? std::vector<std::string>() : std::vector<std::string>{reason};
}

// The items of a packed call as the Hopper kernel finds them in its workspace: its bytes.
Array attention_sm90_items(const Array& q, const Array& k, const Array& v, std::optional<int64_t> window,
                           int64_t num_meta, std::optional<double> scale, const OptionalArray& meta_k,
                           const OptionalArray& meta_v, const OptionalArray& cu_seqlens,
                           const OptionalArray& cu_seqlens_k, bool) {
  AttentionParams params =
      attention_params(q, k, v, window, num_meta, scale, meta_k, meta_v, cu_seqlens, cu_seqlens_k);
  const Array out = new_array({params.batch, params.q_len, params.q_heads, params.v_dim}, params.dtype);
  const Array workspace =
      new_array_of(ItemType::uint8, {static_cast<int64_t>(cuda::attention_sm90_workspace_bytes(params))});
  params.out = out.data();
  params.workspace = workspace.data();
  run(cuda::attention_sm90, static_cast<const AttentionParams&>(params));
  return workspace;
}

}  // namespace

void bind_attention(Registry& registry) {
  registry.def("attention", attention);
  registry.def("attention_sm90_items", attention_sm90_items);
  registry.def("attention_sm90_refusal", attention_sm90_refusal);
}

}  // namespace hymba::emulator
