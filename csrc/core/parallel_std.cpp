// run_workers on std::thread, for builds without torch (CMake: unit tests and sanitizers).
#include <cstdlib>
#include <thread>
#include <vector>

#include "core/parallel.h"
#include "core/worker_count.h"

namespace hymba {

int64_t thread_limit() {
  const char* text = std::getenv("HYMBA_CORE_THREADS");
  return text ? std::atoll(text) : std::thread::hardware_concurrency();
}

void run_workers(int64_t count, int64_t cost, WorkerFunction worker, void* context) {
  if (count <= 0) return;
  WorkQueue queue(count);
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < worker_count(count, cost, thread_limit()); ++i)
    threads.emplace_back([&] { worker(context, queue); });
  worker(context, queue);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace hymba
