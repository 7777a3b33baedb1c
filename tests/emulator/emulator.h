// What csrc/cuda/device.cuh includes under g++: CUDA's words, and shared memory's two macros. README.md says
// how it works.
#pragma once
#include <tuple>
#include <utility>

#include "builtins.h"
#include "cuda_types.h"
#include "hopper.h"
#include "runtime.h"

#define HYMBA_SHARED(Type, name)                          \
  static char name##_key;                                 \
  auto& name = *static_cast<std::type_identity_t<Type>*>( \
      ::hymba::emulator::static_shared(&name##_key, sizeof(Type), alignof(std::type_identity_t<Type>)))
#define HYMBA_SITE , ::hymba::emulator::Site site = ::hymba::emulator::Site::current()
#define HYMBA_AT , site
#define HYMBA_DYNAMIC_SHARED(name) unsigned char* const name = ::hymba::emulator::dynamic_shared()

namespace hymba::emulator {

template <class... Parameters>
void run_kernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, bool overlaps,
                std::type_identity_t<Parameters>... arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  };
  const Call call{kernel, {arguments...}};
  run_grid({grid, block, shared_bytes, overlaps, reinterpret_cast<const void*>(kernel),
            [](const void* p) {
              const Call& call = *static_cast<const Call*>(p);
              std::apply(call.kernel, call.arguments);
            },
            &call});
}

}  // namespace hymba::emulator
