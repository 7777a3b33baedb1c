#include "core/products.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace hymba::cpu {

#if defined(__x86_64__)
struct CpuFacts {
  bool is_intel = false, is_amd = false, avx512 = false, avx512_bf16 = false, amx_bf16 = false;
};

static CpuFacts cpu_facts() {
  CpuFacts facts;
  __builtin_cpu_init();
  facts.is_intel = __builtin_cpu_is("intel");
  facts.is_amd = __builtin_cpu_is("amd");
  facts.avx512 = __builtin_cpu_supports("avx512f");
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (facts.avx512 && __get_cpuid_count(7, 0, &a, &b, &c, &d)) facts.amx_bf16 = d >> 22 & 1;
  if (facts.avx512 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) facts.avx512_bf16 = a >> 5 & 1;
  return facts;
}

static bool library_is_faster(DType dtype, int64_t rows) {
  static const CpuFacts facts = cpu_facts();
  switch (dtype) {
    case DType::bf16:  // Intel's dot instruction without AMX is slower than float32's multiply-add
      return rows > kDirectRows && (facts.amx_bf16 || (facts.is_amd && facts.avx512_bf16));
    case DType::f16:
      return false;
    default:  // MKL is at its best on its maker's CPUs
      return facts.is_intel && facts.avx512;
  }
}
#else
static bool library_is_faster(DType dtype, int64_t) {
  return dtype == DType::f32 || dtype == DType::f64;
}
#endif

bool library_products(DType dtype, int64_t rows) {
  static const char* wanted = std::getenv("HYMBA_OPS_CPU_PRODUCTS");
  if (wanted == nullptr) return library_is_faster(dtype, rows);
  const std::string choice = wanted;
  if (choice != "own" && choice != "library")
    throw std::invalid_argument("HYMBA_OPS_CPU_PRODUCTS must be own or library, got '" + choice + "'");
  return choice == "library";
}

}  // namespace hymba::cpu
