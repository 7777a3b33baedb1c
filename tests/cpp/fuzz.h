// What the kernel driver (test_kernels.cpp) draws its cases from: arrays in allocations of exactly their
// size, random layouts, and a run that checks everything which no op's formula says.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <initializer_list>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/sequences.h"
#include "core/slots.h"
#include "core/view.h"

namespace hymba::fuzz {

using Sizes = std::vector<int64_t>;

// A contiguous array of doubles: what the references compute with.
struct Dense {
  Sizes sizes;
  std::vector<double> values;

  explicit Dense(Sizes sizes_, double value = 0);
  template <class... Index>
  double& operator()(Index... index) {
    return values[position({static_cast<int64_t>(index)...})];
  }
  template <class... Index>
  double operator()(Index... index) const {
    return values[position({static_cast<int64_t>(index)...})];
  }

 private:
  int64_t position(std::initializer_list<int64_t> index) const {
    int64_t at = 0, d = 0;
    for (int64_t i : index) at = at * sizes[d++] + i;
    return at;
  }
};

// A strided array with a contiguous last dimension. The allocation ends with the last element, so
// AddressSanitizer sees any access past it; what lies between rows is NaN. An empty array has null data, as
// torch's have.
class Array {
 public:
  Array(DType dtype, Sizes sizes, Sizes strides, int64_t offset);

  const DType dtype;
  const Sizes sizes, strides;  // strides in elements

  void* data() const;
  bool is_f32() const { return dtype == DType::f32; }
  void fill(const Dense& values);
  Dense dense() const;

  std::string bytes() const { return {memory_.get(), memory_.get() + byte_count()}; }
  void restore(const std::string& bytes);
  // Whether all memory outside the elements is as in `bytes`.
  bool gaps_equal(const std::string& bytes) const;

 private:
  int64_t byte_count() const;
  template <class Visit>
  void for_each_element(Visit visit) const;

  int64_t offset_, span_;
  std::unique_ptr<char[]> memory_;
};

// One random call of a kernel. Draws are recorded by name; text() reproduces the case for a reader.
class Case {
 public:
  Case(const char* op, uint64_t seed);

  int64_t between(const char* name, int64_t low, int64_t high);  // both included
  int64_t choose(const char* name, std::initializer_list<int64_t> values);
  double choose_number(const char* name, std::initializer_list<double> values);
  bool maybe(const char* name, double probability = 0.5);
  DType dtype();
  DType dtype_or_f32(DType dtype);  // of a parameter

  // Random strides and values, uniform from low to high; the kernel must not change it.
  Array& input(const char* name, DType dtype, Sizes sizes, double low = -1, double high = 1);
  // The same, to be changed in place.
  Array& state(const char* name, DType dtype, Sizes sizes);
  // Contiguous; NaN before the call unless `value` says otherwise.
  Array& output(const char* name, DType dtype, Sizes sizes, double value = std::nan(""));
  // Contiguous and random; to be changed in place where `written`.
  Array& contiguous(const char* name, DType dtype, Sizes sizes, bool written);
  // int32 values in an allocation of exactly their size.
  const int32_t* integers(const char* name, const std::vector<int32_t>& values);

  // Random boundaries within `total` tokens: empty sequences and a tail that no sequence covers may be among
  // them.
  std::vector<int32_t> boundaries(int64_t total);
  // Dense [batch, tokens] or, where `packed`, sequences packed into the one batch row.
  Sequences sequences(bool packed, int64_t batch, int64_t tokens);
  // Slots of `batch` rows in a state of the returned number of rows: padding rows and forks may be among
  // them.
  Slots slots(int64_t batch, int64_t& state_rows);

  // Calls the kernel on 1, 2 and 3 threads: the same bits, inputs untouched, nothing written outside the
  // outputs.
  void run(const std::function<void()>& kernel);
  // Compares what run() left in `got`, element by element.
  void expect(const Array& got, const Dense& want);

  std::string text() const { return text_.str(); }
  int failures() const { return failures_; }

 private:
  struct Named {
    std::string name;
    std::unique_ptr<Array> array;
    bool written;
  };
  Array& add(const char* name, std::unique_ptr<Array> array, bool written);
  std::unique_ptr<Array> random_array(DType dtype, const Sizes& sizes, double low, double high);
  void fill_randomly(Array& array, double low, double high);
  int64_t draw(int64_t low, int64_t high);
  double draw_real(double low, double high);
  template <class Value>
  Value record(const char* name, Value value);
  void fail(const std::string& what);

  std::mt19937_64 random_;
  std::deque<Named> arrays_;
  std::deque<std::vector<int32_t>> integers_;
  std::ostringstream text_;
  int failures_ = 0;
};

TokensView tokens_view(const Array& array);  // of [B, T, C]
RowView row_view(const Array& array);        // of [A, B, C, D]
double silu(double x);
double softplus(double x);
DType state_dtype(DType dtype);

void attention_case(Case& c);
void decode_attention_case(Case& c);
void linear_case(Case& c);
void linear_epilogue_case(Case& c);
void rotary_case(Case& c);
void causal_conv1d_case(Case& c);
void causal_conv1d_update_case(Case& c);
void selective_scan_case(Case& c);
void selective_state_update_case(Case& c);
void rms_norm_case(Case& c);
void norm_average_case(Case& c);
void exp2_sum_case(Case& c);

}  // namespace hymba::fuzz
