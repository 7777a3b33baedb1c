// Small kernels with known loops, for tests/test_sass_model.py. loops.sass and loops.resources are made from this file by
// nvcc 13.0.88 and the disassemblers 13.5.37, once; the tests' figures are counted by hand in loops.sass.
//
//   nvcc -O3 -std=c++20 -arch=sm_90 -cubin loops.cu -o loops.cubin
//   nvdisasm -c -hex loops.cubin | sed -E 's/ {8,}/  /g' > loops.sass
//   cuobjdump -res-usage loops.cubin > loops.resources

// A loop in a loop.
extern "C" __global__ void __launch_bounds__(64) nested(const float* x, float* y, int tiles, int width) {
  __shared__ float tile[64];
  float sum = 0;
#pragma unroll 1
  for (int i = 0; i < tiles; ++i) {
    tile[threadIdx.x] = x[i * 64 + threadIdx.x];
    __syncthreads();
#pragma unroll 1
    for (int j = 0; j < width; ++j) sum = fmaf(sum, tile[(threadIdx.x + j) & 63], 1.0f);
    __syncthreads();
  }
  y[threadIdx.x] = sum;
}

// Warps 0 to 3 compute and warps 4 to 7 copy, in one outer loop.
extern "C" __global__ void __launch_bounds__(256) roles(const float* x, float* y, int tiles, int width) {
  __shared__ float tile[2][128];
  float sum = 0;
#pragma unroll 1
  for (int i = 0; i < tiles; ++i) {
    if (threadIdx.x >= 128) {
      tile[i & 1][threadIdx.x - 128] = x[i * 128 + threadIdx.x - 128];
    } else {
#pragma unroll 1
      for (int j = 0; j < width; ++j) sum += exp2f(tile[i & 1 ^ 1][(threadIdx.x + j) & 127]);
    }
    __syncthreads();
  }
  if (threadIdx.x < 128) y[threadIdx.x] = sum;
}

// The same with an outer loop for each role.
extern "C" __global__ void __launch_bounds__(256) apart(const float* x, float* y, int tiles, int width) {
  __shared__ float tile[2][128];
  if (threadIdx.x >= 128) {
#pragma unroll 1
    for (int i = 0; i < tiles; ++i) {
      tile[i & 1][threadIdx.x - 128] = x[i * 128 + threadIdx.x - 128];
      __syncthreads();
    }
  } else {
    float sum = 0;
#pragma unroll 1
    for (int i = 0; i < tiles; ++i) {
#pragma unroll 1
      for (int j = 0; j < width; ++j) sum += exp2f(tile[i & 1 ^ 1][(threadIdx.x + j) & 127]);
      __syncthreads();
    }
    y[threadIdx.x] = sum;
  }
}
