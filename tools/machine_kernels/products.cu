// Matrix products of a warp (mma): clocks, and what the tensor cores do with the bits that they leave out.
#include "cuda/primitives/mma.cuh"
#include "measure.cuh"

namespace hymba::machine {
namespace {

struct Tf32 {
  using A = float;
  __device__ static void multiply(float (&sum)[4], const float (&a)[4], const float (&b)[2]) {
    cuda::mma_tf32(sum, a, b);
  }
};
struct Bf16 {
  using A = uint32_t;
  __device__ static void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    cuda::mma<bfloat16>(sum, a, b[0], b[1]);
  }
};

// kChains products, turn about; 1: each adds to the sums of the last.
template <class Kind, int kChains>
class Products {
 public:
  static constexpr int kPerRound = 32;
  __device__ explicit Products(const LoopInputs& in) {
    // Zeros that the compiler cannot know to be the same: each has its register.
    for (int i = 0; i < 4; ++i) a_[i] = static_cast<typename Kind::A>((threadIdx.x + i) * in.zero);
    for (int i = 0; i < 2; ++i) b_[i] = static_cast<typename Kind::A>((threadIdx.x - i) * in.zero);
  }
  __device__ void round() {
#pragma unroll
    for (int i = 0; i < kPerRound; ++i) Kind::multiply(sums_[i % kChains], a_, b_);
  }
  __device__ uint32_t result() const {
    float all = 0;
    for (int i = 0; i < kChains; ++i) all += sums_[i][0] + sums_[i][1] + sums_[i][2] + sums_[i][3];
    return __float_as_uint(all);
  }

 private:
  typename Kind::A a_[4], b_[2];
  float sums_[kChains][4] = {};
};

// ---- rounding: result = c + the sum over k of a[k] b[k], a warp each ----

struct Dot {
  float c, a[8], b[8];
};

__global__ void tf32_dot_kernel(const Dot* dots, float* results) {
  const Dot& dot = dots[blockIdx.x];
  const int row = threadIdx.x / 4,
            column = threadIdx.x % 4;  // of a's rows and b's columns only number 0 counts
  const bool first = row == 0;
  float sum[4] = {first && column == 0 ? dot.c : 0.0f, 0, 0, 0};
  const float a[4] = {first ? dot.a[column] : 0.0f, 0, first ? dot.a[column + 4] : 0.0f, 0};
  const float b[2] = {first ? dot.b[column] : 0.0f, first ? dot.b[column + 4] : 0.0f};
  cuda::mma_tf32(sum, a, b);
  if (threadIdx.x == 0) results[blockIdx.x] = sum[0];
}

__device__ __forceinline__ uint32_t bf16_pair(float low, float high) {
  return __builtin_bit_cast(uint32_t, cuda::narrow_pair_bf16(low, high));
}

// The same of 16 k, of which the last 8 are zeros; a lane's registers hold columns 2q, 2q + 1, then 2q + 8,
// ...
__global__ void bf16_dot_kernel(const Dot* dots, float* results) {
  const Dot& dot = dots[blockIdx.x];
  const int row = threadIdx.x / 4, column = threadIdx.x % 4 * 2;
  const bool first = row == 0;
  float sum[4] = {first && column == 0 ? dot.c : 0.0f, 0, 0, 0};
  const uint32_t a[4] = {first ? bf16_pair(dot.a[column], dot.a[column + 1]) : 0, 0, 0, 0};
  const uint32_t b = first ? bf16_pair(dot.b[column], dot.b[column + 1]) : 0;
  cuda::mma<bfloat16>(sum, a, b, 0);
  if (threadIdx.x == 0) results[blockIdx.x] = sum[0];
}

constexpr float kUlp = 1.0f / (1 << 23);  // of 1

// What each result says: rounding() and added_bits() in entries.py.
std::vector<Dot> dots() {
  const float tf32_ulp = 1.0f / (1 << 10);
  std::vector<Dot> all = {
      {0.0f, {1.0f + 0.75f * tf32_ulp}, {1.0f}},  // an operand, three quarters to its next tf32
      {0.0f, {1.0f}, {1.0f + 0.75f * tf32_ulp}},
      {1.0f, {1.75f * kUlp}, {1.0f}},    // a sum, three quarters to its next float
      {-1.0f, {-1.75f * kUlp}, {1.0f}},  // below zero
  };
  // Eight products of 1/2, 1/4 and 1/8 ulp of the sum that they are added to; together 4, 2 and 1.
  for (int bits = 1; bits <= 3; ++bits) {
    Dot dot{1.0f, {}, {}};
    std::fill_n(dot.a, 8, kUlp / static_cast<float>(1 << bits));
    std::fill_n(dot.b, 8, 1.0f);
    all.push_back(dot);
  }
  return all;
}

int run_dots(void (*kernel)(const Dot*, float*), std::vector<double>& out) {
  const std::vector<Dot> host = dots();
  const DeviceArray<Dot> device(host.size());
  const DeviceArray<float> results(host.size());
  HYMBA_MACHINE_TRY(device.error());
  HYMBA_MACHINE_TRY(results.error());
  HYMBA_MACHINE_TRY(
      cudaMemcpy(device.data(), host.data(), host.size() * sizeof(Dot), cudaMemcpyHostToDevice));
  kernel<<<static_cast<unsigned>(host.size()), kWarp>>>(device.data(), results.data());
  HYMBA_MACHINE_TRY(cudaGetLastError());
  std::vector<float> read;
  HYMBA_MACHINE_TRY(results.read(read));
  out.assign(read.begin(), read.end());
  return cudaSuccess;
}

}  // namespace

std::vector<Measure> product_measures() {
  return {
      throughput<Products<Tf32, 4>>("mma_tf32"),
      throughput<Products<Bf16, 4>>("mma_bf16"),
      latency<Products<Tf32, 1>>("mma_tf32_latency"),
      latency<Products<Bf16, 1>>("mma_bf16_latency"),
      {"tf32_rounding", [](std::vector<double>& out) { return run_dots(tf32_dot_kernel, out); }},
      {"bf16_rounding", [](std::vector<double>& out) { return run_dots(bf16_dot_kernel, out); }},
  };
}

}  // namespace hymba::machine
