#include "primitives/probes.h"

#include "cuda/primitives/grid.cuh"
#include "cuda/primitives/math.cuh"
#include "cuda/primitives/memory.cuh"
#include "cuda/primitives/mma.cuh"
#include "cuda/primitives/warp.cuh"

namespace hymba::probes {
namespace {

using namespace cuda;

// A probe's `run` is one thread's work on its item.
template <class P>
__global__ void __launch_bounds__(kBlock) probe(const typename P::In* in, typename P::Out* out) {
  const unsigned i = blockIdx.x * kBlock + threadIdx.x;
  P::run(in + i, out + i);
}

template <class P>
int launch(const void* in, void* out, int items, void* stream) {
  return launch_kernel(probe<P>, LaunchShape{static_cast<unsigned>(items / kBlock), kBlock}, stream,
                       static_cast<const typename P::In*>(in), static_cast<typename P::Out*>(out));
}

template <class P>
Probe make(const char* name) {
  return {name, sizeof(typename P::In), sizeof(typename P::Out), kBlock, launch<P>};
}

// An item in, a value out.
#define HYMBA_PROBE(Name, InType, OutType, expression)   \
  struct Name {                                          \
    using In = InType;                                   \
    using Out = OutType;                                 \
    static __device__ void run(const In* in, Out* out) { \
      const In x = *in;                                  \
      *out = expression;                                 \
    }                                                    \
  }

HYMBA_PROBE(Exp2, float, float, exp2_approx(x));
HYMBA_PROBE(Log2, float, float, log2_approx(x));
HYMBA_PROBE(Reciprocal, float, float, reciprocal_approx(x));
HYMBA_PROBE(Rsqrt, float, float, rsqrt_approx(x));
HYMBA_PROBE(WidenBf16, bfloat16, float, widen(x));
HYMBA_PROBE(WidenF16, float16, float, widen(x));
HYMBA_PROBE(NarrowPairBf16, float2, uint32_t, __builtin_bit_cast(uint32_t, narrow_pair_bf16(x.x, x.y)));
HYMBA_PROBE(NarrowPairF16, float2, uint32_t, __builtin_bit_cast(uint32_t, narrow_pair_f16(x.x, x.y)));
HYMBA_PROBE(WarpSum, float, float, warp_sum(x));
HYMBA_PROBE(WarpSum8, float, float, warp_sum<8>(x));
HYMBA_PROBE(WarpMax, float, float, warp_max(x));

template <class T>
struct Narrow {
  using In = float;
  using Out = T;
  static __device__ void run(const In* in, Out* out) { narrow(*out, *in); }
};

// kCount bytes each.
template <int kCount>
struct LoadStore {
  using In = Pack<unsigned char, kCount>;
  using Out = In;
  static __device__ void run(const In* in, Out* out) { store(&out->at[0], load<kCount>(&in->at[0])); }
};
template <int kCount>
struct LoadConstant {
  using In = Pack<unsigned char, kCount>;
  using Out = In;
  static __device__ void run(const In* in, Out* out) {
    store(&out->at[0], load_constant<kCount>(&in->at[0]));
  }
};
template <int kCount>
struct Streaming {
  using In = Pack<unsigned char, kCount>;
  using Out = In;
  static __device__ void run(const In* in, Out* out) {
    store_streaming(&out->at[0], load_streaming<kCount>(&in->at[0]));
  }
};

// Items whose first byte is even are not to be read.
template <int kCount>
struct CopyAsync {
  using In = Pack<unsigned char, kCount>;
  using Out = In;
  static __device__ void run(const In* in, Out* out) {
    HYMBA_SHARED(In[kBlock], shared);
    copy_async<kCount>(&shared[threadIdx.x], in, (*in)[0] % 2 == 1);
    commit_copies();
    wait_copies<0>();
    *out = shared[threadIdx.x];
  }
};

struct BlockSum {
  using In = float;
  using Out = float;
  static __device__ void run(const In* in, Out* out) {
    HYMBA_SHARED(float[kBlock / kWarpSize], partial);
    *out = block_sum(*in, partial);
  }
};

// Warp 1 waits at a named barrier for what warp 0 has put into shared memory; then the other way round.
struct NamedBarriers {
  using In = float;
  using Out = float;
  static __device__ void run(const In* in, Out* out) {
    HYMBA_SHARED(float[kWarpSize], there);
    HYMBA_SHARED(float[kWarpSize], back);
    const unsigned lane = threadIdx.x % kWarpSize;
    if (threadIdx.x < kWarpSize) {
      there[lane] = *in;
      barrier_arrive(1, kBlock);
      barrier_sync(2, kBlock);
      *out = back[lane];
    } else {
      barrier_sync(1, kBlock);
      *out = there[lane];
      back[lane] = *in;
      barrier_arrive(2, kBlock);
    }
  }
};

// Each warp leaves its items for the other one, and comes to the barrier in a place of its own.
struct BlockBarrier {
  using In = float;
  using Out = float;
  static __device__ void run(const In* in, Out* out) {
    HYMBA_SHARED(float[kBlock], shared);
    shared[threadIdx.x] = *in;
    if (threadIdx.x < kWarpSize) {
      block_barrier();
      *out = shared[threadIdx.x + kWarpSize];
    } else {
      block_barrier();
      *out = shared[threadIdx.x - kWarpSize];
    }
  }
};

struct MmaTf32 {
  struct In {
    float a[4], b[2];
  };
  struct Out {
    float sum[4];
  };
  static __device__ void run(const In* in, Out* out) {
    float sum[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    mma_tf32(sum, in->a, in->b);
    for (int i = 0; i < 4; ++i) out->sum[i] = sum[i];
  }
};

template <class T>
struct Mma {
  struct In {
    uint32_t a[4], b[2];
  };
  struct Out {
    float sum[4];
  };
  static __device__ void run(const In* in, Out* out) {
    float sum[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    mma<T>(sum, in->a, in->b[0], in->b[1]);
    for (int i = 0; i < 4; ++i) out->sum[i] = sum[i];
  }
};

// Item `lane` of a warp is the row of which load_matrices takes lane `lane`'s address.
template <bool kTransposed>
struct LoadMatrices {
  using In = Pack<bfloat16, 8>;
  struct Out {
    uint32_t at[4];
  };
  static __device__ void run(const In* in, Out* out) {
    HYMBA_SHARED(In[kBlock], shared);
    shared[threadIdx.x] = *in;
    __syncwarp();
    load_matrices<kTransposed>(out->at, &shared[threadIdx.x].at[0]);
  }
};

// Three grids one behind the other, of which the second one's blocks wait for each other: each adds its items
// to the sums of the block before. The first item's count is that of all blocks.
struct Turn {
  float sum;
  uint32_t count;
};
__global__ void __launch_bounds__(kBlock) clear_turns(Turn* out) {
  start_next_grid();
  wait_for_previous_grid();
  out[blockIdx.x * kBlock + threadIdx.x] = {0.0f, 0};
}
__global__ void __launch_bounds__(kBlock) add_in_turn(const float* in, Turn* out) {
  const unsigned i = blockIdx.x * kBlock + threadIdx.x;
  start_next_grid();
  prefetch_to_l2(in + i);
  wait_for_previous_grid();
  float sum = in[i];
  if (blockIdx.x > 0) {
    if (threadIdx.x == 0) wait_for_blocks(&out->count, blockIdx.x);
    __syncthreads();
    sum += out[i - kBlock].sum;
  }
  out[i].sum = sum;
  __syncthreads();
  if (threadIdx.x == 0) count_block(&out->count);
}
__global__ void __launch_bounds__(kBlock) add_one(Turn* out) {
  start_next_grid();
  wait_for_previous_grid();
  out[blockIdx.x * kBlock + threadIdx.x].sum += 1.0f;
}

int launch_in_turn(const void* in, void* out, int items, void* stream) {
  const LaunchShape shape{
      .grid = static_cast<unsigned>(items / kBlock), .block = kBlock, .shared_bytes = 0, .overlaps = true};
  Turn* turns = static_cast<Turn*>(out);
  if (const int error = launch_kernel(clear_turns, shape, stream, turns)) return error;
  if (const int error = launch_kernel(add_in_turn, shape, stream, static_cast<const float*>(in), turns))
    return error;
  return launch_kernel(add_one, shape, stream, turns);
}

}  // namespace

std::vector<Probe> all_probes() {
  return {
      make<Exp2>("exp2_approx"),
      make<Log2>("log2_approx"),
      make<Reciprocal>("reciprocal_approx"),
      make<Rsqrt>("rsqrt_approx"),
      make<WidenBf16>("widen_bf16"),
      make<WidenF16>("widen_f16"),
      make<Narrow<bfloat16>>("narrow_bf16"),
      make<Narrow<float16>>("narrow_f16"),
      make<NarrowPairBf16>("narrow_pair_bf16"),
      make<NarrowPairF16>("narrow_pair_f16"),
      make<LoadStore<2>>("load_store_2"),
      make<LoadStore<4>>("load_store_4"),
      make<LoadStore<8>>("load_store_8"),
      make<LoadStore<16>>("load_store_16"),
      make<LoadConstant<4>>("load_constant_4"),
      make<LoadConstant<8>>("load_constant_8"),
      make<LoadConstant<16>>("load_constant_16"),
      make<Streaming<4>>("streaming_4"),
      make<Streaming<8>>("streaming_8"),
      make<Streaming<16>>("streaming_16"),
      make<CopyAsync<4>>("copy_async_4"),
      make<CopyAsync<8>>("copy_async_8"),
      make<CopyAsync<16>>("copy_async_16"),
      make<WarpSum>("warp_sum"),
      make<WarpSum8>("warp_sum_8"),
      make<WarpMax>("warp_max"),
      make<BlockSum>("block_sum"),
      make<NamedBarriers>("named_barriers"),
      make<BlockBarrier>("block_barrier"),
      make<MmaTf32>("mma_tf32"),
      make<MmaTf32>("mma_tf32_of_floats"),
      make<Mma<bfloat16>>("mma_bf16"),
      make<Mma<float16>>("mma_f16"),
      make<LoadMatrices<false>>("load_matrices"),
      make<LoadMatrices<true>>("load_matrices_transposed"),
      {"blocks_in_turn", sizeof(float), sizeof(Turn), kBlock, launch_in_turn},
  };
}

}  // namespace hymba::probes
