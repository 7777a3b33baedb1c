// mbarriers. The 8 bytes in shared memory only show who accesses them; the state is kept here.
#include <algorithm>

#include "engine.h"

namespace hymba::emulator {
namespace {

Mbarrier& find(const uint64_t* at, const char* name) {
  const auto found =
      std::find_if(block->mbarriers.begin(), block->mbarriers.end(), [&](auto& b) { return b.at == at; });
  if (found == block->mbarriers.end())
    fail("%s: the mbarrier at %p is not initialised", name, static_cast<const void*>(at));
  return *found;
}

void complete_if_due(Mbarrier& barrier) {
  if (barrier.pending > 0 || barrier.bytes != 0) return;
  barrier.pending = barrier.count;
  barrier.parity ^= 1;
  join(barrier.completed, barrier.arriving);
  wake_waiting(barrier.at);
}

}  // namespace

void mbarrier_init(uint64_t* at, uint32_t count) {
  if (!is_shared(at)) fail("mbarrier.init: %p is not in shared memory", static_cast<void*>(at));
  if (count < 1) fail("mbarrier.init: a count of 0");
  check_write(at, sizeof *at, "mbarrier.init");
  std::erase_if(block->mbarriers, [&](auto& b) { return b.at == at; });
  block->mbarriers.push_back({at, count, count, 0, 0, current->number, false, {}, {}});
}

void mbarrier_init_fence() {
  for (Mbarrier& barrier : block->mbarriers)
    if (barrier.initialiser == current->number) barrier.visible_to_tma = true;
}

void mbarrier_arrive(uint64_t* at, uint32_t bytes) {
  check_atomic(at, sizeof *at, "mbarrier.arrive");
  Mbarrier& barrier = find(at, "mbarrier.arrive");
  if (barrier.pending == 0)
    fail("mbarrier.arrive: the phase has had its %u arrivals and waits for %lld bytes", barrier.count,
         static_cast<long long>(barrier.bytes));
  arrive(barrier.arriving, current->warp);
  barrier.bytes += bytes;
  barrier.pending--;
  complete_if_due(barrier);
}

void require_visible_to_tma(const uint64_t* at) {
  if (!find(at, "a TMA load").visible_to_tma)
    fail("a TMA load: its mbarrier has been initialised without fence.mbarrier_init");
}

void mbarrier_complete_bytes(const uint64_t* at, size_t bytes, const Clock& issued) {
  Mbarrier& barrier = find(at, "a TMA load");
  join(barrier.arriving, issued);
  barrier.bytes -= static_cast<int64_t>(bytes);
  complete_if_due(barrier);
}

void mbarrier_wait(uint64_t* at, uint32_t parity, const Site& site) {
  check_atomic(at, sizeof *at, "mbarrier.try_wait");
  while (find(at, "mbarrier.try_wait").parity == parity) suspend("mbarrier_wait", at, site);
  leave(find(at, "mbarrier.try_wait").completed, current->warp);
}

}  // namespace hymba::emulator
