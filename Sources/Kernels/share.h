/* Dividing work among parts, and scratch among its uses. */
#ifndef PK_SHARE_H
#define PK_SHARE_H

#include <stddef.h>
#include <stdint.h>

typedef struct pk_range {
  int64_t begin, end;
} pk_range;

/* The share of `part` of `count` items in whole grains (the last grain may be short); shares are contiguous. */
static inline pk_range pk_share(int64_t count, int64_t grain, int32_t part, int32_t parts) {
  const int64_t grains = (count + grain - 1) / grain;
  const int64_t each = grains / parts, rest = grains % parts;
  const int64_t first = each * part + (part < rest ? part : rest);
  const int64_t last = first + each + (part < rest);
  const int64_t begin = first * grain, end = last * grain;
  return (pk_range){begin < count ? begin : count, end < count ? end : count};
}

/* Elements of one elementwise grain: whole cache lines of f32 and bf16, so that parts never share a line. */
#define PK_GRAIN 64

static inline int64_t pk_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t pk_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t pk_round_up(int64_t a, int64_t to) { return (a + to - 1) / to * to; }

/* Takes `bytes` (64-byte aligned) from a piece of memory; with base 0 it only counts. */
static inline void *pk_take(uintptr_t base, size_t *used, int64_t bytes) {
  void *piece = (void *)(base + *used);
  *used += (size_t)pk_round_up(bytes, 64);
  return piece;
}

#endif
