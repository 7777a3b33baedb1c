// Memory accesses on their way to the checkers: those that wrappers announce, atomics, and the compiler's
// hooks.
#include "engine.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace hymba::emulator {
namespace {

void require_aligned(const void* p, size_t bytes, const char* name) {
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0)
    fail("%s: the address %p is not aligned to its %zu bytes", name, p, bytes);
}

// ASan sees an access that the caller makes only when it is instrumented; library copies into poisoned memory
// of the emulator's own would pass.
void require_addressable([[maybe_unused]] const void* p, [[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
  if (void* bad = __asan_region_is_poisoned(const_cast<void*>(p), bytes))
    (void)*static_cast<volatile const char*>(bad);  // reports
#endif
}

}  // namespace

void check_read(const void* p, size_t bytes, const char* name) {
  require_aligned(p, bytes, name);
  require_addressable(p, bytes);
  check_races(p, bytes, Access::read, __builtin_return_address(0));
}

void check_constant_read(const void* p, size_t bytes, const char* name) {
  require_aligned(p, bytes, name);
  require_addressable(p, bytes);
  check_races(p, bytes, Access::constant_read, __builtin_return_address(0));
}

void check_prefetch(const void* p) {
  require_addressable(p, 1);
}

void check_write(void* p, size_t bytes, const char* name) {
  require_aligned(p, bytes, name);
  require_addressable(p, bytes);
  check_races(p, bytes, Access::write, __builtin_return_address(0));
}

void check_atomic(void* p, size_t bytes, const char* name) {
  require_aligned(p, bytes, name);
  require_addressable(p, bytes);
  check_races(p, bytes, Access::atomic, __builtin_return_address(0));
}

}  // namespace hymba::emulator

// What code compiled with -fsanitize=thread calls before each access.
#define HYMBA_HOOK(name, bytes, access)                                         \
  extern "C" void __tsan_##name##bytes(void* p) {                               \
    ::hymba::emulator::check_races(p, bytes, ::hymba::emulator::Access::access, \
                                   __builtin_return_address(0));                \
  }
#define HYMBA_HOOKS(bytes)                \
  HYMBA_HOOK(read, bytes, read)           \
  HYMBA_HOOK(write, bytes, write)         \
  HYMBA_HOOK(unaligned_read, bytes, read) \
  HYMBA_HOOK(unaligned_write, bytes, write)
HYMBA_HOOKS(1)
HYMBA_HOOKS(2)
HYMBA_HOOKS(4)
HYMBA_HOOKS(8)
HYMBA_HOOKS(16)
extern "C" {
void __tsan_read_range(void* p, long bytes) {
  ::hymba::emulator::check_races(p, bytes, ::hymba::emulator::Access::read, __builtin_return_address(0));
}
void __tsan_write_range(void* p, long bytes) {
  ::hymba::emulator::check_races(p, bytes, ::hymba::emulator::Access::write, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
}
