// TMA loads. One may arrive at any time from its issue, and in any order: late (when no thread can go on),
// with NaN in the destination until then, eager, or under the random schedule whenever it likes.
#include <algorithm>
#include <cstring>

#include "engine.h"

namespace hymba::emulator {
namespace {

constexpr size_t kRowBytes = 128, kPiece = 16;  // of a box; of a swizzled row
constexpr uint64_t kMaxStride = uint64_t{1} << 40;

size_t box_rows(const TensorMap& map) {
  size_t rows = 1;
  for (int d = 1; d < map.rank; ++d) rows *= map.box[d];
  return rows;
}

// visit(place in shared memory, source or null, bytes of it that are in the tensor) for each 16 bytes.
template <class Visit>
void for_each_piece(const TensorLoad& load, Visit visit) {
  const TensorMap& map = load.map;
  for (size_t row = 0; row < box_rows(map); ++row) {
    const char* source = static_cast<const char*>(map.base);
    bool inside = true;
    size_t rest = row;
    for (int d = 1; d < map.rank; ++d) {
      const int64_t at = load.coordinates[d] + static_cast<int64_t>(rest % map.box[d]);
      rest /= map.box[d];
      inside = inside && at >= 0 && at < static_cast<int64_t>(map.sizes[d]);
      source += at * static_cast<int64_t>(map.strides[d]);
    }
    for (size_t piece = 0; piece < kRowBytes; piece += kPiece) {
      const int64_t begin = load.coordinates[0] * int64_t{map.element_bytes} + static_cast<int64_t>(piece);
      const int64_t end = static_cast<int64_t>(map.sizes[0]) * map.element_bytes;
      const bool there = inside && begin >= 0 && begin < end;
      visit(swizzled(load.to + row * kRowBytes + piece), there ? source + begin : nullptr,
            there ? std::min<size_t>(kPiece, end - begin) : 0);
    }
  }
}

void complete(const TensorLoad& load) {
  for_each_piece(load, [](char* to, const char* from, size_t bytes) {
    std::memset(to, 0, kPiece);
    if (bytes > 0) std::memcpy(to, from, bytes);
  });
  mbarrier_complete_bytes(load.barrier, box_rows(load.map) * kRowBytes, load.issued);
}

}  // namespace

bool is_valid(const TensorMap& map) {
  bool valid = map.rank >= 1 && map.rank <= kMaxTensorRank && map.base != nullptr &&
               reinterpret_cast<uintptr_t>(map.base) % 16 == 0 &&
               map.box[0] * static_cast<size_t>(map.element_bytes) == kRowBytes;
  for (int d = 0; valid && d < map.rank; ++d)
    valid = map.sizes[d] >= 1 && map.sizes[d] <= uint64_t{1} << 32 && map.box[d] >= 1 && map.box[d] <= 256 &&
            (d == 0 || (map.strides[d] % 16 == 0 && map.strides[d] < kMaxStride));
  return valid;
}

bool tensor_loads_pending() {
  return !block->tensor_loads.empty();
}

bool complete_tensor_load() {
  std::vector<TensorLoad>& loads = block->tensor_loads;
  if (loads.empty()) return false;
  const size_t index = options.schedule == Schedule::ascending    ? 0
                       : options.schedule == Schedule::descending ? loads.size() - 1
                                                                  : random_choice(loads.size());
  const TensorLoad load = loads[index];
  loads.erase(loads.begin() + static_cast<ptrdiff_t>(index));
  complete(load);
  return true;
}

void tensor_load(void* to, const TensorMap& map, const int* coordinates, int rank, uint64_t* barrier) {
  if (!is_valid(map) || map.rank != rank) fail("a TMA load: no valid tensor map of %d dimensions", rank);
  if (!is_shared(to) || shared_offset(to) % kRowBytes != 0)
    fail("a TMA load: the destination %p is not in shared memory at a multiple of 128 bytes", to);
  if (coordinates[0] * map.element_bytes % static_cast<int>(kPiece) != 0)
    fail("a TMA load: the emulator knows no rows from coordinate %d on", coordinates[0]);
  require_visible_to_tma(barrier);
  TensorLoad load{static_cast<char*>(to), map, {}, barrier, {}};
  std::copy_n(coordinates, rank, load.coordinates.begin());
  for_each_piece(load, [&](char* place, const char* from, size_t bytes) {
    require_async_proxy(place, kPiece, "a TMA load overwrites");
    check_races(place, kPiece, Access::async_write, __builtin_return_address(0));
    if (bytes == kPiece) check_read(from, kPiece, "a TMA load from global memory");
    if (!options.eager_copies) std::memset(place, kUninitialised, kPiece);
  });
  arrive(load.issued, current->warp);
  if (options.eager_copies)
    complete(load);
  else
    block->tensor_loads.push_back(load);
}

}  // namespace hymba::emulator
