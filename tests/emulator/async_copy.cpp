// cp.async: a copy may arrive at any time from its issue to the wait for its group. Both ends are tried:
// late, with NaN in the destination until then, and eager.
#include <algorithm>
#include <cstring>

#include "engine.h"

namespace hymba::emulator {
namespace {

void arrive(const AsyncCopy& copy) {
  if (copy.source_bytes > 0) std::memcpy(copy.destination, copy.source, copy.source_bytes);
  std::memset(static_cast<char*>(copy.destination) + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
}

}  // namespace

void async_copy(void* destination, const void* source, size_t bytes, size_t source_bytes) {
  if (!is_shared(destination)) fail("cp.async: the destination %p is not in shared memory", destination);
  check_write(destination, bytes, "cp.async to shared memory");
  if (source_bytes > 0) check_read(source, bytes, "cp.async from global memory");
  const AsyncCopy copy{destination, source, bytes, source_bytes};
  block->copies[current->number].open.push_back(copy);
  if (options.eager_copies)
    arrive(copy);
  else
    std::memset(destination, kUninitialised, bytes);
}

void async_commit() {
  AsyncCopies& copies = block->copies[current->number];
  copies.groups.push_back(std::move(copies.open));
  copies.open.clear();
}

void async_wait(int pending) {
  auto& groups = block->copies[current->number].groups;
  for (; static_cast<int>(groups.size()) > pending; groups.erase(groups.begin()))
    for (const AsyncCopy& copy : groups.front()) {
      // The write happens now, whichever end is tried: what others read before the next barrier is a race.
      check_races(copy.destination, copy.bytes, Access::write, __builtin_return_address(0));
      if (!options.eager_copies) arrive(copy);
    }
}

bool has_pending_copies(const Fiber& fiber) {
  const AsyncCopies& copies = block->copies[fiber.number];
  const auto has_copies = [](const std::vector<AsyncCopy>& group) { return !group.empty(); };
  return has_copies(copies.open) || std::any_of(copies.groups.begin(), copies.groups.end(), has_copies);
}

}  // namespace hymba::emulator
