// Instruction sets of the CPU kernels, chosen once at run time.
//
// Each file of csrc/cpu is compiled once per instruction set, with that set's compiler flags and HYMBA_ISA
// set to its name; everything it defines lies in namespace hymba::cpu::<HYMBA_ISA>. HYMBA_CPU_KERNEL, in the
// op's header, declares the copies and one function in hymba::cpu that calls the one chosen here.
#pragma once
#include <string>

namespace hymba::cpu {

enum class Isa { baseline, avx2, avx512 };

// The best instruction set of this machine that was built, or the one named in HYMBA_OPS_CPU_ISA. Throws
// std::invalid_argument when that names one that does not exist or that this machine lacks.
Isa selected_isa();

const char* isa_name(Isa isa);
std::string built_isas();  // "avx512 avx2 baseline"

}  // namespace hymba::cpu

#if defined(__x86_64__)
#define HYMBA_CPU_KERNEL(name, Params)     \
  namespace hymba::cpu {                   \
  namespace baseline {                     \
  void name(const Params& params);         \
  }                                        \
  namespace avx2 {                         \
  void name(const Params& params);         \
  }                                        \
  namespace avx512 {                       \
  void name(const Params& params);         \
  }                                        \
  inline void name(const Params& params) { \
    switch (selected_isa()) {              \
      case Isa::avx512:                    \
        return avx512::name(params);       \
      case Isa::avx2:                      \
        return avx2::name(params);         \
      default:                             \
        return baseline::name(params);     \
    }                                      \
  }                                        \
  }
#else
#define HYMBA_CPU_KERNEL(name, Params)     \
  namespace hymba::cpu {                   \
  namespace baseline {                     \
  void name(const Params& params);         \
  }                                        \
  inline void name(const Params& params) { \
    return baseline::name(params);         \
  }                                        \
  }
#endif
