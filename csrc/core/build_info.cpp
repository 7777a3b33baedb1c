// What was compiled in, as "key=value;" pairs that hymba_ops.build_info() turns into a dict.
#include <utility>

#include "core/products.h"
#include "cpu/isa.h"
#include "ops/ops.h"

#ifndef HYMBA_CUDA_ARCHITECTURES
#define HYMBA_CUDA_ARCHITECTURES ""
#endif

namespace hymba {

// The dtypes whose products of many rows are torch's on this CPU.
static std::string library_dtypes() {
  std::string names;
  for (const auto& [dtype, name] : {std::pair{DType::f32, "float32"}, std::pair{DType::bf16, "bfloat16"},
                                    std::pair{DType::f16, "float16"}, std::pair{DType::f64, "float64"}})
    if (cpu::library_products(dtype, cpu::kManyRows)) names += names.empty() ? name : concat(" ", name);
  return names;
}

std::string build_info() {
  return concat("compiler=", __VERSION__, ";cpu_isas=", cpu::built_isas(),
                ";cpu_isa_selected=", cpu::isa_name(cpu::selected_isa()),
                ";cpu_library_products=", library_dtypes(), ";cuda_architectures=", HYMBA_CUDA_ARCHITECTURES);
}

}  // namespace hymba
