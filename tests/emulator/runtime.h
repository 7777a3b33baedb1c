// What the emulator offers to the built-ins (builtins.h), to csrc/cuda/primitives and to the bindings.
#pragma once
#include <cstddef>
#include <cstdint>
#include <source_location>
#include <stdexcept>
#include <string>

#include "cuda_types.h"

namespace hymba::emulator {

// Where a kernel calls a built-in: a last parameter `Site site = Site::current()`.
using Site = std::source_location;

// ---- running ----

enum class Schedule { ascending, descending, random };

struct Options {
  Schedule schedule = Schedule::ascending;
  uint64_t seed = 1;          // of the random schedule
  bool eager_copies = false;  // cp.async arrives when issued; else as late as its wait allows
  bool races = false;         // check every access; only the `races` build reports them
  int capability = 80;        // what the device says it is; kernels of all architectures run
};
extern Options options;
constexpr int kMultiprocessors = 3;  // what the device says it has

// A kernel broke a rule: the message names kernel, block, thread and source lines.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Launch {
  dim3 grid;
  dim3 block;
  size_t shared_bytes;
  bool overlaps;                       // starts while the kernel before it ends
  const void* kernel;                  // its address, from which a failure's message gets its name
  void (*run)(const void* arguments);  // one thread of it
  const void* arguments;
};
// Runs all blocks. Throws Error.
void run_grid(const Launch& launch);

// Reports a fault of the running thread and ends the launch.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- the running thread ----

struct Fiber;
extern Fiber* current;
extern uint3 current_block;
extern dim3 block_size, grid_size;
uint3 thread_index();
int lane_index();

// ---- synchronisation ----

// A warp operation. All lanes of `mask` come here; the last one runs `combine` on the lanes' arguments
// (indexed by lane, valid for the lanes of the mask), then all go on.
using Combine = void (*)(void* const* arguments, uint32_t mask);
void collective(uint32_t mask, Combine combine, void* argument, const char* name, const Site& site);
void syncwarp(uint32_t mask, const Site& site);

// __syncthreads: every thread of the block, at one place in the source.
void block_barrier(const Site& site);
// bar.sync and bar.arrive (`wait` false) of whole warps; `threads` of them complete the barrier.
constexpr int kNamedBarriers = 16;
void named_barrier(int id, int threads, bool wait, const Site& site);

// ---- other blocks (grid.cpp) ----

void wait_for_previous_grid();
void start_next_grid();
// Counts up at `counter` in global memory and returns the count before. What happened before in this thread
// happens before what follows in one that counts later or waits for this count.
uint32_t count_block(uint32_t* counter);
void wait_for_blocks(const uint32_t* counter, uint32_t count, const Site& site);

// ---- shared memory ----

unsigned char* dynamic_shared();
// The array of a HYMBA_SHARED; `key` is the address of a static of its own.
void* static_shared(const void* key, size_t bytes, size_t alignment);
bool is_shared(const void* p);
// Bytes of shared memory that no thread may touch; to be called by all threads alike.
void red_zone(void* begin, size_t bytes);
constexpr size_t kRedZoneBytes = 32;
// What a launch may ask for: 227 KiB and the carver's red zones.
constexpr size_t kMaxSharedBytes = 227 * 1024 + 64 * 2 * kRedZoneBytes;

// ---- memory accesses that the compiler's instrumentation does not see ----

// An access of `bytes` at once, aligned to them, which the sanitizer and the race checker see.
void check_read(const void* p, size_t bytes, const char* name);
// A read of what nobody writes during the kernel.
void check_constant_read(const void* p, size_t bytes, const char* name);
// An access that changes nothing and whose result nobody sees.
void check_prefetch(const void* p);
void check_write(void* p, size_t bytes, const char* name);
void check_atomic(void* p, size_t bytes, const char* name);

// cp.async: `source_bytes` are copied, the rest of `bytes` becomes zero.
void async_copy(void* destination, const void* source, size_t bytes, size_t source_bytes);
void async_commit();
void async_wait(int pending);

// ---- global memory ----

// What the host allocates and fills. A kernel whose launch overlaps must take it for written by the kernel
// before (overlap.cpp).
void add_buffer(const void* begin, size_t bytes);
void remove_buffer(const void* begin);

// Reports conflicting accesses to these bytes, of two blocks or of unsynchronised threads, within a launch.
void watch_global(void* begin, size_t bytes);
void unwatch_global(void* begin);

}  // namespace hymba::emulator
