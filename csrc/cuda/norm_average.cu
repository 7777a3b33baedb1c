// norm_average on the GPU: a block reads a row of each branch into registers, sums their squares, and writes
// their scaled average.
//
// Bound by bytes: 2 rows in, 1 out (19.2 KB a token at D = 3200, bf16). What a block cannot hold (rows above
// 8 KB) it reads twice. Rows and weights are read in 16-byte packs where base and strides allow, else element
// by element.
#include "ops/norm_average.h"

#include "cuda/primitives/warp.cuh"
#include "cuda/row_tile.cuh"

namespace hymba::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;

template <class T, bool kHold>
using Tile = RowTile<T, kPackCount<T>, kHold ? kHeldRounds : 1, kThreads>;

// kPacks: every row and weight can be read in packs, and a row is a whole number of them. kHold: and one
// tile.
template <class T, bool kPacks, bool kHold>
__global__ void __launch_bounds__(kThreads) norm_average_kernel(NormAverageParams p) {
  using C = compute_t<T>;
  using Row = Tile<T, kHold>;
  HYMBA_SHARED(C[kWarps], attn_partial);
  HYMBA_SHARED(C[kWarps], ssm_partial);
  const int64_t row = blockIdx.x;
  const int lane = threadIdx.x;
  const T* attn_row = static_cast<const T*>(p.attn.data) + row_offset(p.attn, row);
  const T* ssm_row = static_cast<const T*>(p.ssm.data) + row_offset(p.ssm, row);
  T* out = static_cast<T*>(p.out) + row * p.dim;

  Row attn, ssm, weight;
  const auto load = [&](int64_t begin, int elements) {
    attn.template load<kPacks>(attn_row + begin, lane, elements);
    ssm.template load<kPacks>(ssm_row + begin, lane, elements);
  };
  C attn_squares = 0, ssm_squares = 0;
  for_each_tile<Row, kHold>(p.dim, [&](int64_t begin, int elements) {
    load(begin, elements);
    attn.add_squares(attn_squares);
    ssm.add_squares(ssm_squares);
  });
  const C attn_mean = block_sum(attn_squares, attn_partial) / C(p.dim);
  const C ssm_mean = block_sum(ssm_squares, ssm_partial) / C(p.dim);
  const C attn_scale = C(0.5) / sqrt(attn_mean + C(p.eps)), ssm_scale = C(0.5) / sqrt(ssm_mean + C(p.eps));

  for_each_tile<Row, kHold>(p.dim, [&](int64_t begin, int elements) {
    if constexpr (!kHold) load(begin, elements);
    weight.template load_weight<kPacks>(p.attn_weight, p.attn_weight_is_f32, begin, lane, elements);
    attn.scale(attn_scale, weight);
    weight.template load_weight<kPacks>(p.ssm_weight, p.ssm_weight_is_f32, begin, lane, elements);
    ssm.scale(ssm_scale, weight);
    attn.add(ssm);
    attn.template store<kPacks>(out + begin, lane, elements);
  });
}

template <class T>
int launch_rows(const NormAverageParams& p, void* stream) {
  const LaunchShape shape{static_cast<unsigned>(p.rows), kThreads};
  const bool packs = rows_in_packs<T, kPackCount<T>>(p.attn) && rows_in_packs<T, kPackCount<T>>(p.ssm) &&
                     aligned_to_packs(p.attn_weight) && aligned_to_packs(p.ssm_weight) &&
                     p.dim % kPackCount<T> == 0;
  if (!packs) return launch_kernel(norm_average_kernel<T, false, false>, shape, stream, p);
  return p.dim > Tile<T, true>::kTile ? launch_kernel(norm_average_kernel<T, true, false>, shape, stream, p)
                                      : launch_kernel(norm_average_kernel<T, true, true>, shape, stream, p);
}

}  // namespace

int norm_average(const NormAverageParams& p, void* stream) {
  return with_dtype(p.dtype, [&](auto t) { return launch_rows<decltype(t)>(p, stream); });
}

}  // namespace hymba::cuda
