// Strided views of tensors for kernel parameter structs: plain data, free of torch, shared by all back ends.
#pragma once
#include <cstdint>

#include "core/host_device.h"

namespace hymba {

// Rows of contiguous elements with up to three leading dimensions, missing ones having size 1. Strides count
// elements.
struct RowView {
  void* data;
  int64_t size[3];
  int64_t stride[3];
};

// Offset in elements of row number `row`, counted over the leading dimensions in order.
HYMBA_INLINE int64_t row_offset(const RowView& view, int64_t row) {
  const int64_t i2 = row % view.size[2], rest = row / view.size[2];
  return (rest / view.size[1]) * view.stride[0] + (rest % view.size[1]) * view.stride[1] +
         i2 * view.stride[2];
}

HYMBA_INLINE int64_t row_count(const RowView& view) {
  return view.size[0] * view.size[1] * view.size[2];
}

}  // namespace hymba
