// Counters by which the blocks of a kernel wait for each other: zeros that are zeros again afterwards. Their
// owner gives them to one kernel at a time; without any, zeros are made for the call. Torch side only.
#pragma once
#include "core/torch_view.h"

namespace hymba {

inline void check_counters(const Check& check, const OptionalTensor& counters, const char* like_name,
                           const Tensor& like, int64_t count) {
  if (!counters) return;
  check.int32("counters", *counters, like_name, like);
  check.that(counters->dim() == 1, "counters", "have one dimension", shape_text(*counters));
  check.that(counters->numel() >= count, "counters", concat("have at least ", count, " elements"),
             shape_text(*counters));
  const OptionalTensor host = host_values(*counters);
  if (!host) return;
  const int32_t* values = host->const_data_ptr<int32_t>();
  for (int64_t i = 0; i < count; ++i)
    check.that(values[i] == 0, "counters", "hold zeros between calls", concat(values[i], " at index ", i));
}

// `counters` holds what they live in.
inline uint32_t* counters_for(OptionalTensor& counters, const Tensor& like, int64_t count) {
  if (!counters) counters = new_zeros(like, {count}, torch::headeronly::ScalarType::Int);
  return static_cast<uint32_t*>(counters->mutable_data_ptr());
}

}  // namespace hymba
