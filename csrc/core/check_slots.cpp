#include "core/check_slots.h"

#include <vector>

#include "core/torch_view.h"

namespace hymba {

static void check_values(const Check& check, const char* name, const Tensor& slots, const char* state_name,
                         int64_t state_rows) {
  const int32_t* values = slots.const_data_ptr<int32_t>();
  for (int64_t b = 0; b < slots.size(0); ++b)
    check.that(values[b] >= kPaddingSlot && values[b] < state_rows, name,
               concat("have values from -1 to ", state_rows - 1, " (", state_name, "'s rows)"),
               concat(values[b], " at index ", b));
}

static Slots slots_of(const OptionalTensor& in, const OptionalTensor& out, int64_t count) {
  return {static_cast<const int32_t*>(data_or_null(in)), static_cast<const int32_t*>(data_or_null(out)),
          count};
}

// Rows run in any order, so a slot that one row writes must be no other row's. `name`: of the slots to write.
static void check_conflicts(const Check& check, const char* name, const Slots& slots, int64_t batch,
                            int64_t state_rows) {
  std::vector<int64_t> writer(state_rows, -1);
  for (int64_t b = 0; b < batch; ++b) {
    if (is_padding(slots, b)) continue;
    const int64_t slot = slot_out(slots, b);
    check.that(writer[slot] < 0, name, "name each slot once",
               concat("slot ", slot, " in rows ", writer[slot], " and ", b));
    writer[slot] = b;
  }
  for (int64_t b = 0; b < batch; ++b) {
    if (is_padding(slots, b)) continue;
    const int64_t slot = slot_in(slots, b);
    check.that(writer[slot] < 0 || writer[slot] == b, name, "name no slot that another row reads",
               concat("slot ", slot, ", written by row ", writer[slot], " and read by row ", b));
  }
}

// int32 [B], or absent; what of it is on the host (host_values), its values checked.
static OptionalTensor checked_list(const Check& check, const char* name, const OptionalTensor& slots,
                                   const Tensor& x, const char* state_name, int64_t state_rows) {
  if (!slots) return std::nullopt;
  check.int32(name, *slots, "x", x);
  check.shape(name, *slots, "[B]", {x.size(0)});
  const OptionalTensor host = host_values(*slots);
  if (host) check_values(check, name, *host, state_name, state_rows);
  return host;
}

Slots checked_slots(const Check& check, const OptionalTensor& slots_in, const OptionalTensor& slots_out,
                    const Tensor& x, const Tensor& state) {
  const int64_t batch = x.size(0), state_rows = state.size(0);
  const OptionalTensor host_in = checked_list(check, "slots_in", slots_in, x, "state", state_rows);
  const OptionalTensor host_out = checked_list(check, "slots_out", slots_out, x, "state", state_rows);
  if (!slots_in)
    check.that(
        state_rows >= batch && (slots_out || state_rows == batch), "state",
        concat("have ", slots_out ? "at least " : "", "x's ", batch, " rows where slots_in is not given"),
        state_rows);
  if (host_in || host_out)
    check_conflicts(check, "slots_out", slots_of(host_in, host_out, state_rows), batch, state_rows);
  return slots_of(slots_in, slots_out, state_rows);
}

Slots checked_slots(const Check& check, const OptionalTensor& slots, const Tensor& x, const char* state_name,
                    const Tensor& state) {
  const int64_t batch = x.size(0), state_rows = state.size(0);
  const OptionalTensor host = checked_list(check, "slots", slots, x, state_name, state_rows);
  if (!slots)
    check.that(state_rows == batch, state_name, concat("have x's ", batch, " rows where slots is not given"),
               state_rows);
  if (host) check_conflicts(check, "slots", slots_of(host, {}, state_rows), batch, state_rows);
  return slots_of(slots, {}, state_rows);
}

}  // namespace hymba
