// The scan for 16-bit types, 16 states and inputs in whole 16-byte packs: the layer's own case.
//
// Bound by the special-function unit (one exponential a state, three a token and channel for softplus and
// gate), so all else has to fit beside it. Of a block's eight warps, four workers scan tile i while four
// helpers fetch tile i + 3 (cp.async), prepare i + 1 (softplus, dt x, channel-major) and finish i - 1 (D x,
// gate, rounding, 16-byte stores): each quarter of an SM has a worker and a helper.
#pragma once
#include "cuda/primitives/warp.cuh"
#include "cuda/selective_scan_helper.cuh"
#include "cuda/selective_scan_worker.cuh"

namespace hymba::cuda {

// A kernel's whole body. Registers: what a warp does about the number of its registers.
template <class T, class Registers>
__device__ __forceinline__ void scan_tiles(const SelectiveScanParams& p) {
  HYMBA_DYNAMIC_SHARED(bytes);
  const auto tiles = carve_shared<TiledScanTiles<T>>(bytes);
  const int64_t blocks = divide_up(p.operands.channels, kTiledChannels), slot = blockIdx.x / blocks;
  TiledScanJob job;
  if (!find_span(p, slot, job.span)) return;
  job.channel = blockIdx.x % blocks * kTiledChannels;
  job.tiles = static_cast<int>(divide_up(job.span.length, kTiledTokens));
  job.last_length = static_cast<int>(job.span.length - int64_t(job.tiles - 1) * kTiledTokens);
  if (threadIdx.x < kWorkers) {
    Registers::of_worker();
    TiledScanWorker<T> worker(p, tiles, job, slot);
    block_barrier();
    for (int tile = 0; tile < job.tiles; ++tile) {
      worker.scan(tile);
      block_barrier();
    }
    if (p.final_state != nullptr && job.span.last)
      worker.store_state(static_cast<float*>(p.final_state) +
                         job.span.sequence * p.operands.channels * kTiledStates);
  } else {
    Registers::of_helper();
    TiledScanHelper<T> helper(p, tiles, job);
    helper.start();
    block_barrier();
    for (int tile = 0; tile < job.tiles; ++tile) {
      helper.beside(tile);
      block_barrier();
    }
    if (job.tiles > 0) helper.finish(job.tiles - 1);
    wait_copies<0>();
  }
}

template <class T>
LaunchShape tiled_scan_shape(const SelectiveScanParams& p) {
  return {static_cast<unsigned>(scan_blocks(p, kTiledChannels)), kTiledThreads,
          shared_bytes<TiledScanTiles<T>>()};
}

}  // namespace hymba::cuda
