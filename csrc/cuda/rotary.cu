// rotary on the GPU: a block computes the sines and cosines of a tile of tokens once, then turns all their
// heads.
//
// Bound by bytes: x in, out out (6.4 KB a token for 25 heads of 64, bf16). A tile is 256 (token, frequency)
// pairs, at D = 64 eight tokens: one sine and cosine a thread, which pass through shared memory. After that a
// thread owns a chunk of a token's frequencies, in registers, and turns the two packs that belong to it in
// every kCount-th head.
#include "ops/rotary.h"

#include "cuda/device.cuh"
#include "cuda/primitives/math.cuh"
#include "cuda/primitives/memory.cuh"
#include "cuda/sincos.cuh"

namespace hymba::cuda {
namespace {

constexpr int kThreads = 256;  // and phases of a tile

// How phases lie in tiles: whole tokens where their frequencies fit, else a part of one token's.
struct Tiling {
  int frequencies, tokens;  // of a tile
  unsigned frequency_tiles;

  __host__ __device__ explicit Tiling(const RotaryParams& p) {
    const int64_t half = p.dim / 2;
    frequencies = static_cast<int>(half < kThreads ? half : kThreads);
    tokens = kThreads / frequencies;
    frequency_tiles = static_cast<unsigned>(divide_up(half, kThreads));
  }
};

// kCount: elements of a chunk, a whole pack where all halves of heads are aligned packs, else 1.
template <class T, int kCount>
__global__ void __launch_bounds__(kThreads) rotary_kernel(RotaryParams p) {
  using C = compute_t<T>;
  constexpr int kChunks = kThreads / kCount;  // of a tile
  HYMBA_SHARED(C[kThreads], sines);           // [kCount][kChunks]: neighbouring threads in neighbouring banks
  HYMBA_SHARED(C[kThreads], cosines);
  const Tiling tiling(p);
  const int chunk = threadIdx.x % kChunks, part = threadIdx.x / kChunks;
  const int64_t half = p.dim / 2;
  const unsigned token_tile = blockIdx.x / tiling.frequency_tiles,
                 frequency_tile = blockIdx.x % tiling.frequency_tiles;
  const int token = chunk * kCount / tiling.frequencies;
  const int64_t frequency =
      int64_t(frequency_tile) * tiling.frequencies + chunk * kCount % tiling.frequencies;
  const int64_t row = int64_t(token_tile) * tiling.tokens + token;
  const int64_t b = row / p.tokens, t = row % p.tokens;
  const bool there = token < tiling.tokens && row < p.batch * p.tokens && frequency < half;
  if (there) {
    // The angle is a float32 product whatever T is.
    const float angle =
        static_cast<float>(p.positions[b * p.position_stride + t]) * p.inv_freq[frequency + part];
    sine_and_cosine(angle, sines[threadIdx.x], cosines[threadIdx.x]);
  }
  __syncthreads();
  if (!there) return;

  C sine[kCount], cosine[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    sine[i] = sines[i * kChunks + chunk];
    cosine[i] = cosines[i * kChunks + chunk];
  }
  const T* x = static_cast<const T*>(p.x) + b * p.x_batch_stride + t * p.x_token_stride + frequency;
  T* out = static_cast<T*>(p.out) + row * p.heads * p.dim + frequency;
  for (int64_t head = part; head < p.heads; head += kCount) {
    C first[kCount], second[kCount], turned_first[kCount], turned_second[kCount];
    widen(first, load_constant<kCount>(x + head * p.x_head_stride));
    widen(second, load_constant<kCount>(x + head * p.x_head_stride + half));
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      turned_first[i] = first[i] * cosine[i] - second[i] * sine[i];
      turned_second[i] = second[i] * cosine[i] + first[i] * sine[i];
    }
    store(out + head * p.dim, narrow<T>(turned_first));
    store(out + head * p.dim + half, narrow<T>(turned_second));
  }
}

template <class T>
int launch_tiles(const RotaryParams& p, void* stream) {
  constexpr int kCount = kPackCount<T>;
  const Tiling tiling(p);
  const int64_t token_tiles = (p.batch * p.tokens + tiling.tokens - 1) / tiling.tokens;
  const LaunchShape shape{static_cast<unsigned>(token_tiles * tiling.frequency_tiles), kThreads};
  const T* x = static_cast<const T*>(p.x);
  const bool packs = p.dim / 2 % kCount == 0 && packs_aligned<kCount>(x, p.x_batch_stride) &&
                     packs_aligned<kCount>(x, p.x_token_stride) && packs_aligned<kCount>(x, p.x_head_stride);
  return packs ? launch_kernel(rotary_kernel<T, kCount>, shape, stream, p)
               : launch_kernel(rotary_kernel<T, 1>, shape, stream, p);
}

}  // namespace

int rotary(const RotaryParams& p, void* stream) {
  return with_dtype(p.dtype, [&](auto t) { return launch_tiles<decltype(t)>(p, stream); });
}

}  // namespace hymba::cuda
