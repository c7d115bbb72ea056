/* Products over tokens with a narrow side, Y[m, n] = Xᵀ·W with m ≤ 16 or n ≤ 16: the gradients of low-rank factors
 * (dA = dHᵀ·X, dB = dYᵀ·H).
 *
 * Sums of outer products: a step (one token, or a pair of them in bf16) is the narrow side's 8 values, broadcast one by one,
 * times 3 vectors of the wide side, which are used straight from where they are: 24 multiply-adds stand against 3 loads (and
 * in bf16 3 merges of two tokens) and 8 broadcasts. Nothing is transposed but the few results of a wide X. Columns of the
 * wide side are divided over the parts; each sum is one chain over the tokens, in order. */
#ifndef LEVEL
#include "matmul.h"
#define BODY "matmul_outer.c"
#include "levels.h"

int32_t pk_outer_serves(const pk_matmul *op) { return op->mode == PK_TN && pk_min(op->m, op->n) <= 16 && op->level >= PK_LEVEL_AVX2 && !pk_amx_wins(op); }

void pk_outer_scratch(const pk_matmul *op, size_t *each) {
  pk_outer_plan plan;
  *each = pk_outer_plan_of(op, 0, &plan);
}

void pk_outer_run(const pk_matmul *op, int32_t part, int32_t parts, void *each) {
  pk_outer_plan plan;
  pk_outer_plan_of(op, (uintptr_t)each, &plan);
  const pk_range share = pk_share(plan.width, 48, part, parts);
  if (share.begin < share.end) AT_LEVEL(op->level, outer_columns)(op, &plan, share);
}

#else

#include "matmul_thin.h"

#if LEVEL == 0
enum { outer_rows = 8, outer_ahead = 16 };

typedef struct pk_outer_plan {
  int pairs, rounds;
  int is_x_narrow; /* rows of Y belong to the narrow side */
  const void *narrow, *wide; /* [k, height] and [k, width] */
  int32_t narrow_type, wide_type;
  int64_t height, width, narrow_ld, wide_ld;
  int64_t steps;
  uint32_t *words; /* [groups of 8][steps][8] of the narrow side */
} pk_outer_plan;

static size_t pk_outer_plan_of(const pk_matmul *op, uintptr_t base, pk_outer_plan *plan) {
  const int is_bf16 = op->compute == PK_COMPUTE_BF16;
  plan->pairs = is_bf16 && op->level >= PK_LEVEL_AVX512_BF16;
  plan->rounds = is_bf16 && !plan->pairs;
  plan->is_x_narrow = op->m <= op->n;
  plan->narrow = plan->is_x_narrow ? op->x : op->w, plan->wide = plan->is_x_narrow ? op->w : op->x;
  plan->narrow_type = plan->is_x_narrow ? op->x_type : op->w_type, plan->wide_type = plan->is_x_narrow ? op->w_type : op->x_type;
  const int64_t w_ld = op->w_row_bytes / pk_type_bytes(op->w_type);
  plan->narrow_ld = plan->is_x_narrow ? op->ldx : w_ld, plan->wide_ld = plan->is_x_narrow ? w_ld : op->ldx;
  plan->height = pk_min(op->m, op->n), plan->width = pk_max(op->m, op->n);
  plan->steps = plan->pairs ? (op->k + 1) / 2 : op->k;
  size_t used = 0;
  plan->words = pk_take(base, &used, pk_round_up(plan->height, outer_rows) * plan->steps * 4);
  return used;
}

/* Eight values of a row of the narrow side as f32, zeros beyond its last and in rows beyond k. */
static void pk_outer_row(const pk_outer_plan *plan, int64_t k, int64_t k_end, int64_t t0, float values[outer_rows]) {
  const int64_t count = k < k_end ? pk_min(outer_rows, plan->height - t0) : 0, at = k * plan->narrow_ld + t0;
  for (int t = 0; t < outer_rows; t++) values[t] = 0;
  if (plan->narrow_type == PK_F32) {
    memcpy(values, (const float *)plan->narrow + at, (size_t)count * 4);
  } else {
    uint16_t halves[outer_rows] = {0};
    memcpy(halves, (const uint16_t *)plan->narrow + at, (size_t)count * 2);
    for (int t = 0; t < outer_rows; t++) values[t] = pk_bf16_to_f32(halves[t]);
  }
}

static void pk_outer_prepare(const pk_outer_plan *plan, int64_t k) {
  uint32_t *to = plan->words;
  for (int64_t t0 = 0; t0 < plan->height; t0 += outer_rows) {
    for (int64_t s = 0; s < plan->steps; s++, to += outer_rows) {
      float low[outer_rows], high[outer_rows];
      if (plan->pairs) {
        pk_outer_row(plan, 2 * s, k, t0, low);
        pk_outer_row(plan, 2 * s + 1, k, t0, high);
        for (int t = 0; t < outer_rows; t++) to[t] = pk_f32_to_bf16(low[t]) | (uint32_t)pk_f32_to_bf16(high[t]) << 16;
      } else {
        pk_outer_row(plan, s, k, t0, low);
        for (int t = 0; t < outer_rows; t++) to[t] = pk_bits(plan->rounds ? pk_round_bf16(low[t]) : low[t]);
      }
    }
  }
}
#endif

#define OUTER_VECTORS (WIDTH == 16 ? 3 : 1)

