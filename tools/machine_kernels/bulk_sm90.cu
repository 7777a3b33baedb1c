// Bulk copies (TMA without a tensor map) from device to shared memory: what bandwidth a thread a block gets.
#include "cuda/primitives/mbarrier.cuh"
#include "measure.cuh"

namespace hymba::machine {
namespace {

__device__ __forceinline__ void copy_bulk(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          cuda::detail::shared_address(to)),
      "l"(from), "r"(bytes), "r"(cuda::detail::shared_address(barrier))
      : "memory");
}

// A block's share is kStageBytes a round; nobody looks at it in shared memory.
__global__ void read_bulk_kernel(const unsigned char* from, int rounds) {
  HYMBA_SHARED(uint4[kStages][kStageBytes / 16], stages);
  HYMBA_SHARED(uint64_t[kStages], full);
  for (int stage = 0; stage < kStages; ++stage) cuda::mbarrier_init(&full[stage], 1);
  cuda::mbarrier_init_fence();
  from += static_cast<size_t>(blockIdx.x) * rounds * kStageBytes;
#pragma unroll 1
  for (int round = 0; round < rounds + kStages; ++round) {
    const int stage = round % kStages;
    if (round >= kStages) cuda::mbarrier_wait(&full[stage], (round / kStages - 1) % 2);
    if (round >= rounds) continue;
    cuda::mbarrier_arrive_expect(&full[stage], kStageBytes);
    copy_bulk(stages[stage], from + static_cast<size_t>(round) * kStageBytes, kStageBytes, &full[stage]);
  }
}

// Bytes of device memory a microsecond.
int bulk_bandwidth(std::vector<double>& out) {
  const DeviceArray<unsigned char> from(kStreamBytes);
  HYMBA_MACHINE_TRY(from.error());
  const int blocks = multiprocessors() * kRingBlocks;
  const size_t round_bytes = static_cast<size_t>(blocks) * kStageBytes;
  const int rounds = static_cast<int>(kStreamBytes / round_bytes);
  double us = 0;
  HYMBA_MACHINE_TRY(time_launch([&] { read_bulk_kernel<<<blocks, 1>>>(from.data(), rounds); }, us));
  out.push_back(static_cast<double>(round_bytes) * rounds / us);
  return cudaSuccess;
}

}  // namespace

std::vector<Measure> bulk_measures() {
  return {{"read_bulk", bulk_bandwidth}};
}

}  // namespace hymba::machine
