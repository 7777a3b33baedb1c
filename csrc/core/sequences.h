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

// Where packed sequence `index` begins. Nobody has checked a GPU's values: impossible ones are replaced, here
// and in sequence_at, so that no access leaves the tensors.
HYMBA_INLINE int64_t sequence_start(const Sequences& sequences, int64_t index) {
  return clamped(sequences.cu_seqlens[index], 0, sequences.tokens);
}

HYMBA_INLINE Sequence sequence_at(const Sequences& sequences, int64_t index) {
  if (sequences.cu_seqlens == nullptr) return {index, 0, sequences.tokens};
  const int64_t begin = sequence_start(sequences, index), end = sequence_start(sequences, index + 1);
  return {0, begin, end < begin ? 0 : end - begin};
}

// The first token that no sequence covers (packed input only; T for dense input).
HYMBA_INLINE int64_t covered_tokens(const Sequences& sequences) {
  return sequences.cu_seqlens == nullptr ? sequences.tokens : sequence_start(sequences, sequences.count);
}

template <class T>
HYMBA_INLINE T* token_row(const TokensView& view, int64_t batch, int64_t token) {
  return static_cast<T*>(view.data) + batch * view.batch_stride + token * view.token_stride;
}

}  // namespace hymba
