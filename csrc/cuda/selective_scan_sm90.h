// The Hopper path of the tiled scan (selective_scan_sm90.cu), as selective_scan.cu sees it.
#pragma once
#include "ops/selective_scan.h"

namespace hymba::cuda {

// Of a call that selective_scan_tiled.cuh takes. Launches on `stream` (a cudaStream_t); returns a
// cudaError_t.
int selective_scan_sm90(const SelectiveScanParams& params, void* stream);

}  // namespace hymba::cuda
