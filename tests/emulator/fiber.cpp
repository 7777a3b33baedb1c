// Stacks, and the switch from one to another.
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "engine.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) || !defined(__linux__)
#error "the emulator's fibers are written for x86-64 Linux"
#endif

// Saves the callee-saved registers on the stack and its pointer in *save, continues at `to`.
extern "C" void hymba_switch_stack(void** save, void* to);
asm(R"(
.text
.globl hymba_switch_stack
.hidden hymba_switch_stack
.type hymba_switch_stack,@function
hymba_switch_stack:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp,(%rdi)
  mov %rsi,%rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  pop %rcx
  jmp *%rcx
.size hymba_switch_stack,.-hymba_switch_stack
)");

namespace hymba::emulator {
namespace {

constexpr int kSavedRegisters = 6;
constexpr size_t kGuardBytes = 4096;
// Stacks a multiple of 4 KiB apart would share the same few cache sets.
constexpr size_t kStackStep = kStackBytes + 2 * kGuardBytes;
constexpr size_t kStackStagger = 64;

// The launching thread's side of a switch.
struct Launcher {
  void* stack_pointer;
  void* asan_stack;
  const void* stack;
  size_t stack_bytes;
} launcher;

// The first thing that runs on a fiber's stack.
[[noreturn]] void fiber_entry() {
#ifdef __SANITIZE_ADDRESS__
  const void* stack;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
  if (launcher.stack == nullptr) launcher.stack = stack, launcher.stack_bytes = bytes;
#endif
  thread_main();
}

}  // namespace

void unmap_stacks(Block& block) {
  if (block.stacks == nullptr) return;
  const size_t bytes = kStackStep * static_cast<size_t>(block.stack_count);
#ifdef __SANITIZE_ADDRESS__
  ASAN_UNPOISON_MEMORY_REGION(block.stacks, bytes);
#endif
  munmap(block.stacks, bytes);
  block.stacks = nullptr;
}

void map_stacks(Block& block, int count) {
  if (block.stacks != nullptr && block.stack_count >= count) return;
  unmap_stacks(block);
  void* stacks = mmap(nullptr, kStackStep * static_cast<size_t>(count), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) throw Error("the emulator cannot map its threads' stacks");
  block.stacks = static_cast<char*>(stacks);
  block.stack_count = count;
  for (int i = 0; i < count; ++i) mprotect(block.stacks + i * kStackStep, kGuardBytes, PROT_NONE);
}

void prepare_fiber(Fiber& fiber) {
  fiber.stack = block->stacks + fiber.number * kStackStep + kGuardBytes;
  fiber.asan_stack = nullptr;
#ifdef __SANITIZE_ADDRESS__
  ASAN_UNPOISON_MEMORY_REGION(fiber.stack, kStackBytes);  // what an earlier thread left there
#endif
  const uintptr_t top = reinterpret_cast<uintptr_t>(fiber.stack) + kStackBytes -
                        static_cast<size_t>(fiber.number % 64) * kStackStagger;
  void** sp = reinterpret_cast<void**>(top & ~uintptr_t{63}) - 1;
  *sp = nullptr;  // no caller: where a stack trace ends
  *--sp = reinterpret_cast<void*>(fiber_entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--sp = nullptr;
  fiber.stack_pointer = sp;
}

void resume(Fiber* from, Fiber* to, [[maybe_unused]] bool from_ends) {
  current = to;
  void** save = from ? &from->stack_pointer : &launcher.stack_pointer;
  void* target = to ? to->stack_pointer : launcher.stack_pointer;
#ifdef __SANITIZE_ADDRESS__
  void** asan_stack = from ? &from->asan_stack : &launcher.asan_stack;
  __sanitizer_start_switch_fiber(from_ends ? nullptr : asan_stack, to ? to->stack : launcher.stack,
                                 to ? kStackBytes : launcher.stack_bytes);
#endif
  hymba_switch_stack(save, target);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(*asan_stack, nullptr, nullptr);
#endif
}

}  // namespace hymba::emulator
