// Runs test_simd.cpp of the instruction set in HYMBA_OPS_CPU_ISA. One that this CPU lacks is skipped
// (exit status 77): its kernels cannot be selected here either.
#include <cstdio>
#include <stdexcept>

#include "cpu/isa.h"

namespace hymba::cpu {
namespace baseline {
int test_simd();
}
#if defined(__x86_64__)
namespace avx2 {
int test_simd();
}
namespace avx512 {
int test_simd();
}
#endif
}  // namespace hymba::cpu

using namespace hymba::cpu;

int main() {
  Isa isa;
  try {
    isa = selected_isa();
  } catch (const std::invalid_argument& error) {
    std::printf("not run: %s\n", error.what());
    return 77;
  }
#if defined(__x86_64__)
  const int failures = isa == Isa::avx512 ? avx512::test_simd()
                       : isa == Isa::avx2 ? avx2::test_simd()
                                          : baseline::test_simd();
#else
  const int failures = baseline::test_simd();
#endif
  std::printf("simd, %s: %d failures\n", isa_name(isa), failures);
  return failures != 0;
}
