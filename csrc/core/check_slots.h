// Checks of the update ops' slots. Torch side only.
#pragma once
#include "core/check.h"
#include "core/slots.h"

namespace hymba {

// slots_in, slots_out: int32 [B] on x's device, or both absent and state.size(0) == B. Where the values are
// read (host_values): from -1 to state.size(0) - 1, and no row writes a slot that another reads or writes.
Slots checked_slots(const Check& check, const OptionalTensor& slots_in, const OptionalTensor& slots_out,
                    const Tensor& x, const Tensor& state);
// The same of an op that writes what it reads: its one argument is `slots`.
Slots checked_slots(const Check& check, const OptionalTensor& slots, const Tensor& x, const char* state_name,
                    const Tensor& state);

}  // namespace hymba
