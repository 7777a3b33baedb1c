// What was compiled in, as "key=value;" pairs that hymba_ops.build_info() turns into a dict.
#include "cpu/isa.h"
#include "ops/ops.h"

#ifndef HYMBA_CUDA_ARCHITECTURES
#define HYMBA_CUDA_ARCHITECTURES ""
#endif

namespace hymba {

std::string build_info() {
  return concat("compiler=", __VERSION__, ";cpu_isas=", cpu::built_isas(),
                ";cpu_isa_selected=", cpu::isa_name(cpu::selected_isa()),
                ";cuda_architectures=", HYMBA_CUDA_ARCHITECTURES);
}

}  // namespace hymba
