// A channel's states in the registers of a few neighbouring lanes, and their step by a token: what
// selective_state_update and mamba_update share.
#pragma once
#include "cuda/packs.cuh"
#include "cuda/scan_step.cuh"

namespace hymba::cuda {

// A lane's part of a row of N states: pack j of lane l begins at state (j kLanes + l) kPack. kPacks: rows can
// be read in packs, and N is a whole number of them.
template <class C, bool kPacks, int kLanes, int kParts>
class LaneStates {
  static constexpr int kPack = kPackCount<C>;

 public:
  using Row = C[kParts][kPack];

  // count: N, or 0 for a lane without a channel.
  __device__ __forceinline__ explicit LaneStates(int count)
      : first_(static_cast<int>(threadIdx.x) % kLanes * kPack), count_(count) {}

  // A row that nobody writes; states that are not there become zero.
  template <class S>
  __device__ __forceinline__ void load_row(Row& out, const S* row) const {
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
#pragma unroll
      for (C& value : out[j]) value = 0;
      if (left(j) > 0) load_run<kPacks>(out[j], row + begin(j), left(j));
    }
  }
  // A row that somebody writes: of the state, of shared memory, or by the kernel before one that overlaps it.
  template <class S>
  __device__ __forceinline__ void load_changing(Row& out, const S* row) const {
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
#pragma unroll
      for (C& value : out[j]) value = 0;
      if constexpr (kPacks) {
        if (left(j) <= 0) continue;
        const auto pack = load<kPack>(row + begin(j));
#pragma unroll
        for (int i = 0; i < kPack; ++i) out[j][i] = widen(pack[i]);
      } else {
#pragma unroll
        for (int i = 0; i < kPack; ++i)
          if (i < left(j)) out[j][i] = widen(row[begin(j) + i]);
      }
    }
  }
  __device__ __forceinline__ void store_state(C* row, const Row& state) const {
#pragma unroll
    for (int j = 0; j < kParts; ++j)
      if (left(j) > 0) store_run<kPacks>(row + begin(j), state[j], left(j));
  }

  // Of the rows of A, which are of type T or float and `stride` apart, the channel's, times log2 e: as
  // `advance` takes it.
  template <class T>
  __device__ __forceinline__ void load_rates(Row& out, const void* A, bool is_f32, int64_t stride,
                                             int64_t channel) const {
    if (is_f32) {
      load_changing(out, static_cast<const float*>(A) + channel * stride);
    } else {
      load_changing(out, static_cast<const T*>(A) + channel * stride);
    }
#pragma unroll
    for (auto& part : out)
#pragma unroll
      for (C& a : part) a *= C(kLog2E);
  }

  // One token: h = exp(dt A) h + dt B x. Returns the lane's part of the sum C h.
  template <class T>
  __device__ __forceinline__ C advance(Row& h, const Row& A, C dt, C x, const Row& B_t,
                                       const Row& C_t) const {
    const C input = dt * x;
    C y = 0;
#pragma unroll
    for (int j = 0; j < kParts; ++j)
#pragma unroll
      for (int i = 0; i < kPack; ++i)
        if (exists(j, i)) {
          h[j][i] = decay_factor<T>(dt, A[j][i]) * h[j][i] + input * B_t[j][i];
          y += C_t[j][i] * h[j][i];
        }
    return y;
  }

 private:
  // Whether state i of pack j exists. One that does not must stay out of sums: 0 * infinity is NaN.
  __device__ __forceinline__ bool exists(int j, int i) const { return kPacks ? left(j) > 0 : i < left(j); }
  __device__ __forceinline__ int begin(int j) const { return j * kLanes * kPack + first_; }
  __device__ __forceinline__ int left(int j) const { return count_ - begin(j); }

  int first_, count_;
};

}  // namespace hymba::cuda
