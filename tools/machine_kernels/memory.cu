// L2 and device memory: latencies, bandwidths, and what prefetches into L2 do.
#include "cuda/primitives/grid.cuh"
#include "cuda/primitives/memory.cuh"
#include "measure.cuh"

namespace hymba::machine {
namespace {

constexpr size_t kLine = 128;
constexpr size_t kFlushBytes = 256 * kMB;  // several times the largest L2
constexpr int kReadThreads = 256, kReadBlocks = 8, kUnroll = 8;

// ---- bandwidth: packs of 16 bytes; a round is kUnroll packs of each thread of the grid ----

__global__ void __launch_bounds__(kReadThreads) read_kernel(const uint4* from, int rounds, uint32_t* sink) {
  const size_t threads = static_cast<size_t>(gridDim.x) * blockDim.x;
  from += blockIdx.x * blockDim.x + threadIdx.x;
  uint32_t all = 0;
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
    uint4 x[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) x[i] = from[i * threads];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) all ^= x[i].x ^ x[i].y ^ x[i].z ^ x[i].w;
    from += kUnroll * threads;
  }
  if (all == 0x12345678) *sink = 1;
}

__global__ void __launch_bounds__(kReadThreads) copy_kernel(const uint4* from, uint4* to, int rounds) {
  const size_t threads = static_cast<size_t>(gridDim.x) * blockDim.x;
  const size_t first = blockIdx.x * blockDim.x + threadIdx.x;
  from += first;
  to += first;
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
    uint4 x[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) x[i] = from[i * threads];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) to[i * threads] = x[i];
    from += kUnroll * threads;
    to += kUnroll * threads;
  }
}

// The same to shared memory, where nobody looks at it: by cp.async, four groups of two packs a thread.
constexpr int kStagePacks = kStageBytes / 16 / kReadThreads;

__global__ void __launch_bounds__(kReadThreads) read_async_kernel(const uint4* from, int rounds) {
  HYMBA_SHARED(uint4[kStages * kStageBytes / 16], stages);
  from += static_cast<size_t>(blockIdx.x) * rounds * (kStageBytes / 16) + threadIdx.x;
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
    uint4* to = stages + round % kStages * (kStageBytes / 16) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < kStagePacks; ++i)
      cuda::copy_async<16>(to + i * kReadThreads, from + i * kReadThreads);
    cuda::commit_copies();
    cuda::wait_copies<kStages - 1>();
    from += kStageBytes / 16;
  }
  cuda::wait_copies<0>();
}

// Bytes of device memory a microsecond.
enum class Way { kRead, kCopy, kAsync };
int bandwidth(Way way, std::vector<double>& out) {
  const DeviceArray<unsigned char> from(kStreamBytes), to(way == Way::kCopy ? kStreamBytes : 16);
  HYMBA_MACHINE_TRY(from.error());
  HYMBA_MACHINE_TRY(to.error());
  const auto* source = reinterpret_cast<const uint4*>(from.data());
  const int blocks = multiprocessors() * (way == Way::kAsync ? kRingBlocks : kReadBlocks);
  const size_t round_bytes =
      static_cast<size_t>(blocks) * (way == Way::kAsync ? kStageBytes : kReadThreads * kUnroll * 16);
  const int rounds = static_cast<int>(kStreamBytes / round_bytes);
  double us = 0;
  const auto launch = [&] {
    if (way == Way::kRead)
      read_kernel<<<blocks, kReadThreads>>>(source, rounds, reinterpret_cast<uint32_t*>(to.data()));
    if (way == Way::kCopy)
      copy_kernel<<<blocks, kReadThreads>>>(source, reinterpret_cast<uint4*>(to.data()), rounds);
    if (way == Way::kAsync) read_async_kernel<<<blocks, kReadThreads>>>(source, rounds);
  };
  HYMBA_MACHINE_TRY(time_launch(launch, us));
  out.push_back(static_cast<double>(round_bytes) * rounds * (way == Way::kCopy ? 2 : 1) / us);
  return cudaSuccess;
}

// Lets other data take all of L2: read, since written lines would have to leave while others are timed.
class Flush {
 public:
  Flush() : bytes_(kFlushBytes), sink_(1) {}
  int error() const { return bytes_.error() != 0 ? bytes_.error() : sink_.error(); }
  int operator()() const {
    const int blocks = multiprocessors() * kReadBlocks;
    const size_t round_bytes = static_cast<size_t>(blocks) * kReadThreads * kUnroll * 16;
    read_kernel<<<blocks, kReadThreads>>>(reinterpret_cast<const uint4*>(bytes_.data()),
                                          static_cast<int>(kFlushBytes / round_bytes), sink_.data());
    return cudaGetLastError();
  }

 private:
  DeviceArray<unsigned char> bytes_;
  DeviceArray<uint32_t> sink_;
};

