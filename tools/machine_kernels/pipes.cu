// Arithmetic, shuffles and shared memory: clocks of an instruction, and of one that waits for the last.
#include "cuda/primitives/math.cuh"
#include "cuda/primitives/warp.cuh"
#include "cuda/selective_scan_tiles.cuh"
#include "measure.cuh"

namespace hymba::machine {
namespace {

using cuda::exp2_approx;

// Operands that the compiler does not know, and that are not in a constant bank.
struct Operands {
  float f;
  uint32_t u[4];
  __device__ explicit Operands(const LoopInputs& in) : f(fmaf(threadIdx.x, in.zero, in.one)) {
    for (int i = 0; i < 4; ++i) u[i] = __float_as_uint(fmaf(threadIdx.x, in.zero, in.one + i));
  }
};

// ---- operations: a value from itself. asm volatile, so that none is merged with the next ----

struct Ex2 {
  using Value = float;
  static constexpr int kPerRound = 64;
  __device__ static void step(Value& x, const Operands&, int) { x = exp2_approx(x); }
};
struct Ffma {
  using Value = float;
  static constexpr int kPerRound = 128;
  __device__ static void step(Value& x, const Operands& with, int) {
    asm volatile("fma.rn.f32 %0, %0, %1, %0;" : "+f"(x) : "f"(with.f));
  }
};
struct Imad {
  using Value = uint32_t;
  static constexpr int kPerRound = 128;
  __device__ static void step(Value& x, const Operands& with, int) {
    asm volatile("mad.lo.u32 %0, %0, %1, %0;" : "+r"(x) : "r"(with.u[0]));
  }
};
struct Lop3 {
  using Value = uint32_t;
  static constexpr int kPerRound = 128;
  // Two steps have five operands: no one instruction does both.
  __device__ static void step(Value& x, const Operands& with, int i) {
    const int pair = i / 8 % 2 * 2;
    asm volatile("lop3.b32 %0, %0, %1, %2, 0x6a;" : "+r"(x) : "r"(with.u[pair]), "r"(with.u[pair + 1]));
  }
};
struct Fmnmx {
  using Value = float;
  static constexpr int kPerRound = 128;
  __device__ static void step(Value& x, const Operands& with, int i) {
    if (i / 8 % 2 == 0) {
      asm volatile("max.f32 %0, %0, %1;" : "+f"(x) : "f"(__uint_as_float(with.u[0])));
    } else {
      asm volatile("min.f32 %0, %0, %1;" : "+f"(x) : "f"(__uint_as_float(with.u[1])));
    }
  }
};
struct F2fp {
  using Value = float;
  static constexpr int kPerRound = 128;
  __device__ static void step(Value& x, const Operands& with, int) {
    x = __builtin_bit_cast(float, cuda::narrow_pair_bf16(x, with.f));
  }
};
struct Hfma2 {
  using Value = uint32_t;
  static constexpr int kPerRound = 128;
  __device__ static void step(Value& x, const Operands& with, int) {
    asm volatile("fma.rn.f16x2 %0, %0, %1, %0;" : "+r"(x) : "r"(with.u[0]));
  }
};
struct Shfl {
  using Value = uint32_t;
  static constexpr int kPerRound = 64;
  __device__ static void step(Value& x, const Operands&, int) { x = __shfl_xor_sync(cuda::kFullWarp, x, 1); }
};

// kChains values, turn about; 1: each step waits for the last.
template <class Op, int kChains>
class Chains {
 public:
  static constexpr int kPerRound = Op::kPerRound;
  __device__ explicit Chains(const LoopInputs& in) : with_(in) {
    for (int i = 0; i < kChains; ++i) x_[i] = static_cast<typename Op::Value>(threadIdx.x + i);
  }
  __device__ void round() {
#pragma unroll
    for (int i = 0; i < kPerRound; ++i) Op::step(x_[i % kChains], with_, kChains == 1 ? 8 * i : i);
  }
  __device__ uint32_t result() const {
    uint32_t all = 0;
    for (int i = 0; i < kChains; ++i) all += __builtin_bit_cast(uint32_t, x_[i]);
    return all;
  }

