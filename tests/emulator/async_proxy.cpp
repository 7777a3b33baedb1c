// Which bytes of shared memory the generic proxy (ordinary stores, cp.async) has written and no
// fence.proxy.async has handed over: TMA and wgmma must not touch them. Only where the compiler's hooks show
// every store: in the `races` build.
#include "engine.h"

namespace hymba::emulator {
namespace {

bool exists(const ProxyMark& mark) {
  return mark.generation == block->generation;
}

bool seen_by_own_fence(const ProxyEvent& write) {
  const LastFence& fence = block->last_fence[current->number];
  if (fence.generation != block->generation) return false;
  const int warp = write.thread / kWarp;
  return write.thread == current->number ||
         write.epoch < (warp == current->warp ? fence.epoch : fence.clock.of[warp]);
}

bool may_access(const ProxyMark& mark) {
  if (!exists(mark)) return true;
  if (!mark.fenced) return false;
  return happened_before(mark.fence.thread, mark.fence.epoch) || seen_by_own_fence(mark.write);
}

}  // namespace

void begin_async_proxy() {
  block->unfenced.clear();
  if (options.races && !block->marks) block->marks = allocate_pages<ProxyMark>(kArenaBytes);
}

void note_generic_write(const void* p, size_t bytes) {
  const size_t offset = shared_offset(p);
  const ProxyEvent now{block->epoch[current->warp], static_cast<uint16_t>(current->number)};
  bool listed = true;
  for (size_t i = offset; i < offset + bytes; ++i) {
    listed = listed && exists(block->marks[i]) && !block->marks[i].fenced;
    block->marks[i] = {block->generation, false, now, {}};
  }
  if (!listed) block->unfenced.push_back({offset, bytes});
}

void async_proxy_fence() {
  if (!options.races) return;
  const ProxyEvent now{block->epoch[current->warp], static_cast<uint16_t>(current->number)};
  std::erase_if(block->unfenced, [&](const SharedRange& range) {
    bool all = true;
    for (size_t i = range.offset; i < range.offset + range.bytes; ++i) {
      ProxyMark& mark = block->marks[i];
      if (!exists(mark) || mark.fenced) continue;
      if (happened_before(mark.write.thread, mark.write.epoch))
        mark.fenced = true, mark.fence = now;
      else
        all = false;
    }
    return all;
  });
  block->last_fence[current->number] = {block->generation, block->epoch[current->warp],
                                        block->clock[current->warp]};
}

void require_async_proxy(const void* p, size_t bytes, const char* what) {
  if (!options.races) return;
  const size_t offset = shared_offset(p);
  for (size_t i = offset; i < offset + bytes; ++i)
    if (!may_access(block->marks[i]))
      fail("%s shared memory at %p that thread number %d has written, without fence.proxy.async in between",
           what, p, block->marks[i].write.thread);
}

void note_async_write(const void* p, size_t bytes) {
  const size_t offset = shared_offset(p);
  for (size_t i = offset; i < offset + bytes; ++i) block->marks[i].generation = 0;
}

}  // namespace hymba::emulator
