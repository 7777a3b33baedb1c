#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>

namespace hymba::cpu {

static bool supported(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx2) return has_avx2;
  if (isa == Isa::avx512)
    return has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return isa == Isa::baseline;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

std::string built_isas() {
#if defined(__x86_64__)
  return "avx512 avx2 baseline";
#else
  return "baseline";
#endif
}

static Isa choose_isa() {
  const char* wanted = std::getenv("HYMBA_OPS_CPU_ISA");
  for (Isa isa : {Isa::avx512, Isa::avx2, Isa::baseline})
    if (supported(isa) && (wanted == nullptr || std::string(wanted) == isa_name(isa))) return isa;
  throw std::invalid_argument("HYMBA_OPS_CPU_ISA must name an instruction set that was built (" +
                              built_isas() + ") and that this CPU has, got '" + wanted + "'");
}

Isa selected_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

}  // namespace hymba::cpu
