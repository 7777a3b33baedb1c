// Where each sequence of a dense or packed [B, T, ...] tensor lies. Plain data, shared by all back ends.
#pragma once
#include <cstdint>

#include "core/host_device.h"

namespace hymba {

// [B, T, C] with a contiguous last dimension; strides in elements.
struct TokensView {
  void* data;
  int64_t batch_stride;
  int64_t token_stride;
};

struct Sequences {
  const int32_t* cu_seqlens;  // int32 [count + 1]: packed input with batch 1; null for dense input
  int64_t count;              // B, or the number of packed sequences
  int64_t tokens;             // T, packed: of all sequences together
};

// Tokens begin .. begin + length - 1 of batch row `batch`.
struct Sequence {
  int64_t batch;
  int64_t begin;
  int64_t length;
};

HYMBA_INLINE Sequence sequence_at(const Sequences& sequences, int64_t index) {
  if (sequences.cu_seqlens == nullptr) return {index, 0, sequences.tokens};
  const int64_t begin = sequences.cu_seqlens[index];
  return {0, begin, sequences.cu_seqlens[index + 1] - begin};
}

// The first token that no sequence covers (packed input only; T for dense input).
HYMBA_INLINE int64_t covered_tokens(const Sequences& sequences) {
  return sequences.cu_seqlens == nullptr ? sequences.tokens : sequences.cu_seqlens[sequences.count];
}

template <class T>
HYMBA_INLINE T* token_row(const TokensView& view, int64_t batch, int64_t token) {
  return static_cast<T*>(view.data) + batch * view.batch_stride + token * view.token_stride;
}

}  // namespace hymba
