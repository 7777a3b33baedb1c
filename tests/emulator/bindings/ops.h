// One function a kernel file: adds the op to the module, with the arguments of hymba_ops.functional in their order.
#pragma once
#include <pybind11/pybind11.h>

namespace hymba::emulator {

void bind_norm_average(pybind11::module_& module);

}  // namespace hymba::emulator