// ---- latency ----

// Each line names the next one: a cycle through all of them, a power of two, in no order that a prefetcher
// knows.
__global__ void write_links_kernel(unsigned char* memory, uint32_t lines) {
  const uint32_t line = blockIdx.x * blockDim.x + threadIdx.x;
  if (line >= lines) return;
  const uint32_t next = (line * 1664525u + 1013904223u) & (lines - 1);
  *reinterpret_cast<const void**>(memory + line * kLine) = memory + next * kLine;
}

class LinkChase {
 public:
  static constexpr int kPerRound = 16;
  __device__ explicit LinkChase(const LoopInputs& in) : at_(reinterpret_cast<uint64_t>(in.memory)) {}
  __device__ void round() {
#pragma unroll
    for (int i = 0; i < kPerRound; ++i) asm volatile("ld.global.cg.u64 %0, [%0];" : "+l"(at_)::"memory");
  }
  __device__ uint32_t result() const { return static_cast<uint32_t>(at_); }

 private:
  uint64_t at_;
};

// Exchanges (of additions nvcc makes one for the warp), each with the result of the last.
class AtomicChase {
 public:
  static constexpr int kPerRound = 16;
  __device__ explicit AtomicChase(const LoopInputs& in) : at_(reinterpret_cast<uint64_t>(in.memory)) {}
  __device__ void round() {
#pragma unroll
    for (int i = 0; i < kPerRound; ++i)
      asm volatile("atom.global.exch.b32 %0, [%1], %0;" : "+r"(value_) : "l"(at_) : "memory");
  }
  __device__ uint32_t result() const { return value_; }

 private:
  uint64_t at_;
  uint32_t value_ = 0;
};

// Clocks and nanoseconds from a load to the next. `flushed`: with the lines in device memory only.
int link_latency(size_t bytes, bool flushed, std::vector<double>& out) {
  const DeviceArray<unsigned char> memory(bytes);
  const Flush flush;
  HYMBA_MACHINE_TRY(memory.error());
  HYMBA_MACHINE_TRY(flush.error());
  const auto lines = static_cast<uint32_t>(bytes / kLine);
  write_links_kernel<<<lines / kReadThreads, kReadThreads>>>(memory.data(), lines);
  HYMBA_MACHINE_TRY(cudaGetLastError());
  LoopInputs in;
  in.memory = memory.data();
  LoopLaunch launch{1};
  if (flushed) launch.before = [&] { return flush(); };
  Elapsed round;
  HYMBA_MACHINE_TRY(time_loop<LinkChase>(launch, in, round));
  out = {round.clocks / LinkChase::kPerRound, round.ns / LinkChase::kPerRound};
  return cudaSuccess;
}

int atomic_latency(std::vector<double>& out) {
  const DeviceArray<uint32_t> counter(1);
  HYMBA_MACHINE_TRY(counter.error());
  HYMBA_MACHINE_TRY(cudaMemset(counter.data(), 0, 4));
  LoopInputs in;
  in.memory = counter.data();
  Elapsed round;
  HYMBA_MACHINE_TRY(time_loop<AtomicChase>({1}, in, round));
  out.push_back(round.clocks / AtomicChase::kPerRound);
  return cudaSuccess;
}

// ---- L2 bandwidth ----

class L2Reads {
 public:
  static constexpr int kPerRound = 8;
  __device__ explicit L2Reads(const LoopInputs& in)
      : memory_(static_cast<const unsigned char*>(in.memory)),
        mask_(static_cast<uint32_t>(in.bytes) - 1),
        at_((blockIdx.x * kPerRound * kMostThreads + threadIdx.x) * 16 & mask_) {}
  __device__ void round() {
    uint32_t x[kPerRound][4];
#pragma unroll
    for (int i = 0; i < kPerRound; ++i) {
      asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(x[i][0]), "=r"(x[i][1]), "=r"(x[i][2]), "=r"(x[i][3])
                   : "l"(memory_ + at_));
      at_ = (at_ + kMostThreads * 16) & mask_;
    }
#pragma unroll
    for (int i = 0; i < kPerRound; ++i) all_ ^= x[i][0] ^ x[i][1] ^ x[i][2] ^ x[i][3];
  }
  __device__ uint32_t result() const { return all_; }

 private:
  const unsigned char* memory_;
  uint32_t mask_, at_, all_ = 0;
};

// Bytes a clock and SM, of one alone and of all.
int l2_bandwidth(std::vector<double>& out) {
  const DeviceArray<unsigned char> memory(4 * kMB);
  HYMBA_MACHINE_TRY(memory.error());
  LoopInputs in;
  in.memory = memory.data();
  in.bytes = 4 * kMB;
  for (int blocks : {1, multiprocessors()}) {
    Elapsed round;
    HYMBA_MACHINE_TRY(time_loop<L2Reads>({kMostThreads, blocks}, in, round));
    out.push_back(L2Reads::kPerRound * kMostThreads * 16.0 / round.clocks);
  }
  return cudaSuccess;
}

