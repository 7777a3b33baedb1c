#include "ops/attention.h"

#include <cmath>

#include "bindings/arrays.h"
#include "bindings/heads.h"
#include "bindings/ops.h"

namespace hymba::emulator {
namespace {

std::tuple<Array, OptionalArray> attention(const Array& q, const Array& k, const Array& v,
                                           std::optional<int64_t> window, int64_t num_meta,
                                           std::optional<double> scale, const OptionalArray& meta_k,
                                           const OptionalArray& meta_v, const OptionalArray& cu_seqlens,
                                           const OptionalArray& cu_seqlens_k, bool return_lse) {
  const int64_t B = q.shape(0), T = q.shape(1), Hq = q.shape(2), Dk = q.shape(3);
  const Array out = new_array({B, T, Hq, v.shape(3)}, dtype_of(q));
  OptionalArray lse;
  if (return_lse) lse = new_array({B, T, Hq}, dtype_of(q) == DType::f64 ? DType::f64 : DType::f32);
  const int64_t meta_len = meta_k ? meta_k->shape(0) : 0;
  const AttentionParams params{
      .q = heads_view(q),
      .k = heads_view(k),
      .v = heads_view(v),
      .meta_k = meta_view(meta_k),
      .meta_v = meta_view(meta_v),
      .out = out.data(),
      .lse = data_or_null(lse),
      .cu_seqlens_q = static_cast<const int32_t*>(data_or_null(cu_seqlens)),
      .cu_seqlens_k = static_cast<const int32_t*>(data_or_null(cu_seqlens_k ? cu_seqlens_k : cu_seqlens)),
      .batch = B,
      .sequences = cu_seqlens ? cu_seqlens->size() - 1 : B,
      .q_len = T,
      .k_len = k.shape(1),
      .q_heads = Hq,
      .kv_heads = k.shape(2),
      .k_dim = Dk,
      .v_dim = v.shape(3),
      .meta_len = meta_len,
      .mask = {window ? std::min(*window, kMaxPosition) : kNoWindow, num_meta + meta_len},
      .scale = scale ? *scale : 1.0 / std::sqrt(static_cast<double>(Dk)),
      .dtype = dtype_of(q),
      .cache = {},
  };
  if (B > 0 && T > 0) run(cuda::attention, params);
  return {out, lse};
}

}  // namespace

void bind_attention(Registry& registry) {
  registry.def("attention", attention);
}

}  // namespace hymba::emulator
