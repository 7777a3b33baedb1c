#include <cmath>
#include <vector>

#include "core/counters.h"
#include "core/launch.h"
#include "ops/decode_inputs.h"
#include "ops/heads_view.h"
#include "ops/ops.h"

namespace hymba {

static void check_queries(const Check& check, const Tensor& q) {
  check.floating("q", q);
  check.shape("q", q, "[B, n, Hq, Dk]", {kAnySize, kAnySize, kAnySize, kAnySize});
  check.that(q.size(1) >= 1 && q.size(1) <= kMaxStepTokens, "q",
             concat("have 1 to ", kMaxStepTokens, " tokens a row"), q.size(1));
  check.that(q.size(3) >= 1 && q.size(3) <= kMaxHeadDim, "q", concat("have a head dim of 1 to ", kMaxHeadDim),
             q.size(3));
}

static void check_caches(const Check& check, const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                         const Tensor& lengths, bool paged, std::optional<int64_t> window) {
  const char* meaning = paged ? "[pages, page, Hkv, Dk]" : "[slots, R, Hkv, Dk]";
  check.int32("lengths", lengths, "q", q);
  check.shape("lengths", lengths, "[slots]", {kAnySize});
  check.same_type("k_cache", k_cache, "q", q);
  check.shape("k_cache", k_cache, meaning,
              {paged ? kAnySize : lengths.size(0), kAnySize, kAnySize, q.size(3)});
  const int64_t rows = k_cache.size(1), heads = k_cache.size(2), n = q.size(1);
  check.same_type("v_cache", v_cache, "q", q);
  check.shape("v_cache", v_cache, paged ? "[pages, page, Hkv, Dv]" : "[slots, R, Hkv, Dv]",
              {k_cache.size(0), rows, heads, kAnySize});
  check.writable("k_cache", k_cache);
  check.writable("v_cache", v_cache);
  check.that(heads >= 1 && q.size(2) >= 1 && q.size(2) % heads == 0, "q",
             concat("have a multiple of k_cache's ", heads, " heads"), q.size(2));
  check.that(v_cache.size(3) >= 1 && v_cache.size(3) <= kMaxHeadDim, "v_cache",
             concat("have a head dim of 1 to ", kMaxHeadDim), v_cache.size(3));
  check.that(!window || *window >= 0, "window", "be at least 0", window.value_or(0));
  if (paged) {
    check.that(k_cache.size(0) >= 1 && rows >= 1 && rows <= kMaxPosition, "k_cache",
               "have pages of a row or more", shape_text(k_cache));
    return;
  }
  check.that(window.has_value(), "window", "be given where keys lie in rings (no block_table)", "None");
  check.that(rows <= kMaxPosition && rows - n >= *window, "k_cache",
             concat("have rings of at least window + q's tokens = ", *window, " + ", n, " rows"), rows);
}

static void check_new(const Check& check, const Tensor& q, const OptionalTensor& k, const OptionalTensor& v,
                      const Tensor& k_cache, const Tensor& v_cache) {
  check.that(k.has_value() == v.has_value(), k ? "v" : "k", "be given together with the other one", "None");
  if (!k) return;
  check.same_type("k", *k, "q", q);
  check.shape("k", *k, "[B, n, Hkv, Dk]", {q.size(0), q.size(1), k_cache.size(2), q.size(3)});
  check.same_type("v", *v, "q", q);
  check.shape("v", *v, "[B, n, Hkv, Dv]", {q.size(0), q.size(1), k_cache.size(2), v_cache.size(3)});
}

static void check_meta(const Check& check, const Tensor& q, const OptionalTensor& meta_k,
                       const OptionalTensor& meta_v, const Tensor& k_cache, const Tensor& v_cache) {
  check.that(meta_k.has_value() == meta_v.has_value(), meta_k ? "meta_v" : "meta_k",
             "be given together with the other one", "None");
  if (!meta_k) return;
  check.same_type("meta_k", *meta_k, "q", q);
  check.shape("meta_k", *meta_k, "[M, Hkv, Dk]", {kAnySize, k_cache.size(2), q.size(3)});
  check.same_type("meta_v", *meta_v, "q", q);
  check.shape("meta_v", *meta_v, "[M, Hkv, Dv]", {meta_k->size(0), k_cache.size(2), v_cache.size(3)});
  check.that(meta_k->size(0) <= kMaxPosition, "meta_k", concat("have at most ", kMaxPosition, " rows"),
             meta_k->size(0));
}

static void check_frequencies(const Check& check, const Tensor& q, const OptionalTensor& inv_freq) {
  if (!inv_freq) return;
  check.that(q.size(3) % 2 == 0, "q", "have an even head dim where inv_freq is given", q.size(3));
  check.same_device("inv_freq", *inv_freq, "q", q);
  check.that(is_f32(*inv_freq), "inv_freq", "be float32", dtype_name(*inv_freq));
  check.floating("inv_freq", *inv_freq);
  check.shape("inv_freq", *inv_freq, "[Dk / 2]", {q.size(3) / 2});
}

// Values of slots: rows run in any order, so no two may have one slot.
static void check_slot_values(const Check& check, const int32_t* slots, int64_t batch, int64_t slot_count) {
  std::vector<int64_t> owner(slot_count, -1);
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t slot = slots[b];
    check.that(slot >= kPaddingSlot && slot < slot_count, "slots",
               concat("have values from -1 to ", slot_count - 1, " (lengths' rows)"),
               concat(slot, " at index ", b));
    if (slot == kPaddingSlot) continue;
    check.that(owner[slot] < 0, "slots", "name each slot once",
               concat("slot ", slot, " in rows ", owner[slot], " and ", b));
    owner[slot] = b;
  }
}

