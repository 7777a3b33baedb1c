#include "ops/attention.h"

#include <cmath>

#include "core/launch.h"
#include "ops/heads_view.h"
#include "ops/ops.h"

namespace hymba {

static void check_heads(const Check& check, const Tensor& q, const Tensor& k, const Tensor& v) {
  check.floating("q", q);
  check.shape("q", q, "[B, T, Hq, Dk]", {kAnySize, kAnySize, kAnySize, kAnySize});
  const int64_t B = q.size(0), Hq = q.size(2), Dk = q.size(3);
  check.same_type("k", k, "q", q);
  check.shape("k", k, "[B, S, Hkv, Dk]", {B, kAnySize, kAnySize, Dk});
  const int64_t S = k.size(1), Hkv = k.size(2);
  check.same_type("v", v, "q", q);
  check.shape("v", v, "[B, S, Hkv, Dv]", {B, S, Hkv, kAnySize});
  check.that(Hkv >= 1 && Hq >= 1 && Hq % Hkv == 0, "q", concat("have a multiple of k's ", Hkv, " heads"), Hq);
  check.that(Dk >= 1 && Dk <= kMaxHeadDim, "q", concat("have a head dim of 1 to ", kMaxHeadDim), Dk);
  check.that(v.size(3) >= 1 && v.size(3) <= kMaxHeadDim, "v", concat("have a head dim of 1 to ", kMaxHeadDim),
             v.size(3));
  check.that(S <= kMaxPosition, "k", concat("have at most ", kMaxPosition, " positions"), S);
}

// Returns M, the number of separately given meta keys.
static int64_t check_meta(const Check& check, const Tensor& q, const Tensor& k, const Tensor& v,
                          int64_t num_meta, const OptionalTensor& meta_k, const OptionalTensor& meta_v) {
  check.that(num_meta >= 0 && num_meta <= kMaxPosition, "num_meta", "be at least 0", num_meta);
  check.that(meta_k.has_value() == meta_v.has_value(), meta_k ? "meta_v" : "meta_k",
             "be given together with the other one", "None");
  if (!meta_k) return 0;
  check.that(num_meta == 0, "num_meta", "be 0 where meta_k and meta_v are given", num_meta);
  check.same_type("meta_k", *meta_k, "q", q);
  check.shape("meta_k", *meta_k, "[M, Hkv, Dk]", {kAnySize, k.size(2), k.size(3)});
  check.same_type("meta_v", *meta_v, "q", q);
  check.shape("meta_v", *meta_v, "[M, Hkv, Dv]", {meta_k->size(0), v.size(2), v.size(3)});
  return meta_k->size(0);
}

// Returns the number of sequences.
static int64_t check_lengths(const Check& check, const Tensor& q, const Tensor& k,
                             const OptionalTensor& cu_seqlens, const OptionalTensor& cu_seqlens_k) {
  const int64_t B = q.size(0), T = q.size(1), S = k.size(1);
  if (!cu_seqlens) {
    check.that(!cu_seqlens_k, "cu_seqlens_k", "come with cu_seqlens", "cu_seqlens None");
    check.that(S >= T, "k", concat("have at least q's ", T, " positions (the queries are the last ones)"), S);
    return B;
  }
  check.that(B == 1, "q", "have batch size 1 where cu_seqlens is given", B);
  const int64_t sequences = check.cu_seqlens("cu_seqlens", *cu_seqlens, "q", q, T);
  if (!cu_seqlens_k) {
    check.that(S == T, "k", concat("have q's ", T, " rows where cu_seqlens_k is not given"), S);
    return sequences;
  }
  const int64_t sequences_k = check.cu_seqlens("cu_seqlens_k", *cu_seqlens_k, "k", k, S);
  check.that(sequences_k == sequences, "cu_seqlens_k", concat("have cu_seqlens' ", sequences + 1, " entries"),
             sequences_k + 1);
  const OptionalTensor q_host = host_values(*cu_seqlens), k_host = host_values(*cu_seqlens_k);
  if (!q_host || !k_host) return sequences;
  const int32_t *q_start = q_host->const_data_ptr<int32_t>(), *k_start = k_host->const_data_ptr<int32_t>();
  for (int64_t s = 0; s < sequences; ++s)
    check.that(
        k_start[s + 1] - k_start[s] >= q_start[s + 1] - q_start[s], "cu_seqlens_k",
        concat("give sequence ", s, " at least its ", q_start[s + 1] - q_start[s], " queries' positions"),
        k_start[s + 1] - k_start[s]);
  return sequences;
}

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                     std::optional<int64_t> window, int64_t num_meta,
                                     std::optional<double> scale, const OptionalTensor& meta_k,
                                     const OptionalTensor& meta_v, const OptionalTensor& cu_seqlens,
                                     const OptionalTensor& cu_seqlens_k, bool return_lse) {
  const Check check("attention");
  check_heads(check, q, k, v);
  if (window) check.that(*window >= 0, "window", "be at least 0, or None", *window);
  const int64_t meta_len = check_meta(check, q, k, v, num_meta, meta_k, meta_v);
  check.that(meta_len + k.size(1) <= kMaxPosition, "meta_k",
             concat("have, with k, at most ", kMaxPosition, " positions"), meta_len + k.size(1));
  const int64_t sequences = check_lengths(check, q, k, cu_seqlens, cu_seqlens_k);

  const int64_t B = q.size(0), T = q.size(1), Hq = q.size(2), Dk = q.size(3), Dv = v.size(3);
  const Tensor out = new_tensor(q, {B, T, Hq, Dv});
  const Tensor lse =
      return_lse ? new_tensor(q, {B, T, Hq}, state_dtype(q)) : new_tensor(q, {0}, state_dtype(q));
  const OptionalTensor& k_starts = cu_seqlens_k ? cu_seqlens_k : cu_seqlens;
  const AttentionParams params{
      .q = heads_view(q),
      .k = heads_view(k),
      .v = heads_view(v),
      .meta_k = meta_view(meta_k),
      .meta_v = meta_view(meta_v),
      .out = out.mutable_data_ptr(),
      .lse = return_lse ? lse.mutable_data_ptr() : nullptr,
      .cu_seqlens_q = static_cast<const int32_t*>(data_or_null(cu_seqlens)),
      .cu_seqlens_k = static_cast<const int32_t*>(data_or_null(k_starts)),
      .batch = B,
      .sequences = sequences,
      .q_len = T,
      .k_len = k.size(1),
      .q_heads = Hq,
      .kv_heads = k.size(2),
      .k_dim = Dk,
      .v_dim = Dv,
      .meta_len = meta_len,
      .mask = {window ? std::min(*window, kMaxPosition) : kNoWindow, num_meta + meta_len},
      .scale = scale ? *scale : 1.0 / std::sqrt(static_cast<double>(Dk)),
      .dtype = dtype_of(q),
      .cache = {},
      .workspace = nullptr,
  };
  if (B > 0 && T > 0)
    launch(q, params, cpu::attention, HYMBA_CUDA(cuda::attention),
           HYMBA_CUDA(cuda::attention_workspace_bytes));
  return {out, lse};
}

}  // namespace hymba
