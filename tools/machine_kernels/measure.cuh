// What the kernels of tools/machine_times.py have in common: a timed loop, and how the host times it.
//
// A Loop is what every thread of a block repeats: made from LoopInputs, round() is timed, result() depends on
// everything that the rounds computed. The host times `rounds` and twice as many, and takes the difference:
// what is before and behind the loop, and filling its pipelines, is in both.
#pragma once
#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "cuda/device.cuh"

namespace hymba::machine {

#define HYMBA_MACHINE_TRY(call) \
  if (const int error_ = static_cast<int>(call)) return error_

// One measurement: appends its values, returns a cudaError_t as int.
struct Measure {
  std::string name;
  std::function<int(std::vector<double>&)> run;
};

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : bytes_(count * sizeof(T)) { error_ = cudaMalloc(&data_, bytes_); }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  T* data() const { return data_; }
  int error() const { return error_; }
  // Waits for all that runs.
  int read(std::vector<T>& to) const {
    to.resize(bytes_ / sizeof(T));
    return cudaMemcpy(to.data(), data_, bytes_, cudaMemcpyDeviceToHost);
  }

 private:
  T* data_ = nullptr;
  size_t bytes_;
  int error_;
};

// The median; `values` is not empty.
inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The mean of all but the first, which may have to wait for the machine to wake, and but a tenth at either
// end. (Of times in steps of a timer that is coarser than they are, a median would be such a step.)
inline double trimmed_mean(const std::vector<double>& values) {
  std::vector<double> sorted(values.begin() + 1, values.end());
  std::sort(sorted.begin(), sorted.end());
  const size_t trim = sorted.size() / 10;
  double sum = 0;
  for (size_t i = trim; i < sorted.size() - trim; ++i) sum += sorted[i];
  return sum / static_cast<double>(sorted.size() - 2 * trim);
}

inline int multiprocessors() {
  cuda::DeviceTraits device{};
  return cuda::current_device_traits(device) == cudaSuccess ? device.multiprocessors : 0;
}

__device__ __forceinline__ uint64_t global_ns() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)::"memory");
  return now;
}

__device__ __forceinline__ void spin(uint64_t ns) {
  const uint64_t begin = global_ns();
  while (global_ns() - begin < ns) {
  }
}

constexpr int kMostThreads = 1024, kWarp = 32, kMostWarps = kMostThreads / kWarp;

struct LoopInputs {
  void* memory = nullptr;         // of a loop that reads or writes device memory
  uint64_t bytes = 0;             // of it, a power of two
  float one = 1.0f, zero = 0.0f;  // what the compiler must not know
  uint32_t never = 0x12345678;    // no loop's result
  uint32_t offsets[kWarp] = {};   // bytes, of a lane's shared loads
};

struct Stamps {
  int64_t begin, end;  // clocks of the SM
  uint64_t begin_ns, end_ns;
};

// kThreads: the most of a block.
template <class Loop, int kThreads>
__global__ void __launch_bounds__(kThreads)
    loop_kernel(Stamps* stamps, uint32_t* sink, int rounds, const __grid_constant__ LoopInputs in) {
  Loop loop(in);
  __syncthreads();
  const uint64_t begin_ns = global_ns();
  const int64_t begin = clock64();
#pragma unroll 1
  for (int i = 0; i < rounds; ++i) loop.round();
  const int64_t end = clock64();
  const uint64_t end_ns = global_ns();
  if (loop.result() == in.never) sink[threadIdx.x] = 1;
  if (threadIdx.x % kWarp == 0)
    stamps[blockIdx.x * kMostWarps + threadIdx.x / kWarp] = {begin, end, begin_ns, end_ns};
}

struct Elapsed {
  double clocks, ns;
};

struct LoopLaunch {
  int threads, blocks = 1, rounds = 64;
  int shared_bytes = 0;                            // dynamic, at most 48 KB
  std::function<int()> before = [] { return 0; };  // each launch
};

