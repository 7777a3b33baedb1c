// Slots: the rows of a larger state tensor that the rows of a batch read and write. Plain data, shared by all
// back ends.
#pragma once
#include <cstdint>

#include "core/host_device.h"

namespace hymba {

struct Slots {
  const int32_t* in;   // [B], or null: row b reads state row b
  const int32_t* out;  // [B], or null: row b writes what it reads
  int64_t count;       // rows of the state
};

constexpr int64_t kPaddingSlot = -1;
// The most tokens of one step of the update ops.
constexpr int64_t kMaxStepTokens = 16;

HYMBA_INLINE int64_t slot_in(const Slots& slots, int64_t b) {
  return slots.in ? slots.in[b] : b;
}
HYMBA_INLINE int64_t slot_out(const Slots& slots, int64_t b) {
  return slots.out ? slots.out[b] : slot_in(slots, b);
}
// A padding row is skipped: its output is zero and no state changes. A row whose slot cannot be is one too:
// nobody has checked a GPU's values.
HYMBA_INLINE bool is_padding(const Slots& slots, int64_t b) {
  const int64_t in = slot_in(slots, b), out = slot_out(slots, b);
  return in < 0 || in >= slots.count || out < 0 || out >= slots.count;
}

}  // namespace hymba
