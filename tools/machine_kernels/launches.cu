// What lies between launches, and between blocks that wait for each other: the Terms of
// tools/sass_model/decode_step.py, in a stream and in a replayed CUDA graph.
#include "cuda/primitives/grid.cuh"
#include "measure.cuh"

namespace hymba::machine {
namespace {

constexpr int kThreads = 256, kPairs = 24, kChain = 64, kBlockWaits = 16;
constexpr uint64_t kLong = 20000, kShort = 5000, kHead = 1500000;  // ns

// In front of a series: while it runs, the host enqueues the rest.
__global__ void head_kernel(uint64_t ns) {
  spin(ns);
}

// ---- pairs of launches ----

struct First {
  uint64_t trigger, last;
};
struct Second {
  uint64_t started, waited;
};

// Says after `before` that the next grid may start, and ends `after` later.
__global__ void __launch_bounds__(kThreads) first_kernel(First* stamps, uint64_t before, uint64_t after) {
  spin(before);
  const uint64_t trigger = global_ns();
  cuda::start_next_grid();
  spin(after);
  __syncthreads();
  if (threadIdx.x == 0) stamps[blockIdx.x] = {trigger, global_ns()};
}

__global__ void __launch_bounds__(kThreads) second_kernel(Second* stamps) {
  const uint64_t started = global_ns();
  cuda::wait_for_previous_grid();
  const uint64_t waited = global_ns();
  if (threadIdx.x == 0) stamps[blockIdx.x] = {started, waited};
}

class Stream {
 public:
  Stream() { error_ = cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  int error() const { return error_; }

  // Runs a series twice: the first time code is loaded. In a graph: captured once, replayed twice.
  int run(bool in_graph, const std::function<int(cudaStream_t)>& enqueue) const {
    HYMBA_MACHINE_TRY(enqueue(stream_));
    HYMBA_MACHINE_TRY(cudaStreamSynchronize(stream_));
    if (!in_graph) {
      HYMBA_MACHINE_TRY(enqueue(stream_));
      return cudaStreamSynchronize(stream_);
    }
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    HYMBA_MACHINE_TRY(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed));
    const int enqueued = enqueue(stream_);
    HYMBA_MACHINE_TRY(cudaStreamEndCapture(stream_, &graph));
    HYMBA_MACHINE_TRY(enqueued);
    HYMBA_MACHINE_TRY(cudaGraphInstantiate(&executable, graph, 0));
    for (int replay = 0; replay < 2; ++replay) {
      HYMBA_MACHINE_TRY(cudaGraphLaunch(executable, stream_));
      HYMBA_MACHINE_TRY(cudaStreamSynchronize(stream_));
    }
    HYMBA_MACHINE_TRY(cudaGraphExecDestroy(executable));
    return cudaGraphDestroy(graph);
  }

