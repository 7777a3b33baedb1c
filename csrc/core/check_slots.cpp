#include "core/check_slots.h"

#include <vector>

#include "core/torch_view.h"

namespace hymba {

static void check_values(const Check& check, const char* name, const Tensor& slots, int64_t state_rows) {
  const int32_t* values = slots.const_data_ptr<int32_t>();
  for (int64_t b = 0; b < slots.size(0); ++b)
    check.that(values[b] >= kPaddingSlot && values[b] < state_rows, name,
               concat("have values from -1 to ", state_rows - 1, " (state's rows)"),
               concat(values[b], " at index ", b));
}

static Slots slots_of(const OptionalTensor& in, const OptionalTensor& out, int64_t count) {
  return {static_cast<const int32_t*>(data_or_null(in)), static_cast<const int32_t*>(data_or_null(out)),
          count};
}

// Rows run in any order, so a slot that one row writes must be no other row's.
static void check_conflicts(const Check& check, const Slots& slots, int64_t batch, int64_t state_rows) {
  std::vector<int64_t> writer(state_rows, -1);
  for (int64_t b = 0; b < batch; ++b) {
    if (is_padding(slots, b)) continue;
    const int64_t slot = slot_out(slots, b);
    check.that(writer[slot] < 0, "slots_out", "name each slot once",
               concat("slot ", slot, " in rows ", writer[slot], " and ", b));
    writer[slot] = b;
  }
  for (int64_t b = 0; b < batch; ++b) {
    if (is_padding(slots, b)) continue;
    const int64_t slot = slot_in(slots, b);
    check.that(writer[slot] < 0 || writer[slot] == b, "slots_out", "name no slot that another row reads",
               concat("slot ", slot, ", written by row ", writer[slot], " and read by row ", b));
  }
}

Slots checked_slots(const Check& check, const OptionalTensor& slots_in, const OptionalTensor& slots_out,
                    const Tensor& x, const Tensor& state) {
  const int64_t batch = x.size(0), state_rows = state.size(0);
  const auto checked = [&](const char* name, const OptionalTensor& slots) -> OptionalTensor {
    if (!slots) return std::nullopt;
    check.int32(name, *slots, "x", x);
    check.shape(name, *slots, "[B]", {batch});
    const OptionalTensor host = host_values(*slots);
    if (host) check_values(check, name, *host, state_rows);
    return host;
  };
  const OptionalTensor host_in = checked("slots_in", slots_in), host_out = checked("slots_out", slots_out);
  if (!slots_in)
    check.that(
        state_rows >= batch && (slots_out || state_rows == batch), "state",
        concat("have ", slots_out ? "at least " : "", "x's ", batch, " rows where slots_in is not given"),
        state_rows);
  if (host_in || host_out) check_conflicts(check, slots_of(host_in, host_out, state_rows), batch, state_rows);
  return slots_of(slots_in, slots_out, state_rows);
}

}  // namespace hymba
