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

static const char* wanted_threads() {
  return std::getenv("HYMBA_CORE_THREADS");
}

int64_t thread_limit() {
  return wanted_threads() ? std::max(1, std::atoi(wanted_threads())) : std::thread::hardware_concurrency();
}

static int64_t count_workers(int64_t count, int64_t cost) {
  return wanted_threads() ? std::min(thread_limit(), count) : worker_count(count, cost, thread_limit());
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
