// Runs a launch: blocks one after the other; one that waits for others is set aside until they have come.
#include <algorithm>
#include <numeric>

#include "engine.h"

namespace hymba::emulator {

Block::Block() {
  map_shared_memory(*this);
}
Block::~Block() {
  unmap_stacks(*this);
  unmap_shared_memory(*this);
}

namespace {

// Of blocks that are set aside: their stacks take two mappings each, of 65530 that a process may have.
constexpr size_t kHeldThreads = 16 * kMaxThreads;

std::unique_ptr<Block> spare;  // from the launch before

// Block numbers in the schedule's order, the first one last.
std::vector<uint64_t> block_order(uint64_t count) {
  std::vector<uint64_t> order(count);
  std::iota(order.begin(), order.end(), uint64_t{0});
  if (options.schedule == Schedule::ascending) std::reverse(order.begin(), order.end());
  if (options.schedule == Schedule::random) {
    uint64_t state = random_state(count);
    for (uint64_t i = count; i > 1; --i) std::swap(order[i - 1], order[next_random(state) % i]);
  }
  return order;
}

bool can_go_on(const std::unique_ptr<Block>& held) {
  return std::any_of(held->for_others.begin(), held->for_others.end(),
                     [](const Fiber* fiber) { return is_served(*fiber); });
}

class Grid {
 public:
  explicit Grid(const Launch& launch)
      : launch_(launch),
        order_(block_order(uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z)),
        random_(random_state(order_.size() + 1)) {
    if (spare) free_.push_back(std::move(spare));
  }
  ~Grid() {
    auto& blocks = free_.empty() ? held_ : free_;
    if (!blocks.empty()) spare = std::move(blocks.back());
  }

  void run() {
    while (!order_.empty() || !held_.empty()) {
      auto next = take_next();
      if (next == nullptr) throw Error(deadlock());
      run_block(*next);
      const std::string error = next->error;
      const bool done = next->done == next->threads;
      (done || !error.empty() ? free_ : held_).push_back(std::move(next));
      if (!error.empty()) throw Error(error);
    }
  }

 private:
  // Ascending: what was set aside goes on as soon as it can; descending: when nothing new can be started.
  std::unique_ptr<Block> take_next() {
    if (held_.empty()) return start(order_.size() - 1);
    std::vector<size_t> able;
    for (size_t i = 0; i < held_.size(); ++i)
      if (can_go_on(held_[i])) able.push_back(i);
    const bool full = held_.size() * static_cast<size_t>(held_[0]->threads) >= kHeldThreads;
    if (order_.empty() && able.empty()) return nullptr;
    // Of those that have not started, only the one of the lowest number surely waits for nobody else of them.
    if (full && able.empty())
      return start(static_cast<size_t>(std::min_element(order_.begin(), order_.end()) - order_.begin()));
    const size_t startable = order_.empty() || full ? 0 : 1;
    switch (options.schedule) {
      case Schedule::ascending:
        return able.empty() ? start(order_.size() - 1) : take_held(able.front());
      case Schedule::descending:
        return startable ? start(order_.size() - 1) : take_held(able.back());
      case Schedule::random:
        const size_t choice = next_random(random_) % (able.size() + startable);
        return choice == able.size() ? start(order_.size() - 1) : take_held(able[choice]);
    }
    __builtin_unreachable();
  }

  std::unique_ptr<Block> start(size_t place) {
    const uint64_t number = order_[place];
    order_.erase(order_.begin() + static_cast<ptrdiff_t>(place));
    if (free_.empty()) free_.push_back(std::make_unique<Block>());
    begin_block(*free_.back(), launch_, number);
    auto started = std::move(free_.back());
    free_.pop_back();
    return started;
  }

  std::unique_ptr<Block> take_held(size_t place) {
    auto held = std::move(held_[place]);
    held_.erase(held_.begin() + static_cast<ptrdiff_t>(place));
    return held;
  }

  std::string deadlock() const {
    const Block& first = **std::min_element(
        held_.begin(), held_.end(), [](const auto& a, const auto& b) { return a->number < b->number; });
    return describe_block(launch_, first.index) + ": deadlock: no block can go on; " +
           std::to_string(held_.size()) + " wait for others, this is the first one" + waiting_threads(first);
  }

  const Launch& launch_;
  std::vector<uint64_t> order_;  // not yet started, the next one last
  std::vector<std::unique_ptr<Block>> held_, free_;
  uint64_t random_;
};

void check_launch(const Launch& launch) {
  const uint64_t threads = uint64_t{launch.block.x} * launch.block.y * launch.block.z;
  const auto refuse = [](const std::string& what) { throw Error("invalid launch: " + what); };
  if (current != nullptr) refuse("from within a kernel");
  if (threads < 1 || threads > kMaxThreads || launch.block.z > 64)
    refuse(std::to_string(threads) + " threads in a block");
  if (launch.grid.x < 1 || launch.grid.y < 1 || launch.grid.z < 1 || launch.grid.x > 0x7fffffffu ||
      launch.grid.y > 65535 || launch.grid.z > 65535)
    refuse("a grid of " + std::to_string(launch.grid.x) + " x " + std::to_string(launch.grid.y) + " x " +
           std::to_string(launch.grid.z) + " blocks");
  if (launch.shared_bytes > kMaxSharedBytes)
    refuse(std::to_string(launch.shared_bytes) + " bytes of dynamic shared memory");
}

}  // namespace

void run_grid(const Launch& launch) {
  check_launch(launch);
  report_crashes();
  block_size = launch.block;
  grid_size = launch.grid;
  begin_launch_overlap(launch);
  begin_launch_races();
  begin_launch_counters();
  Grid(launch).run();
  require_counts_of_earlier_blocks(launch);
}

}  // namespace hymba::emulator
