// Small kernels, each with a fault that `planted` puts in: what the emulator must find.
// tests/test_emulator.py says in which modes and by what; without the fault every mode must be silent and the
// results right.
#pragma once
#include <string>
#include <vector>

#include "cuda/device.cuh"

namespace hymba::faults {

constexpr int kCells = 64;  // floats of `in` (0, 1, 2, ...) and of `out`

struct Fault {
  std::string name;
  void (*launch)(bool planted, const float* in, float* out, uint32_t* counters);  // kCells of them, 0
  float (*expected)(int cell);                                                    // of out
};

// HYMBA_FAULT(name, expected, blocks, threads, dynamic shared bytes, overlaps): the kernel `template <bool
// kPlanted> name(in, out)`.
#define HYMBA_FAULT(name, expected, ...)                                                                   \
  Fault {                                                                                                  \
    #name,                                                                                                 \
        [](bool planted, const float* in, float* out, uint32_t*) {                                         \
          cuda::launch_kernel(planted ? name<true> : name<false>, cuda::LaunchShape{__VA_ARGS__}, nullptr, \
                              in, out);                                                                    \
        },                                                                                                 \
        expected                                                                                           \
  }

std::vector<Fault> barrier_faults();
std::vector<Fault> warp_faults();
std::vector<Fault> memory_faults();
std::vector<Fault> race_faults();
std::vector<Fault> copy_faults();
std::vector<Fault> hopper_faults();
std::vector<Fault> grid_faults();

inline float same(int cell) {
  return static_cast<float>(cell);
}
inline float reversed(int cell) {
  return static_cast<float>(kCells - 1 - cell);
}

}  // namespace hymba::faults
