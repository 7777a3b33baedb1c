// run_workers on torch's thread pool: torch.set_num_threads is obeyed, and nested regions stay serial.
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "core/parallel.h"
#include "core/worker_count.h"

namespace hymba {

int64_t thread_limit() {
  return torch::stable::get_num_threads();
}

void run_workers(int64_t count, int64_t cost, WorkerFunction worker, void* context) {
  if (count <= 0) return;
  WorkQueue queue(count);
  const int64_t workers = worker_count(count, cost, thread_limit());
  if (workers == 1) return worker(context, queue);
  torch::stable::parallel_for(0, workers, 1, [&](int64_t, int64_t) { worker(context, queue); });
}

}  // namespace hymba
