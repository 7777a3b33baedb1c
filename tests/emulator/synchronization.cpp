// Where threads wait for each other: warp operations and barriers.
#include <bit>
#include <cstring>

#include "engine.h"

namespace hymba::emulator {
namespace {

bool same_place(const Site& a, const Site& b) {
  return a.line() == b.line() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

Meeting& find_meeting(Warp& warp, uint32_t mask, Combine combine, const char* name, const Site& site) {
  for (Meeting& meeting : warp.meetings)
    if (meeting.mask == mask) return meeting;
  for (Meeting& meeting : warp.meetings) {
    if (meeting.mask != 0) continue;
    meeting = {mask, 0, combine, name, site, {}};
    return meeting;
  }
  fail("%s at %s:%u: the warp waits at %zu other places already", name, site.file_name(), site.line(),
       warp.meetings.size());
}

void wake_lanes(int warp, uint32_t lanes) {
  in_wake_order(kWarp, [&](int lane) {
    Fiber& fiber = block->fiber[warp * kWarp + lane];
    if ((lanes >> lane & 1) && &fiber != current) make_ready(fiber);
  });
}

// The last lane of the last warp has come: all who wait go on.
void complete(Barrier& barrier) {
  const Barrier done = barrier;
  barrier = {};
  in_wake_order(block->warps, [&](int w) {
    if (!(done.warps >> w & 1) || !done.waits[w]) return;
    leave(done.clock, w);
    wake_lanes(w, done.lanes[w]);
  });
}

// The calling lane comes to `barrier`. Whole warps arrive: a lane alone waits for the others of its warp.
void arrive_at(Barrier& barrier, int expected_warps, bool wait, const char* name, const Site& site) {
  const Fiber& self = *current;
  const uint32_t lanes = block->warp[self.warp].lanes;
  uint32_t& arrived = barrier.lanes[self.warp];
  if (arrived == lanes)
    fail("%s at %s:%u: this warp has arrived there already", name, site.file_name(), site.line());
  if (arrived == 0) {
    barrier.site[self.warp] = site;
    barrier.waits[self.warp] = wait;
    if (barrier.first == nullptr) barrier.first = &barrier.site[self.warp];
  } else if (!same_place(barrier.site[self.warp], site)) {
    const Site& other = barrier.site[self.warp];
    fail("divergent %s: at %s:%u, but other lanes of the warp at %s:%u", name, site.file_name(), site.line(),
         other.file_name(), other.line());
  }
  barrier.expected = expected_warps;
  arrived |= 1u << self.lane;
  if (arrived == lanes) {
    barrier.warps |= 1u << self.warp;
    arrive(barrier.clock, self.warp);
    const bool last = std::popcount(barrier.warps) == expected_warps;
    if (last) complete(barrier);
    if (!wait) wake_lanes(self.warp, lanes);
    if (last || !wait) return;
  }
  suspend(name, &barrier, site);
}

}  // namespace

void collective(uint32_t mask, Combine combine, void* argument, const char* name, const Site& site) {
  const Fiber& self = *current;
  Warp& warp = block->warp[self.warp];
  if (!(mask >> self.lane & 1))
    fail("%s at %s:%u: mask %08x leaves out the calling lane %d", name, site.file_name(), site.line(), mask,
         self.lane);
  if (mask & ~warp.live)
    fail("%s at %s:%u: mask %08x names lanes that have returned or do not exist (live: %08x)", name,
         site.file_name(), site.line(), mask, warp.live);
  Meeting& meeting = find_meeting(warp, mask, combine, name, site);
  if (meeting.combine != combine || !same_place(meeting.site, site))
    fail("divergent warp: lane %d is in %s at %s:%u, others wait in %s at %s:%u", self.lane, name,
         site.file_name(), site.line(), meeting.name, meeting.site.file_name(), meeting.site.line());
  meeting.arguments[self.lane] = argument;
  meeting.arrived |= 1u << self.lane;
  if (meeting.arrived != mask) return suspend(name, &meeting, site);
  combine(meeting.arguments.data(), mask);
  meeting.mask = 0;
  wake_lanes(self.warp, mask);
}

void syncwarp(uint32_t mask, const Site& site) {
  const Combine synchronise = [](void* const*, uint32_t) { warp_synchronised(current->warp); };
  collective(mask, synchronise, nullptr, "__syncwarp", site);
}

void block_barrier(const Site& site) {
  Barrier& barrier = block->syncthreads;
  if (barrier.first != nullptr && !same_place(*barrier.first, site))
    fail("divergent __syncthreads: at %s:%u, but other threads at %s:%u", site.file_name(), site.line(),
         barrier.first->file_name(), barrier.first->line());
  arrive_at(barrier, block->warps, true, "__syncthreads", site);
}

void named_barrier(int id, int threads, bool wait, const Site& site) {
  const char* name = wait ? "bar.sync" : "bar.arrive";
  if (id < 1 || id >= kNamedBarriers)
    fail("%s at %s:%u: barrier %d; 1 to %d exist beside __syncthreads", name, site.file_name(), site.line(),
         id, kNamedBarriers - 1);
  if (threads < kWarp || threads % kWarp != 0 || threads > block->warps * kWarp)
    fail("%s at %s:%u: %d threads are not a number of warps that the block has", name, site.file_name(),
         site.line(), threads);
  Barrier& barrier = block->named[id];
  if (barrier.expected != 0 && barrier.expected != threads / kWarp)
    fail("%s at %s:%u: barrier %d completes with %d threads here, but with %d where others wait", name,
         site.file_name(), site.line(), id, threads, barrier.expected * kWarp);
  arrive_at(barrier, threads / kWarp, wait, name, site);
}

}  // namespace hymba::emulator
