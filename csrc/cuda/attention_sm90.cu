// attention on Hopper: which calls its kernel takes, the tensor maps, the launches.
#include "cuda/attention_sm90.cuh"

#include <algorithm>

#include "cuda/attention_sm90.h"
#include "cuda/attention_sm90_plan.cuh"
#include "cuda/device.cuh"

namespace hymba::cuda {
namespace {

constexpr int64_t kMostHeadsOfGroup = 8;  // more would leave many of an item's rows idle
constexpr int64_t kMostItems = int64_t{1} << 30;
constexpr int64_t kMostStride = int64_t{1} << 39;  // elements

int64_t group_of(const AttentionParams& p) {
  return p.q_heads / p.kv_heads;
}

template <class Tile>
int room_of(const AttentionParams& p) {
  return static_cast<int>(Tile::kRows / group_of(p));
}

// body(Tile(), key dim, value dim) with the smallest tiles that hold the head dims.
template <class Body>
auto with_tile(const AttentionParams& p, const Body& body) {
  using std::integral_constant;
  constexpr integral_constant<int, 64> k64;
  constexpr integral_constant<int, 128> k128;
  if (p.k_dim <= 64 && p.v_dim <= 64) return body(Sm90Tile<64, 64>(), k64, k64);
  if (p.k_dim <= 64) return body(Sm90Tile<64, 128>(), k64, k128);
  return body(Sm90Tile<128, 128>(), k128, k128);
}

// What a tensor map takes. Along dimensions of one element nobody steps.
bool is_mappable(const HeadsView& view, int64_t batch, int64_t tokens, int64_t heads) {
  const auto takes = [](int64_t size, int64_t stride) {
    return size == 1 || (stride > 0 && stride < kMostStride && stride % kChunk == 0);
  };
  return view.data != nullptr && reinterpret_cast<uintptr_t>(view.data) % 16 == 0 &&
         takes(batch, view.batch_stride) && takes(tokens, view.token_stride) &&
         takes(heads, view.head_stride);
}

int64_t stride_of(int64_t size, int64_t stride) {
  return size == 1 ? kChunk : stride;
}

int map_keys(TensorMap& map, const HeadsView& view, int64_t dim, int64_t tokens, const AttentionParams& p,
             int64_t batch, int keys) {
  return make_tensor_map(
      map, TensorBoxes<4>{view.data,
                          {dim, tokens, p.kv_heads, batch},
                          {1, stride_of(tokens, view.token_stride), stride_of(p.kv_heads, view.head_stride),
                           stride_of(batch, view.batch_stride)},
                          {kPart, keys, 1, 1}});
}

template <class Tile>
int make_maps(Sm90Maps& maps, const AttentionParams& p) {
  const int64_t group = group_of(p);
  const TensorBoxes<5> rows{
      p.q.data,
      {p.k_dim, group, p.q_len, p.kv_heads, p.batch},
      {1, stride_of(group, p.q.head_stride), stride_of(p.q_len, p.q.token_stride),
       stride_of(p.kv_heads, group * p.q.head_stride), stride_of(p.batch, p.q.batch_stride)},
      {kPart, group, room_of<Tile>(p), 1, 1}};
  if (const int error = make_tensor_map(maps.q, rows)) return error;
  if (const int error = map_keys(maps.k, p.k, p.k_dim, p.k_len, p, p.batch, Tile::kKeys)) return error;
  if (const int error = map_keys(maps.v, p.v, p.v_dim, p.k_len, p, p.batch, Tile::kKeys)) return error;
  maps.meta_k = maps.k;
  maps.meta_v = maps.v;
  if (p.meta_len == 0) return cudaSuccess;
  if (const int error = map_keys(maps.meta_k, p.meta_k, p.k_dim, p.meta_len, p, 1, Tile::kKeys)) return error;
  return map_keys(maps.meta_v, p.meta_v, p.v_dim, p.meta_len, p, 1, Tile::kKeys);
}

// In the workspace.
AttentionItem* listed_items(const AttentionParams& p) {
  return static_cast<AttentionItem*>(p.workspace);
}
int* listed_count(const AttentionParams& p, int64_t slots) {
  return reinterpret_cast<int*>(listed_items(p) + slots);
}

template <class T, class Tile, int kKeyDim, int kValueDim>
int launch_tile(const AttentionParams& p, void* stream) {
  DeviceTraits device;
  if (const int error = current_device_traits(device)) return error;
  Sm90Maps maps;
  if (const int error = make_maps<Tile>(maps, p)) return error;
  const int room = room_of<Tile>(p);
  const int64_t slots = item_slots(p, room);
  ItemList list{nullptr, nullptr, room};
  if (p.cu_seqlens_q != nullptr) {
    list.items = listed_items(p);
    list.count = listed_count(p, slots);
    if (const int error = launch_kernel(list_items_kernel<Tile::kKeys>, LaunchShape{1, kPlanThreads}, stream,
                                        p, room, listed_items(p), listed_count(p, slots)))
      return error;
  }
  const int64_t blocks = std::min<int64_t>(slots * p.kv_heads, device.multiprocessors);
  const LaunchShape shape{static_cast<unsigned>(blocks), Tile::kThreads, shared_bytes<Sm90Shared<T, Tile>>()};
  return launch_kernel(sm90_attention_kernel<T, kKeyDim, kValueDim>, shape, stream, maps, p, list);
}

template <class T>
int launch_dims(const AttentionParams& p, void* stream) {
  return with_tile(p, [&](auto tile, auto key_dim, auto value_dim) {
    return launch_tile<T, decltype(tile), key_dim, value_dim>(p, stream);
  });
}

}  // namespace

const char* attention_sm90_refusal(const AttentionParams& p) {
  DeviceTraits device;
  if (current_device_traits(device) != cudaSuccess || device.capability != 90)
    return "the code is for compute capability 9.0 and no other";
  if (p.dtype != DType::bf16 && p.dtype != DType::f16) return "wgmma takes 16-bit types";
  if (p.k_dim > 128 || p.v_dim > 128) return "sums of more than 128 columns do not fit the registers";
  if (p.k_dim % kChunk != 0 || p.v_dim % kChunk != 0) return "TMA takes rows of whole 16 bytes";
  if (group_of(p) > kMostHeadsOfGroup) return "an item's rows are whole groups of heads";
  if (p.q_len == 0 || p.k_len == 0 || p.q_len > kMaxPosition)
    return "a tensor map has rows, and ints number them";
  if (with_tile(p, [&](auto tile, auto, auto) { return item_slots(p, room_of<decltype(tile)>(p)); }) *
          p.kv_heads >
      kMostItems)
    return "items are numbered by an int";
  if (!is_mappable(p.q, p.batch, p.q_len, p.q_heads) || !is_mappable(p.k, p.batch, p.k_len, p.kv_heads) ||
      !is_mappable(p.v, p.batch, p.k_len, p.kv_heads) ||
      (p.meta_len > 0 && (!is_mappable(p.meta_k, 1, p.meta_len, p.kv_heads) ||
                          !is_mappable(p.meta_v, 1, p.meta_len, p.kv_heads))))
    return "TMA takes addresses and strides of whole 16 bytes";
  return nullptr;
}

size_t attention_sm90_workspace_bytes(const AttentionParams& p) {
  if (p.cu_seqlens_q == nullptr) return 0;
  return with_tile(p, [&](auto tile, auto, auto) {
    return static_cast<size_t>(item_slots(p, room_of<decltype(tile)>(p)) + 1) * sizeof(AttentionItem);
  });
}

int attention_sm90(const AttentionParams& p, void* stream) {
  return p.dtype == DType::bf16 ? launch_dims<bfloat16>(p, stream) : launch_dims<float16>(p, stream);
}

}  // namespace hymba::cuda
