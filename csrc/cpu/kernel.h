// What every CPU kernel starts with: vectors, threads, scratch memory and the switch over storage types.
#pragma once
#include <cstdlib>
#include <type_traits>

#include "core/parallel.h"
#include "cpu/simd.h"

namespace hymba::cpu::HYMBA_ISA {

// Uninitialised, cache-line aligned memory of one worker: `count` elements and no byte more, so that
// AddressSanitizer sees an access past them. Never null for count 0.
template <class C>
class Scratch {
 public:
  explicit Scratch(int64_t count) {
    void* memory = nullptr;
    const size_t bytes = count > 0 ? count * sizeof(C) : 1;
    if (posix_memalign(&memory, 64, bytes) != 0)
      abort();  // a few MiB at the most: the machine is out of memory
    data_ = static_cast<C*>(memory);
  }
  ~Scratch() { free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  C* get() const { return data_; }
  C& operator[](int64_t i) const { return data_[i]; }

 private:
  C* data_;
};

// Work items of row-wise kernels hold about this many elements.
constexpr int64_t kElementsPerItem = 16384;

constexpr int64_t round_up(int64_t x, int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}
HYMBA_INLINE int64_t at_most(int64_t x, int64_t limit) {
  return x < limit ? x : limit;
}

// `out` may be null where `count` is 0, which memset's may not.
template <class T>
HYMBA_INLINE void fill_zero(T* out, int64_t count) {
  if (count > 0) memset(out, 0, count * sizeof(T));
}

// out[i] = scale * (float or double) in[i] for i < n, and 0 up to n_padded.
template <class T>
HYMBA_INLINE void copy_as_compute(compute_t<T>* out, const T* in, int64_t n, int64_t n_padded,
                                  compute_t<T> scale = 1) {
  constexpr int64_t lanes = kLanes<compute_t<T>>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store(out + i, load(in + i) * scale);
  for (; i < n; ++i) out[i] = to_compute(in[i]) * scale;
  for (; i < n_padded; ++i) out[i] = 0;
}

// body(i, lanes) for each vector of n elements; the last one may have fewer lanes. Give the lambda
// __attribute__((always_inline)), so that load_n and store_n of whole vectors lose their branches.
template <class C, class Body>
HYMBA_INLINE void for_each_vector(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes<C> <= n; i += kLanes<C>) body(i, int64_t{kLanes<C>});
  if (i < n) body(i, n - i);
}

// A parameter vector that has x's dtype T or is float32 (norm weights, D, dt bias): its `count` values as
// compute_t<T>, zero up to `padded`.
template <class T>
HYMBA_INLINE void load_parameter(compute_t<T>* out, const void* data, bool is_f32, int64_t count,
                                 int64_t padded) {
  if constexpr (!std::is_same_v<T, float>) {
    if (is_f32) {
      const float* p = static_cast<const float*>(data);
      for (int64_t i = 0; i < padded; ++i) out[i] = i < count ? p[i] : 0;
      return;
    }
  }
  copy_as_compute<T>(out, static_cast<const T*>(data), count, padded);
}

}  // namespace hymba::cpu::HYMBA_ISA
