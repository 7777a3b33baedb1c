// What the emulator's files ask of each other. Only they see this.
#pragma once
#include "block.h"

namespace hymba::emulator {

constexpr unsigned char kUninitialised = 0xff;  // a NaN in every floating type

// constant_read: of what nobody writes during the kernel.
enum class Access { read, constant_read, write, atomic, async_write };

// fiber.cpp
void map_stacks(Block& block, int count);  // for threads 0 to count - 1, none of which is under way
void unmap_stacks(Block& block);
void prepare_fiber(Fiber& fiber);                             // to start at thread_main()
void resume(Fiber* from, Fiber* to, bool from_ends = false);  // null: the launching thread
[[noreturn]] void thread_main();                              // engine.cpp

// engine.cpp
void begin_block(Block& block, const Launch& launch, uint64_t number);
void run_block(Block& block);  // until it ends, or waits for other blocks, or an error
void make_ready(Fiber& fiber);
// `blocks`: that wait_for_blocks waits for.
void suspend(const char* name, const void* object, const Site& site, uint32_t blocks = 0);
void wake_waiting(const void* object);   // all who are suspended for it
uint64_t random_choice(uint64_t count);  // of the random schedule
uint64_t next_random(uint64_t& state);
uint64_t random_state(uint64_t stream);           // of options.seed
std::string waiting_threads(const Block& block);  // where they wait, a line each
// Visits 0 .. count - 1 so that what is made ready on the way runs in the schedule's order.
template <class Visit>
void in_wake_order(int count, Visit visit) {
  if (options.schedule == Schedule::descending) {
    for (int i = 0; i < count; ++i) visit(i);
  } else {
    for (int i = count; i-- > 0;) visit(i);
  }
}

// grid.cpp
void begin_launch_counters();
bool is_served(const Fiber& waiting);  // its blocks have come
bool wake_served();                    // of the running block; whether there were any
void require_counts_of_earlier_blocks(const Launch& launch);

// overlap.cpp
void begin_launch_overlap(const Launch& launch);
void end_block_overlap();
// Whether what was done in that generation may still be under way, for a thread that knows the end of the
// previous grid or does not.
bool may_be_under_way(uint32_t generation, bool knows_previous);
// An access of global memory in a launch that overlaps; `used`: a launch that may be under way has written
// there, or, where this access writes, has read.
void check_overlap(const void* p, Access access, bool knows_previous, bool used);

// shared_memory.cpp
void map_shared_memory(Block& block);
void unmap_shared_memory(Block& block);
void begin_shared_memory(size_t dynamic_bytes);
std::string broken_red_zone();  // what was written into one, or ""
char* swizzled(char* p);        // where TMA and wgmma have the 16 bytes that lie at p in 128-byte rows

// async_copy.cpp
bool has_pending_copies(const Fiber& fiber);

// mbarrier.cpp
void require_visible_to_tma(const uint64_t* barrier);
void mbarrier_complete_bytes(const uint64_t* barrier, size_t bytes, const Clock& issued);

// tma.cpp
bool tensor_loads_pending();
bool complete_tensor_load();  // one of those under way, if there are any

// async_proxy.cpp
void begin_async_proxy();
void note_generic_write(const void* p, size_t bytes);  // to shared memory
void note_async_write(const void* p, size_t bytes);
void require_async_proxy(const void* p, size_t bytes, const char* what);

// wgmma.cpp
void begin_warpgroups();
void require_products_waited_for();

// clocks.cpp
uint32_t new_generation();  // of a block, or of what the host does
uint32_t last_generation();
void begin_block_clocks();
void warp_synchronised(int warp);  // the lanes of a warp with each other
void arrive(Clock& barrier, int warp);
void leave(const Clock& barrier, int warp);
void join(Clock& to, const Clock& from);
// Whether an access happened before what the running thread does now: of this block, of another one, of any.
inline bool happened_before(int thread, uint32_t epoch) {
  const Fiber& self = *current;
  if (thread == self.number) return true;
  const int warp = thread / kWarp;
  return epoch < (warp == self.warp ? block->epoch[warp] : block->clock[self.warp].of[warp]);
}
bool happened_before_elsewhere(const Past& past);
inline bool happened_before(const Past& past) {
  return past.generation == block->generation ? happened_before(past.thread, past.epoch)
                                              : happened_before_elsewhere(past);
}
Knowledge merged(const Knowledge& a, const Knowledge& b);
Knowledge release();  // what the running thread has done and knows; what it does next is later
void acquire(const Knowledge& others);  // the running thread learns
bool knows_previous_grid();             // that it has ended, the running thread does

// races.cpp
void begin_launch_races();
void begin_block_races();
void check_races(const void* p, size_t bytes, Access access, void* pc);

// report.cpp
std::string describe_block(const Launch& launch, uint3 index);
std::string describe_running_thread();   // kernel, block, thread
std::string call_stack();                // of the running thread, a line each
std::string describe_address(void* pc);  // function and source line
void report_crashes();

}  // namespace hymba::emulator
