// Which bytes of shared memory the generic proxy (ordinary stores, cp.async) has written and no
// fence.proxy.async has handed over: TMA and wgmma must not touch them. Only where the compiler's hooks show
// every store: in the `races` build.
#include <cstdlib>
#include <memory>

#include "engine.h"

namespace hymba::emulator {
namespace {

struct Event {
  uint32_t epoch;  // of its warp
  uint16_t thread;
};
struct Mark {
  uint32_t generation;  // of the block that wrote; others: nothing to say
  bool fenced;
  Event write, fence;
};
struct FreeMarks {
  void operator()(Mark* marks) const { std::free(marks); }
};
std::unique_ptr<Mark[], FreeMarks> marks;  // of the arena's bytes

struct Range {
  size_t offset, bytes;
};
std::vector<Range> unfenced;

// A thread's last fence: what had happened before it.
struct LastFence {
  uint32_t generation;
  uint32_t epoch;
  Clock clock;
};
std::array<LastFence, kMaxThreads> last_fence;

bool exists(const Mark& mark) {
  return mark.generation == block->generation;
}

bool seen_by_own_fence(const Event& write) {
  const LastFence& fence = last_fence[current->number];
  if (fence.generation != block->generation) return false;
  const int warp = write.thread / kWarp;
  return write.thread == current->number ||
         write.epoch < (warp == current->warp ? fence.epoch : fence.clock.of[warp]);
}

bool may_access(const Mark& mark) {
  if (!exists(mark)) return true;
  if (!mark.fenced) return false;
  return happened_before(mark.fence.thread, mark.fence.epoch) || seen_by_own_fence(mark.write);
}

}  // namespace

void begin_async_proxy() {
  unfenced.clear();
  if (options.races && !marks) marks.reset(static_cast<Mark*>(std::calloc(kArenaBytes, sizeof(Mark))));
}

void note_generic_write(const void* p, size_t bytes) {
  const size_t offset = shared_offset(p);
  const Event now{block->epoch[current->warp], static_cast<uint16_t>(current->number)};
  bool listed = true;
  for (size_t i = offset; i < offset + bytes; ++i) {
    listed = listed && exists(marks[i]) && !marks[i].fenced;
    marks[i] = {block->generation, false, now, {}};
  }
  if (!listed) unfenced.push_back({offset, bytes});
}

void async_proxy_fence() {
  if (!options.races) return;
  const Event now{block->epoch[current->warp], static_cast<uint16_t>(current->number)};
  std::erase_if(unfenced, [&](const Range& range) {
    bool all = true;
    for (size_t i = range.offset; i < range.offset + range.bytes; ++i) {
      Mark& mark = marks[i];
      if (!exists(mark) || mark.fenced) continue;
      if (happened_before(mark.write.thread, mark.write.epoch))
        mark.fenced = true, mark.fence = now;
      else
        all = false;
    }
    return all;
  });
  last_fence[current->number] = {block->generation, block->epoch[current->warp], block->clock[current->warp]};
}

void require_async_proxy(const void* p, size_t bytes, const char* what) {
  if (!options.races) return;
  const size_t offset = shared_offset(p);
  for (size_t i = offset; i < offset + bytes; ++i)
    if (!may_access(marks[i]))
      fail("%s shared memory at %p that thread number %d has written, without fence.proxy.async in between",
           what, p, marks[i].write.thread);
}

void note_async_write(const void* p, size_t bytes) {
  const size_t offset = shared_offset(p);
  for (size_t i = offset; i < offset + bytes; ++i) marks[i].generation = 0;
}

}  // namespace hymba::emulator
