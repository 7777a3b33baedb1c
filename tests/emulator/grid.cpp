// What a block has to do with other blocks and grids.
#include <cstring>

#include "engine.h"

namespace hymba::emulator {

void wait_for_previous_grid() {}

void start_next_grid() {}

uint32_t count_block(uint32_t* counter) {
  check_atomic(counter, sizeof *counter, "count_block");
  return (*counter)++;
}

void wait_for_blocks(const uint32_t* counter, uint32_t count, const Site&) {
  check_atomic(const_cast<uint32_t*>(counter), sizeof *counter, "wait_for_blocks");
  if (*counter < count) fail("wait_for_blocks: %u of %u blocks have come", *counter, count);
}

}  // namespace hymba::emulator