/* A vector of a step of the wide side: `n` columns from `c` of row k (and of the next one, zeros beyond the last). */
INLINE vu NAME(outer_words)(int pairs, int rounds, int32_t act, const void *wide, int64_t ld, int64_t k, int64_t k_end, int64_t c, int64_t n) {
#if LEVEL == 3
  if (pairs) {
    const int64_t low = k * ld + c, high = low + ld;
    if (act == PK_F32) return pack_pair(vload(act, wide, low, n), k + 1 < k_end ? vload(act, wide, high, n) : (vf)0.0f);
    if (n == WIDTH && k + 1 < k_end) {
      vh a, b;
      memcpy(&a, (const uint16_t *)wide + low, sizeof a);
      memcpy(&b, (const uint16_t *)wide + high, sizeof b);
      return __builtin_convertvector(a, vu) | __builtin_convertvector(b, vu) << 16;
    }
    return vbits(vload(act, wide, low, n)) >> 16 | (k + 1 < k_end ? vbits(vload(act, wide, high, n)) : (vu)0);
  }
#else
  (void)pairs, (void)k_end;
#endif
  return vbits(thin_values(rounds, act, wide, k * ld + c, n));
}

/* Eight rows of the narrow side × `vectors` vectors of the wide one; lanes: columns of the last vector (the others are whole). */
INLINE void NAME(outer_tile)(int pairs, int rounds, int vectors, int32_t act, int64_t lanes, const pk_matmul *op, const pk_outer_plan *plan, int64_t t0, int64_t c) {
  vf acc[outer_rows][OUTER_VECTORS];
#pragma unroll
  for (int t = 0; t < outer_rows; t++) {
#pragma unroll
    for (int v = 0; v < vectors; v++) acc[t][v] = 0;
  }
  const uint32_t *words = plan->words + t0 * plan->steps;
  const int64_t per_step = pairs ? 2 : 1, row_bytes = plan->wide_ld * pk_type_bytes(act);
  for (int64_t s = 0; s < plan->steps; s++, words += outer_rows) {
    const uint8_t *next = (const uint8_t *)plan->wide + pk_min(s * per_step + outer_ahead, op->k - per_step) * row_bytes + c * pk_type_bytes(act);
    for (int64_t i = 0; i < per_step; i++) __builtin_prefetch(next + i * row_bytes), __builtin_prefetch(next + i * row_bytes + 64);
    vu b[OUTER_VECTORS];
#pragma unroll
    for (int v = 0; v < vectors; v++) {
      b[v] = NAME(outer_words)(pairs, rounds, act, plan->wide, plan->wide_ld, s * per_step, op->k, c + v * WIDTH, lanes);
    }
#pragma unroll
    for (int t = 0; t < outer_rows; t++) {
#pragma unroll
      for (int v = 0; v < vectors; v++) acc[t][v] = multiply_words(pairs, acc[t][v], (vu)words[t], b[v]);
    }
  }

  const int64_t rows = pk_min(outer_rows, plan->height - t0);
  if (plan->is_x_narrow) {
#pragma clang loop unroll(disable) /* once a tile: not worth its copies */
    for (int64_t t = 0; t < rows; t++) {
      for (int v = 0; v < vectors; v++) {
        const int64_t column = c + v * WIDTH, at = (t0 + t) * op->ldy + column;
        vf y = op->alpha * acc[t][v];
        if (op->bias) y += vload(PK_F32, op->bias, column, lanes);
        if (op->accumulate) y += vload(op->y_type, op->y, at, lanes);
        vstore(op->y_type, op->y, at, lanes, y);
      }
    }
    return;
  }
  float sums[outer_rows][OUTER_VECTORS * WIDTH];
  memcpy(sums, acc, sizeof acc);
  const int64_t columns = (vectors - 1) * WIDTH + lanes;
  for (int64_t i = 0; i < columns; i++) {
    const int64_t at = (c + i) * op->ldy + t0;
#pragma clang loop unroll(disable)
    for (int64_t t = 0; t < rows; t++) {
      float y = op->alpha * sums[t][i] + (op->bias ? op->bias[t0 + t] : 0);
      if (op->y_type == PK_F32) {
        float *p = (float *)op->y + at + t;
        *p = op->accumulate ? y + *p : y;
      } else {
        uint16_t *p = (uint16_t *)op->y + at + t;
        *p = pk_f32_to_bf16(op->accumulate ? y + pk_bf16_to_f32(*p) : y);
      }
    }
  }
}

INLINE void NAME(outer_columns_as)(int pairs, int rounds, int32_t act, const pk_matmul *op, const pk_outer_plan *plan, pk_range share) {
  pk_outer_prepare(plan, op->k);
  for (int64_t t0 = 0; t0 < plan->height; t0 += outer_rows) {
    int64_t c = share.begin;
    for (; c + OUTER_VECTORS * WIDTH <= share.end; c += OUTER_VECTORS * WIDTH) NAME(outer_tile)(pairs, rounds, OUTER_VECTORS, act, WIDTH, op, plan, t0, c);
    for (; c < share.end; c += WIDTH) NAME(outer_tile)(pairs, rounds, 1, act, pk_min(WIDTH, share.end - c), op, plan, t0, c);
  }
}

static void NAME(outer_columns)(const pk_matmul *op, const pk_outer_plan *plan, pk_range share) {
#if LEVEL == 3
  if (plan->pairs) {
    if (plan->wide_type == PK_F32) {
      NAME(outer_columns_as)(1, 0, PK_F32, op, plan, share);
    } else {
      NAME(outer_columns_as)(1, 0, PK_BF16, op, plan, share);
    }
    return;
  }
#endif
  if (plan->wide_type == PK_F32) {
    NAME(outer_columns_as)(0, plan->rounds, PK_F32, op, plan, share);
  } else {
    NAME(outer_columns_as)(0, plan->rounds, PK_BF16, op, plan, share);
  }
}

#endif
