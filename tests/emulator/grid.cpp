// Blocks that count and wait for each other. On a GPU blocks start in the order of their numbers: one may
// wait for those before it, and for no others.
#include <algorithm>
#include <unordered_map>

#include "engine.h"

namespace hymba::emulator {
namespace {

struct Counter {
  int64_t base;                  // its value before the first count
  std::vector<uint64_t> blocks;  // the numbers of those that have counted, in this order
  std::vector<Knowledge> after;  // each count
};
std::unordered_map<const uint32_t*, Counter> counters;  // of the launch

struct Wait {
  const Counter* counter;
  int64_t blocks;   // that it needs
  int64_t own;      // counts by its own block before
  uint64_t number;  // of that block
  uint3 index;
  Site site;
};
std::vector<Wait> waits;  // of the launch

Counter& find(const uint32_t* at) {
  return counters.try_emplace(at, Counter{*at, {}, {}}).first->second;
}

int64_t counts(const Counter& counter, uint64_t from, uint64_t to) {
  return std::count_if(counter.blocks.begin(), counter.blocks.end(),
                       [=](uint64_t number) { return number >= from && number < to; });
}

}  // namespace

void begin_launch_counters() {
  waits.clear();
  counters.clear();
}

uint32_t count_block(uint32_t* at) {
  check_atomic(at, sizeof *at, "count_block");
  Counter& counter = find(at);
  counter.base = int64_t{*at} - static_cast<int64_t>(counter.blocks.size());  // it may have been set anew
  counter.blocks.push_back(block->number);
  if (options.races) {
    if (!counter.after.empty()) acquire(counter.after.back());
    counter.after.push_back(release());
  }
  return (*at)++;
}

void wait_for_blocks(const uint32_t* at, uint32_t count, const Site& site) {
  check_atomic(const_cast<uint32_t*>(at), sizeof *at, "wait_for_blocks");
  const Counter& counter = find(at);
  const int64_t own = counts(counter, block->number, block->number + 1);
  while (*at < count) {
    block->for_others.push_back(current);
    suspend("wait_for_blocks", at, site, count);
  }
  const int64_t needed = int64_t{count} - counter.base;
  if (needed <= 0) return;
  waits.push_back({&counter, needed, own, block->number, block->index, site});
  // No more than the first `needed` counts are sure.
  const auto seen = std::min<size_t>(static_cast<size_t>(needed), counter.after.size());
  if (seen > 0) acquire(counter.after[seen - 1]);
}

bool is_served(const Fiber& waiting) {
  return *static_cast<const uint32_t*>(waiting.wait_object) >= waiting.wait_count;
}

bool wake_served() {
  return std::erase_if(block->for_others, [](Fiber* fiber) {
           if (!is_served(*fiber)) return false;
           make_ready(*fiber);
           return true;
         }) > 0;
}

void require_counts_of_earlier_blocks(const Launch& launch) {
  for (const Wait& wait : waits) {
    const int64_t earlier = counts(*wait.counter, 0, wait.number) + wait.own;
    if (earlier < wait.blocks)
      throw Error(describe_block(launch, wait.index) + ": wait_for_blocks at " + wait.site.file_name() + ":" +
                  std::to_string(wait.site.line()) + " waits for " + std::to_string(wait.blocks) +
                  " blocks, of which " + std::to_string(earlier) +
                  " stand before it: the others may never start");
  }
}

}  // namespace hymba::emulator