 private:
  Operands with_;
  typename Op::Value x_[kChains];
};

// An exponential and kFmas multiply-adds beside it, 16 times: kPerRound counts exponentials.
template <int kFmas>
class ExpBesideFmas {
 public:
  static constexpr int kPerRound = 16;
  __device__ explicit ExpBesideFmas(const LoopInputs& in) : with_(in) {
    for (int i = 0; i < 8; ++i) exps_[i] = fmas_[i] = static_cast<float>(threadIdx.x + i);
  }
  __device__ void round() {
#pragma unroll
    for (int i = 0; i < kPerRound; ++i) {
      Ex2::step(exps_[i % 8], with_, 0);
#pragma unroll
      for (int j = 0; j < kFmas; ++j) Ffma::step(fmas_[(i * kFmas + j) % 8], with_, 0);
    }
  }
  __device__ uint32_t result() const {
    float all = 0;
    for (int i = 0; i < 8; ++i) all += exps_[i] * fmas_[i];
    return __float_as_uint(all);
  }

 private:
  Operands with_;
  float exps_[8], fmas_[8];
};

// ---- shared memory ----

constexpr int kSharedBytes = 32 * 1024;

// The shared memory of a loop's block, zeros.
__device__ __forceinline__ unsigned char* zeroed_shared() {
  HYMBA_SHARED(uint4[kSharedBytes / 16], bytes);
  for (int i = threadIdx.x; i < kSharedBytes / 16; i += blockDim.x) bytes[i] = {};
  __syncthreads();
  return reinterpret_cast<unsigned char*>(bytes);
}

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Loads of kBytes a lane, each at the lane's offset and 512 bytes behind the last, so in the same banks. Of
// volatile memory, so that no load is taken out of the loop.
template <int kBytes>
class SharedLoads {
 public:
  static constexpr int kPerRound = 16;
  __device__ explicit SharedLoads(const LoopInputs& in)
      : from_(shared_address(zeroed_shared()) + in.offsets[threadIdx.x % kWarp]) {}
  __device__ void round() {
    float x[kPerRound][kBytes / 4];
#pragma unroll
    for (int i = 0; i < kPerRound; ++i) {
      if constexpr (kBytes == 16) {
        asm volatile("ld.volatile.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(x[i][0]), "=f"(x[i][1]), "=f"(x[i][2]), "=f"(x[i][3])
                     : "r"(from_ + i * 512));
      } else if constexpr (kBytes == 8) {
        asm volatile("ld.volatile.shared.v2.f32 {%0, %1}, [%2];"
                     : "=f"(x[i][0]), "=f"(x[i][1])
                     : "r"(from_ + i * 512));
      } else {
        asm volatile("ld.volatile.shared.f32 %0, [%1];" : "=f"(x[i][0]) : "r"(from_ + i * 512));
      }
    }
#pragma unroll
    for (int i = 0; i < kPerRound; ++i)
      if constexpr (kBytes == 16) {
        sums_[i % 4] = fmaf(x[i][0], x[i][1], sums_[i % 4]);
        sums_[i % 4] = fmaf(x[i][2], x[i][3], sums_[i % 4]);
      } else if constexpr (kBytes == 8) {
        sums_[i % 4] = fmaf(x[i][0], x[i][1], sums_[i % 4]);
      } else {
        sums_[i % 4] += x[i][0];
      }
  }
  __device__ uint32_t result() const { return __float_as_uint(sums_[0] + sums_[1] + sums_[2] + sums_[3]); }

 private:
  uint32_t from_;
  float sums_[4] = {};
};

// Each load's address is what the last one read: that address itself.
class SharedChase {
 public:
  static constexpr int kPerRound = 32;
  __device__ explicit SharedChase(const LoopInputs&) {
    auto* word = reinterpret_cast<uint32_t*>(zeroed_shared()) + threadIdx.x;
    at_ = *word = shared_address(word);
  }
  __device__ void round() {
#pragma unroll
    for (int i = 0; i < kPerRound; ++i) asm volatile("ld.shared.u32 %0, [%0];" : "+r"(at_)::"memory");
  }
  __device__ uint32_t result() const { return at_; }

