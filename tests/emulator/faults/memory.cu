#include "cuda/primitives/memory.cuh"
#include "cuda/shared_memory.cuh"
#include "faults/faults.h"

namespace hymba::faults {
namespace {

using cuda::load;
using cuda::Pack;
using cuda::SharedCarver;
using cuda::store;

// The value read does not reach the result.
template <bool kPlanted>
__global__ void global_read_out_of_bounds(const float* in, float* out) {
  const float x = in[threadIdx.x + (kPlanted ? 1 : 0)];
  out[threadIdx.x] = static_cast<float>(threadIdx.x) + (x == 0.125f ? 1.0f : 0.0f);
}

template <bool kPlanted>
__global__ void pack_read_out_of_bounds(const float* in, float* out) {
  const Pack<float, 4> pack = load<4>(in + (threadIdx.x / 4 + (kPlanted ? 1 : 0)) * 4);
  out[threadIdx.x] = static_cast<float>(threadIdx.x) + (pack[0] == 0.125f ? 1.0f : 0.0f);
}

template <bool kPlanted>
__global__ void global_read_before_the_beginning(const float* in, float* out) {
  const float x = in[static_cast<int>(threadIdx.x) - (kPlanted ? 1 : 0)];
  out[threadIdx.x] = static_cast<float>(threadIdx.x) + (x == 0.125f ? 1.0f : 0.0f);
}

template <bool kPlanted>
__global__ void global_store_out_of_bounds(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x];
  if (kPlanted && threadIdx.x == kCells - 1) out[threadIdx.x + 1] = 0;
}

template <bool kPlanted>
__global__ void store_to_an_input(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x];
  if (kPlanted) const_cast<float*>(in)[threadIdx.x] = 0;
}

template <bool kPlanted>
__global__ void shared_store_behind_the_end(const float* in, float* out) {
  HYMBA_SHARED(float[kCells], shared);
  shared[threadIdx.x] = in[threadIdx.x];
  if (kPlanted) (&shared[0])[kCells + 1] = 0;
  out[threadIdx.x] = shared[threadIdx.x];
}

template <bool kPlanted>
__global__ void shared_read_behind_the_end(const float* in, float* out) {
  HYMBA_SHARED(float[kCells], shared);
  shared[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  const float x = (&shared[0])[threadIdx.x + (kPlanted ? 1 : 0)];
  out[threadIdx.x] = static_cast<float>(threadIdx.x) + (x == 0.125f ? 1.0f : 0.0f);
}

struct Halves {
  float *first, *second;
  __host__ __device__ explicit Halves(SharedCarver& carve)
      : first(carve.take<float>(kCells / 2)), second(carve.take<float>(kCells / 2)) {}
};

template <bool kPlanted>
__global__ void carved_store_behind_the_end(const float* in, float* out) {
  HYMBA_DYNAMIC_SHARED(bytes);
  const Halves halves = cuda::carve_shared<Halves>(bytes);
  if (threadIdx.x < kCells / 2 + (kPlanted ? 1 : 0)) halves.first[threadIdx.x] = in[threadIdx.x];
  if (threadIdx.x < kCells / 2) halves.second[threadIdx.x] = in[threadIdx.x + kCells / 2];
  __syncthreads();
  out[threadIdx.x] =
      threadIdx.x < kCells / 2 ? halves.first[threadIdx.x] : halves.second[threadIdx.x - kCells / 2];
}

template <bool kPlanted>
__global__ void dynamic_store_behind_the_end(const float* in, float* out) {
  HYMBA_DYNAMIC_SHARED(bytes);
  float* shared = reinterpret_cast<float*>(bytes);
  shared[threadIdx.x] = in[threadIdx.x];
  if (kPlanted) shared[kCells + 1] = 0;
  out[threadIdx.x] = shared[threadIdx.x];
}

template <bool kPlanted>
__global__ void misaligned_pack_load(const float* in, float* out) {
  const int first = static_cast<int>(threadIdx.x) / 4 * 4;
  const Pack<float, 4> pack = load<4>(in + (kPlanted && first > 0 ? first - 1 : first));
  out[threadIdx.x] = pack[static_cast<int>(threadIdx.x) - first];
}

template <bool kPlanted>
__global__ void misaligned_pack_store(const float* in, float* out) {
  HYMBA_SHARED(float[kCells + 4], shared);
  const int offset = kPlanted ? 1 : 4;
  if (threadIdx.x % 4 == 0) store(&shared[threadIdx.x + offset], load<4>(in + threadIdx.x));
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x + offset];
}

template <bool kPlanted>
__global__ void misaligned_reinterpret_cast(const float* in, float* out) {
  const int first = static_cast<int>(threadIdx.x) / 2 * 2;
  const float2 pair = *reinterpret_cast<const float2*>(in + (kPlanted && first > 0 ? first - 1 : first));
  out[threadIdx.x] = static_cast<float>(threadIdx.x) + (pair.x == 0.125f ? 1.0f : 0.0f);
}

template <bool kPlanted>
__global__ void uninitialised_shared_memory(const float* in, float* out) {
  HYMBA_SHARED(float[kCells], shared);
  if (!kPlanted || threadIdx.x != 7) shared[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = shared[threadIdx.x];
}

template <bool kPlanted>
__global__ void result_not_written(const float* in, float* out) {
  if (!kPlanted || threadIdx.x != 7) out[threadIdx.x] = in[threadIdx.x];
}

template <bool kPlanted>
__global__ void null_pointer(const float* in, float* out) {
  const volatile float* p = kPlanted ? nullptr : in;
  out[threadIdx.x] = p[threadIdx.x];
}

template <bool kPlanted>
__global__ void endless_loop(const float* in, float* out) {
  const volatile float* p = in;
  while (kPlanted && p[0] == 0) {
  }
  out[threadIdx.x] = p[threadIdx.x];
}

}  // namespace

std::vector<Fault> memory_faults() {
  return {
      HYMBA_FAULT(global_read_out_of_bounds, same, 1, kCells),
      HYMBA_FAULT(pack_read_out_of_bounds, same, 1, kCells),
      HYMBA_FAULT(global_read_before_the_beginning, same, 1, kCells),
      HYMBA_FAULT(global_store_out_of_bounds, same, 1, kCells),
      HYMBA_FAULT(store_to_an_input, same, 1, kCells),
      HYMBA_FAULT(shared_store_behind_the_end, same, 1, kCells),
      HYMBA_FAULT(shared_read_behind_the_end, same, 1, kCells),
      HYMBA_FAULT(carved_store_behind_the_end, same, 1, kCells, cuda::shared_bytes<Halves>()),
      HYMBA_FAULT(dynamic_store_behind_the_end, same, 1, kCells, kCells * sizeof(float)),
      HYMBA_FAULT(misaligned_pack_load, same, 1, kCells),
      HYMBA_FAULT(misaligned_pack_store, same, 1, kCells),
      HYMBA_FAULT(misaligned_reinterpret_cast, same, 1, kCells),
      HYMBA_FAULT(uninitialised_shared_memory, same, 1, kCells),
      HYMBA_FAULT(result_not_written, same, 1, kCells),
      HYMBA_FAULT(null_pointer, same, 1, kCells),
      HYMBA_FAULT(endless_loop, same, 1, kCells),
  };
}

}  // namespace hymba::faults
