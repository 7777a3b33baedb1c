// The one attention mask, and which keys a tile of queries can see. Shared by every attention kernel.
//
// Positions count from the start of a sequence's keys, always-visible prefix (meta tokens) included.
// Key j is visible to query i when  j <= i  and  (no window, or i - j <= window, or j < num_meta).
#pragma once
#include <cstdint>

#include "core/host_device.h"

namespace hymba {

constexpr int64_t kNoWindow = -1;

struct Mask {
  int64_t window;    // keys i - window .. i are visible; kNoWindow: all up to i
  int64_t num_meta;  // keys 0 .. num_meta - 1 are visible to every query that does not precede them
};

HYMBA_INLINE bool visible(const Mask& mask, int64_t i, int64_t j) {
  return j <= i && (mask.window == kNoWindow || i - j <= mask.window || j < mask.num_meta);
}

// Keys that some query of [i0, i1) sees: [0, prefix_end) and [begin, end), ascending and disjoint.
// Where the prefix touches the window there is one span: prefix_end is 0 and begin is 0.
struct KeySpans {
  int64_t prefix_end;
  int64_t begin;
  int64_t end;
};

HYMBA_INLINE KeySpans key_spans(const Mask& mask, int64_t i0, int64_t i1) {
  KeySpans spans{0, 0, i1};
  if (mask.window == kNoWindow || i0 <= mask.window) return spans;
  spans.begin = i0 - mask.window;
  spans.prefix_end = mask.num_meta < i1 ? mask.num_meta : i1;
  if (spans.prefix_end >= spans.begin) spans.begin = spans.prefix_end = 0;
  return spans;
}

// The least range of keys within [j0, j1) that holds all that some query of [i0, i1) sees; empty: end <=
// begin.
struct KeyRange {
  int64_t begin;
  int64_t end;
};

HYMBA_INLINE KeyRange visible_range(const Mask& mask, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
  const KeySpans spans = key_spans(mask, i0, i1);
  KeyRange range{j0, j1};
  if (j0 >= spans.prefix_end && spans.begin > j0) range.begin = spans.begin;
  const int64_t end = spans.begin < j1 ? spans.end : spans.prefix_end;
  if (end < j1) range.end = end;
  return range;
}

// Every query of [i0, i1) sees every key of [j0, j1): the tile needs no element mask.
HYMBA_INLINE bool all_visible(const Mask& mask, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
  return j1 - 1 <= i0 && (mask.window == kNoWindow || i1 - 1 - j0 <= mask.window || j1 <= mask.num_meta);
}

}  // namespace hymba
