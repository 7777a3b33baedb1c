// How many threads a job of `cost` scalar operations is worth.
#pragma once
#include <algorithm>
#include <cstdint>

namespace hymba {

// Waking a thread takes a few microseconds: about this many vectorised operations.
constexpr int64_t kCostPerWorker = 1 << 16;

inline int64_t worker_count(int64_t items, int64_t cost, int64_t threads) {
  return std::max<int64_t>(1, std::min({items, threads, cost / kCostPerWorker}));
}

}  // namespace hymba
