// Arrays of heads as the attention ops' parameter structs take them.
#pragma once
#include "bindings/arrays.h"
#include "ops/attention.h"

namespace hymba::emulator {

// [B, T, H, D]
inline HeadsView heads_view(const Array& array) {
  return {array.data(), array.stride(0), array.stride(1), array.stride(2)};
}
// [M, H, D], or nothing
inline HeadsView meta_view(const OptionalArray& array) {
  return array ? HeadsView{array->data(), 0, array->stride(0), array->stride(1)} : HeadsView{};
}

}  // namespace hymba::emulator