// A round's time: of the median block, from its first warp's begin to its last one's end.
template <class Loop, int kThreads = kMostThreads>
int time_loop(const LoopLaunch& launch, const LoopInputs& in, Elapsed& round) {
  constexpr int kRepeats = 7;
  const DeviceArray<Stamps> stamps(launch.blocks * kMostWarps);
  const DeviceArray<uint32_t> sink(kMostThreads);
  HYMBA_MACHINE_TRY(stamps.error());
  HYMBA_MACHINE_TRY(sink.error());
  std::vector<Stamps> read;
  Elapsed total[2];
  for (int twice = 0; twice < 2; ++twice) {
    std::vector<double> clocks, ns;
    for (int repeat = 0; repeat <= kRepeats; ++repeat) {
      HYMBA_MACHINE_TRY(launch.before());
      loop_kernel<Loop, kThreads><<<launch.blocks, launch.threads, launch.shared_bytes>>>(
          stamps.data(), sink.data(), launch.rounds * (1 + twice), in);
      HYMBA_MACHINE_TRY(cudaGetLastError());
      HYMBA_MACHINE_TRY(stamps.read(read));
      if (repeat == 0) continue;  // instructions are fetched
      std::vector<double> block_clocks, block_ns;
      for (int block = 0; block < launch.blocks; ++block) {
        Stamps all = read[block * kMostWarps];
        for (int warp = 1; warp < launch.threads / kWarp; ++warp) {
          const Stamps& mine = read[block * kMostWarps + warp];
          all = {std::min(all.begin, mine.begin), std::max(all.end, mine.end),
                 std::min(all.begin_ns, mine.begin_ns), std::max(all.end_ns, mine.end_ns)};
        }
        block_clocks.push_back(static_cast<double>(all.end - all.begin));
        block_ns.push_back(static_cast<double>(all.end_ns - all.begin_ns));
      }
      clocks.push_back(median(block_clocks));
      ns.push_back(median(block_ns));
    }
    total[twice] = {median(clocks), median(ns)};
  }
  round = {(total[1].clocks - total[0].clocks) / launch.rounds, (total[1].ns - total[0].ns) / launch.rounds};
  return cudaSuccess;
}

// Clocks of the SM for each of a warp's kPerRound instructions, with 1, 2, 4 and 8 warps on each
// sub-partition. `shared`: on a pipe of the whole SM, an instruction of any warp; else of a sub-partition's
// warps.
template <class Loop>
Measure throughput(const std::string& name, bool shared = false, LoopInputs in = {}) {
  return {name, [=](std::vector<double>& out) -> int {
            for (int warps : {1, 2, 4, 8}) {
              Elapsed round;
              HYMBA_MACHINE_TRY(time_loop<Loop>({4 * warps * kWarp}, in, round));
              out.push_back(round.clocks / Loop::kPerRound / warps / (shared ? 4 : 1));
            }
            return cudaSuccess;
          }};
}

// Clocks of one warp alone for each of kPerRound instructions, which wait for each other.
template <class Loop>
Measure latency(const std::string& name, LoopInputs in = {}) {
  return {name, [=](std::vector<double>& out) -> int {
            Elapsed round;
            HYMBA_MACHINE_TRY(time_loop<Loop>({kWarp}, in, round));
            out.push_back(round.clocks / Loop::kPerRound);
            return cudaSuccess;
          }};
}

// Microseconds of a launch that takes many.
inline int time_launch(const std::function<void()>& launch, double& us) {
  cudaEvent_t begin, end;
  HYMBA_MACHINE_TRY(cudaEventCreate(&begin));
  HYMBA_MACHINE_TRY(cudaEventCreate(&end));
  std::vector<double> times;
  for (int repeat = 0; repeat < 6; ++repeat) {
    HYMBA_MACHINE_TRY(cudaEventRecord(begin));
    launch();
    HYMBA_MACHINE_TRY(cudaGetLastError());
    HYMBA_MACHINE_TRY(cudaEventRecord(end));
    HYMBA_MACHINE_TRY(cudaEventSynchronize(end));
    float ms = 0;
    HYMBA_MACHINE_TRY(cudaEventElapsedTime(&ms, begin, end));
    if (repeat > 0) times.push_back(ms * 1e3);
  }
  us = median(times);
  HYMBA_MACHINE_TRY(cudaEventDestroy(begin));
  return cudaEventDestroy(end);
}

// What bandwidths of device memory are measured on; and the ring of copies to shared memory of a block then,
// of which an SM has kRingBlocks.
constexpr size_t kMB = 1 << 20, kStreamBytes = 512 * kMB;
constexpr int kStages = 4, kStageBytes = 8192, kRingBlocks = 6;

std::vector<Measure> pipe_measures();
std::vector<Measure> product_measures();
std::vector<Measure> memory_measures();
std::vector<Measure> launch_measures();
// Of compute capability 9.0.
std::vector<Measure> warpgroup_measures();
std::vector<Measure> bulk_measures();

}  // namespace hymba::machine
