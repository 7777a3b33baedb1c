#include "core/check.h"

#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <vector>

namespace hymba {

using torch::headeronly::ScalarType;

std::string shape_text(const Tensor& t) {
  std::string text = "[";
  for (int64_t i = 0; i < t.dim(); ++i) text += (i ? ", " : "") + std::to_string(t.size(i));
  return text + "]";
}

std::string dtype_name(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    default:
      return concat(torch::headeronly::toString(t.scalar_type()));
  }
}

std::string device_name(const Tensor& t) {
  if (t.is_cpu()) return "cpu";
  if (t.is_cuda()) return concat("cuda:", t.get_device_index());
  return concat("a device of type ", static_cast<int>(t.device().type()));
}

static std::optional<DType> find_dtype(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Half:
      return DType::f16;
    default:
      return std::nullopt;
  }
}

DType dtype_of(const Tensor& t) {
  const std::optional<DType> dtype = find_dtype(t);
  if (!dtype) throw std::logic_error("dtype_of: unchecked dtype " + dtype_name(t));
  return *dtype;
}

void Check::fail(const char* name, const std::string& expected, const std::string& got) const {
  throw std::invalid_argument(concat(op_, ": ", name, " must ", expected, ", got ", got));
}

void Check::floating(const char* name, const Tensor& t) const {
  that(t.defined(), name, "be a tensor", "None");
  that(t.layout() == torch::headeronly::Layout::Strided, name, "be a strided (dense) tensor",
       "another layout");
  that(find_dtype(t).has_value(), name, "be float16, bfloat16, float32 or float64", dtype_name(t));
  const int64_t last = t.dim() - 1;
  if (last >= 0 && t.size(last) > 1)
    that(t.stride(last) == 1, name, "have a contiguous last dimension (stride 1)",
         concat("stride ", t.stride(last)));
}

void Check::same_device(const char* name, const Tensor& t, const char* like_name, const Tensor& like) const {
  that(t.defined(), name, "be a tensor", "None");
  that(t.device() == like.device(), name, concat("be on ", like_name, "'s device ", device_name(like)),
       device_name(t));
}

void Check::same_type(const char* name, const Tensor& t, const char* like_name, const Tensor& like) const {
  same_device(name, t, like_name, like);
  that(t.scalar_type() == like.scalar_type(), name, concat("have ", like_name, "'s dtype ", dtype_name(like)),
       dtype_name(t));
  floating(name, t);
}

void Check::same_type_or_f32(const char* name, const Tensor& t, const char* like_name,
                             const Tensor& like) const {
  same_device(name, t, like_name, like);
  that(t.scalar_type() == like.scalar_type() || t.scalar_type() == ScalarType::Float, name,
       concat("have ", like_name, "'s dtype ", dtype_name(like), " or float32"), dtype_name(t));
  floating(name, t);
}

void Check::state_type(const char* name, const Tensor& t, const char* like_name, const Tensor& like) const {
  same_device(name, t, like_name, like);
  const bool is_double = like.scalar_type() == ScalarType::Double;
  that(t.scalar_type() == (is_double ? ScalarType::Double : ScalarType::Float), name,
       concat("be ", is_double ? "float64" : "float32", " where ", like_name, " is ", dtype_name(like)),
       dtype_name(t));
  floating(name, t);
}

void Check::int32(const char* name, const Tensor& t, const char* like_name, const Tensor& like) const {
  same_device(name, t, like_name, like);
  that(t.scalar_type() == ScalarType::Int, name, "be int32", dtype_name(t));
  const int64_t last = t.dim() - 1;
  if (last >= 0 && t.size(last) > 1)
    that(t.stride(last) == 1, name, "have a contiguous last dimension (stride 1)",
         concat("stride ", t.stride(last)));
}

void Check::shape(const char* name, const Tensor& t, const char* meaning,
                  std::initializer_list<int64_t> sizes) const {
  bool ok = t.dim() == static_cast<int64_t>(sizes.size());
  bool any_known = false;
  std::string expected;
  int64_t i = 0;
  for (const int64_t size : sizes) {
    ok = ok && (size == kAnySize || t.size(i) == size);
    expected += (i ? ", " : "") + (size == kAnySize ? "*" : std::to_string(size));
    any_known = any_known || size != kAnySize;
    ++i;
  }
  if (ok) return;
  fail(name, concat("have shape ", meaning, any_known ? " = [" + expected + "]" : ""), shape_text(t));
}

void Check::rank_between(const char* name, const Tensor& t, int64_t lowest, int64_t highest) const {
  that(t.dim() >= lowest && t.dim() <= highest, name, concat("have ", lowest, " to ", highest, " dimensions"),
       shape_text(t));
}

static bool device_checks_wanted() {
  const char* value = std::getenv("HYMBA_OPS_CHECK");
  const std::string text = value ? value : "0";
  if (text != "0" && text != "1")
    throw std::invalid_argument(concat("HYMBA_OPS_CHECK must be 0 or 1, got '", text, "'"));
  return text == "1";
}

OptionalTensor host_values(const Tensor& t) {
  if (t.is_cpu()) return t;
  if (!device_checks_wanted()) return std::nullopt;
  return torch::stable::to(t, torch::stable::Device(torch::headeronly::DeviceType::CPU));
}

int64_t Check::cu_seqlens(const char* name, const Tensor& t, const char* like_name, const Tensor& like,
                          int64_t total) const {
  int32(name, t, like_name, like);
  that(t.dim() == 1 && t.size(0) >= 1, name, "have shape [sequences + 1]", shape_text(t));
  const int64_t count = t.size(0) - 1;
  const OptionalTensor host = host_values(t);
  if (!host) return count;
  const int32_t* starts = host->const_data_ptr<int32_t>();
  that(starts[0] == 0, name, "start at 0", concat(starts[0]));
  for (int64_t i = 0; i < count; ++i)
    that(starts[i + 1] >= starts[i], name, "never decrease",
         concat(starts[i + 1], " after ", starts[i], " at index ", i + 1));
  that(starts[count] <= total, name, concat("end at or below ", like_name, "'s ", total, " rows"),
       concat(starts[count]));
  return count;
}

int64_t Check::step_tokens(const char* name, const Tensor& x, int64_t limit) const {
  that(x.dim() == 2 || x.dim() == 3, name, "have shape [B, C] or [B, n, C]", shape_text(x));
  const int64_t tokens = x.dim() == 2 ? 1 : x.size(1);
  that(tokens >= 1 && tokens <= limit, name, concat("have 1 to ", limit, " tokens"), tokens);
  return tokens;
}

void Check::writable(const char* name, const Tensor& t) const {
  if (t.numel() == 0) return;  // torch gives empty tensors any strides
  for (int64_t i = 0; i < t.dim(); ++i)
    that(t.size(i) <= 1 || t.stride(i) != 0, name,
         "have memory of its own for each element (it changes in place)",
         concat("stride 0 in dimension ", i));
}

int64_t Check::sequences(const Tensor& x, const OptionalTensor& cu_seqlens) const {
  if (!cu_seqlens) return x.size(0);
  that(x.size(0) == 1, "x", "have batch size 1 where cu_seqlens is given", x.size(0));
  return this->cu_seqlens("cu_seqlens", *cu_seqlens, "x", x, x.size(1));
}

}  // namespace hymba
