// wgmma and setmaxnreg. A product may read its operands at any time from its issue to the wait for its group,
// in order within the warpgroup: late, eager, or at a random time between. Accumulators are NaN until the
// wait that names them.
#include <algorithm>
#include <cstring>
#include <memory>

#include "engine.h"

namespace hymba::emulator {
namespace {

constexpr int kRows = 64, kDepth = 16, kMaxColumns = 256;
constexpr int kRegistersOfSm = 65536;

using Call = WarpgroupCall;

Warpgroup& mine() {
  return block->warpgroups[current->number / kWarpgroup];
}
int thread_of_warpgroup() {
  return current->number % kWarpgroup;
}

// True in the thread that comes last; the others wait until `release`.
bool meet(Call call, const char* name, const Site& site) {
  if (block->threads % kWarpgroup != 0) fail("%s: the block is no whole number of warpgroups", name);
  Warpgroup& group = mine();
  if (group.arrived == 0) {
    group.call = call;
    group.site = site;
  } else if (group.call != call || group.site.line() != site.line()) {
    fail("divergent warpgroup: %s at %s:%u, other threads wait at %s:%u", name, site.file_name(), site.line(),
         group.site.file_name(), group.site.line());
  }
  if (++group.arrived == kWarpgroup) return true;
  suspend(name, &group, site);
  return false;
}
void release(Warpgroup& group) {
  group.arrived = 0;
  wake_waiting(&group);
}

char* at_offset(uint32_t offset) {
  if (offset + 16 > kArenaBytes) fail("wgmma: a tile reaches out of shared memory");
  return swizzled(block->arena + offset);
}

// Where 8 elements of b lie: of column `n` (K-major) from row 8 `k` on, or of row `k` from column 8 `n` on.
char* b_chunk(const Wgmma& op, int n, int k) {
  if (op.b_leading == 0) return at_offset(op.b_tile + n / 8 * 1024 + n % 8 * 128 + k * 16);
  return at_offset(op.b_tile + n / 8 * op.b_leading + n % 8 * 16 + k / 8 * 1024 + k % 8 * 128);
}
char* a_chunk(const Wgmma& op, int row, int k) {
  return at_offset(op.a_tile + row / 8 * 1024 + row % 8 * 128 + k * 16);
}

// visit(16 bytes of shared memory) for what a warp's part of a product reads.
template <class Visit>
void for_each_chunk(const Wgmma& op, int warp, Visit visit) {
  if (op.a == nullptr)
    for (int row = warp * 16; row < warp * 16 + 16; ++row)
      for (int k = 0; k < 2; ++k) visit(a_chunk(op, row, k));
  const bool k_major = op.b_leading == 0;
  for (int n = 0; n < (k_major ? op.columns : op.columns / 8); ++n)
    for (int k = 0; k < (k_major ? 2 : kDepth); ++k) visit(b_chunk(op, n, k));
}

// Each warp reads: at issue, where what was written before must be ordered, and until the wait.
void check_operands(const Wgmma& op) {
  Fiber* const last = current;
  const int first_warp = last->number / kWarpgroup * (kWarpgroup / kWarp);
  for (int warp = 0; warp < kWarpgroup / kWarp; ++warp) {
    current = &block->fiber[(first_warp + warp) * kWarp];
    for_each_chunk(op, warp, [](char* p) {
      require_async_proxy(p, 16, "wgmma reads");
      check_read(p, 16, "wgmma from shared memory");
    });
  }
  current = last;
}

void widen_chunk(float (&out)[8], const char* p, const Wgmma& op) {
  for (int i = 0; i < 8; ++i) {
    uint16_t bits;
    std::memcpy(&bits, p + 2 * i, 2);
    out[i] = op.widen(bits);
  }
}

void execute(Product& product) {
  if (product.executed) return;
  product.executed = true;
  const Wgmma& op = product.operation;
  static float a[kRows][kDepth], b[kDepth][kMaxColumns];
  for (int row = 0; op.a == nullptr && row < kRows; ++row)
    for (int k = 0; k < 2; ++k) {
      float chunk[8];
      widen_chunk(chunk, a_chunk(op, row, k), op);
      std::copy_n(chunk, 8, &a[row][8 * k]);
    }
  for (int t = 0; op.a != nullptr && t < kWarpgroup; ++t)
    for (int i = 0; i < 8; ++i) {
      const int row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8, column = t % 4 * 2 + i / 4 * 8 + i % 2;
      a[row][column] = op.widen(static_cast<uint16_t>(product.a[t][i / 2] >> 16 * (i % 2)));
    }
  const bool k_major = op.b_leading == 0;
  for (int n = 0; n < (k_major ? op.columns : op.columns / 8); ++n)
    for (int k = 0; k < (k_major ? 2 : kDepth); ++k) {
      float chunk[8];
      widen_chunk(chunk, b_chunk(op, n, k), op);
      for (int i = 0; i < 8; ++i) (k_major ? b[8 * k + i][n] : b[k][8 * n + i]) = chunk[i];
    }
  for (int row = 0; row < kRows; ++row) {
    float sums[kMaxColumns] = {};
    for (int k = 0; k < kDepth; ++k)
      for (int n = 0; n < op.columns; ++n) sums[n] += a[row][k] * b[k][n];
    for (int n = 0; n < op.columns; ++n) {
      const int thread = row / 16 * 32 + row % 8 * 4 + n % 8 / 2,
                index = n / 8 * 4 + row % 16 / 8 * 2 + n % 2;
      float& sum = product.sums->sums[thread * product.sums->count + index];
      sum = (op.accumulate ? sum : 0.0f) + sums[n];
    }
  }
}

void execute_some(Warpgroup& group) {
  if (options.schedule != Schedule::random) return;
  const auto some = [](Products& products) {
    for (Product& product : products) {
      if (!product.executed && random_choice(2) == 0) return false;
      execute(product);
    }
    return true;
  };
  for (Products& products : group.groups)
    if (!some(products)) return;
  some(group.open);
}

bool is_fenced(const Warpgroup& group, const void* p) {
  return std::any_of(group.fenced.begin(), group.fenced.end(), [&](const Registers& r) {
    return static_cast<const char*>(p) >= static_cast<const char*>(r.begin) &&
           static_cast<const char*>(p) < static_cast<const char*>(r.begin) + r.bytes;
  });
}

// The accumulators of a product: those that earlier ones under way add to, or registers, poisoned from now
// on.
Accumulators& take_accumulators(Warpgroup& group) {
  const Wgmma& first = group.operations[0];
  const int count = first.columns / 2;
  for (const auto& taken : group.accumulators)
    if (taken->at[0] == first.sum && taken->count == count) return *taken;
  if (!is_fenced(group, first.sum)) fail("wgmma: no wgmma_fence names its accumulators");
  auto taken =
      std::make_unique<Accumulators>(Accumulators{{}, count, 0, std::vector<float>(kWarpgroup * count)});
  for (int t = 0; t < kWarpgroup; ++t) {
    taken->at[t] = group.operations[t].sum;
    std::copy_n(taken->at[t], count, &taken->sums[t * count]);
    std::memset(taken->at[t], kUninitialised, count * sizeof(float));
  }
  group.accumulators.push_back(std::move(taken));
  return *group.accumulators.back();
}

// Back to the registers, which nobody has touched.
void give_back(Warpgroup& group, Accumulators& sums, RegisterList named) {
  const auto holds = [&](const Registers& r) { return r.begin == sums.at[thread_of_warpgroup()]; };
  if (std::none_of(named.begin(), named.end(), holds))
    fail("wgmma_wait: it does not name accumulators that it ends");
  for (int t = 0; t < kWarpgroup; ++t) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(sums.at[t]);
    if (!std::all_of(bytes, bytes + sums.count * sizeof(float), [](auto b) { return b == kUninitialised; }))
      fail("wgmma: its accumulators have been written before the wait");
    std::copy_n(&sums.sums[t * sums.count], sums.count, sums.at[t]);
  }
  std::erase_if(group.accumulators, [&](auto& taken) { return taken.get() == &sums; });
}

bool is_busy(const Products& products) {
  return !products.empty();
}

}  // namespace

