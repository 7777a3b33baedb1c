// Tensors of heads as the attention ops' parameter structs take them. Torch side only.
#pragma once
#include "core/check.h"
#include "ops/attention.h"

namespace hymba {

// [B, T, H, D]
inline HeadsView heads_view(const Tensor& t) {
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
}
inline HeadsView heads_view(const OptionalTensor& t) {
  return t ? heads_view(*t) : HeadsView{};
}
// [M, H, D], or nothing
inline HeadsView meta_view(const OptionalTensor& t) {
  return t ? HeadsView{t->data_ptr(), 0, t->stride(0), t->stride(1)} : HeadsView{};
}

}  // namespace hymba
