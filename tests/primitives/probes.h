// Kernels that put one primitive of csrc/cuda/primitives each to the test: items in, items out. The emulator
// runs them in CI, a GPU under tools/capture_primitives.py, so that its results can be kept and compared
// with.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

namespace hymba::probes {

// Items are dealt to blocks of this many threads, one each; their number is a multiple of it.
constexpr int kBlock = 64;

struct Probe {
  std::string name;
  size_t in_bytes, out_bytes;  // of an item
  int (*launch)(const void* in, void* out, int items, void* stream);
};

std::vector<Probe> all_probes();

}  // namespace hymba::probes