// The values that the kernels go by, of `cache` on the host; `n` tokens a row.
static void check_values(const Check& check, const KeyCache& cache, int64_t batch, int64_t n,
                         const Mask& mask) {
  if (cache.slots != nullptr) check_slot_values(check, cache.slots, batch, cache.slot_count);
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t slot = cache.slots == nullptr ? b : cache.slots[b];
    const int64_t count = cache.counts == nullptr ? n : cache.counts[b];
    check.that(count >= 0 && count <= n, "counts", concat("have values from 0 to q's ", n, " tokens"),
               concat(count, " at index ", b));
    if (slot == kPaddingSlot) continue;
    const int64_t length = cache.lengths[slot];
    const int64_t most = kMaxPosition - mask.num_meta - n;
    check.that(length >= 0 && length <= most, "lengths", concat("have values from 0 to ", most),
               concat(length, " at index ", slot));
    if (cache.block_table == nullptr) continue;
    const int64_t room = cache.table_pages * cache.rows;
    check.that(length + count <= room, "block_table",
               concat("have pages for slot ", slot, "'s ", length, " tokens and ", count, " new ones"),
               concat(cache.table_pages, " pages of ", cache.rows));
    // Pages that lie before every query's window may have been given back.
    const int64_t begin =
        mask.window == kNoWindow ? 0 : std::max<int64_t>(length - mask.window, 0) / cache.rows;
    for (int64_t page = begin; page < divide_up(length + count, cache.rows); ++page) {
      const int64_t value = cache.block_table[slot * cache.table_stride + page];
      check.that(value >= 0 && value < cache.pages, "block_table",
                 concat("name pages from 0 to ", cache.pages - 1, " where a slot has tokens"),
                 concat(value, " for page ", page, " of slot ", slot));
    }
  }
}

static const int32_t* int32_data(const OptionalTensor& t) {
  return static_cast<const int32_t*>(data_or_null(t));
}

static KeyCache checked_cache(const Check& check, const Tensor& q, const Tensor& k_cache,
                              const Tensor& lengths, const OptionalTensor& counts,
                              const OptionalTensor& slots, const OptionalTensor& block_table,
                              const Mask& mask) {
  const int64_t batch = q.size(0);
  for (const auto& [name, tensor] : {std::pair{"counts", counts}, std::pair{"slots", slots}}) {
    if (!tensor) continue;
    check.int32(name, *tensor, "q", q);
    check.shape(name, *tensor, "[B]", {batch});
  }
  if (!slots)
    check.that(lengths.size(0) == batch, "lengths",
               concat("have q's ", batch, " rows where slots is not given"), lengths.size(0));
  if (block_table) {
    check.int32("block_table", *block_table, "q", q);
    check.shape("block_table", *block_table, "[slots, P]", {lengths.size(0), kAnySize});
    check.that(block_table->size(1) * k_cache.size(1) >= q.size(1), "block_table",
               concat("have pages for at least q's ", q.size(1), " tokens"), block_table->size(1));
  }
  const auto cache_of = [&](const Tensor& of_lengths, const OptionalTensor& of_counts,
                            const OptionalTensor& of_slots, const OptionalTensor& table) -> KeyCache {
    return {
        .lengths = of_lengths.const_data_ptr<int32_t>(),
        .counts = int32_data(of_counts),
        .slots = int32_data(of_slots),
        .block_table = int32_data(table),
        .table_stride = table ? table->stride(0) : 0,
        .slot_count = of_lengths.size(0),
        .table_pages = table ? table->size(1) : 0,
        .pages = table ? k_cache.size(0) : 0,
        .rows = k_cache.size(1),
    };
  };
  const auto on_host = [](const OptionalTensor& t) { return t ? host_values(*t) : std::nullopt; };
  if (const OptionalTensor host = host_values(lengths)) {
    const OptionalTensor host_counts = on_host(counts), host_slots = on_host(slots),
                         table = on_host(block_table);
    check_values(check, cache_of(*host, host_counts, host_slots, table), batch, q.size(1), mask);
  }
  return cache_of(lengths, counts, slots, block_table);
}

