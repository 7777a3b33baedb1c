// What a block of selective_scan walks: a sequence or, where channels are few and the sequence is long, a
// piece of it. A sequence's pieces follow from its own length alone, so its bits do not depend on its
// neighbours.
//
// In pieces, a scan takes three steps: each piece alone from a zero state, for its last state and the sum of
// its dt; from piece to piece, state = exp(A sum of dt) state + last state; each piece again, from the right
// state. That is 1.9 times the exponentials, for blocks all over the GPU instead of on a few SMs.
#pragma once
#include "cuda/device.cuh"
#include "ops/selective_scan.h"

namespace hymba::cuda {

constexpr int64_t kPieceTokens = 512, kFewestPieces = 4;
static_assert(kPieceTokens % kCheckpointInterval == 0);
// With as many as this at batch 8, all SMs have work without pieces.
constexpr int64_t kFewChannels = 512;

struct ScanSpan {
  int64_t sequence;
  int64_t batch, begin, length;  // tokens begin .. begin + length - 1 of batch row `batch`
  int64_t offset;                // of begin, from the sequence's first token
  bool whole;                    // it is all of its sequence
  bool last;                     // it ends its sequence
};

// Whether a sequence could be long enough for pieces: the shapes are all that the host knows.
HYMBA_INLINE bool may_have_pieces(const SelectiveScanParams& p) {
  return p.operands.channels <= kFewChannels && p.sequences.tokens >= kFewestPieces * kPieceTokens;
}

HYMBA_INLINE int64_t piece_count(int64_t length) {
  return length >= kFewestPieces * kPieceTokens ? divide_up(length, kPieceTokens) : 1;
}

// Spans have slots, some of which stay empty: those of a sequence begin at first_slot.
HYMBA_INLINE int64_t slot_count(const SelectiveScanParams& p) {
  const Sequences& s = p.sequences;
  if (!may_have_pieces(p)) return s.count;
  return s.cu_seqlens != nullptr ? s.tokens / kPieceTokens + s.count : s.count * piece_count(s.tokens);
}

// Blocks that take so many channels of a slot each.
inline int64_t scan_blocks(const SelectiveScanParams& p, int64_t channels) {
  return slot_count(p) * divide_up(p.operands.channels, channels);
}

__device__ __forceinline__ int64_t first_slot(const Sequences& s, int64_t sequence) {
  return s.cu_seqlens != nullptr ? sequence_start(s, sequence) / kPieceTokens + sequence
                                 : sequence * piece_count(s.tokens);
}

// The sequence of a slot: the last one that begins there or before. first_slot increases strictly.
__device__ __forceinline__ int64_t sequence_of_slot(const Sequences& s, int64_t slot) {
  if (s.cu_seqlens == nullptr) return slot / piece_count(s.tokens);
  int64_t low = 0, high = s.count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (first_slot(s, middle) <= slot ? low : high) = middle;
  }
  return low;
}

// False for an empty slot.
__device__ __forceinline__ bool find_span(const SelectiveScanParams& p, int64_t slot, ScanSpan& span) {
  const bool pieces = may_have_pieces(p);
  const int64_t sequence = pieces ? sequence_of_slot(p.sequences, slot) : slot;
  const Sequence all = sequence_at(p.sequences, sequence);
  const int64_t count = pieces ? piece_count(all.length) : 1;
  const int64_t piece = pieces ? slot - first_slot(p.sequences, sequence) : 0;
  if (piece < 0 || piece >= count) return false;
  const int64_t offset = piece * kPieceTokens;
  const bool last = piece + 1 == count;
  span = {sequence,   all.batch, all.begin + offset, last ? all.length - offset : kPieceTokens, offset,
          count == 1, last};
  return true;
}

// The workspace where sequences may have pieces: of every slot the state [C, N] (first a piece's own last
// one, then the one before it), behind all of them of every slot the sums of dt [C].
template <class T>
struct PieceStates {
  using C = compute_t<T>;
  C* states;
  C* dt_sums;

  HYMBA_INLINE_MEMBER __host__ __device__ static size_t bytes(const SelectiveScanParams& p) {
    return slot_count(p) * p.operands.channels * (p.operands.states + 1) * sizeof(C);
  }
  __device__ explicit PieceStates(const SelectiveScanParams& p)
      : states(static_cast<C*>(p.workspace)),
        dt_sums(states + slot_count(p) * p.operands.channels * p.operands.states) {}
};

// The state of channel `c` before a span, or null for zeros.
template <class T>
__device__ __forceinline__ const compute_t<T>* state_before(const SelectiveScanParams& p,
                                                            const ScanSpan& span, int64_t slot, int64_t c) {
  using C = compute_t<T>;
  if (!span.whole) return PieceStates<T>(p).states + (slot * p.operands.channels + c) * p.operands.states;
  if (p.initial_state.data == nullptr) return nullptr;
  return token_row<const C>(p.initial_state, span.sequence, c);
}

}  // namespace hymba::cuda
