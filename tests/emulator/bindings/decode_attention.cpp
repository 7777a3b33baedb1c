#include "ops/decode_attention.h"

#include <cmath>

#include "bindings/decode.h"
#include "bindings/heads.h"
#include "bindings/ops.h"

namespace hymba::emulator {

DecodeAttentionParams decode_attention_params(const DecodeAttentionArrays& in) {
  const int64_t B = in.q.shape(0), Dk = in.q.shape(3), rows = in.k_cache.shape(1);
  const int64_t meta_len = in.meta_k ? in.meta_k->shape(0) : 0;
  const auto values = [](const OptionalArray& array) {
    return static_cast<const int32_t*>(data_or_null(array));
  };
  return {
      .attention =
          {
              .q = heads_view(in.q),
              .k = heads_view(in.k_cache),
              .v = heads_view(in.v_cache),
              .meta_k = meta_view(in.meta_k),
              .meta_v = meta_view(in.meta_v),
              .out = nullptr,
              .lse = nullptr,
              .cu_seqlens_q = nullptr,
              .cu_seqlens_k = nullptr,
              .batch = B,
              .sequences = B,
              .q_len = in.q.shape(1),
              .k_len = in.block_table ? in.block_table->shape(1) * rows : rows,
              .q_heads = in.q.shape(2),
              .kv_heads = in.k_cache.shape(2),
              .k_dim = Dk,
              .v_dim = in.v_cache.shape(3),
              .meta_len = meta_len,
              .mask = {in.window ? std::min(*in.window, kMaxPosition) : kNoWindow, meta_len},
              .scale = in.scale ? *in.scale : 1.0 / std::sqrt(static_cast<double>(Dk)),
              .dtype = dtype_of(in.q),
              .cache =
                  {
                      .lengths = static_cast<const int32_t*>(in.lengths.data()),
                      .counts = values(in.counts),
                      .slots = values(in.slots),
                      .block_table = values(in.block_table),
                      .table_stride = in.block_table ? in.block_table->stride(0) : 0,
                      .slot_count = in.lengths.shape(0),
                      .table_pages = in.block_table ? in.block_table->shape(1) : 0,
                      .pages = in.block_table ? in.k_cache.shape(0) : 0,
                      .rows = rows,
                  },
          },
      .new_k = in.k ? heads_view(*in.k) : HeadsView{},
      .new_v = in.v ? heads_view(*in.v) : HeadsView{},
      .inv_freq = static_cast<const float*>(data_or_null(in.inv_freq)),
      .workspace = nullptr,
      .counters = nullptr,
      .beside_previous = false,
  };
}

Array decode_attention_result(const DecodeAttentionArrays& in) {
  return new_array({in.q.shape(0), in.q.shape(1), in.q.shape(2), in.v_cache.shape(3)}, dtype_of(in.q));
}

namespace {

Array decode_attention(const Array& q, const OptionalArray& k, const OptionalArray& v, const Array& k_cache,
                       const Array& v_cache, const Array& lengths, const OptionalArray& counts,
                       const OptionalArray& slots, const OptionalArray& block_table,
                       const OptionalArray& meta_k, const OptionalArray& meta_v,
                       std::optional<int64_t> window, std::optional<double> scale,
                       const OptionalArray& inv_freq, const Array& counters) {
  const DecodeAttentionArrays in{q,     k,           v,      k_cache, v_cache, lengths, counts,
                                 slots, block_table, meta_k, meta_v,  window,  scale,   inv_freq};
  DecodeAttentionParams params = decode_attention_params(in);
  const Array out = decode_attention_result(in);
  params.attention.out = out.data();
  params.counters = static_cast<uint32_t*>(counters.data());
  if (out.size() > 0) run(cuda::decode_attention, cuda::decode_attention_workspace_bytes, params);
  return out;
}

}  // namespace

void bind_decode_attention(Registry& registry) {
  registry.def("decode_attention", decode_attention);
}

}  // namespace hymba::emulator
