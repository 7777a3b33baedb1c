// The race checker: for every byte of shared and watched global memory its last write and some reads since,
// each with the epoch of its warp. An access that did not happen before the present one is reported, whatever
// the schedule, of other blocks too. Accesses come from the hooks that -fsanitize=thread puts into kernel
// files (no libtsan is linked) and from check_read and its like.
#include <algorithm>

#include "engine.h"

namespace hymba::emulator {
namespace {

struct Watched {
  char* begin;
  size_t bytes;
  Pages<Cell> cells;
};
std::vector<Watched> watched;
uint32_t launch_generation = 0;  // the last one before the launch

struct Checker {
  bool global, constant;
  Past now;

  bool exists(const Past& past) const {
    return global ? past.generation > launch_generation : past.generation == now.generation;
  }
  bool of_other_block(const Past& past) const { return past.generation != now.generation; }
  bool conflicts(const Past& past) const {
    return exists(past) && !(past.atomic && now.atomic) && !happened_before(past);
  }

  [[noreturn]] void report(const void* byte, const Past& past, const char* what) const;

  void check(Cell& cell, const void* byte, bool writes) const {
    if (conflicts(cell.write))
      report(byte, cell.write, writes ? "writes after a write" : "reads after a write");
    if (constant && exists(cell.write))
      fail("load_constant of global memory at %p that the kernel itself writes", byte);
    if (!writes) return;
    for (const Past& read : cell.reads)
      if (conflicts(read)) report(byte, read, "writes after a read");
  }
  void record(Cell& cell, bool writes) const {
    if (!writes) {
      slot_for_read(cell) = now;
      return;
    }
    cell.write = now;
    for (Past& read : cell.reads) read.generation = 0;
  }
  // A read that need not be remembered any more, or one of several that would all show the same race. One of
  // another block is kept as long as there is one.
  Past& slot_for_read(Cell& cell) const {
    Past* other = nullptr;
    for (Past& read : cell.reads) {
      if (!exists(read)) return read;
      if (happened_before(read)) return read;
      if (!of_other_block(read)) continue;
      if (other != nullptr) return read;
      other = &read;
    }
    Past& read = cell.reads[current->number % kReads];
    return &read == other ? cell.reads[(current->number + 1) % kReads] : read;
  }
};

void Checker::report(const void* byte, const Past& past, const char* what) const {
  const uintptr_t half = uintptr_t{1} << 32;
  const uintptr_t here = reinterpret_cast<uintptr_t>(&check_races);
  const uintptr_t code = (here & ~(half - 1)) | past.code;
  const std::string other = describe_address(reinterpret_cast<void*>(code));
  const std::string who =
      of_other_block(past) ? "a thread of another block" : "thread number " + std::to_string(past.thread);
  fail(
      "data race on %s memory at %p: %s by %s that no synchronisation orders before it; the other "
      "access:%s\n  this one:",
      global ? "global" : "shared", byte, what, who.c_str(), other.c_str());
}

Cell* find_cells(const char* p, bool& global) {
  if (is_shared(p)) {
    global = false;
    return &block->cells[p - block->arena];
  }
  global = true;
  for (Watched& range : watched)
    if (p >= range.begin && p < range.begin + range.bytes) return &range.cells[p - range.begin];
  return nullptr;
}

void refuse_red_zone(const char* p, size_t bytes) {
  const size_t begin = static_cast<size_t>(p - block->arena);
  for (const SharedRange& zone : block->red_zones)
    if (begin < zone.offset + zone.bytes && begin + bytes > zone.offset)
      fail("access to shared memory %zd bytes behind the end of an array",
           static_cast<ssize_t>(begin) - static_cast<ssize_t>(zone.offset));
}

}  // namespace

void begin_launch_races() {
  launch_generation = last_generation();
}

void begin_block_races() {
  if (options.races && !block->cells) block->cells = allocate_pages<Cell>(kArenaBytes);
}

static void check_overlap_of_cells(const Cell* cells, const void* p, size_t bytes, Access access) {
  const bool knows = access != Access::constant_read && knows_previous_grid();
  const bool writes = access != Access::read && access != Access::constant_read;
  const auto under_way = [&](const Past& past) { return may_be_under_way(past.generation, knows); };
  const auto used = [&](const Cell& cell) {
    return under_way(cell.write) ||
           (writes && std::any_of(std::begin(cell.reads), std::end(cell.reads), under_way));
  };
  check_overlap(p, access, knows, cells != nullptr && std::any_of(cells, cells + bytes, used));
}

void check_races(const void* p, size_t bytes, Access access, void* pc) {
  if (current == nullptr || !options.races) return;
  bool global;
  Cell* cells = find_cells(static_cast<const char*>(p), global);
  if (!global)
    refuse_red_zone(static_cast<const char*>(p), bytes);
  else if (block->launch->overlaps)
    check_overlap_of_cells(cells, p, bytes, access);
  if (cells == nullptr) return;
  const Fiber& self = *current;
  const Checker checker{
      global,
      access == Access::constant_read,
      {block->generation, block->epoch[self.warp], static_cast<uint32_t>(reinterpret_cast<uintptr_t>(pc)),
       static_cast<uint16_t>(self.number), access == Access::atomic}};
  const bool writes = access != Access::read && access != Access::constant_read;
  if (!global && writes) (access == Access::async_write ? note_async_write : note_generic_write)(p, bytes);
  for (size_t i = 0; i < bytes; ++i) {
    checker.check(cells[i], static_cast<const char*>(p) + i, writes);
    checker.record(cells[i], writes);
  }
}

void watch_global(void* begin, size_t bytes) {
  if (bytes == 0 || !options.races) return;
  watched.push_back({static_cast<char*>(begin), bytes, allocate_pages<Cell>(bytes)});
}

void unwatch_global(void* begin) {
  std::erase_if(watched, [&](const Watched& range) { return range.begin == begin; });
}

}  // namespace hymba::emulator