 private:
  uint32_t at_;
};

__constant__ uint32_t constant_zeros[64];

// Each load's offset is what the last one read: 0.
class ConstantChase {
 public:
  static constexpr int kPerRound = 32;
  __device__ explicit ConstantChase(const LoopInputs& in) : at_(static_cast<uint32_t>(in.zero)) {}
  __device__ void round() {
#pragma unroll
    for (int i = 0; i < kPerRound; ++i)
      at_ = *reinterpret_cast<const uint32_t*>(reinterpret_cast<const unsigned char*>(constant_zeros) + at_);
  }
  __device__ uint32_t result() const { return at_; }

 private:
  uint32_t at_;
};

template <class Offset>
LoopInputs lanes(Offset offset) {
  LoopInputs in;
  for (int lane = 0; lane < kWarp; ++lane) in.offsets[lane] = static_cast<uint32_t>(offset(lane));
  return in;
}

template <int kBytes>
void add_shared_loads(std::vector<Measure>& all) {
  const std::string name = "lds" + std::to_string(kBytes * 8);
  const auto loads = [&](const std::string& suffix, const LoopInputs& in) {
    all.push_back(throughput<SharedLoads<kBytes>>(name + suffix, true, in));
  };
  loads("", lanes([](int lane) { return lane * kBytes; }));
  if constexpr (kBytes > 4) {
    // n neighbours read the same; or lanes that are 32 / n apart.
    for (int n : {2, 4, 8, 16, 32}) {
      const std::string same = std::to_string(n);
      loads("_neighbours" + same, lanes([=](int lane) { return lane / n * kBytes; }));
      loads("_apart" + same, lanes([=](int lane) { return lane % (kWarp / n) * kBytes; }));
    }
  }
}

}  // namespace

std::vector<Measure> pipe_measures() {
  std::vector<Measure> all = {
      throughput<Chains<Ex2, 8>>("ex2"),          throughput<Chains<Ffma, 8>>("ffma"),
      throughput<Chains<Imad, 8>>("imad"),        throughput<Chains<Lop3, 8>>("lop3"),
      throughput<Chains<Fmnmx, 8>>("fmnmx"),      throughput<Chains<F2fp, 8>>("f2fp"),
      throughput<Chains<Hfma2, 8>>("hfma2"),      throughput<Chains<Shfl, 8>>("shfl", true),
      throughput<ExpBesideFmas<2>>("exp_2_ffma"), throughput<ExpBesideFmas<4>>("exp_4_ffma"),
      throughput<ExpBesideFmas<6>>("exp_6_ffma"), throughput<ExpBesideFmas<8>>("exp_8_ffma"),
      latency<Chains<Ex2, 1>>("ex2_latency"),     latency<Chains<Ffma, 1>>("ffma_latency"),
      latency<Chains<Lop3, 1>>("lop3_latency"),   latency<Chains<F2fp, 1>>("f2fp_latency"),
      latency<Chains<Shfl, 1>>("shfl_latency"),   latency<SharedChase>("lds_latency"),
      latency<ConstantChase>("ldc_latency"),
  };
  add_shared_loads<4>(all);
  add_shared_loads<8>(all);
  add_shared_loads<16>(all);
  // As the tiled scan's workers read (selective_scan_worker.cuh): lane / 4 is a channel or token, lane % 4 a
  // pair of states.
  const int token_row = cuda::kTokenRow * 4, state_row = cuda::kStateRow * 4;
  all.push_back(
      throughput<SharedLoads<16>>("scan_dt", true, lanes([=](int lane) { return lane / 4 * token_row; })));
  all.push_back(throughput<SharedLoads<8>>("scan_b", true, lanes([](int lane) { return lane % 4 * 8; })));
  all.push_back(throughput<SharedLoads<8>>(
      "scan_c", true, lanes([=](int lane) { return lane / 4 * state_row + lane % 4 * 8; })));
  // The SM's clock, by which others turn times into clocks.
  all.push_back({"sm_ghz", [](std::vector<double>& out) -> int {
                   Elapsed round;
                   HYMBA_MACHINE_TRY((time_loop<Chains<Ffma, 8>>({kMostThreads, 1, 4096}, {}, round)));
                   out.push_back(round.clocks / round.ns);
                   return cudaSuccess;
                 }});
  return all;
}

}  // namespace hymba::machine
