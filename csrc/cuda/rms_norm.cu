// rms_norm on the GPU: threads read a row and the weight into registers, sum the row's squares, and write it
// scaled.
//
// Bound by bytes: a row in, a row out (6.4 KB a token at D = 1600, bf16). Rows differ in width by two orders
// of magnitude (B and C of the SSM branch 16 elements, dt 100, hidden states 1600), and a row's bytes decide
// how many threads share it: up to 256 bytes 8 lanes, up to 4 KB two warps, beyond a block. So all of a row
// is on its way at once, and few of a thread's instructions are spent on where it lies. Narrow rows are read
// 8 bytes a lane: as slices of x_proj's output they are rarely aligned to more. Rows that a block cannot hold
// (above 16 KB) are read twice.
#include "ops/rms_norm.h"

#include "cuda/primitives/warp.cuh"
#include "cuda/row_tile.cuh"

namespace hymba::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kFewLanes = 8, kTwoWarps = 2 * kWarpSize;

template <class T, int kLanes>
constexpr int kCount = (kLanes < kWarpSize ? 8 : 16) / static_cast<int>(sizeof(T));
// The widest row that kLanes threads hold.
template <class T, int kLanes>
constexpr int64_t kHeld = kCount<T, kLanes> * kHeldRounds * kLanes;

// The sum of `x` over each group of kLanes threads, in all of them.
template <int kLanes, class T>
__device__ __forceinline__ T row_sum(T x) {
  if constexpr (kLanes <= kWarpSize) {
    return warp_sum<kLanes>(x);
  } else {
    constexpr int kWarps = kLanes / kWarpSize;
    HYMBA_SHARED(T[kThreads / kWarpSize], partial);
    const int warp = threadIdx.x / kWarpSize;
    x = warp_sum(x);
    if (threadIdx.x % kWarpSize == 0) partial[warp] = x;
    __syncthreads();
    T sum = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) sum += partial[warp / kWarps * kWarps + i];
    return sum;
  }
}

// kPacks: every row and the weight can be read in packs of a chunk, and a row is a whole number of them.
// kHold: and no wider than kHeld<T, kLanes>.
template <class T, int kLanes, bool kPacks, bool kHold>
__global__ void __launch_bounds__(kThreads) rms_norm_kernel(RmsNormParams p) {
  using C = compute_t<T>;
  using Row = RowTile<T, kCount<T, kLanes>, kHold ? kHeldRounds : 1, kLanes>;
  const int64_t row = int64_t(blockIdx.x) * (kThreads / kLanes) + threadIdx.x / kLanes;
  const int64_t dim = row < p.rows ? p.dim : 0;  // behind the last row: nothing to read or write
  const int lane = threadIdx.x % kLanes;
  const T* x = static_cast<const T*>(p.x.data) + row_offset(p.x, row);
  T* out = static_cast<T*>(p.out) + row * p.dim;

  Row values, weight;
  const auto load = [&](int64_t begin, int elements) {
    values.template load<kPacks>(x + begin, lane, elements);
    weight.template load_weight<kPacks>(p.weight, p.weight_is_f32, begin, lane, elements);
  };
  C squares = 0;
  for_each_tile<Row, kHold>(dim, [&](int64_t begin, int elements) {
    load(begin, elements);
    values.add_squares(squares);
  });
  const C scale = C(1) / sqrt(row_sum<kLanes>(squares) / C(p.dim) + C(p.eps));
  for_each_tile<Row, kHold>(dim, [&](int64_t begin, int elements) {
    if constexpr (!kHold) load(begin, elements);
    values.scale(scale, weight);
    values.template store<kPacks>(out + begin, lane, elements);
  });
}

template <class T, int kLanes>
int launch_rows(const RmsNormParams& p, void* stream) {
  constexpr int kRows = kThreads / kLanes, kElements = kCount<T, kLanes>;
  const LaunchShape shape{static_cast<unsigned>(divide_up(p.rows, kRows)), kThreads};
  const bool packs = p.dim % kElements == 0 && rows_in_packs<T, kElements>(p.x) && aligned_to_packs(p.weight);
  if (!packs) return launch_kernel(rms_norm_kernel<T, kLanes, false, false>, shape, stream, p);
  if constexpr (kLanes == kThreads)
    if (p.dim > kHeld<T, kLanes>)
      return launch_kernel(rms_norm_kernel<T, kLanes, true, false>, shape, stream, p);
  return launch_kernel(rms_norm_kernel<T, kLanes, true, true>, shape, stream, p);
}

template <class T>
int launch_width(const RmsNormParams& p, void* stream) {
  if (p.dim <= kHeld<T, kFewLanes>) return launch_rows<T, kFewLanes>(p, stream);
  if (p.dim <= kHeld<T, kTwoWarps>) return launch_rows<T, kTwoWarps>(p, stream);
  return launch_rows<T, kThreads>(p, stream);
}

}  // namespace

int rms_norm(const RmsNormParams& p, void* stream) {
  return with_dtype(p.dtype, [&](auto t) { return launch_width<decltype(t)>(p, stream); });
}

}  // namespace hymba::cuda
