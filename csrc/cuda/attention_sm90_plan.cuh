// Packed sequences: their items are listed on the device, where cu_seqlens is, those with most key tiles
// first. A counting sort by one block, without atomics: the order is the same every time.
//
// A sequence may have as many items as its length could need, wherever cu_seqlens puts it: slot
// start / room + sequence is its first one. A thread has a run of neighbouring slots.
#pragma once
#include "cuda/attention_sm90_items.cuh"
#include "cuda/primitives/warp.cuh"

namespace hymba::cuda {

constexpr int kPlanThreads = 256, kPlanBuckets = kWarpSize, kPlanWarps = kPlanThreads / kWarpSize;

// Of one KV head.
HYMBA_INLINE int64_t item_slots(const AttentionParams& p, int64_t room) {
  if (p.cu_seqlens_q == nullptr) return p.batch * divide_up(p.q_len, room);
  return p.q_len / room + p.sequences;
}

// A thread's place among the slots.
class SlotWalk {
 public:
  __device__ SlotWalk(const AttentionParams& p, int room, int64_t slot) : p_(p), room_(room) {
    int64_t high = p.sequences;
    while (high - sequence_ > 1) {
      const int64_t middle = (sequence_ + high) / 2;
      (first_slot(middle) <= slot ? sequence_ : high) = middle;
    }
  }

  // The item of a slot; false where there is none. Slots are asked in ascending order.
  __device__ bool find(int64_t slot, AttentionItem& item) {
    while (sequence_ + 1 < p_.sequences && first_slot(sequence_ + 1) <= slot) ++sequence_;
    const SequenceView seq = sequence_view(p_, sequence_);
    const int64_t query = (slot - first_slot(sequence_)) * room_;
    if (query < 0 || query >= seq.q_len) return false;  // < 0: cu_seqlens is wrong
    item = attention_item(p_, seq, static_cast<int>(query), room_);
    return true;
  }

 private:
  __device__ int64_t first_slot(int64_t sequence) const {
    return sequence_start({p_.cu_seqlens_q, p_.sequences, p_.q_len}, sequence) / room_ + sequence;
  }

  const AttentionParams& p_;
  const int64_t room_;
  int64_t sequence_ = 0;
};

// At least the tiles of any item: those of a sequence's last queries, and one more, which windows may touch.
template <int kKeys>
__device__ int most_tiles(const AttentionParams& p, int room, int (&partial)[kPlanWarps]) {
  const int thread = static_cast<int>(threadIdx.x);
  int most = 1;
  for (int64_t s = thread; s < p.sequences; s += kPlanThreads) {
    const SequenceView seq = sequence_view(p, s);
    const int query = max(static_cast<int>(seq.q_len) - room, 0);
    most = max(most, ItemTiles<kKeys>(p.mask, attention_item(p, seq, query, room)).count + 1);
  }
  most = warp_max(most);
  if (thread % kWarpSize == 0) partial[thread / kWarpSize] = most;
  __syncthreads();
#pragma unroll
  for (int other : partial) most = max(most, other);
  return most;
}

// `items` has room for item_slots(p, room) of them.
template <int kKeys>
__global__ void __launch_bounds__(kPlanThreads)
    list_items_kernel(AttentionParams p, int room, AttentionItem* items, int* count) {
  // A thread's items in a bucket, then their places; the odd stride spreads threads over the banks.
  HYMBA_SHARED(int[kPlanThreads][kPlanBuckets + 1], places);
  HYMBA_SHARED(int[kPlanWarps][kPlanBuckets], sums);  // of a warp's threads
  HYMBA_SHARED(int[kPlanWarps], partial);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpSize, warp = thread / kWarpSize;
  const int most = most_tiles<kKeys>(p, room, partial);
  // Bucket 0 has the most tiles.
  const auto bucket = [&](const AttentionItem& item) {
    const int tiles = min(ItemTiles<kKeys>(p.mask, item).count, most);
    return static_cast<int>(static_cast<int64_t>(most - tiles) * kPlanBuckets / most);
  };
  const int64_t slots = item_slots(p, room), begin = slots * thread / kPlanThreads,
                end = slots * (thread + 1) / kPlanThreads;
  AttentionItem item;

  for (int i = 0; i < kPlanBuckets; ++i) places[thread][i] = 0;
  SlotWalk counting(p, room, begin);
  for (int64_t slot = begin; slot < end; ++slot)
    if (counting.find(slot, item)) ++places[thread][bucket(item)];
  __syncthreads();

  // A lane has a bucket, a warp the counts of 32 threads.
  int sum = 0;
  for (int i = warp * kWarpSize; i < (warp + 1) * kWarpSize; ++i) sum += places[i][lane];
  sums[warp][lane] = sum;
  __syncthreads();
  int before = 0, in_bucket = 0;  // of the lane's bucket: items of earlier warps, of all
  for (int w = 0; w < kPlanWarps; ++w) {
    if (w < warp) before += sums[w][lane];
    in_bucket += sums[w][lane];
  }
  int through = in_bucket;  // items in the buckets up to this one
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const int other = __shfl_up_sync(kFullWarp, through, distance);
    if (lane >= distance) through += other;
  }
  if (thread == kPlanBuckets - 1) *count = through;
  int place = through - in_bucket + before;
  for (int i = warp * kWarpSize; i < (warp + 1) * kWarpSize; ++i) {
    const int here = places[i][lane];
    places[i][lane] = place;
    place += here;
  }
  __syncthreads();

  SlotWalk listing(p, room, begin);
  for (int64_t slot = begin; slot < end; ++slot)
    if (listing.find(slot, item)) items[places[thread][bucket(item)]++] = item;
}

}  // namespace hymba::cuda
