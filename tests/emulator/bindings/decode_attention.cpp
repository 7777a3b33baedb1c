#include "ops/decode_attention.h"

#include <cmath>

#include "bindings/arrays.h"
#include "bindings/heads.h"
#include "bindings/ops.h"

namespace hymba::emulator {
namespace {

Array decode_attention(const Array& q, const OptionalArray& k, const OptionalArray& v, const Array& k_cache,
                       const Array& v_cache, const Array& lengths, const OptionalArray& counts,
                       const OptionalArray& slots, const OptionalArray& block_table,
                       const OptionalArray& meta_k, const OptionalArray& meta_v,
                       std::optional<int64_t> window, std::optional<double> scale,
                       const OptionalArray& inv_freq) {
  const int64_t B = q.shape(0), n = q.shape(1), Hq = q.shape(2), Dk = q.shape(3);
  const Array out = new_array({B, n, Hq, v_cache.shape(3)}, dtype_of(q));
  const int64_t meta_len = meta_k ? meta_k->shape(0) : 0;
  const auto values = [](const OptionalArray& array) {
    return static_cast<const int32_t*>(data_or_null(array));
  };
  const DecodeAttentionParams params{
      .attention =
          {
              .q = heads_view(q),
              .k = heads_view(k_cache),
              .v = heads_view(v_cache),
              .meta_k = meta_view(meta_k),
              .meta_v = meta_view(meta_v),
              .out = out.data(),
              .lse = nullptr,
              .cu_seqlens_q = nullptr,
              .cu_seqlens_k = nullptr,
              .batch = B,
              .sequences = B,
              .q_len = n,
              .k_len = block_table ? block_table->shape(1) * k_cache.shape(1) : k_cache.shape(1),
              .q_heads = Hq,
              .kv_heads = k_cache.shape(2),
              .k_dim = Dk,
              .v_dim = v_cache.shape(3),
              .meta_len = meta_len,
              .mask = {window ? std::min(*window, kMaxPosition) : kNoWindow, meta_len},
              .scale = scale ? *scale : 1.0 / std::sqrt(static_cast<double>(Dk)),
              .dtype = dtype_of(q),
              .cache =
                  {
                      .lengths = static_cast<const int32_t*>(lengths.data()),
                      .counts = values(counts),
                      .slots = values(slots),
                      .block_table = values(block_table),
                      .table_stride = block_table ? block_table->stride(0) : 0,
                      .slot_count = lengths.shape(0),
                      .table_pages = block_table ? block_table->shape(1) : 0,
                      .pages = block_table ? k_cache.shape(0) : 0,
                      .rows = k_cache.shape(1),
                  },
          },
      .new_k = k ? heads_view(*k) : HeadsView{},
      .new_v = v ? heads_view(*v) : HeadsView{},
      .inv_freq = static_cast<const float*>(data_or_null(inv_freq)),
      .workspace = nullptr,
  };
  if (B > 0) run(cuda::decode_attention, cuda::decode_attention_workspace_bytes, params);
  return out;
}

}  // namespace

void bind_decode_attention(Registry& registry) {
  registry.def("decode_attention", decode_attention);
}

}  // namespace hymba::emulator
