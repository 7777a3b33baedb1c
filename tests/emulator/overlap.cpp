// Grids whose beginning overlaps the end of the one before (griddepcontrol). A thread of a launch that
// `overlaps` must not read what kernels before may still write, nor write what they may still use, until it
// knows the end of the previous grid: by its own wait_for_previous_grid(), or by synchronisation with a
// thread that has waited. The end of a grid that has not waited itself says nothing of those before it. Only
// the `races` build sees all accesses. What the host has put into buffers counts as written by a kernel just
// before.
#include <algorithm>

#include "engine.h"

namespace hymba::emulator {
namespace {

struct Buffer {
  const char* begin;
  size_t bytes;
  uint32_t generation;  // when the host made it
};
std::vector<Buffer> buffers;

struct Started {
  uint32_t generation;  // the last one before it
  uint32_t completed;   // the last one that surely was complete when it started
  bool waited_first;    // a block let the next grid start only after its own wait, or never waited
  bool waited;          // a thread has waited for the previous grid
  uint32_t loose_from,
      loose_to;  // after the first and up to the second may go on when the previous has ended
};
Started this_launch{0, 0, true, true, 0, 0};

Buffer* find_buffer(const void* p) {
  const auto found = std::find_if(buffers.begin(), buffers.end(), [&](const Buffer& buffer) {
    return p >= buffer.begin && p < buffer.begin + buffer.bytes;
  });
  return found == buffers.end() ? nullptr : &*found;
}

// The next grid starts when all blocks have said so or ended: with one of them that had waited, the grids
// before are complete.
void note_start_of_next(bool waited) {
  this_launch.waited_first = this_launch.waited_first || waited;
}

}  // namespace

void begin_launch_overlap(const Launch& launch) {
  const Started& previous = this_launch;
  const uint32_t now = last_generation();
  const uint32_t completed = !launch.overlaps        ? now
                             : previous.waited_first ? previous.generation
                                                     : previous.completed;
  Started started{now, completed, !launch.overlaps, !launch.overlaps, now, now};
  if (launch.overlaps) {
    started.loose_from = previous.waited ? previous.loose_from : previous.completed;
    started.loose_to = previous.waited ? previous.loose_to : previous.generation;
  }
  this_launch = started;
}

void wait_for_previous_grid() {
  current->knows_previous_grid = true;
  this_launch.waited = true;
}

void start_next_grid() {
  if (!block->started_next_grid) note_start_of_next(knows_previous_grid());
  block->started_next_grid = true;
}

void end_block_overlap() {
  if (block->started_next_grid) return;
  note_start_of_next(std::any_of(block->fiber.begin(), block->fiber.begin() + block->threads,
                                 [](const Fiber& fiber) { return fiber.knows_previous_grid; }));
}

bool may_be_under_way(uint32_t generation, bool knows_previous) {
  const Started& launch = this_launch;
  return knows_previous ? generation > launch.loose_from && generation <= launch.loose_to
                        : generation > launch.completed && generation <= launch.generation;
}

void check_overlap(const void* p, Access access, bool knows_previous, bool used) {
  const Buffer* buffer = find_buffer(p);
  if (buffer == nullptr) return;
  const bool reads = access == Access::read || access == Access::constant_read;
  if (!used && !may_be_under_way(buffer->generation, knows_previous)) return;
  if (knows_previous)
    fail(
        "%s global memory at %p, which a grid may %s that was under way beside the previous one, which has "
        "ended without waiting for it",
        reads ? "reads" : "writes", p, reads ? "write" : "use");
  if (access == Access::constant_read)
    fail(
        "load_constant of global memory at %p that the grid before may write: it may be moved before "
        "wait_for_previous_grid()",
        p);
  fail("%s global memory at %p, which the grid before may %s, before wait_for_previous_grid()",
       reads ? "reads" : "writes", p, reads ? "write" : "use");
}

void add_buffer(const void* begin, size_t bytes) {
  buffers.push_back({static_cast<const char*>(begin), bytes, new_generation()});
}

void remove_buffer(const void* begin) {
  std::erase_if(buffers, [&](const Buffer& buffer) { return buffer.begin == begin; });
}

}  // namespace hymba::emulator
