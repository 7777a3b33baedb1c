// Grids whose beginning overlaps the end of the one before (griddepcontrol). A thread of a launch that
// `overlaps` must not read what kernels before may still write, nor write at all, until it knows the end of
// the previous grid: by its own wait_for_previous_grid(), or by synchronisation with a thread that has
// waited. Only the `races` build sees all accesses. What the host has put into buffers counts as written by a
// kernel just before, unless it is said to be constant.
#include <algorithm>

#include "engine.h"

namespace hymba::emulator {
namespace {

struct Buffer {
  const char* begin;
  size_t bytes;
  uint32_t generation;  // when the host made it
  bool constant;
};
std::vector<Buffer> buffers;

struct Started {
  uint32_t generation;  // the last one before it
  uint32_t completed;   // the last one that surely was complete when it started
  bool waited_first;    // a block let the next grid start only after its own wait, or never waited
};
Started this_launch{0, 0, true};

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
  this_launch = {now, completed, !launch.overlaps};
}

void wait_for_previous_grid() {
  current->knows_previous_grid = true;
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

bool may_be_under_way(uint32_t generation) {
  return generation > this_launch.completed && generation <= this_launch.generation;
}

void check_overlap(const void* p, Access access, bool under_way) {
  const Buffer* buffer = find_buffer(p);
  if (buffer == nullptr || (access != Access::constant_read && knows_previous_grid())) return;
  const bool reads = access == Access::read || access == Access::constant_read;
  const bool unsure = under_way || (!buffer->constant && may_be_under_way(buffer->generation));
  if (!reads) fail("writes global memory at %p before wait_for_previous_grid()", p);
  if (!unsure) return;
  if (access == Access::constant_read)
    fail(
        "load_constant of global memory at %p that the grid before may write: it may be moved before "
        "wait_for_previous_grid()",
        p);
  fail("reads global memory at %p, which the grid before may write, before wait_for_previous_grid()", p);
}

void add_buffer(const void* begin, size_t bytes) {
  buffers.push_back({static_cast<const char*>(begin), bytes, new_generation(), false});
}

void set_constant(const void* begin) {
  if (Buffer* buffer = find_buffer(begin)) buffer->constant = true;
}

void remove_buffer(const void* begin) {
  std::erase_if(buffers, [&](const Buffer& buffer) { return buffer.begin == begin; });
}

}  // namespace hymba::emulator
