// Threads for the CPU kernels: a queue of independent work items that a few workers empty.
//
// An item's result never depends on which worker takes it, so results do not depend on the thread count.
// The threads are torch's in the extension (parallel_torch.cpp) and std::thread in the CMake build.
#pragma once
#include <atomic>
#include <cstdint>

#include "core/host_device.h"

namespace hymba {

class WorkQueue {
 public:
  explicit WorkQueue(int64_t count) : next_(0), count_(count) {}
  // Fetches the next item's index; false when none is left.
  HYMBA_INLINE_MEMBER bool take(int64_t& item) {
    item = next_.fetch_add(1, std::memory_order_relaxed);
    return item < count_;
  }

 private:
  std::atomic<int64_t> next_;
  const int64_t count_;
};

// Threads that a job may use.
int64_t thread_limit();

using WorkerFunction = void (*)(void* context, WorkQueue& queue);

// Calls worker(context, queue) on one or more threads until the queue of `count` items is empty. `cost` is
// the whole job's rough number of scalar operations: small jobs stay on the calling thread.
void run_workers(int64_t count, int64_t cost, WorkerFunction worker, void* context);

// worker: void(WorkQueue&). Anything a worker allocates before its loop is its own.
template <class Worker>
HYMBA_INLINE void parallel_work(int64_t count, int64_t cost, Worker& worker) {
  run_workers(
      count, cost, [](void* context, WorkQueue& queue) { (*static_cast<Worker*>(context))(queue); }, &worker);
}

// body: void(int64_t item)
template <class Body>
HYMBA_INLINE void parallel_items(int64_t count, int64_t cost, const Body& body) {
  auto worker = [&body](WorkQueue& queue) {
    for (int64_t item; queue.take(item);) body(item);
  };
  parallel_work(count, cost, worker);
}

}  // namespace hymba
