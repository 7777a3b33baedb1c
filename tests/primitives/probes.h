// Kernels that put one primitive of csrc/cuda/primitives each to the test: items in, items out. The emulator
// runs them in CI, a GPU under tools/capture_primitives.py, so that its results can be kept and compared
// with.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

namespace hymba::probes {

// Items are dealt to blocks of one thread each; their number is a multiple of the block's.
constexpr int kBlock = 64, kWarpgroupBlock = 128;

struct Probe {
  std::string name;
  size_t in_bytes, out_bytes;  // of an item
  int block;                   // threads
  int (*launch)(const void* in, void* out, int items, void* stream);
};

std::vector<Probe> all_probes();
std::vector<Probe> sm90_probes();  // those for compute capability 9.0a only

}  // namespace hymba::probes
