// Runs a block: threads as fibers that run until they have to wait.
#include "engine.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>

namespace hymba::emulator {

Options options;
Fiber* current = nullptr;
uint3 current_block;
dim3 block_size, grid_size;
Block* block = nullptr;

uint3 thread_index() {
  return current->thread;
}
int lane_index() {
  return current->lane;
}

uint64_t next_random(uint64_t& state) {  // xorshift64
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

uint64_t random_state(uint64_t stream) {
  uint64_t state = 88172645463325252u ^ (options.seed * 0x9e3779b97f4a7c15u) ^ (stream << 20);
  if (state == 0) state = 1;
  next_random(state);
  return state;
}

namespace {

Fiber* take_ready_fiber() {
  auto& ready = block->ready;
  if (ready.empty()) return nullptr;
  if (options.schedule == Schedule::random)
    std::swap(ready[next_random(block->random) % ready.size()], ready.back());
  Fiber* fiber = ready.back();
  ready.pop_back();
  return fiber;
}

// What is asynchronous goes on when no thread can; under the random schedule at any time.
Fiber* take_ready() {
  if (options.schedule == Schedule::random && tensor_loads_pending() && random_choice(8) == 0)
    complete_tensor_load();
  Fiber* fiber = take_ready_fiber();
  while (fiber == nullptr && (complete_tensor_load() || wake_served())) fiber = take_ready_fiber();
  return fiber;
}

// Ends the block with an error; the fibers are left where they are.
[[noreturn]] void end_block(std::string error) {
  block->error = std::move(error);
  resume(current, nullptr, true);
  __builtin_unreachable();
}

bool waits_at_same_place(const Fiber& a, const Fiber& b) {
  return a.wait_name == b.wait_name && a.wait_object == b.wait_object &&
         a.wait_site.line() == b.wait_site.line();
}

// No thread can go on: the block is set aside where others may help it.
void leave_block(bool ends) {
  if (block->for_others.empty())
    end_block(describe_running_thread() + ": deadlock: no thread of the block can go on" +
              waiting_threads(*block));
  resume(current, nullptr, ends);
}

}  // namespace

std::string waiting_threads(const Block& block) {
  std::string text;
  std::vector<const Fiber*> seen;
  for (int i = 0; i < block.threads; ++i) {
    const Fiber& fiber = block.fiber[i];
    const auto same = [&](const Fiber* other) { return waits_at_same_place(fiber, *other); };
    if (fiber.state != Fiber::State::waiting || std::any_of(seen.begin(), seen.end(), same)) continue;
    seen.push_back(&fiber);
    const auto count =
        std::count_if(block.fiber.begin(), block.fiber.begin() + block.threads, [&](auto& other) {
          return other.state == Fiber::State::waiting && waits_at_same_place(fiber, other);
        });
    text += "\n    " + std::to_string(count) + " threads, the first of them number " + std::to_string(i) +
            ", wait in " + fiber.wait_name + " at " + fiber.wait_site.file_name() + ":" +
            std::to_string(fiber.wait_site.line());
    if (fiber.wait_count > 0)
      text += " for " + std::to_string(fiber.wait_count) + " blocks, " +
              std::to_string(*static_cast<const uint32_t*>(fiber.wait_object)) + " have come";
  }
  return text + "\n    " + std::to_string(block.done) + " of " + std::to_string(block.threads) +
         " threads have returned";
}

void begin_block(Block& b, const Launch& launch, uint64_t number) {
  block = &b;
  b.launch = &launch;
  b.number = number;
  const uint64_t gx = launch.grid.x, gy = launch.grid.y;
  b.index = {static_cast<unsigned>(number % gx), static_cast<unsigned>(number / gx % gy),
             static_cast<unsigned>(number / (gx * gy))};
  b.threads = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
  b.warps = (b.threads + kWarp - 1) / kWarp;
  b.done = 0;
  b.ready.clear();
  b.for_others.clear();
  b.started_next_grid = false;
  b.error.clear();
  b.random = random_state(number);
  b.syncthreads = {};
  b.named.fill({});
  for (int w = 0; w < b.warps; ++w) {
    const int lanes = std::min(kWarp, b.threads - w * kWarp);
    b.warp[w].lanes = b.warp[w].live = lanes == kWarp ? ~0u : (1u << lanes) - 1;
    for (Meeting& meeting : b.warp[w].meetings) meeting.mask = 0;
  }
  map_stacks(b, b.threads);
  for (int i = 0; i < b.threads; ++i) {
    const unsigned n = static_cast<unsigned>(i), x = launch.block.x, y = launch.block.y;
    b.fiber[i] = {
        .thread = {n % x, n / x % y, n / (x * y)}, .number = i, .lane = i % kWarp, .warp = i / kWarp};
    b.copies[i].open.clear();
    b.copies[i].groups.clear();
    prepare_fiber(b.fiber[i]);
  }
  begin_shared_memory(launch.shared_bytes);
  begin_block_clocks();
  begin_block_races();
  b.mbarriers.clear();
  b.tensor_loads.clear();
  begin_async_proxy();
  begin_warpgroups();
  in_wake_order(b.threads, [&](int i) { make_ready(b.fiber[i]); });
}

void run_block(Block& b) {
  block = &b;
  current_block = b.index;
  if (Fiber* next = take_ready()) resume(nullptr, next);
  if (b.error.empty() && b.done == b.threads) {
    end_block_overlap();
    b.error = broken_red_zone();
  }
}

void make_ready(Fiber& fiber) {
  fiber.state = Fiber::State::ready;
  block->ready.push_back(&fiber);
}

uint64_t random_choice(uint64_t count) {
  return next_random(block->random) % count;
}

void wake_waiting(const void* object) {
  in_wake_order(block->threads, [&](int i) {
    Fiber& fiber = block->fiber[i];
    if (fiber.state == Fiber::State::waiting && fiber.wait_object == object) make_ready(fiber);
  });
}

void suspend(const char* name, const void* object, const Site& site, uint32_t blocks) {
  Fiber* self = current;
  self->state = Fiber::State::waiting;
  self->wait_name = name;
  self->wait_object = object;
  self->wait_site = site;
  self->wait_count = blocks;
  Fiber* next = take_ready();
  if (next == nullptr) return leave_block(false);
  if (next != self) resume(self, next);  // else what this thread waits for has come
}

void thread_main() {
  block->launch->run(block->launch->arguments);
  Fiber* self = current;
  if (has_pending_copies(*self)) fail("the thread returns while its cp.async copies are under way");
  require_products_waited_for();
  self->state = Fiber::State::done;
  block->done++;
  block->warp[self->warp].live &= ~(1u << self->lane);
  if (block->done == block->threads && tensor_loads_pending())
    fail("the last thread returns while TMA loads are under way");
  Fiber* next = take_ready();
  if (next == nullptr && block->done < block->threads) leave_block(true);
  resume(self, next, true);
  __builtin_unreachable();
}

void fail(const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  if (current == nullptr) throw Error(text);
  end_block(describe_running_thread() + ": " + text + call_stack());
}

}  // namespace hymba::emulator