void begin_warpgroups() {
  for (Warpgroup& group : block->warpgroups) {
    group.arrived = 0;
    group.accumulators.clear();
    group.open.clear();
    group.groups.clear();
    group.fenced.clear();
    group.registers = 0;
  }
  block->registers = block->register_pool = 0;
}

void require_products_waited_for() {
  const Warpgroup& group = mine();
  if (is_busy(group.open) || std::any_of(group.groups.begin(), group.groups.end(), is_busy))
    fail("the thread returns while its wgmma products are under way");
}

void wgmma_issue(const Wgmma& operation, const Site& site) {
  if (block->threads % kWarpgroup == 0) mine().operations[thread_of_warpgroup()] = operation;
  if (!meet(Call::issue, "wgmma", site)) return;
  Warpgroup& group = mine();
  const Wgmma& first = group.operations[0];
  Product product{first, {}, nullptr, false};
  for (int t = 0; t < kWarpgroup; ++t) {
    const Wgmma& op = group.operations[t];
    if (op.a_tile != first.a_tile || op.b_tile != first.b_tile)
      fail("wgmma: threads 0 and %d of the warpgroup name different tiles", t);
    product.a[t] = op.a;
  }
  if (first.a != nullptr && !is_fenced(group, first.a)) fail("wgmma: no wgmma_fence names its operand a");
  // Bits 7 to 9 place a row in the swizzle's pattern.
  if (first.b_tile & 0x380 || (first.a == nullptr && first.a_tile & 0x380))
    fail("wgmma: a tile that does not begin at a multiple of 1024 bytes");
  product.sums = &take_accumulators(group);
  product.sums->products++;
  check_operands(first);
  group.open.push_back(product);
  if (options.eager_copies) execute(group.open.back());
  execute_some(group);
  release(group);
}

