// simd.h against double precision; compiled once per instruction set like the kernels.
#include <cstdio>
#include <limits>

#include "cpu/simd.h"

namespace hymba::cpu::HYMBA_ISA {

static int failures;

static void expect(bool ok, const char* what, double at, double got, double expected) {
  if (!ok && ++failures <= 20) std::printf("%s(%.9g): got %.9g, expected %.9g\n", what, at, got, expected);
}

// Largest relative error of f over [low, high], result by result; NaN and infinities by the caller.
template <class F, class G>
static void check_function(const char* name, F f, G exact, double low, double high, double allowed) {
  constexpr int kSteps = 400000;
  for (int step = 0; step < kSteps; step += kLanes<float>) {
    FloatVec x;
    for (int lane = 0; lane < kLanes<float>; ++lane)
      x[lane] = static_cast<float>(low + (high - low) * (step + lane) / kSteps);
    const FloatVec y = f(x);
    for (int lane = 0; lane < kLanes<float>; ++lane) {
      const double expected = exact(static_cast<double>(x[lane]));
      if (std::fabs(expected) < 1.2e-38) continue;  // subnormal results keep fewer digits
      expect(std::fabs(y[lane] - expected) <= allowed * std::fabs(expected), name, x[lane], y[lane],
             expected);
    }
  }
}

template <class F>
static void check_value(const char* name, F f, float x, float expected) {
  const float got = f(broadcast(x))[kLanes<float> - 1];
  const bool ok = std::isnan(expected) ? std::isnan(got) : got == expected;
  expect(ok, name, x, got, expected);
}

static void check_functions() {
  constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const auto exp2_ = [](FloatVec x) { return exp2(x); };
  const auto exp_ = [](FloatVec x) { return exp(x); };
  const auto softplus_ = [](FloatVec x) { return softplus(x); };
  const auto silu_ = [](FloatVec x) { return silu(x); };
  check_function("exp2", exp2_, [](double x) { return ::exp2(x); }, -126, 127.99, 1.2e-7);
  check_function("exp", exp_, [](double x) { return ::exp(x); }, -87, 88.7, 2.4e-7);
  check_function(
      "softplus", softplus_, [](double x) { return (x > 0 ? x : 0) + ::log1p(::exp(-std::fabs(x))); }, -87,
      100, 4e-7);
  check_function("silu", silu_, [](double x) { return x / (1 + ::exp(-x)); }, -80, 100, 4e-7);
  check_value("exp2", exp2_, 0, 1);
  check_value("exp2", exp2_, -inf, 0);
  check_value("exp2", exp2_, -160, 0);
  check_value("exp2", exp2_, inf, inf);
  check_value("exp2", exp2_, 128, inf);
  check_value("exp2", exp2_, nan, nan);
  check_value("exp", exp_, -inf, 0);
  check_value("exp", exp_, inf, inf);
  check_value("exp", exp_, nan, nan);
  check_value("softplus", softplus_, -inf, 0);
  check_value("softplus", softplus_, inf, inf);
  check_value("softplus", softplus_, nan, nan);
  check_value("silu", silu_, inf, inf);
  check_value("silu", silu_, nan, nan);
}

// Every 16-bit pattern in, and rounding out, against the scalar conversions; those against arithmetic.
template <class T>
static void check_conversions(const char* name) {
  for (uint32_t bits = 0; bits < 65536; bits += kLanes<float>) {
    T in[kLanes<float>], out[kLanes<float>];
    for (int lane = 0; lane < kLanes<float>; ++lane) in[lane].bits = static_cast<uint16_t>(bits + lane);
    const FloatVec v = load(in);
    store(out, v);
    for (int lane = 0; lane < kLanes<float>; ++lane) {
      const float scalar = to_compute(in[lane]), vector = v[lane];
      expect(scalar == vector || (std::isnan(scalar) && std::isnan(vector)), name, in[lane].bits, vector,
             scalar);
      T back;
      from_compute(back, scalar);
      if (std::isnan(scalar)) {
        expect(std::isnan(to_compute(out[lane])) && std::isnan(to_compute(back)), name, in[lane].bits, 0,
               scalar);
      } else {
        expect(out[lane].bits == in[lane].bits && back.bits == in[lane].bits, name, in[lane].bits,
               out[lane].bits, in[lane].bits);
      }
    }
  }
}

// Values between two neighbours round to the nearer one, ties to the even pattern.
template <class T>
static void check_rounding(const char* name) {
  for (uint32_t bits = 0; bits < 0x7fff; ++bits) {
    const T low{static_cast<uint16_t>(bits)}, high{static_cast<uint16_t>(bits + 1)};
    const float a = to_compute(low), b = to_compute(high);
    if (!std::isfinite(a) || !std::isfinite(b)) continue;
    const float middle = static_cast<float>((static_cast<double>(a) + b) / 2);
    const float points[3] = {std::nextafter(middle, a), middle, std::nextafter(middle, b)};
    const uint32_t expected[3] = {bits, bits + (bits & 1), bits + 1};
    for (int i = 0; i < 3; ++i) {
      T scalar, vector[kLanes<float>];
      from_compute(scalar, points[i]);
      store(vector, broadcast(points[i]));
      expect(scalar.bits == expected[i] && vector[0].bits == expected[i], name, points[i], vector[0].bits,
             expected[i]);
    }
  }
}

int test_simd() {
  check_functions();
  check_conversions<bfloat16>("bfloat16");
  check_conversions<float16>("float16");
  check_rounding<bfloat16>("bfloat16 rounding");
  check_rounding<float16>("float16 rounding");
  return failures;
}

}  // namespace hymba::cpu::HYMBA_ISA