 private:
  cudaStream_t stream_ = nullptr;
  int error_;
};

// The first, median and last of some blocks' times behind `from`, us.
struct Spread {
  std::vector<double> first, median, last;
  void add(std::vector<uint64_t> times, uint64_t from) {
    std::sort(times.begin(), times.end());
    // In integers: as doubles, nanoseconds since 1970 are 256 apart.
    const auto us = [from](uint64_t time) {
      return static_cast<double>(static_cast<int64_t>(time - from)) * 1e-3;
    };
    first.push_back(us(times.front()));
    median.push_back(us(times[times.size() / 2]));
    last.push_back(us(times.back()));
  }
  void append_to(std::vector<double>& out) const {
    for (const auto* all : {&first, &median, &last}) out.push_back(trimmed_mean(*all));
  }
};

struct PairOptions {
  bool overlaps, in_graph;
  uint64_t before;
};

// us, of blocks first, median, last: from the trigger to the second grid's start; from the first grid's end
// to behind the second one's wait, and to its start. Then the share of pairs whose second grid started before
// the first one ended.
int pairs(const PairOptions& options, std::vector<double>& out) {
  const int blocks = multiprocessors();
  const DeviceArray<First> first(kPairs * blocks);
  const DeviceArray<Second> second(kPairs * blocks);
  const Stream stream;
  HYMBA_MACHINE_TRY(first.error());
  HYMBA_MACHINE_TRY(second.error());
  HYMBA_MACHINE_TRY(stream.error());
  const auto enqueue = [&](cudaStream_t to) -> int {
    head_kernel<<<1, 1, 0, to>>>(kHead);
    HYMBA_MACHINE_TRY(cudaGetLastError());
    for (int pair = 0; pair < kPairs; ++pair) {
      const auto grid = static_cast<unsigned>(blocks);
      HYMBA_MACHINE_TRY(cuda::launch_kernel(first_kernel, {grid, kThreads}, to, first.data() + pair * blocks,
                                            options.before, kLong));
      HYMBA_MACHINE_TRY(cuda::launch_kernel(second_kernel, {grid, kThreads, 0, options.overlaps}, to,
                                            second.data() + pair * blocks));
    }
    return cudaSuccess;
  };
  HYMBA_MACHINE_TRY(stream.run(options.in_graph, enqueue));
  std::vector<First> firsts;
  std::vector<Second> seconds;
  HYMBA_MACHINE_TRY(first.read(firsts));
  HYMBA_MACHINE_TRY(second.read(seconds));
  Spread start, end, gap;
  double overlapping = 0;
  for (int pair = 0; pair < kPairs; ++pair) {
    uint64_t trigger = 0, last = 0;
    std::vector<uint64_t> started, waited;
    for (int i = pair * blocks; i < (pair + 1) * blocks; ++i) {
      trigger = std::max(trigger, firsts[i].trigger);
      last = std::max(last, firsts[i].last);
      started.push_back(seconds[i].started);
      waited.push_back(seconds[i].waited);
    }
    start.add(started, trigger);
    end.add(waited, last);
    gap.add(started, last);
    overlapping += *std::min_element(started.begin(), started.end()) < last ? 1.0 / kPairs : 0.0;
  }
  for (const Spread* spread : {&start, &end, &gap}) spread->append_to(out);
  out.push_back(overlapping);
  return cudaSuccess;
}

// ---- a row of launches that do next to nothing ----

__global__ void __launch_bounds__(kThreads) chain_kernel(uint64_t* stamps) {
  cuda::start_next_grid();
  cuda::wait_for_previous_grid();
  if (threadIdx.x == 0) stamps[blockIdx.x] = global_ns();
}

// us from launch to launch.
int chain(bool overlaps, bool in_graph, std::vector<double>& out) {
  const int blocks = multiprocessors();
  const DeviceArray<uint64_t> stamps(kChain * blocks);
  const Stream stream;
  HYMBA_MACHINE_TRY(stamps.error());
  HYMBA_MACHINE_TRY(stream.error());
  const auto enqueue = [&](cudaStream_t to) -> int {
    head_kernel<<<1, 1, 0, to>>>(kHead);
    HYMBA_MACHINE_TRY(cudaGetLastError());
    for (int i = 0; i < kChain; ++i) {
      const cuda::LaunchShape shape{static_cast<unsigned>(blocks), kThreads, 0, overlaps};
      HYMBA_MACHINE_TRY(cuda::launch_kernel(chain_kernel, shape, to, stamps.data() + i * blocks));
    }
    return cudaSuccess;
  };
  HYMBA_MACHINE_TRY(stream.run(in_graph, enqueue));
  std::vector<uint64_t> read;
  HYMBA_MACHINE_TRY(stamps.read(read));
  constexpr int kFrom = 8;  // behind the head, in step
  const uint64_t ns = read[(kChain - 1) * blocks] - read[kFrom * blocks];
  out.push_back(static_cast<double>(ns) * 1e-3 / (kChain - 1 - kFrom));
  return cudaSuccess;
}

// ---- blocks that wait for blocks of their own launch ----

// The first `writers` blocks write and count up, late; the others wait for them and read.
__global__ void __launch_bounds__(kThreads)
    wait_kernel(uint64_t* stamps, uint32_t* data, uint32_t* counter, unsigned writers) {
  if (blockIdx.x < writers) {
    spin(kShort);
    data[blockIdx.x * kThreads + threadIdx.x] = 1;
    const uint64_t last = global_ns();
    __syncthreads();
    if (threadIdx.x == 0) {
      cuda::count_block(counter);
      stamps[blockIdx.x] = last;
    }
    return;
  }
  if (threadIdx.x == 0) cuda::wait_for_blocks(counter, writers);
  __syncthreads();
  if (threadIdx.x == 0) stamps[blockIdx.x] = global_ns();
}

// us from the last block's last store to behind the wait of the first, median and last block.
int block_waits(std::vector<double>& out) {
  const int blocks = multiprocessors(), writers = blocks / 2;
  const DeviceArray<uint64_t> stamps(blocks);
  const DeviceArray<uint32_t> data(blocks * kThreads), counter(1);
  HYMBA_MACHINE_TRY(stamps.error());
  HYMBA_MACHINE_TRY(data.error());
  HYMBA_MACHINE_TRY(counter.error());
  Spread spread;
  std::vector<uint64_t> read;
  for (int repeat = 0; repeat < kBlockWaits; ++repeat) {
    HYMBA_MACHINE_TRY(cudaMemset(counter.data(), 0, 4));
    wait_kernel<<<blocks, kThreads>>>(stamps.data(), data.data(), counter.data(), writers);
    HYMBA_MACHINE_TRY(cudaGetLastError());
    HYMBA_MACHINE_TRY(stamps.read(read));
    spread.add({read.begin() + writers, read.end()}, *std::max_element(read.begin(), read.begin() + writers));
  }
  spread.append_to(out);
  return cudaSuccess;
}

// ---- the timer itself ----

constexpr int kTicks = 64;

__global__ void ticks_kernel(uint64_t* ticks) {
  uint64_t last = global_ns();
  for (int i = 0; i < kTicks; ++i) {
    uint64_t now;
    do {
      now = global_ns();
    } while (now == last);
    ticks[i] = now - last;
    last = now;
  }
}

// ns: the step of the timer that all stamps here come from.
int timer_step(std::vector<double>& out) {
  const DeviceArray<uint64_t> ticks(kTicks);
  HYMBA_MACHINE_TRY(ticks.error());
  ticks_kernel<<<1, 1>>>(ticks.data());
  HYMBA_MACHINE_TRY(cudaGetLastError());
  std::vector<uint64_t> read;
  HYMBA_MACHINE_TRY(ticks.read(read));
  out.push_back(median({read.begin(), read.end()}));
  return cudaSuccess;
}

}  // namespace

std::vector<Measure> launch_measures() {
  using Values = std::vector<double>;
  std::vector<Measure> all = {{"timer_step", timer_step}, {"block_waits", block_waits}};
  for (bool in_graph : {false, true}) {
    const std::string where = in_graph ? "_graph" : "_stream";
    const auto add = [&](const std::string& name, const PairOptions& options) {
      all.push_back({name + where, [=](Values& out) { return pairs(options, out); }});
    };
    add("pair_early", {true, in_graph, 0});
    add("pair_late", {true, in_graph, kShort});
    add("pair_ordinary", {false, in_graph, 0});
    all.push_back({"chain" + where, [=](Values& out) { return chain(true, in_graph, out); }});
    all.push_back({"chain_ordinary" + where, [=](Values& out) { return chain(false, in_graph, out); }});
  }
  return all;
}

}  // namespace hymba::machine
