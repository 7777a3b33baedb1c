// Argument checks of the ops, written once and run in every mode (direct torch.ops calls included).
//
// A failed check throws std::invalid_argument, which arrives in Python as a ValueError:
//   "attention: k must have shape [B, S, Hkv, Dk] = [2, S, Hkv, 16], got [2, 30, 5, 8]"
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "core/dtype.h"

namespace hymba {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kAnySize = -1;

template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

std::string shape_text(const Tensor& t);
std::string dtype_name(const Tensor& t);
std::string device_name(const Tensor& t);
DType dtype_of(const Tensor& t);  // throws for types that no kernel takes: check.floating comes first

// `t` on the host, for a check that reads its values: `t` itself on the CPU, a copy of a CUDA tensor where
// HYMBA_OPS_CHECK=1 (the host then waits for the GPU), otherwise nothing.
OptionalTensor host_values(const Tensor& t);

class Check {
 public:
  explicit Check(const char* op) : op_(op) {}

  // Throws "<op>: <name> must <expected>, got <got>" unless `ok`.
  template <class Got>
  void that(bool ok, const char* name, const std::string& expected, const Got& got) const {
    if (!ok) fail(name, expected, concat(got));
  }

  // One of float16, bfloat16, float32, float64; strided; last dimension contiguous.
  void floating(const char* name, const Tensor& t) const;
  // Like `floating`, and of the dtype and on the device of `like`.
  void same_type(const char* name, const Tensor& t, const char* like_name, const Tensor& like) const;
  // The dtype of `like` or float32 (parameters kept in float32 beside bf16 activations).
  void same_type_or_f32(const char* name, const Tensor& t, const char* like_name, const Tensor& like) const;
  // Recurrent states: float32, or float64 beside float64 inputs.
  void state_type(const char* name, const Tensor& t, const char* like_name, const Tensor& like) const;
  // int32 on the device of `like`, one-dimensional unless `rank` says otherwise.
  void int32(const char* name, const Tensor& t, const char* like_name, const Tensor& like) const;
  void same_device(const char* name, const Tensor& t, const char* like_name, const Tensor& like) const;

  // Sizes must equal `sizes` where those are not kAnySize. `meaning` names the dimensions: "[B, T, C]".
  void shape(const char* name, const Tensor& t, const char* meaning,
             std::initializer_list<int64_t> sizes) const;
  void rank_between(const char* name, const Tensor& t, int64_t lowest, int64_t highest) const;

  // Packed boundaries: int32 [n + 1] on x's device, 0 = first <= ... <= last <= total, where the values are
  // read (host_values). Returns the number of sequences.
  int64_t cu_seqlens(const char* name, const Tensor& t, const char* like_name, const Tensor& like,
                     int64_t total) const;

  // x [B, T, ...] and its optional packing: batch size 1 with valid cu_seqlens. Returns the number of
  // sequences.
  int64_t sequences(const Tensor& x, const OptionalTensor& cu_seqlens) const;

  // x [B, C] or [B, n, C] of an update op, n from 1 to `limit`. Returns n.
  int64_t step_tokens(const char* name, const Tensor& x, int64_t limit) const;
  // No two elements share memory, as far as strides of 0 tell.
  void writable(const char* name, const Tensor& t) const;

  [[noreturn]] void fail(const char* name, const std::string& expected, const std::string& got) const;

 private:
  const char* op_;
};

}  // namespace hymba
