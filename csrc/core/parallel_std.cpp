// run_workers on std::thread, for builds without torch (CMake: unit tests and sanitizers).
//
// HYMBA_CORE_THREADS=n gives every job n threads, or one an item, however small it is: a sanitizer finds a
// race only where threads ran. All workers begin together, since the first would else be done before the
// second exists.
#include "core/parallel_std.h"

#include <algorithm>
#include <cstdlib>
#include <latch>
#include <thread>
#include <vector>

#include "core/parallel.h"
#include "core/worker_count.h"

namespace hymba {

static std::atomic<int64_t> threaded_job_count = 0;

int64_t threaded_jobs() {
  return threaded_job_count;
}

static int64_t count_workers(int64_t count, int64_t cost) {
  if (const char* threads = std::getenv("HYMBA_CORE_THREADS"))
    return std::clamp<int64_t>(std::atoll(threads), 1, count);
  return worker_count(count, cost, std::thread::hardware_concurrency());
}

void run_workers(int64_t count, int64_t cost, WorkerFunction worker, void* context) {
  if (count <= 0) return;
  WorkQueue queue(count);
  const int64_t workers = count_workers(count, cost);
  std::latch start(workers);
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < workers; ++i)
    threads.emplace_back([&] {
      start.arrive_and_wait();
      worker(context, queue);
    });
  start.arrive_and_wait();
  worker(context, queue);
  for (std::thread& thread : threads) thread.join();
  threaded_job_count += workers > 1;
}

}  // namespace hymba
