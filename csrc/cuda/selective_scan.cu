// selective_scan on the GPU: which kernel, over which spans, and what lies between pieces.
//
// Two kernels, docs/cuda_selective_scan.md: selective_scan_tiled.cuh for the layer's case,
// selective_scan_lanes.cuh for all others. Sequences in pieces: selective_scan_spans.cuh.
#include "cuda/device.cuh"
#include "cuda/packs.cuh"
#include "cuda/selective_scan_lanes.cuh"
#include "cuda/selective_scan_sm90.h"
#include "cuda/selective_scan_tiled.cuh"
#include "cuda/uncovered_rows.cuh"

namespace hymba::cuda {
namespace {

// All threads have as many. selective_scan_sm90.cu divides them in a way that only Hopper knows.
struct EqualRegisters {
  __device__ __forceinline__ static void of_worker() {}
  __device__ __forceinline__ static void of_helper() {}
};

// launch: tiled_scan_kernel<*> threads 256, shared 88064
template <class T>
__global__ void __launch_bounds__(kTiledThreads, 2) tiled_scan_kernel(SelectiveScanParams p) {
  scan_tiles<T, EqualRegisters>(p);
}

constexpr int kConnectThreads = 128;

// From a sequence's piece to the next one: replaces each piece's own last state by the state before it. A
// thread per state, a row of blocks per sequence.
template <class T>
__global__ void __launch_bounds__(kConnectThreads) connect_pieces_kernel(SelectiveScanParams p) {
  using C = compute_t<T>;
  const ScanOperands& in = p.operands;
  const int64_t state_size = in.channels * in.states, blocks = divide_up(state_size, kConnectThreads);
  const int64_t sequence = blockIdx.x / blocks;
  const int64_t at = blockIdx.x % blocks * kConnectThreads + threadIdx.x, c = at / in.states,
                n = at % in.states;
  const int64_t pieces = piece_count(sequence_at(p.sequences, sequence).length);
  if (at >= state_size || pieces == 1) return;
  const int64_t first = first_slot(p.sequences, sequence);
  const PieceStates<T> memory(p);
  const C a = parameter<T>(in.A, in.A_is_f32, c * in.A_stride + n) * C(kLog2E);
  C h = p.initial_state.data != nullptr ? token_row<const C>(p.initial_state, sequence, c)[n] : C(0);
  for (int64_t slot = first; slot < first + pieces; ++slot) {
    C& state = memory.states[slot * state_size + at];
    const C own = state;
    state = h;
    if (slot + 1 == first + pieces) break;
    // 0 and what is not finite stay what they are, however far the decay leaves the range of C.
    const C carried =
        h == C(0) || !isfinite(h) ? h : h * decay_factor<T>(memory.dt_sums[slot * in.channels + c], a);
    h = carried + own;
  }
}

template <class T, int kLanes, int kStates, int kTile, bool kPiecesOnly>
int launch_lanes(const SelectiveScanParams& p, void* stream) {
  using Scan = LaneScan<T, kLanes, kStates, kTile>;
  const LaunchShape shape{static_cast<unsigned>(scan_blocks(p, Scan::kChannels)), kScanThreads,
                          shared_bytes<typename Scan::Tile>()};
  return launch_kernel(lane_scan_kernel<T, kLanes, kStates, kTile, kPiecesOnly>, shape, stream, p);
}

// The fewest lanes whose states stay in registers; tiles whose B and C do so on their way.
template <class T, bool kPiecesOnly>
int launch_lanes(const SelectiveScanParams& p, void* stream) {
  if (p.operands.states <= 16) return launch_lanes<T, 4, 4, 16, kPiecesOnly>(p, stream);
  if (p.operands.states <= 64) return launch_lanes<T, 8, 8, 8, kPiecesOnly>(p, stream);
  static_assert(kMaxStates == 32 * 8);
  return launch_lanes<T, 32, 8, 4, kPiecesOnly>(p, stream);
}

template <class T>
bool fits_tiles(const SelectiveScanParams& p) {
  const ScanOperands& in = p.operands;
  return in.states == kTiledStates && in.channels % kPackCount<T> == 0 &&
         rows_in_packs<T, kPackCount<T>>(in.x) && rows_in_packs<T, kPackCount<T>>(in.dt) &&
         rows_in_packs<T, kPackCount<T>>(in.z) && rows_in_packs<T, kPackCount<T>>(in.B) &&
         rows_in_packs<T, kPackCount<T>>(in.C);
}

template <class T>
int launch_spans(const SelectiveScanParams& p, void* stream) {
  if constexpr (sizeof(T) == 2) {
    if (fits_tiles<T>(p)) {
      DeviceTraits device;
      if (const int error = current_device_traits(device)) return error;
      if (device.capability == 90) return selective_scan_sm90(p, stream);
      return launch_kernel(tiled_scan_kernel<T>, tiled_scan_shape<T>(p), stream, p);
    }
  }
  return launch_lanes<T, false>(p, stream);
}

template <class T>
int launch_pieces(const SelectiveScanParams& p, void* stream) {
  if (const int error = launch_lanes<T, true>(p, stream)) return error;
  const int64_t blocks = divide_up(p.operands.channels * p.operands.states, kConnectThreads);
  const LaunchShape shape{static_cast<unsigned>(p.sequences.count * blocks), kConnectThreads};
  return launch_kernel(connect_pieces_kernel<T>, shape, stream, p);
}

template <class T>
int launch_scan(const SelectiveScanParams& p, void* stream) {
  if (const int error =
          clear_uncovered_rows<T>(p.sequences, static_cast<T*>(p.operands.out), p.operands.channels, stream))
    return error;
  if (p.sequences.count == 0) return cudaSuccess;
  if (may_have_pieces(p))
    if (const int error = launch_pieces<T>(p, stream)) return error;
  return launch_spans<T>(p, stream);
}

}  // namespace

size_t selective_scan_workspace_bytes(const SelectiveScanParams& p) {
  if (!may_have_pieces(p)) return 0;
  return p.operands.dtype == DType::f64 ? PieceStates<double>::bytes(p) : PieceStates<float>::bytes(p);
}

int selective_scan(const SelectiveScanParams& p, void* stream) {
  return with_dtype(p.operands.dtype, [&](auto t) { return launch_scan<decltype(t)>(p, stream); });
}

}  // namespace hymba::cuda
