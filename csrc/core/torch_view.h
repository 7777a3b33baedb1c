// From torch tensors to the plain structs that kernels take. Torch side only.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>

#include "core/check.h"
#include "core/huge_pages.h"
#include "core/sequences.h"
#include "core/view.h"

namespace hymba {

// The last dimension is the row; 1 to 4 dimensions.
inline RowView row_view(const Tensor& t) {
  RowView view{t.data_ptr(), {1, 1, 1}, {0, 0, 0}};
  const int64_t leading = t.dim() - 1;
  for (int64_t i = 0; i < leading; ++i) {
    view.size[3 - leading + i] = t.size(i);
    view.stride[3 - leading + i] = t.stride(i);
  }
  return view;
}

// [B, T, C]
inline TokensView tokens_view(const Tensor& t) {
  return {t.data_ptr(), t.stride(0), t.stride(1)};
}
inline TokensView tokens_view(const OptionalTensor& t) {
  return t ? tokens_view(*t) : TokensView{};
}

// [B, C] or [B, n, C]
inline TokensView step_view(const Tensor& t) {
  return {t.data_ptr(), t.stride(0), t.dim() == 3 ? t.stride(1) : 0};
}

inline void* data_or_null(const OptionalTensor& t) {
  return t ? t->data_ptr() : nullptr;
}

inline bool is_f32(const Tensor& t) {
  return t.scalar_type() == torch::headeronly::ScalarType::Float;
}
inline bool is_f32(const OptionalTensor& t) {
  return t && is_f32(*t);
}

// Like torch.empty / torch.zeros with t's device; contiguous. Large ones in huge pages where the system
// allows.
inline Tensor new_tensor(const Tensor& t, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                         std::optional<torch::headeronly::ScalarType> dtype = std::nullopt) {
  const Tensor fresh = torch::stable::new_empty(t, sizes, dtype);
  if (fresh.is_cpu()) advise_huge_pages(fresh.data_ptr(), fresh.numel() * fresh.element_size());
  return fresh;
}
inline Tensor new_zeros(const Tensor& t, std::initializer_list<int64_t> sizes,
                        std::optional<torch::headeronly::ScalarType> dtype = std::nullopt) {
  return torch::stable::new_zeros(t, {sizes.begin(), sizes.size()}, dtype);
}
// Contiguous, with t's shape, dtype and device.
inline Tensor new_like(const Tensor& t) {
  return new_tensor(t, t.sizes());
}
// out = x @ weight.T + bias by torch's library: x [rows, K], weight [O, K], out [rows, O]. The out= form,
// which autocast leaves alone: an op's result has its inputs' dtype.
inline void linear_out(const Tensor& out, const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(x), from(weight), from(bias), from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes over the returned reference
}
// float64 beside float64, else float32
inline torch::headeronly::ScalarType state_dtype(const Tensor& x) {
  using torch::headeronly::ScalarType;
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace hymba
