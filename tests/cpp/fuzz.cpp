#include "fuzz.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>

namespace hymba::fuzz {

static int64_t product(const Sizes& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
}

static std::string list_text(const Sizes& values) {
  std::string text = "[";
  for (int64_t v : values) text += (text.size() > 1 ? ", " : "") + std::to_string(v);
  return text + "]";
}

// ---- Values ----

static int64_t element_size(DType dtype) {
  return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

template <class T>
static void store_as(char* p, double value) {
  T stored;
  from_compute(stored, static_cast<compute_t<T>>(value));
  memcpy(p, &stored, sizeof stored);
}
template <class T>
static double load_as(const char* p) {
  T stored;
  memcpy(&stored, p, sizeof stored);
  return to_compute(stored);
}

static void store_value(DType dtype, char* p, double value) {
  switch (dtype) {
    case DType::f32:
      return store_as<float>(p, value);
    case DType::bf16:
      return store_as<bfloat16>(p, value);
    case DType::f16:
      return store_as<float16>(p, value);
    case DType::f64:
      return store_as<double>(p, value);
  }
}

static double load_value(DType dtype, const char* p) {
  switch (dtype) {
    case DType::f32:
      return load_as<float>(p);
    case DType::bf16:
      return load_as<bfloat16>(p);
    case DType::f16:
      return load_as<float16>(p);
    default:
      return load_as<double>(p);
  }
}

static const char* dtype_text(DType dtype) {
  return dtype == DType::f32 ? "f32" : dtype == DType::bf16 ? "bf16" : dtype == DType::f16 ? "f16" : "f64";
}

double silu(double x) {
  return x / (1 + std::exp(-x));
}
double softplus(double x) {
  return std::max(x, 0.0) + std::log1p(std::exp(-std::fabs(x)));
}
DType state_dtype(DType dtype) {
  return dtype == DType::f64 ? DType::f64 : DType::f32;
}

// ---- Arrays ----

Dense::Dense(Sizes sizes_, double value) : sizes(std::move(sizes_)), values(product(sizes), value) {}

// Elements from the first to the last one, gaps included.
static int64_t span_of(const Sizes& sizes, const Sizes& strides) {
  if (product(sizes) == 0) return 0;
  int64_t span = 1;
  for (size_t d = 0; d < sizes.size(); ++d) span += (sizes[d] - 1) * strides[d];
  return span;
}

Array::Array(DType dtype_, Sizes sizes_, Sizes strides_, int64_t offset)
    : dtype(dtype_),
      sizes(std::move(sizes_)),
      strides(std::move(strides_)),
      offset_(offset),
      span_(span_of(sizes, strides)),
      memory_(new char[byte_count()]) {
  for (int64_t i = 0; i < byte_count(); i += element_size(dtype))
    store_value(dtype, &memory_[i], std::numeric_limits<double>::quiet_NaN());
}

int64_t Array::byte_count() const {
  return span_ == 0 ? 0 : (offset_ + span_) * element_size(dtype);
}

void* Array::data() const {
  return span_ == 0 ? nullptr : &memory_[offset_ * element_size(dtype)];
}

// visit(position in bytes from memory_), in row-major order
template <class Visit>
void Array::for_each_element(Visit visit) const {
  Sizes index(sizes.size(), 0);
  for (int64_t i = product(sizes); i > 0; --i) {
    visit((offset_ + std::inner_product(index.begin(), index.end(), strides.begin(), int64_t{0})) *
          element_size(dtype));
    for (size_t d = sizes.size(); d-- > 0 && ++index[d] == sizes[d];) index[d] = 0;
  }
}

void Array::fill(const Dense& values) {
  auto value = values.values.begin();
  for_each_element([&](int64_t at) { store_value(dtype, &memory_[at], *value++); });
}

Dense Array::dense() const {
  Dense result(sizes);
  auto value = result.values.begin();
  for_each_element([&](int64_t at) { *value++ = load_value(dtype, &memory_[at]); });
  return result;
}

void Array::restore(const std::string& bytes) {
  std::copy(bytes.begin(), bytes.end(), memory_.get());
}

bool Array::gaps_equal(const std::string& bytes) const {
  std::string now = this->bytes();
  for_each_element([&](int64_t at) { now.replace(at, element_size(dtype), bytes, at, element_size(dtype)); });
  return now == bytes;
}

TokensView tokens_view(const Array& a) {
  return {a.data(), a.strides[0], a.strides[1]};
}
RowView row_view(const Array& a) {
  return {a.data(), {a.sizes[0], a.sizes[1], a.sizes[2]}, {a.strides[0], a.strides[1], a.strides[2]}};
}

// ---- Drawing ----

Case::Case(const char* op, uint64_t seed) : random_(seed) {
  text_ << op << " --seed " << seed << ":";
}

template <class Value>
Value Case::record(const char* name, Value value) {
  text_ << "  " << name << " " << value;
  return value;
}

int64_t Case::draw(int64_t low, int64_t high) {
  return low + static_cast<int64_t>(random_() % static_cast<uint64_t>(high - low + 1));
}
double Case::draw_real(double low, double high) {
  return low + (high - low) * static_cast<double>(random_() >> 11) * 0x1p-53;
}

int64_t Case::between(const char* name, int64_t low, int64_t high) {
  return record(name, draw(low, high));
}
int64_t Case::choose(const char* name, std::initializer_list<int64_t> values) {
  return record(name, values.begin()[draw(0, values.size() - 1)]);
}
double Case::choose_number(const char* name, std::initializer_list<double> values) {
  return record(name, values.begin()[draw(0, values.size() - 1)]);
}
bool Case::maybe(const char* name, double probability) {
  return record(name, draw_real(0, 1) < probability);
}

DType Case::dtype() {
  const DType dtype = static_cast<DType>(draw(0, 3));
  record("dtype", dtype_text(dtype));
  return dtype;
}
DType Case::dtype_or_f32(DType dtype) {
  return draw(0, 1) ? dtype : DType::f32;
}

// The dimensions before the last lie in any order, with gaps and an odd base or without.
std::unique_ptr<Array> Case::random_array(DType dtype, const Sizes& sizes, double low, double high) {
  std::vector<size_t> order(sizes.size() - 1);
  std::iota(order.rbegin(), order.rend(), 0);  // the innermost first
  if (draw(0, 2) == 0) std::shuffle(order.begin(), order.end(), random_);
  Sizes strides(sizes.size(), 1);
  int64_t next = sizes.back();
  const bool gaps = draw(0, 1);
  for (size_t d : order) {
    strides[d] = std::max<int64_t>(next, 1) + (gaps ? Sizes{0, 1, 5, 8, 24}[draw(0, 4)] : 0);
    next = strides[d] * sizes[d];
  }
  auto array = std::make_unique<Array>(dtype, sizes, strides, gaps ? Sizes{0, 1, 3}[draw(0, 2)] : 0);
  fill_randomly(*array, low, high);
  return array;
}

void Case::fill_randomly(Array& array, double low, double high) {
  Dense values(array.sizes);
  for (double& value : values.values) value = draw_real(low, high);
  array.fill(values);
}

Array& Case::add(const char* name, std::unique_ptr<Array> array, bool written) {
  text_ << "  " << name << " " << dtype_text(array->dtype) << list_text(array->sizes);
  if (!written || array->strides.size() > 1) text_ << " strides " << list_text(array->strides);
  arrays_.push_back({name, std::move(array), written});
  return *arrays_.back().array;
}

Array& Case::input(const char* name, DType dtype, Sizes sizes, double low, double high) {
  return add(name, random_array(dtype, sizes, low, high), false);
}
Array& Case::state(const char* name, DType dtype, Sizes sizes) {
  return add(name, random_array(dtype, sizes, -1, 1), true);
}
static std::unique_ptr<Array> contiguous_array(DType dtype, const Sizes& sizes) {
  Sizes strides(sizes.size(), 1);
  for (size_t d = sizes.size() - 1; d-- > 0;) strides[d] = strides[d + 1] * sizes[d + 1];
  return std::make_unique<Array>(dtype, sizes, strides, 0);
}
Array& Case::output(const char* name, DType dtype, Sizes sizes, double value) {
  auto array = contiguous_array(dtype, sizes);
  array->fill(Dense(sizes, value));
  return add(name, std::move(array), true);
}
Array& Case::contiguous(const char* name, DType dtype, Sizes sizes, bool written) {
  auto array = contiguous_array(dtype, sizes);
  fill_randomly(*array, -1, 1);
  return add(name, std::move(array), written);
}

const int32_t* Case::integers(const char* name, const std::vector<int32_t>& values) {
  text_ << "  " << name << " " << list_text({values.begin(), values.end()});
  return integers_.emplace_back(values).data();
}

std::vector<int32_t> Case::boundaries(int64_t total) {
  std::vector<int32_t> starts(draw(1, 6));
  for (int32_t& start : starts) start = static_cast<int32_t>(draw(0, total));
  if (draw(0, 1)) starts.back() = static_cast<int32_t>(total);
  if (starts.size() > 2 && draw(0, 1)) starts[1] = starts[0];  // an empty sequence
  starts.push_back(0);
  std::sort(starts.begin(), starts.end());
  return starts;
}

Sequences Case::sequences(bool packed, int64_t batch, int64_t tokens) {
  if (!packed) return {nullptr, batch, tokens};
  const std::vector<int32_t> starts = boundaries(tokens);
  return {integers("cu_seqlens", starts), static_cast<int64_t>(starts.size()) - 1, tokens};
}

// A written slot is read by its own row at most. Rows past the batch's are free to be written by anyone, and
// with slots_out several rows may read one slot (a fork).
Slots Case::slots(int64_t batch, int64_t& state_rows) {
  const bool with_in = maybe("slots_in"), with_out = maybe("slots_out");
  state_rows = with_in || with_out ? 2 * batch + draw(0, 2) : batch;
  std::vector<int32_t> order(state_rows), in(batch), out(batch);
  std::iota(order.begin(), order.end(), 0);
  if (with_in) std::shuffle(order.begin(), order.end(), random_);
  const bool fork = with_in && with_out && draw(0, 1);
  for (int64_t b = 0; b < batch; ++b) {
    in[b] = order[fork ? 0 : b];
    out[b] = with_out && (fork || draw(0, 1)) ? order[batch + b] : in[b];
  }
  for (int64_t b = 0; b < batch; ++b) {
    if (draw(0, 4) == 0) in[b] = kPaddingSlot;
    if (draw(0, 4) == 0) out[b] = kPaddingSlot;
  }
  return {with_in ? integers("slots_in", in) : nullptr, with_out ? integers("slots_out", out) : nullptr,
          state_rows};
}

// ---- Running and comparing ----

void Case::fail(const std::string& what) {
  if (failures_++ == 0) std::printf("FAILED %s\n", text().c_str());
  std::printf("  %s\n", what.c_str());
}

void Case::run(const std::function<void()>& kernel) {
  std::vector<std::string> before, first;
  for (const Named& n : arrays_) before.push_back(n.array->bytes());
  const std::deque<std::vector<int32_t>> integers_before = integers_;
  for (const char* threads : {"1", "2", "3"}) {
    setenv("HYMBA_CORE_THREADS", threads, 1);
    for (size_t i = 0; i < arrays_.size(); ++i) arrays_[i].array->restore(before[i]);
    kernel();
    for (size_t i = 0; i < arrays_.size(); ++i) {
      const Named& n = arrays_[i];
      const std::string after = n.array->bytes();
      if (!n.written && after != before[i]) fail(n.name + ": an input was changed");
      if (n.written && !n.array->gaps_equal(before[i])) fail(n.name + ": written outside its elements");
      if (first.size() < arrays_.size()) {
        first.push_back(after);
      } else if (after != first[i]) {
        fail(n.name + ": other bits on " + threads + " threads than on 1");
      }
    }
    if (integers_ != integers_before) fail("indices were changed");
  }
}

// Half a unit in the last place of the stored type, relative.
static double rounding(DType dtype) {
  return dtype == DType::bf16 ? 0x1p-8 : dtype == DType::f16 ? 0x1p-11 : 0;
}

// Kernels compute in float (double for f64) with sums of a few hundred terms of size one, and round the
// result once.
void Case::expect(const Array& got, const Dense& want) {
  const Dense result = got.dense();
  double scale = 1;
  for (double value : want.values) scale = std::max(scale, std::fabs(value));
  const double arithmetic = got.dtype == DType::f64 ? 1e-11 : 1e-4;
  int64_t wrong = 0, first = 0;
  for (size_t i = 0; i < want.values.size(); ++i) {
    const double error = std::fabs(result.values[i] - want.values[i]);
    const bool ok = error <= arithmetic * scale + rounding(got.dtype) * std::fabs(want.values[i]);
    if (!ok && wrong++ == 0) first = i;  // NaN is not ok
  }
  if (wrong == 0) return;
  std::ostringstream what;
  for (const Named& n : arrays_)
    if (n.array.get() == &got) what << n.name;
  what << ": " << wrong << " of " << want.values.size() << " elements are wrong, the first at " << first
       << ": got " << result.values[first] << ", expected " << want.values[first];
  fail(what.str());
}

}  // namespace hymba::fuzz
