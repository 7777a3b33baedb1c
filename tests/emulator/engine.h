// The emulator's state: one block at a time, each of its threads a fiber. Only the emulator's own files see
// this.
#pragma once
#include <array>
#include <deque>
#include <string>
#include <vector>

#include "hopper.h"
#include "runtime.h"

namespace hymba::emulator {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / kWarp;
constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kArenaBytes = 512 * 1024;      // shared memory of the block, red zones included
constexpr unsigned char kUninitialised = 0xff;  // a NaN in every floating type

struct Fiber {
  enum class State : uint8_t { ready, waiting, done };

  uint3 thread;
  int number, lane, warp;
  State state;
  // While waiting:
  const char* wait_name;
  const void* wait_object;
  Site wait_site;
  // Saved while another fiber runs:
  void* stack_pointer;
  char* stack;
  void* asan_stack;
};

// Lanes that came to a warp operation and wait for the rest of its mask.
struct Meeting {
  uint32_t mask;  // 0: free
  uint32_t arrived;
  Combine combine;
  const char* name;
  Site site;
  std::array<void*, kWarp> arguments;
};

struct Warp {
  uint32_t lanes;  // that exist
  uint32_t live;   // that have not returned
  std::array<Meeting, 4> meetings;
};

// Vector clock: of[w] is the first epoch of warp w that is not known to have happened before.
struct Clock {
  std::array<uint32_t, kMaxWarps> of;
};

struct Barrier {
  uint32_t warps = 0;                       // that have arrived
  int expected = 0;                         // warps that complete it
  std::array<uint32_t, kMaxWarps> lanes{};  // that have arrived, of each warp
  std::array<Site, kMaxWarps> site{};       // where the first lane of each warp came
  std::array<bool, kMaxWarps> waits{};      // bar.sync, not bar.arrive
  const Site* first = nullptr;              // where the first lane of all came
  Clock clock{};
};

struct AsyncCopy {
  void* destination;
  const void* source;
  size_t bytes, source_bytes;
};
struct AsyncCopies {
  std::vector<AsyncCopy> open;                // not yet committed
  std::deque<std::vector<AsyncCopy>> groups;  // committed, oldest first
};

struct SharedArray {
  const void* key;
  size_t offset;
};
struct RedZone {
  size_t offset, bytes;
};

struct Block {
  const Launch* launch;
  int threads, warps, done;
  std::array<Fiber, kMaxThreads> fiber;
  std::array<AsyncCopies, kMaxThreads> copies;
  std::array<Warp, kMaxWarps> warp;
  Barrier syncthreads;
  std::array<Barrier, kNamedBarriers> named;
  std::vector<Fiber*> ready;  // the next one last
  uint64_t random;
  std::string error;

  char* arena;
  size_t arena_used;
  std::vector<SharedArray> arrays;
  std::vector<RedZone> red_zones;

  // Race checker: warps' epochs end at each synchronisation.
  uint32_t generation;  // of this block among all blocks run
  std::array<uint32_t, kMaxWarps> epoch;
  std::array<Clock, kMaxWarps> clock;
};
extern Block* const block;

// fiber.cpp
void prepare_fiber(Fiber& fiber);                             // to start at thread_main()
void resume(Fiber* from, Fiber* to, bool from_ends = false);  // null: the launching thread
[[noreturn]] void thread_main();                              // engine.cpp

// engine.cpp
void make_ready(Fiber& fiber);
void suspend(const char* name, const void* object, const Site& site);
void wake_waiting(const void* object);   // all who are suspended for it
uint64_t random_choice(uint64_t count);  // of the random schedule
// Visits 0 .. count - 1 so that what is made ready on the way runs in the schedule's order.
template <class Visit>
void in_wake_order(int count, Visit visit) {
  if (options.schedule == Schedule::descending) {
    for (int i = 0; i < count; ++i) visit(i);
  } else {
    for (int i = count; i-- > 0;) visit(i);
  }
}

// shared_memory.cpp
void begin_shared_memory(size_t dynamic_bytes);
std::string broken_red_zone();  // what was written into one, or ""
char* swizzled(char* p);        // where TMA and wgmma have the 16 bytes that lie at p in 128-byte rows

// async_copy.cpp
bool has_pending_copies(const Fiber& fiber);

// mbarrier.cpp
void begin_mbarriers();
void require_visible_to_tma(const uint64_t* barrier);
void mbarrier_complete_bytes(const uint64_t* barrier, size_t bytes, const Clock& issued);

// tma.cpp
void begin_tensor_loads();
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

// races.cpp
void begin_launch_races();
void begin_block_races();
void warp_synchronised(int warp);  // the lanes of a warp with each other
void arrive(Clock& barrier, int warp);
void leave(const Clock& barrier, int warp);
void join(Clock& to, const Clock& from);
// Whether an access of this block happened before what the running thread does now.
bool happened_before(int thread, uint32_t epoch);
enum class Access { read, write, atomic, async_write };
void check_races(const void* p, size_t bytes, Access access, void* pc);

// report.cpp
std::string describe_running_thread();   // kernel, block, thread
std::string call_stack();                // of the running thread, a line each
std::string describe_address(void* pc);  // function and source line
void report_crashes();

}  // namespace hymba::emulator
