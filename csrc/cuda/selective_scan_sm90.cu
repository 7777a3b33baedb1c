// The tiled scan on Hopper: workers take registers that helpers can do without (setmaxnreg), so that a block
// has a third of an SM's and fits beside one of attention's (attention_sm90_tile.cuh). The bits are
// tiled_scan_kernel's.
#include "cuda/selective_scan_sm90.h"

#include "cuda/primitives/wgmma.cuh"
#include "cuda/selective_scan_tiled.cuh"

namespace hymba::cuda {
namespace {

constexpr int kWorkerRegisters = 120, kHelperRegisters = 56;
constexpr int kScanRegisters = (kWorkerRegisters + kHelperRegisters) / 2;  // of a thread, when a block begins
static_assert(kWorkers == kHelpers && 2 * kScanRegisters == kWorkerRegisters + kHelperRegisters);

struct DealtRegisters {
  __device__ __forceinline__ static void of_worker() { set_registers<kScanRegisters, kWorkerRegisters>(); }
  __device__ __forceinline__ static void of_helper() { set_registers<kScanRegisters, kHelperRegisters>(); }
};

// launch: sm90_tiled_scan_kernel<*> threads 256, shared 88064
template <class T>
__global__ void __maxnreg__(kScanRegisters) sm90_tiled_scan_kernel(SelectiveScanParams p) {
  scan_tiles<T, DealtRegisters>(p);
}

template <class T>
int launch(const SelectiveScanParams& p, void* stream) {
  return launch_kernel(sm90_tiled_scan_kernel<T>, tiled_scan_shape<T>(p), stream, p);
}

}  // namespace

int selective_scan_sm90(const SelectiveScanParams& p, void* stream) {
  return p.operands.dtype == DType::bf16 ? launch<bfloat16>(p, stream) : launch<float16>(p, stream);
}

}  // namespace hymba::cuda