DecodeAttentionParams checked_params(const Check& check, const DecodeAttentionInputs& in) {
  const Tensor& q = in.q;
  check_queries(check, q);
  check_caches(check, q, in.k_cache, in.v_cache, in.lengths, in.block_table.has_value(), in.window);
  check_new(check, q, in.k, in.v, in.k_cache, in.v_cache);
  check_meta(check, q, in.meta_k, in.meta_v, in.k_cache, in.v_cache);
  check_frequencies(check, q, in.inv_freq);
  const int64_t B = q.size(0), k_dim = q.size(3), rows = in.k_cache.size(1);
  const int64_t meta_len = in.meta_k ? in.meta_k->size(0) : 0;
  const Mask mask{in.window ? std::min(*in.window, kMaxPosition) : kNoWindow, meta_len};
  const KeyCache cache =
      checked_cache(check, q, in.k_cache, in.lengths, in.counts, in.slots, in.block_table, mask);
  return {
      .attention =
          {
              .q = heads_view(q),
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
              .q_len = q.size(1),
              .k_len = in.block_table ? in.block_table->size(1) * rows : rows,
              .q_heads = q.size(2),
              .kv_heads = in.k_cache.size(2),
              .k_dim = k_dim,
              .v_dim = in.v_cache.size(3),
              .meta_len = meta_len,
              .mask = mask,
              .scale = in.scale ? *in.scale : 1.0 / std::sqrt(static_cast<double>(k_dim)),
              .dtype = dtype_of(q),
              .cache = cache,
          },
      .new_k = heads_view(in.k),
      .new_v = heads_view(in.v),
      .inv_freq = in.inv_freq ? in.inv_freq->const_data_ptr<float>() : nullptr,
      .workspace = nullptr,
      .counters = nullptr,
      .beside_previous = false,
  };
}

Tensor new_output(const DecodeAttentionInputs& in) {
  return new_tensor(in.q, {in.q.size(0), in.q.size(1), in.q.size(2), in.v_cache.size(3)});
}

Tensor decode_attention(const Tensor& q, const OptionalTensor& k, const OptionalTensor& v, Tensor k_cache,
                        Tensor v_cache, const Tensor& lengths, const OptionalTensor& counts,
                        const OptionalTensor& slots, const OptionalTensor& block_table,
                        const OptionalTensor& meta_k, const OptionalTensor& meta_v,
                        std::optional<int64_t> window, std::optional<double> scale,
                        const OptionalTensor& inv_freq, OptionalTensor counters) {
  const Check check("decode_attention");
  const DecodeAttentionInputs in{q,     k,           v,      k_cache, v_cache, lengths, counts,
                                 slots, block_table, meta_k, meta_v,  window,  scale,   inv_freq};
  DecodeAttentionParams params = checked_params(check, in);
  const int64_t count = decode_attention_counters(params.attention);
  check_counters(check, counters, "q", q, count);
  const Tensor out = new_output(in);
  if (q.size(0) == 0) return out;
  params.attention.out = out.mutable_data_ptr();
  if (!q.is_cpu()) params.counters = counters_for(counters, q, count);
  launch(q, params, cpu::decode_attention, HYMBA_CUDA(cuda::decode_attention),
         HYMBA_CUDA(cuda::decode_attention_workspace_bytes));
  return out;
}

}  // namespace hymba
