// The block's shared memory: dynamic bytes first, static arrays behind, red zones between.
#include <sys/mman.h>

#include <cstring>

#include "engine.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace hymba::emulator {
namespace {

constexpr size_t kArrayAlignment = 128;
constexpr unsigned char kRedZoneByte = 0xa5;

void add_red_zone(size_t offset, size_t bytes) {
  std::memset(block->arena + offset, kRedZoneByte, bytes);
#ifdef __SANITIZE_ADDRESS__
  ASAN_POISON_MEMORY_REGION(block->arena + offset, bytes);
#endif
  block->red_zones.push_back({offset, bytes});
}

// `bytes` at the arena's end, uninitialised and followed by a red zone.
size_t append(size_t bytes) {
  const size_t begin = block->arena_used;
  const size_t end = begin + bytes;
  const size_t next = (end + kRedZoneBytes + kArrayAlignment - 1) / kArrayAlignment * kArrayAlignment;
  if (next > kArenaBytes) fail("%zu bytes of shared memory do not fit", bytes);
#ifdef __SANITIZE_ADDRESS__
  ASAN_UNPOISON_MEMORY_REGION(block->arena + begin, next - begin);
#endif
  std::memset(block->arena + begin, kUninitialised, bytes);
  add_red_zone(end, next - end);
  block->arena_used = next;
  return begin;
}

}  // namespace

void map_shared_memory(Block& block) {
  void* p = mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) throw Error("the emulator cannot map shared memory");
  block.arena = static_cast<char*>(p);
}

void unmap_shared_memory(Block& block) {
#ifdef __SANITIZE_ADDRESS__
  ASAN_UNPOISON_MEMORY_REGION(block.arena, kArenaBytes);
#endif
  munmap(block.arena, kArenaBytes);
}

void begin_shared_memory(size_t dynamic_bytes) {
  block->arena_used = 0;
  block->arrays.clear();
  block->red_zones.clear();
#ifdef __SANITIZE_ADDRESS__
  ASAN_POISON_MEMORY_REGION(block->arena, kArenaBytes);
#endif
  append(dynamic_bytes);
}

unsigned char* dynamic_shared() {
  return reinterpret_cast<unsigned char*>(block->arena);
}

void* static_shared(const void* key, size_t bytes, size_t alignment) {
  static_assert(kArrayAlignment >= 16);
  if (alignment > kArrayAlignment) fail("a shared array aligned to %zu bytes", alignment);
  for (const SharedArray& array : block->arrays)
    if (array.key == key) return block->arena + array.offset;
  block->arrays.push_back({key, append(bytes)});
  return block->arena + block->arrays.back().offset;
}

bool is_shared(const void* p) {
  return static_cast<size_t>(static_cast<const char*>(p) - block->arena) < kArenaBytes;
}

uint32_t shared_offset(const void* p) {
  return static_cast<uint32_t>(static_cast<const char*>(p) - block->arena);
}

char* swizzled(char* p) {
  const uint32_t offset = shared_offset(p);
  return block->arena + (offset ^ (offset >> 7 & 7) << 4);
}

void red_zone(void* begin, size_t bytes) {
  const size_t offset = static_cast<size_t>(static_cast<char*>(begin) - block->arena);
  for (const SharedRange& zone : block->red_zones)
    if (zone.offset == offset && zone.bytes == bytes) return;
  add_red_zone(offset, bytes);
}

std::string broken_red_zone() {
#ifndef __SANITIZE_ADDRESS__  // there every access is checked
  for (const SharedRange& zone : block->red_zones)
    for (size_t i = zone.offset; i < zone.offset + zone.bytes; ++i)
      if (static_cast<unsigned char>(block->arena[i]) != kRedZoneByte)
        return describe_running_thread() + ": a thread has written past an array of shared memory, " +
               std::to_string(i - zone.offset) +
               " bytes behind its end (the sanitized and races modes say where)";
#endif
  return "";
}

}  // namespace hymba::emulator
