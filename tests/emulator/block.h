// The state of one block, each of its threads a fiber. Several blocks may be under way: one that waits for
// others is set aside while they run. Only the emulator's own files see this.
#pragma once
#include <array>
#include <cstdlib>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "hopper.h"
#include "runtime.h"

namespace hymba::emulator {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / kWarp;
constexpr int kWarpgroup = 128, kMaxWarpgroups = kMaxThreads / kWarpgroup;
constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kArenaBytes = 512 * 1024;  // shared memory of the block, red zones included

struct Fiber {
  enum class State : uint8_t { ready, waiting, done };

  uint3 thread;
  int number, lane, warp;
  State state;
  bool knows_previous_grid;  // has come back from wait_for_previous_grid()
  // While waiting:
  const char* wait_name;
  const void* wait_object;
  uint32_t wait_count;  // of blocks, in wait_for_blocks
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

// ---- What happened before (clocks.cpp) ----

// What blocks have done, as of count_block calls, and what they knew then.
struct Counted;
using Knowledge = std::shared_ptr<const Counted>;

// Vector clock: of[w] is the first epoch of warp w that is not known to have happened before.
struct Clock {
  std::array<uint32_t, kMaxWarps> of;
  bool previous_grid;  // its end has been waited for
  Knowledge others;    // about other blocks
};

// What a thread alone knows about other blocks, until its warp synchronises.
struct Learnt {
  int thread;
  Knowledge others;
};

// ---- Synchronisation ----

struct Barrier {
  uint32_t warps = 0;                       // that have arrived
  int expected = 0;                         // warps that complete it
  std::array<uint32_t, kMaxWarps> lanes{};  // that have arrived, of each warp
  std::array<Site, kMaxWarps> site{};       // where the first lane of each warp came
  std::array<bool, kMaxWarps> waits{};      // bar.sync, not bar.arrive
  const Site* first = nullptr;              // where the first lane of all came
  Clock clock{};
};

struct Mbarrier {
  uint64_t* at;
  uint32_t count, pending;  // arrivals of a phase, and those that are still missing
  int64_t bytes;            // announced and not yet there
  uint32_t parity;          // of the phase under way
  int initialiser;          // thread number
  bool visible_to_tma;
  Clock arriving, completed;  // what happened before the arrivals; and before the last completed phase's end
};

// ---- Asynchronous copies and products ----

struct AsyncCopy {
  void* destination;
  const void* source;
  size_t bytes, source_bytes;
};
struct AsyncCopies {
  std::vector<AsyncCopy> open;                 // not yet committed
  std::vector<std::vector<AsyncCopy>> groups;  // committed, oldest first
};

struct TensorLoad {
  char* to;
  TensorMap map;
  std::array<int, kMaxTensorRank> coordinates;
  uint64_t* barrier;
  Clock issued;
};

// Registers of a warpgroup's threads that products under way add to, and the sums so far.
struct Accumulators {
  std::array<float*, kWarpgroup> at;
  int count;  // a thread
  int products;
  std::vector<float> sums;
};
struct Product {
  Wgmma operation;
  std::array<const uint32_t*, kWarpgroup> a;
  Accumulators* sums;
  bool executed;
};
using Products = std::vector<Product>;

enum class WarpgroupCall { issue, fence, commit, wait, set_registers };
struct Warpgroup {
  WarpgroupCall call;
  Site site;
  int arrived;
  std::array<Wgmma, kWarpgroup> operations;
  std::vector<std::unique_ptr<Accumulators>> accumulators;
  Products open;
  std::deque<Products> groups;
  std::vector<Registers> fenced;  // of thread 0, by the last fences
  int registers;                  // a thread, once it has set them; 0: not yet
};

// ---- Shared memory, and what each of its bytes has seen ----

struct SharedArray {
  const void* key;
  size_t offset;
};
struct SharedRange {
  size_t offset, bytes;
};

// An access (races.cpp).
struct Past {
  uint32_t generation;  // of the block that made it; 0: none
  uint32_t epoch;       // of its warp then
  uint32_t code;        // low half of the code address
  uint16_t thread;
  bool atomic;
};
constexpr int kReads = 3;
struct Cell {
  Past write;
  Past reads[kReads];
};

// A store that TMA and wgmma may not see yet (async_proxy.cpp).
struct ProxyEvent {
  uint32_t epoch;  // of its warp
  uint16_t thread;
};
struct ProxyMark {
  uint32_t generation;  // of the block that wrote; others: nothing to say
  bool fenced;
  ProxyEvent write, fence;
};
// A thread's last fence: what had happened before it.
struct LastFence {
  uint32_t generation;
  uint32_t epoch;
  Clock clock;
};

// Zeroed pages of the system, which cost nothing until they are touched.
struct FreePages {
  void operator()(void* pages) const { std::free(pages); }
};
template <class T>
using Pages = std::unique_ptr<T[], FreePages>;
template <class T>
Pages<T> allocate_pages(size_t count) {
  return Pages<T>(static_cast<T*>(std::calloc(count, sizeof(T))));
}

// ---- All of it ----

struct Block {
  Block();
  ~Block();
  Block(const Block&) = delete;

  const Launch* launch;
  uint3 index;
  uint64_t number;  // of the block in its grid; they start in this order on a GPU
  int threads, warps, done;
  std::array<Fiber, kMaxThreads> fiber;
  std::vector<Fiber*> ready;       // the next one last
  std::vector<Fiber*> for_others;  // wait in wait_for_blocks
  bool started_next_grid;
  uint64_t random;
  std::string error;
  char* stacks = nullptr;
  int stack_count = 0;

  std::array<Warp, kMaxWarps> warp;
  Barrier syncthreads;
  std::array<Barrier, kNamedBarriers> named;
  std::vector<Mbarrier> mbarriers;
  std::array<AsyncCopies, kMaxThreads> copies;
  std::vector<TensorLoad> tensor_loads;  // under way
  std::array<Warpgroup, kMaxWarpgroups> warpgroups;
  int registers;  // with which threads begin, as a warpgroup that sets its own says; 0: none has yet
  int register_pool;

  char* arena;
  size_t arena_used;
  std::vector<SharedArray> arrays;
  std::vector<SharedRange> red_zones;

  // Race checker: warps' epochs end at each synchronisation.
  uint32_t generation;  // of this block among all blocks run
  std::array<uint32_t, kMaxWarps> epoch;
  std::array<Clock, kMaxWarps> clock;
  std::vector<Learnt> learnt;
  Pages<Cell> cells;       // of the arena's bytes
  Pages<ProxyMark> marks;  // of the arena's bytes
  std::vector<SharedRange> unfenced;
  std::array<LastFence, kMaxThreads> last_fence;
};
extern Block* block;  // whose threads run

}  // namespace hymba::emulator
