// decode_attention on the CPU: first every row's new keys and values go into the cache and its queries are
// turned, then `attention` runs on the keys where they lie. So a row has the bits that attention gives it in
// the whole sequence.
#include "ops/decode_attention.h"

#include "cpu/kernel.h"
#include "cpu/rotation.h"

namespace hymba::cpu::HYMBA_ISA {

// One token's heads from one view to another, turned where there are phases.
template <class T>
static void place_heads(const HeadsView& from, int64_t from_batch, int64_t from_token, const HeadsView& to,
                        int64_t to_batch, int64_t to_token, int64_t heads, int64_t dim,
                        const compute_t<T>* cosine, const compute_t<T>* sine) {
  for (int64_t head = 0; head < heads; ++head) {
    const T* in = head_row<T>(from, from_batch, from_token, head);
    T* out = const_cast<T*>(head_row<T>(to, to_batch, to_token, head));
    if (cosine != nullptr) {
      rotate_head(in, out, cosine, sine, dim / 2);
    } else {
      memcpy(out, in, dim * sizeof(T));
    }
  }
}

// What comes before a row's attention. `queries` is null where they need not be turned.
template <class T>
static void prepare_row(const DecodeAttentionParams& params, int64_t b, const HeadsView& queries,
                        compute_t<T>* cosine, compute_t<T>* sine) {
  const AttentionParams& p = params.attention;
  const CachedSequence row = cached_sequence(p.cache, b, p.q_len);
  const int64_t out_row = p.q_heads * p.v_dim;
  T* out = static_cast<T*>(p.out) + b * p.q_len * out_row;
  fill_zero(out + row.count * out_row, (p.q_len - row.count) * out_row);
  for (int64_t i = 0; i < row.count; ++i) {
    const int64_t token = row.length + i, position = p.meta_len + token;
    if (params.inv_freq != nullptr)
      token_phases(static_cast<int32_t>(position), params.inv_freq, p.k_dim / 2, cosine, sine);
    if (queries.data != nullptr) place_heads<T>(p.q, b, i, queries, b, i, p.q_heads, p.k_dim, cosine, sine);
    if (params.new_k.data == nullptr) continue;
    const CachePlace place = cache_place(p.cache, row.slot, token, position);
    place_heads<T>(params.new_k, b, i, p.k, place.block, place.row, p.kv_heads, p.k_dim,
                   params.inv_freq != nullptr ? cosine : nullptr, sine);
    place_heads<T>(params.new_v, b, i, p.v, place.block, place.row, p.kv_heads, p.v_dim, nullptr, nullptr);
  }
}

template <class T>
static void run(const DecodeAttentionParams& params) {
  using C = compute_t<T>;
  AttentionParams p = params.attention;
  const bool turns = params.inv_freq != nullptr;
  const int64_t token = p.q_heads * p.k_dim;
  const Scratch<T> turned(turns ? p.batch * p.q_len * token : 0);
  const HeadsView queries{turns ? turned.get() : nullptr, p.q_len * token, token, p.k_dim};
  const int64_t phases = round_up(divide_up(p.k_dim, 2), kLanes<float>);

  auto worker = [&](WorkQueue& queue) {
    const Scratch<C> cosine(phases), sine(phases);
    for (int64_t b; queue.take(b);) prepare_row<T>(params, b, queries, cosine.get(), sine.get());
  };
  parallel_work(p.batch, p.batch * p.q_len * (p.q_heads + p.kv_heads) * (p.k_dim + p.v_dim), worker);

  if (turns) p.q = queries;
  p.k_len = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    const CachedSequence row = cached_sequence(p.cache, b, p.q_len);
    if (row.length + row.count > p.k_len) p.k_len = row.length + row.count;
  }
  attention(p);
}

void decode_attention(const DecodeAttentionParams& params) {
  with_dtype(params.attention.dtype, [&](auto t) { run<decltype(t)>(params); });
}

}  // namespace hymba::cpu::HYMBA_ISA
