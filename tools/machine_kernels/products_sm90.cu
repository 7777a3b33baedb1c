// Matrix products of warpgroups (wgmma), in the shapes that csrc/cuda/attention_sm90_rows.cuh has in the 1.5B
// layer.
#include "cuda/attention_sm90_tile.cuh"
#include "measure.cuh"

namespace hymba::machine {
namespace {

constexpr int kValueDim = 128;
using Tile = cuda::Sm90Tile<64, kValueDim>;
constexpr int kThreads = Tile::kConsumers * cuda::kWarpgroup;

constexpr int kSharedBytes = Tile::kValueBytes + Tile::kQueryBytes;

// A tile of K or V, behind it one of Q, of zeros.
__device__ __forceinline__ unsigned char* zeroed_tiles() {
  HYMBA_DYNAMIC_SHARED(bytes);
  for (int i = threadIdx.x; i < kSharedBytes / 16; i += blockDim.x) reinterpret_cast<uint4*>(bytes)[i] = {};
  cuda::async_proxy_fence();
  __syncthreads();
  return bytes;
}

// Scores: a (Q) and b (K) in shared memory, products over a head's 64 columns, again and again.
class Scores {
 public:
  static constexpr int kPerRound = 32, kColumns = Tile::kKeys;
  __device__ explicit Scores(const LoopInputs&) {
    const unsigned char* tiles = zeroed_tiles();
    b_ = cuda::wgmma_tile(tiles);
    a_ = cuda::wgmma_tile(tiles + Tile::kValueBytes +
                          threadIdx.x / cuda::kWarpgroup * cuda::kWarpgroupRows * cuda::kPartBytes);
  }
  __device__ void round() {
    cuda::wgmma_fence(sums_);
#pragma unroll
    for (int i = 0; i < kPerRound; ++i)
      cuda::wgmma<bfloat16, kColumns>(sums_, a_ + i % 4 * 32, b_ + i % 4 * 32, true);
    cuda::wgmma_commit();
    cuda::wgmma_wait<0>(sums_);
  }
  __device__ uint32_t result() const {
    float all = 0;
    for (float x : sums_) all += x;
    return __float_as_uint(all);
  }

 private:
  cuda::WgmmaTile a_, b_;
  float sums_[kColumns / 2] = {};
};

// Values: a (probabilities) in registers, b's rows those of a tile of V.
class Values {
 public:
  static constexpr int kPerRound = 32, kColumns = kValueDim, kSteps = Tile::kKeys / 16;
  __device__ explicit Values(const LoopInputs& in)
      : b_(cuda::wgmma_tile(zeroed_tiles(), Tile::kKeys * cuda::kPartBytes)) {
    // Zeros that the compiler cannot know to be the same: each has its register.
    for (int i = 0; i < 4 * kSteps; ++i)
      a_[i / 4][i % 4] = __float_as_uint(static_cast<float>(threadIdx.x + i) * in.zero);
  }
  __device__ void round() {
    cuda::wgmma_fence(sums_, a_);
#pragma unroll
    for (int i = 0; i < kPerRound; ++i)
      cuda::wgmma<bfloat16, kColumns>(sums_, a_[i % kSteps], b_ + i % kSteps * 16 * cuda::kPartBytes, true);
    cuda::wgmma_commit();
    cuda::wgmma_wait<0>(sums_, a_);
  }
  __device__ uint32_t result() const {
    float all = 0;
    for (float x : sums_) all += x;
    return __float_as_uint(all);
  }

 private:
  cuda::WgmmaTile b_;
  uint32_t a_[kSteps][4];
  float sums_[kColumns / 2] = {};
};

// Clocks of the SM for each of a warpgroup's products, with 1, 2 and 3 warpgroups.
template <class Loop>
Measure warpgroups(const std::string& name) {
  return {name, [](std::vector<double>& out) -> int {
            for (int groups = 1; groups <= Tile::kConsumers; ++groups) {
              Elapsed round;
              LoopLaunch launch{groups * cuda::kWarpgroup};
              launch.shared_bytes = kSharedBytes;
              HYMBA_MACHINE_TRY((time_loop<Loop, kThreads>(launch, {}, round)));
              out.push_back(round.clocks / Loop::kPerRound / groups);
            }
            return cudaSuccess;
          }};
}

}  // namespace

std::vector<Measure> warpgroup_measures() {
  return {warpgroups<Scores>("wgmma_scores"), warpgroups<Values>("wgmma_values")};
}

}  // namespace hymba::machine