// ---- prefetches: of the weights of a decode step's launch, by blocks as many as it has ----

constexpr size_t kWeightBytes = 16 * kMB;
constexpr int kWeightBlocks = 3;  // of an SM

struct Interval {
  uint64_t begin, end;
};

// A block's own lines, first asked for by prefetches, then read, or either.
template <bool kPrefetches, bool kReads>
__global__ void __launch_bounds__(kReadThreads)
    weights_kernel(const unsigned char* memory, int lines, Interval* intervals, uint32_t* sink) {
  const uint64_t begin = global_ns();
  memory += static_cast<size_t>(blockIdx.x) * lines * kLine;
  if constexpr (kPrefetches)
    for (int line = threadIdx.x; line < lines; line += kReadThreads)
      cuda::prefetch_to_l2(memory + line * kLine);
  if constexpr (kReads) {
    uint32_t all = 0;
    const auto* packs = reinterpret_cast<const uint4*>(memory);
    const int count = lines * static_cast<int>(kLine / 16);
#pragma unroll 4
    for (int i = threadIdx.x; i < count; i += kReadThreads) {
      const uint4 x = packs[i];
      all ^= x.x ^ x.y ^ x.z ^ x.w;
    }
    if (all == 0x12345678) *sink = 1;  // the loads have ended
  }
  __syncthreads();
  if (threadIdx.x == 0) intervals[blockIdx.x] = {begin, global_ns()};
}

__global__ void pause_kernel(uint64_t ns) {
  spin(ns);
}

// Microseconds to read the weights: from device memory; again, from L2; behind prefetches and a pause; by
// blocks that prefetch them first. And until all prefetches are issued.
int prefetches(std::vector<double>& out) {
  const int blocks = multiprocessors() * kWeightBlocks;
  const int lines = static_cast<int>(kWeightBytes / kLine) / blocks;
  const DeviceArray<unsigned char> memory(kWeightBytes);
  const DeviceArray<Interval> intervals(blocks);
  const DeviceArray<uint32_t> sink(1);
  const Flush flush;
  HYMBA_MACHINE_TRY(memory.error());
  HYMBA_MACHINE_TRY(intervals.error());
  HYMBA_MACHINE_TRY(sink.error());
  HYMBA_MACHINE_TRY(flush.error());
  std::vector<Interval> read;
  const auto run = [&](auto* kernel, std::vector<double>& times) -> int {
    kernel<<<blocks, kReadThreads>>>(memory.data(), lines, intervals.data(), sink.data());
    HYMBA_MACHINE_TRY(cudaGetLastError());
    HYMBA_MACHINE_TRY(intervals.read(read));
    Interval all = read[0];
    for (const Interval& one : read) all = {std::min(all.begin, one.begin), std::max(all.end, one.end)};
    times.push_back(static_cast<double>(all.end - all.begin) * 1e-3);
    return cudaSuccess;
  };
  std::vector<double> cold, warm, behind, both, issued;
  for (int repeat = 0; repeat < 12; ++repeat) {
    HYMBA_MACHINE_TRY(flush());
    HYMBA_MACHINE_TRY(run(weights_kernel<false, true>, cold));
    HYMBA_MACHINE_TRY(run(weights_kernel<false, true>, warm));
    HYMBA_MACHINE_TRY(flush());
    HYMBA_MACHINE_TRY(run(weights_kernel<true, false>, issued));
    pause_kernel<<<1, 1>>>(50000);
    HYMBA_MACHINE_TRY(run(weights_kernel<false, true>, behind));
    HYMBA_MACHINE_TRY(flush());
    HYMBA_MACHINE_TRY(run(weights_kernel<true, true>, both));
  }
  for (const auto* times : {&cold, &warm, &behind, &both, &issued}) out.push_back(trimmed_mean(*times));
  return cudaSuccess;
}

}  // namespace

std::vector<Measure> memory_measures() {
  using Values = std::vector<double>;
  return {
      {"l2_latency", [](Values& out) { return link_latency(kMB, false, out); }},
      {"memory_latency", [](Values& out) { return link_latency(64 * kMB, true, out); }},
      {"atomic_latency", atomic_latency},
      {"l2_bandwidth", l2_bandwidth},
      {"read", [](Values& out) { return bandwidth(Way::kRead, out); }},
      {"copy", [](Values& out) { return bandwidth(Way::kCopy, out); }},
      {"read_async", [](Values& out) { return bandwidth(Way::kAsync, out); }},
      {"prefetches", prefetches},
  };
}

}  // namespace hymba::machine
