// What happened before what: vector clocks of a block's warps, and what is known of other blocks by
// count_block and wait_for_blocks.
#include <algorithm>
#include <tuple>

#include "engine.h"

namespace hymba::emulator {

// What happened before a count_block: in its block what `of` says, and what its thread did up to `epoch`.
struct Count {
  uint32_t generation;
  int thread;
  uint32_t epoch;
  std::array<uint32_t, kMaxWarps> of;

  auto key() const { return std::tuple(generation, thread); }
};
struct Counted {
  bool previous_grid;         // its end has been waited for
  std::vector<Count> counts;  // sorted
};

namespace {

uint32_t generations = 0;

const Knowledge* learnt_by(const Fiber& self) {
  for (const Learnt& learnt : block->learnt)
    if (learnt.thread == self.number) return &learnt.others;
  return nullptr;
}

bool says_happened(const Knowledge& known, const Past& past) {
  if (known == nullptr) return false;
  const auto& counts = known->counts;
  const auto before = [](const Count& count, uint32_t generation) { return count.generation < generation; };
  auto count = std::lower_bound(counts.begin(), counts.end(), past.generation, before);
  for (; count != counts.end() && count->generation == past.generation; ++count)
    if (past.epoch < count->of[past.thread / kWarp] ||
        (past.thread == count->thread && past.epoch <= count->epoch))
      return true;
  return false;
}

// What its lanes have learnt alone, the warp knows from now on.
void share(int warp) {
  Clock& clock = block->clock[warp];
  std::erase_if(block->learnt, [&](const Learnt& learnt) {
    if (learnt.thread / kWarp != warp) return false;
    clock.others = merged(clock.others, learnt.others);
    return true;
  });
  if (!block->launch->overlaps || clock.previous_grid) return;
  const int begin = warp * kWarp, end = std::min(begin + kWarp, block->threads);
  clock.previous_grid = std::any_of(&block->fiber[begin], &block->fiber[end],
                                    [](const Fiber& fiber) { return fiber.knows_previous_grid; });
}

}  // namespace

uint32_t new_generation() {
  return ++generations;
}
uint32_t last_generation() {
  return generations;
}

void begin_block_clocks() {
  block->generation = new_generation();
  block->epoch.fill(1);
  block->clock.fill({});
  block->learnt.clear();
}

bool happened_before_elsewhere(const Past& past) {
  const Knowledge* own = learnt_by(*current);
  return says_happened(block->clock[current->warp].others, past) ||
         (own != nullptr && says_happened(*own, past));
}

void warp_synchronised(int warp) {
  share(warp);
  block->epoch[warp]++;
}

void arrive(Clock& barrier, int warp) {
  share(warp);
  join(barrier, block->clock[warp]);
  barrier.of[warp] = ++block->epoch[warp];
}

void leave(const Clock& barrier, int warp) {
  join(block->clock[warp], barrier);
}

void join(Clock& to, const Clock& from) {
  for (int w = 0; w < kMaxWarps; ++w) to.of[w] = std::max(to.of[w], from.of[w]);
  to.previous_grid = to.previous_grid || from.previous_grid;
  to.others = merged(to.others, from.others);
}

Knowledge merged(const Knowledge& a, const Knowledge& b) {
  if (a == b || b == nullptr) return a;
  if (a == nullptr) return b;
  auto all = std::make_shared<Counted>();
  all->previous_grid = a->previous_grid || b->previous_grid;
  all->counts.reserve(a->counts.size() + b->counts.size());
  const auto precedes = [](const Count& x, const Count& y) { return x.key() < y.key(); };
  std::merge(a->counts.begin(), a->counts.end(), b->counts.begin(), b->counts.end(),
             std::back_inserter(all->counts), precedes);
  size_t kept = 0;
  for (size_t i = 1; i < all->counts.size(); ++i) {
    const Count& next = all->counts[i];
    Count& last = all->counts[kept];
    if (last.key() != next.key()) {
      all->counts[++kept] = next;
      continue;
    }
    last.epoch = std::max(last.epoch, next.epoch);
    for (int w = 0; w < kMaxWarps; ++w) last.of[w] = std::max(last.of[w], next.of[w]);
  }
  all->counts.resize(kept + 1);
  return all;
}

Knowledge release() {
  const Fiber& self = *current;
  Count mine{block->generation, self.number, block->epoch[self.warp], block->clock[self.warp].of};
  mine.of[self.warp] = block->epoch[self.warp]++;
  Knowledge known = std::make_shared<Counted>(Counted{knows_previous_grid(), {mine}});
  if (const Knowledge* learnt = learnt_by(self)) known = merged(known, *learnt);
  return merged(known, block->clock[self.warp].others);
}

void acquire(const Knowledge& others) {
  for (Learnt& learnt : block->learnt)
    if (learnt.thread == current->number) {
      learnt.others = merged(learnt.others, others);
      return;
    }
  block->learnt.push_back({current->number, others});
}

bool knows_previous_grid() {
  const auto says = [](const Knowledge& known) { return known != nullptr && known->previous_grid; };
  const Clock& clock = block->clock[current->warp];
  if (current->knows_previous_grid || clock.previous_grid || says(clock.others)) return true;
  const Knowledge* own = learnt_by(*current);
  return own != nullptr && says(*own);
}

}  // namespace hymba::emulator
