/* Forward products of many rows with both sides in eight bits (PK_COMPUTE_ROUNDED), for training that takes them:
 *
 *   x[i,c] ≈ s[i,g]·p[i,c],   w[j,c] ≈ t[j]·q[j,c]      p, q whole numbers of −127 … 127, g = c / 192;
 *                                                        s[i,g], t[j]: the largest magnitude of the group, of the row, over 127
 *   y[i,j] = alpha · t[j] · Σ_g s[i,g] · Σ_{c in g} p[i,c]·q[j,c]   (+ bias, + y)
 *
 * Both sides are first rounded to bf16, as in bf16's products. NaN and infinity make the sums they enter NaN.
 *
 * AVX512-VNNI: vpdpbusd adds four products of an unsigned and a signed byte to each of 16 integers, twice what vdpbf16ps multiplies.
 * It is Q that becomes unsigned, q + 128; the integers of a group start at −128·Σp to take that back. A panel holds
 * [4 of k][48 columns][4]; its rows are rounded once for all rows of X. Tile 8 × 48: 24 integers, 3 vectors of the panel, a broadcast of
 * four p: 28 of 32 registers; the f32 sums wait in L1 while a group is multiplied, which costs a load, a multiply-add and a store for 48
 * vpdpbusd. */
#include "formats.h"
#include "matmul.h"
#include <math.h>
#include <string.h>

enum { group = 192, tile_rows = 8, panel_columns = 48 };

/* X in eight bits, in the shared scratch. */
typedef struct rounded_x {
  int64_t padded, groups; /* k in whole vectors of 64 */
  int64_t stride;         /* bytes from a row of codes to the next: eight rows do not compete for the same lines of L1 */
  int8_t *codes;          /* [m][stride], zeros beyond k */
  float *scales;          /* [m][groups] */
  int32_t *starts;        /* [m][groups]: −128·Σp */
} rounded_x;

static size_t place_x(const pk_matmul *op, uintptr_t base, rounded_x *x) {
  size_t used = 0;
  x->groups = (op->k + group - 1) / group;
  x->padded = pk_round_up(op->k, 64);
  x->stride = x->padded + 64;
  x->codes = pk_take(base, &used, op->m * x->stride);
  x->scales = pk_take(base, &used, op->m * x->groups * 4);
  x->starts = pk_take(base, &used, op->m * x->groups * 4);
  return used;
}

/* A part's scratch: a panel, and what it is made of. */
typedef struct pieces {
  int64_t padded; /* k in whole vectors of 64 */
  uint8_t *panel;
  int8_t *rows;     /* codes of sixteen rows of W */
  uint16_t *values; /* one of them as bf16, zeros beyond k */
  float *scales;    /* t of the panel's columns */
} pieces;

static size_t place_pieces(const pk_matmul *op, uintptr_t base, pieces *own) {
  size_t used = 0;
  own->padded = pk_round_up(op->k, 64);
  own->panel = pk_take(base, &used, own->padded * panel_columns);
  own->rows = pk_take(base, &used, own->padded * 16);
  own->values = pk_take(base, &used, own->padded * 2);
  own->scales = pk_take(base, &used, panel_columns * 4);
  return used;
}

/* The scale of a largest magnitude, and what values are multiplied with. */
static float scale_of(float largest, float *inverse) {
  *inverse = largest > 1e-30f && largest < INFINITY ? 127 / largest : 0;
  return largest < INFINITY ? largest / 127 : NAN;
}

/* Row i of X as bf16, zeros beyond k. */
static void load_row(const pk_matmul *op, int64_t i, uint16_t *values, int64_t padded) {
  const uint8_t *from = (const uint8_t *)op->x + i * op->ldx * pk_type_bytes(op->x_type);
  pk_convert(op->level, from, op->x_type, values, PK_BF16, (size_t)op->k, 0, 1);
  memset(values + op->k, 0, (size_t)(padded - op->k) * 2);
}

#if defined(__x86_64__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#define HAS_BF16
#include "matmul_avx512.h"

/* The largest magnitude of `count` values, a multiple of 64; bits of bf16 without their sign are in its order. */
static float largest_of(const uint16_t *values, int64_t count) {
  __m512i top = _mm512_setzero_si512();
  for (int64_t c = 0; c < count; c += 32) {
    top = _mm512_max_epu16(top, _mm512_and_si512(_mm512_loadu_si512(values + c), _mm512_set1_epi16(0x7fff)));
  }
  const __m256i half = _mm256_max_epu16(_mm512_castsi512_si256(top), _mm512_extracti64x4_epi64(top, 1));
  return pk_bf16_to_f32((uint16_t)_mm512_reduce_max_epi32(_mm512_cvtepu16_epi32(half)));
}

/* 64 values, in the order in which packing leaves them: the same on both sides. */
INLINE __m512i round64(const uint16_t *values, __m512 inverse) {
  __m512i whole[4];
#pragma unroll
  for (int v = 0; v < 4; v++) {
    whole[v] = _mm512_cvtps_epi32(_mm512_mul_ps(widen_bf16(_mm256_loadu_si256((const __m256i *)(values + 16 * v))), inverse));
  }
  return _mm512_packs_epi16(_mm512_packs_epi32(whole[0], whole[1]), _mm512_packs_epi32(whole[2], whole[3]));
}

