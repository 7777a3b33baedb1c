// Attention for float32 and float64, in plain FMAs: no TF32. Online softmax over key tiles, as
// attention_mma.cuh.
//
// Bound by shared-memory loads: a score takes two loads an FMA, an output value one and a broadcast.
#pragma once
#include "cuda/attention_fma_rows.cuh"

namespace hymba::cuda {

template <class C, int kColumns>
__device__ __forceinline__ void fma_attention(const AttentionParams& p, const FmaTiles<C>& tiles,
                                              const AttentionBlock& block) {
  using Row = FmaRow<C, kColumns>;
  const KeyTiles<kFmaKeys> keys(block.spans);
  const KeyRows<C> key_rows(p, block, p.k, p.meta_k), value_rows(p, block, p.v, p.meta_v);
  Row row(p, tiles, RowMask(p.mask, block.position_of(Row::row())));
  load_fma_rows(tiles.q, tiles.k_stride, kFmaRows, p.k_dim, [&](int i) -> const C* {
    if (i >= block.rows) return nullptr;
    return head_row<C>(p.q, block.seq.batch, block.seq.q_begin + block.query_of(i), block.head_of(i));
  });
#pragma unroll 1
  for (int tile = 0; tile < keys.count; ++tile) {
    const int first = keys.key(tile);
    load_fma_rows(tiles.k, tiles.k_stride, kFmaKeys, p.k_dim, [&](int i) -> const C* {
      return first + i < block.keys ? key_rows.at(first + i) : nullptr;
    });
    load_fma_rows(tiles.v, static_cast<int>(p.v_dim), kFmaKeys, p.v_dim, [&](int i) -> const C* {
      return first + i < block.keys ? value_rows.at(first + i) : nullptr;
    });
    __syncthreads();
    row.attend(first);
    __syncthreads();
  }

  const C sum = row.sum();
  if (Row::row() >= block.rows) return;
  const int64_t result = block.result(p, Row::row());
  C* to = static_cast<C*>(p.out) + result * p.v_dim;
  row.for_columns([&](int column, C value) { to[column] = value / sum; });
  if (p.lse != nullptr && Row::lane() == 0)
    static_cast<C*>(p.lse)[result] = softmax_shift(row.max_log2()) * C(kLn2) + log(sum);
}

// launch: fma_attention_kernel<float, *> threads 256, shared 37248
// launch: fma_attention_kernel<double, *> threads 256, shared 74496
template <class C, int kColumns>
__global__ void __launch_bounds__(kFmaThreads, sizeof(C) == 4 ? 2 : 1)
    fma_attention_kernel(AttentionParams p) {
  HYMBA_DYNAMIC_SHARED(bytes);
  const auto tiles = carve_shared<FmaTiles<C>>(bytes, static_cast<int>(p.k_dim), static_cast<int>(p.v_dim));
  AttentionBlock block;
  if (!find_block(p, kFmaRows, block)) return;
  fma_attention<C, kColumns>(p, tiles, block);
}

}  // namespace hymba::cuda
