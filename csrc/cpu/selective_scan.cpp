// selective_scan on the CPU: a work item is a block of channels of one sequence, one pass over its tokens in
// chunks (cpu/scan_block.h). Bits depend on nothing but the sequence and, where it is scanned in pieces, on
// the thread count.
//
// Pieces: a long sequence whose channels cannot feed the threads is cut every kPieceTokens tokens, in three
// steps: (1) each piece alone, from a zero state, for its last state and the product of its decays; (2) from
// piece to piece, state = product * state + last state; (3) each piece again, from the right state.
#include "ops/selective_scan.h"

#include "cpu/kernel.h"
#include "cpu/scan_block.h"

namespace hymba::cpu::HYMBA_ISA {

constexpr int64_t kPieceTokens = 512;
static_assert(kPieceTokens % kScanChunk == 0);
// Everything is computed twice in pieces: they pay from more than two threads a vector of channels on.
constexpr int64_t kThreadsPerVector = 4, kFewestPieces = 4;

template <class T>
class Scan {
  using C = compute_t<T>;

 public:
  explicit Scan(const SelectiveScanParams& params)
      : p_(params),
        in_(params.operands),
        state_size_(in_.channels * in_.states),
        first_piece_(p_.sequences.count + 1) {
    const int64_t threads = thread_limit(), sequences = p_.sequences.count;
    first_piece_[0] = 0;
    for (int64_t s = 0; s < sequences; ++s)
      first_piece_[s + 1] = first_piece_[s] + piece_count(sequence_at(p_.sequences, s).length, threads);
    // Smaller blocks read B and C more often, which idle threads would not.
    while (block_ > kLanes<C> && pieces() * divide_up(in_.channels, block_) < 4 * threads) block_ /= 2;
  }

  void run() {
    if (pieces() == p_.sequences.count)
      return for_each_piece(
          [&](ScanBlock<T>& block, int64_t s, int64_t piece) { scan_piece(nullptr, block, s, piece); });
    Scratch<C> last(pieces() * state_size_), product(pieces() * state_size_);
    for_each_piece([&](ScanBlock<T>& block, int64_t s, int64_t piece) {
      scan_alone(last.get(), product.get(), block, s, piece);
    });
    for (int64_t s = 0; s < p_.sequences.count; ++s) connect_pieces(s, last.get(), product.get());
    for_each_piece(
        [&](ScanBlock<T>& block, int64_t s, int64_t piece) { scan_piece(last.get(), block, s, piece); });
  }

 private:
  // Of a sequence's own length and the machine only: neighbours must not change its bits.
  int64_t piece_count(int64_t length, int64_t threads) const {
    const bool few_channels = divide_up(in_.channels, kLanes<C>) * kThreadsPerVector <= threads;
    return few_channels && length >= kFewestPieces * kPieceTokens ? divide_up(length, kPieceTokens) : 1;
  }
  int64_t pieces() const { return first_piece_[p_.sequences.count]; }
  bool is_last(int64_t s, int64_t piece) const { return piece + 1 == first_piece_[s + 1]; }

  // body(block, sequence, piece) for each piece and block of channels, with the block's channels set.
  template <class Body>
  void for_each_piece(const Body& body) const {
    const int64_t blocks = divide_up(in_.channels, block_);
    auto worker = [&](WorkQueue& queue) {
      ScanBlock<T> block(in_);
      int64_t s = 0;
      for (int64_t item; queue.take(item);) {
        const int64_t piece = item / blocks, channel = item % blocks * block_;
        while (piece >= first_piece_[s + 1]) ++s;  // items only grow
        block.set_channels(channel, at_most(block_, in_.channels - channel));
        body(block, s, piece);
      }
    };
    parallel_work(pieces() * blocks, p_.batch * in_.tokens * state_size_ * 16, worker);
  }