static void round_row_vnni(const uint16_t *values, int64_t i, const rounded_x *x) {
  for (int64_t g = 0; g < x->groups; g++) {
    const int64_t end = pk_min((g + 1) * group, x->padded);
    float inverse;
    x->scales[i * x->groups + g] = scale_of(largest_of(values + g * group, end - g * group), &inverse);
    __m512i sums = _mm512_setzero_si512();
    for (int64_t c = g * group; c < end; c += 64) {
      const __m512i codes = round64(values + c, _mm512_set1_ps(inverse));
      _mm512_storeu_si512(x->codes + i * x->stride + c, codes);
      sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(1), codes);
    }
    x->starts[i * x->groups + g] = -128 * _mm512_reduce_add_epi32(sums);
  }
}

static void pack_panel(const pk_matmul *op, int64_t column, const pieces *own) {
  pk_decode_fn *decode = pk_decoder_bf16(op->w_type);
  memset(own->values + op->k, 0, (size_t)(own->padded - op->k) * 2);
  for (int64_t v = 0; v < panel_columns / 16; v++) {
    for (int64_t r = 0; r < 16; r++) {
      const int64_t j = column + 16 * v + r;
      float inverse = 0, scale = 0;
      if (j < op->n) {
        decode((const uint8_t *)op->w + j * op->w_row_bytes, 0, op->k, own->values);
        scale = scale_of(largest_of(own->values, own->padded), &inverse);
      }
      own->scales[16 * v + r] = scale;
      for (int64_t c = 0; c < own->padded; c += 64) {
        const __m512i codes = round64(own->values + c, _mm512_set1_ps(inverse));
        _mm512_store_si512(own->rows + r * own->padded + c, _mm512_xor_si512(codes, _mm512_set1_epi8(-128)));
      }
    }
    for (int64_t c = 0; c < own->padded; c += 64) { /* sixteen rows × sixteen fours */
      __m512i fours[16];
#pragma unroll
      for (int r = 0; r < 16; r++) fours[r] = _mm512_load_si512(own->rows + r * own->padded + c);
      transpose16(fours);
#pragma unroll
      for (int s = 0; s < 16; s++) _mm512_store_si512(own->panel + ((c / 4 + s) * 3 + v) * 64, fours[s]);
    }
  }
}

/* Rows from `row` on against the panel of the columns from `column` on. Of a short tile the last row is multiplied several times. */
static void multiply_tile(const pk_matmul *op, const rounded_x *x, const pieces *own, int64_t row, int64_t column) {
  float sums[tile_rows][panel_columns] __attribute__((aligned(64))) = {0};
  const int64_t rows = pk_min(tile_rows, op->m - row);
  const int8_t *codes[tile_rows];
  int64_t at[tile_rows];
  for (int64_t r = 0; r < tile_rows; r++) {
    const int64_t i = row + pk_min(r, rows - 1);
    codes[r] = x->codes + i * x->stride, at[r] = i * x->groups;
  }
  const uint8_t *panel = own->panel;
  for (int64_t g = 0; g < x->groups; g++) {
    __m512i whole[tile_rows][3];
#pragma unroll
    for (int r = 0; r < tile_rows; r++) whole[r][0] = whole[r][1] = whole[r][2] = _mm512_set1_epi32(x->starts[at[r] + g]);
    const int64_t end = pk_min((g + 1) * group, x->padded);
    for (int64_t c = g * group; c < end; c += 4, panel += 3 * 64) {
      const __m512i q0 = _mm512_load_si512(panel), q1 = _mm512_load_si512(panel + 64), q2 = _mm512_load_si512(panel + 128);
#pragma unroll
      for (int r = 0; r < tile_rows; r++) {
        const __m512i p = _mm512_set1_epi32((int)pk_load32((const uint8_t *)codes[r] + c));
        whole[r][0] = _mm512_dpbusd_epi32(whole[r][0], q0, p);
        whole[r][1] = _mm512_dpbusd_epi32(whole[r][1], q1, p);
        whole[r][2] = _mm512_dpbusd_epi32(whole[r][2], q2, p);
      }
    }
#pragma unroll
    for (int r = 0; r < tile_rows; r++) {
      const __m512 scale = _mm512_set1_ps(x->scales[at[r] + g]);
#pragma unroll
      for (int v = 0; v < 3; v++) {
        _mm512_store_ps(sums[r] + 16 * v, _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[r][v]), scale, _mm512_load_ps(sums[r] + 16 * v)));
      }
    }
  }
  const pk_tile tile = {
      .y = (uint8_t *)op->y + (row * op->ldy + column) * pk_type_bytes(op->y_type), .ldy = op->ldy, .y_type = op->y_type,
      .accumulate = op->accumulate, .bias = op->bias ? op->bias + column : NULL,
  };
  const int64_t columns = pk_min(panel_columns, op->n - column);
  for (int64_t r = 0; r < rows; r++) {
    for (int v = 0; 16 * v < columns; v++) {
      const __m512 factor = _mm512_mul_ps(_mm512_set1_ps(op->alpha), _mm512_loadu_ps(own->scales + 16 * v));
      const __m512 y = _mm512_mul_ps(_mm512_load_ps(sums[r] + 16 * v), factor);
      const int64_t to = r * op->ldy + 16 * v;
      if (columns - 16 * v >= 16) {
        store_whole(&tile, y, to, 16 * v);
      } else {
        store_masked(&tile, y, to, 16 * v, first_lanes(columns - 16 * v));
      }
    }
  }
}

