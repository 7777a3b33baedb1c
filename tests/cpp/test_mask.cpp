// The mask predicate's tile ranges against brute force over all small cases.
#include <cstdio>

#include "core/mask.h"

using namespace hymba;

static long failures = 0;

static void expect(bool ok, const char* what, const Mask& mask, int64_t i0, int64_t i1, int64_t j0,
                   int64_t j1) {
  if (ok || ++failures > 20) return;
  std::printf("%s: window %ld, num_meta %ld, queries [%ld, %ld), keys [%ld, %ld)\n", what, long(mask.window),
              long(mask.num_meta), long(i0), long(i1), long(j0), long(j1));
}

// The definition, written out independently of core/mask.h.
static bool sees(const Mask& mask, int64_t i, int64_t j) {
  if (j > i) return false;
  if (mask.window < 0) return true;
  return j < mask.num_meta || j >= i - mask.window;
}

static void check_spans(const Mask& mask, int64_t i0, int64_t i1, int64_t keys) {
  const KeySpans s = key_spans(mask, i0, i1);
  expect(0 <= s.prefix_end && s.prefix_end <= s.begin && s.begin <= s.end && s.end <= keys, "span order",
         mask, i0, i1, s.begin, s.end);
  for (int64_t j = 0; j < keys; ++j) {
    bool seen = false;
    for (int64_t i = i0; i < i1; ++i) seen = seen || sees(mask, i, j);
    const bool in_span = j < s.prefix_end || (j >= s.begin && j < s.end);
    // Where the two spans were merged, keys between them may be visited for nothing; never the other way
    // round.
    expect(!seen || in_span, "a visible key lies in no span", mask, i0, i1, j, j + 1);
    const bool wasted = in_span && !seen;
    expect(!wasted, "a span holds a key that no query sees", mask, i0, i1, j, j + 1);
  }
}

static void check_tiles(const Mask& mask, int64_t i0, int64_t i1, int64_t keys) {
  for (int64_t j0 = 0; j0 < keys; ++j0)
    for (int64_t j1 = j0 + 1; j1 <= keys; ++j1) {
      bool all = true;
      for (int64_t i = i0; i < i1; ++i)
        for (int64_t j = j0; j < j1; ++j) all = all && sees(mask, i, j);
      // all_visible may miss a tile that straddles prefix and window; it must never claim one that is not
      // whole.
      expect(!all_visible(mask, i0, i1, j0, j1) || all, "all_visible is wrong", mask, i0, i1, j0, j1);
      if (all && (mask.window == kNoWindow || j0 >= mask.num_meta || j1 <= mask.num_meta))
        expect(all_visible(mask, i0, i1, j0, j1), "all_visible misses a tile", mask, i0, i1, j0, j1);
    }
}

static void check_range(const Mask& mask, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
  int64_t begin = j1, end = j0;
  for (int64_t j = j0; j < j1; ++j)
    for (int64_t i = i0; i < i1; ++i)
      if (sees(mask, i, j)) {
        begin = j < begin ? j : begin;
        end = j + 1;
      }
  const KeyRange range = visible_range(mask, i0, i1, j0, j1);
  const bool empty = begin >= end;
  expect(empty ? range.end <= range.begin : range.begin == begin && range.end == end, "visible_range", mask,
         i0, i1, j0, j1);
}

int main() {
  constexpr int64_t kKeys = 14;
  for (int64_t window = kNoWindow; window <= 6; ++window)
    for (int64_t num_meta = 0; num_meta <= kKeys + 1; ++num_meta) {
      const Mask mask{window, num_meta};
      for (int64_t i = 0; i < kKeys; ++i)
        for (int64_t j = 0; j < kKeys; ++j)
          expect(visible(mask, i, j) == sees(mask, i, j), "visible", mask, i, i + 1, j, j + 1);
      for (int64_t i0 = 0; i0 < kKeys; ++i0)
        for (int64_t i1 = i0 + 1; i1 <= kKeys; ++i1) {
          check_spans(mask, i0, i1, kKeys);
          check_tiles(mask, i0, i1, kKeys);
          for (int64_t j0 = 0; j0 < kKeys; ++j0)
            for (int64_t j1 = j0 + 1; j1 <= kKeys; ++j1) check_range(mask, i0, i1, j0, j1);
        }
    }
  std::printf(failures ? "%ld failures\n" : "mask: ok\n", failures);
  return failures != 0;
}