  struct Span {
    int64_t batch, begin, length;  // as in Sequence
    int64_t offset;                // of begin, from the sequence's start
  };
  Span span_of(int64_t s, int64_t piece) const {
    const Sequence seq = sequence_at(p_.sequences, s);
    const int64_t offset = (piece - first_piece_[s]) * kPieceTokens;
    const int64_t length = is_last(s, piece) ? seq.length - offset : kPieceTokens;
    return {seq.batch, seq.begin + offset, length, offset};
  }

  void scan_alone(C* last, C* product, ScanBlock<T>& block, int64_t s, int64_t piece) const {
    if (is_last(s, piece)) return;
    const Span span = span_of(s, piece);
    block.load_state(nullptr, 0);
    for (int64_t t = 0; t < span.length; t += kScanChunk)
      block.walk_tokens(span.batch, span.begin + t, at_most(kScanChunk, span.length - t), false);
    block.store_state(last + piece * state_size_, in_.states);
    block.store_decay_product(product + piece * state_size_, in_.states);
  }

  // Replaces each piece's last state by the state before it.
  void connect_pieces(int64_t s, C* last, const C* product) const {
    const C* initial = initial_state(s);
    for (int64_t c = 0; c < in_.channels; ++c)
      for (int64_t n = 0; n < in_.states; ++n) {
        C h = initial ? initial[c * p_.initial_state.token_stride + n] : C(0);
        for (int64_t piece = first_piece_[s]; piece < first_piece_[s + 1]; ++piece) {
          const int64_t i = piece * state_size_ + c * in_.states + n;
          // 0 and infinity stay what they are however far the product has left the range of C.
          const C carried = h == 0 || !std::isfinite(h) ? h : h * product[i], own = last[i];
          last[i] = h;
          if (!is_last(s, piece)) h = carried + own;
        }
      }
  }

  const C* initial_state(int64_t s) const {
    return p_.initial_state.data ? token_row<const C>(p_.initial_state, s, 0) : nullptr;
  }

  // `before`: the state before each piece, [pieces, C, N]; null where every sequence is one piece.
  void scan_piece(const C* before, ScanBlock<T>& block, int64_t s, int64_t piece) const {
    const Span span = span_of(s, piece);
    if (before) {
      block.load_state(before + piece * state_size_, in_.states);
    } else {
      block.load_state(initial_state(s), p_.initial_state.token_stride);
    }
    for (int64_t t = 0; t < span.length; t += kScanChunk) {
      if (p_.checkpoints) block.store_state(checkpoint(s, span.offset + t), in_.states);
      block.walk_tokens(span.batch, span.begin + t, at_most(kScanChunk, span.length - t));
    }
    if (p_.final_state && is_last(s, piece))
      block.store_state(static_cast<C*>(p_.final_state) + s * state_size_, in_.states);
  }

  // Of a sequence's token `offset`, a multiple of the interval.
  C* checkpoint(int64_t s, int64_t offset) const {
    const int64_t first = first_checkpoint(p_.sequences, s, sequence_at(p_.sequences, s).begin);
    return static_cast<C*>(p_.checkpoints) + (first + offset / kCheckpointInterval) * state_size_;
  }

  const SelectiveScanParams& p_;
  const ScanOperands& in_;
  const int64_t state_size_;
  Scratch<int64_t> first_piece_;  // [sequences + 1]: how many pieces come before each sequence
  int64_t block_ = kBlockChannels;
};

template <class T>
static void run(const SelectiveScanParams& p) {
  const ScanOperands& in = p.operands;
  const int64_t covered = covered_tokens(p.sequences);
  if (p.batch > 0)
    fill_zero(static_cast<T*>(in.out) + ((p.batch - 1) * in.tokens + covered) * in.channels,
              (in.tokens - covered) * in.channels);
  Scan<T>(p).run();
}

void selective_scan(const SelectiveScanParams& params) {
  with_dtype(params.operands.dtype, [&](auto t) { run<decltype(t)>(params); });
}

}  // namespace hymba::cpu::HYMBA_ISA