static void run_vnni(const pk_matmul *op, const rounded_x *x, const pieces *own, int32_t part, int32_t parts) {
  const int64_t tiles = (op->m + tile_rows - 1) / tile_rows, panels = (op->n + panel_columns - 1) / panel_columns;
  const pk_range share = pk_share(panels * tiles, 1, part, parts);
  for (int64_t item = share.begin; item < share.end;) {
    const int64_t column = item / tiles * panel_columns, end = pk_min(share.end, (item / tiles + 1) * tiles);
    pack_panel(op, column, own);
    for (; item < end; item++) multiply_tile(op, x, own, item % tiles * tile_rows, column);
  }
}
#pragma clang attribute pop
#endif

/* ---- the same in plain C, with codes in the order of the values ---- */

static float round_values(const uint16_t *values, int64_t count, int8_t *codes) {
  float largest = 0, inverse;
  for (int64_t c = 0; c < count; c++) {
    const float x = fabsf(pk_bf16_to_f32(values[c]));
    if (!(x <= largest)) largest = x; /* a NaN stays */
    if (x != x) break;
  }
  const float scale = scale_of(largest, &inverse);
  for (int64_t c = 0; c < count; c++) codes[c] = inverse ? (int8_t)rintf(pk_bf16_to_f32(values[c]) * inverse) : 0;
  return scale;
}

static void round_row(const uint16_t *values, int64_t i, const rounded_x *x) {
  for (int64_t g = 0; g < x->groups; g++) {
    x->scales[i * x->groups + g] = round_values(values + g * group, pk_min(group, x->padded - g * group), x->codes + i * x->stride + g * group);
  }
}

static void run_portable(const pk_matmul *op, const rounded_x *x, const pieces *own, int32_t part, int32_t parts) {
  const pk_range share = pk_share(op->n, 1, part, parts);
  float *decoded = (float *)own->panel;
  for (int64_t j = share.begin; j < share.end; j++) {
    pk_format_of(op->w_type)->decode((const uint8_t *)op->w + j * op->w_row_bytes, decoded, (size_t)op->k);
    for (int64_t c = 0; c < own->padded; c++) own->values[c] = c < op->k ? pk_f32_to_bf16(decoded[c]) : 0;
    const float t = round_values(own->values, own->padded, own->rows);
    for (int64_t i = 0; i < op->m; i++) {
      float sum = 0;
      for (int64_t g = 0; g < x->groups; g++) {
        int32_t whole = 0;
        for (int64_t c = g * group; c < pk_min((g + 1) * group, x->padded); c++) whole += x->codes[i * x->stride + c] * own->rows[c];
        sum += (float)whole * x->scales[i * x->groups + g];
      }
      const int64_t at = i * op->ldy + j;
      float y = sum * (op->alpha * t) + (op->bias ? op->bias[j] : 0);
      if (op->accumulate) y += op->y_type == PK_F32 ? ((float *)op->y)[at] : pk_bf16_to_f32(((uint16_t *)op->y)[at]);
      if (op->y_type == PK_F32) {
        ((float *)op->y)[at] = y;
      } else {
        ((uint16_t *)op->y)[at] = pk_f32_to_bf16(y);
      }
    }
  }
}

int32_t pk_rounded_serves(const pk_matmul *op) { return op->compute == PK_COMPUTE_ROUNDED && op->mode == PK_NT; }

void pk_rounded_scratch(const pk_matmul *op, size_t *shared, size_t *each) {
  rounded_x x;
  pieces own;
  *shared = place_x(op, 0, &x);
  *each = place_pieces(op, 0, &own);
}

void pk_rounded_run(const pk_matmul *op, int32_t phase, int32_t part, int32_t parts, void *shared, void *each) {
  rounded_x x;
  pieces own;
  place_x(op, (uintptr_t)shared, &x);
  place_pieces(op, (uintptr_t)each, &own);
  const int32_t is_fast = op->level >= PK_LEVEL_AVX512_BF16;
  if (phase == 0) {
    const pk_range share = pk_share(op->m, 1, part, parts);
    for (int64_t i = share.begin; i < share.end; i++) {
      load_row(op, i, own.values, own.padded);
#if defined(__x86_64__)
      if (is_fast) {
        round_row_vnni(own.values, i, &x);
        continue;
      }
#endif
      round_row(own.values, i, &x);
    }
    return;
  }
#if defined(__x86_64__)
  if (is_fast) return run_vnni(op, &x, &own, part, parts);
#endif
  run_portable(op, &x, &own, part, parts);
}