void wgmma_fence(RegisterList registers, const Site& site) {
  if (block->threads % kWarpgroup == 0 && thread_of_warpgroup() == 0)
    mine().fenced.insert(mine().fenced.end(), registers);
  if (meet(Call::fence, "wgmma_fence", site)) release(mine());
}

void wgmma_commit(const Site& site) {
  if (!meet(Call::commit, "wgmma_commit", site)) return;
  Warpgroup& group = mine();
  group.groups.push_back(std::move(group.open));
  group.open.clear();
  execute_some(group);
  release(group);
}

void wgmma_wait(int pending, RegisterList registers, const Site& site) {
  if (!meet(Call::wait, "wgmma_wait", site)) return;
  Warpgroup& group = mine();
  for (; static_cast<int>(group.groups.size()) > pending; group.groups.pop_front())
    for (Product& product : group.groups.front()) {
      check_operands(product.operation);  // read until now
      execute(product);
      if (--product.sums->products == 0) give_back(group, *product.sums, registers);
    }
  group.fenced.clear();
  release(group);
}

void set_registers(int entry, int count, const Site& site) {
  const char* name = count > entry ? "setmaxnreg.inc" : "setmaxnreg.dec";
  if (count % 8 != 0 || count < 24 || count > 256) fail("%s: %d registers", name, count);
  if (entry * block->threads > kRegistersOfSm)
    fail("%s: %d threads begin with %d registers each", name, block->threads, entry);
  if (!meet(Call::set_registers, name, site)) return;
  if (block->registers == 0) block->registers = entry;
  Warpgroup& group = mine();
  if (entry != block->registers || group.registers != 0)
    fail("%s: from %d registers, where the block began with %d and the warpgroup has set %d", name, entry,
         block->registers, group.registers);
  while (block->register_pool < (count - entry) * kWarpgroup)
    suspend("setmaxnreg.inc", &block->register_pool, site);
  block->register_pool -= (count - entry) * kWarpgroup;
  group.registers = count;
  wake_waiting(&block->register_pool);
  release(group);
}

}  // namespace hymba::emulator
