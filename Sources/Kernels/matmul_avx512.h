/* What the AVX-512 kernels share. Included inside a `clang attribute push` region, after <immintrin.h>. */
#ifndef PK_MATMUL_AVX512_H
#define PK_MATMUL_AVX512_H

#include "matmul.h"

#define INLINE static inline __attribute__((always_inline))

INLINE __mmask16 first_lanes(int64_t count) {
  return count >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << (count > 0 ? count : 0)) - 1);
}

/* 16×16 values of 32 bits: r[i] lane j becomes r[j] lane i. Four rounds of pairwise merges at distances 1, 2, 4, 8. */
INLINE void transpose16(__m512i r[16]) {
  __m512i t[16];
#pragma unroll
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma unroll
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const __m512i a = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88), b = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    const __m512i c = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88), d = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    t[i] = _mm512_shuffle_i32x4(a, c, 0x88);
    t[i + 8] = _mm512_shuffle_i32x4(a, c, 0xdd);
    t[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
#pragma unroll
  for (int i = 0; i < 16; i++) r[i] = t[i];
}

INLINE __m512 widen_bf16(__m256i h) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)); }

/* Round to nearest even: by instruction (subnormals become 0) where the including file says HAS_BF16, else with integers. */
INLINE __m256i narrow_bf16(__m512 x) {
#ifdef HAS_BF16
  return (__m256i)_mm512_cvtneps_pbh(x);
#else
  const __m512i u = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, odd), _mm512_set1_epi32(0x7fff)), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  r = _mm512_mask_or_epi32(r, nan, _mm512_srli_epi32(u, 16), _mm512_set1_epi32(64));
  return _mm512_cvtepi32_epi16(r);
#endif
}

/* The sums of a vector of a tile begin at 0, or where the block of k before left them. */
INLINE __m512 begin_sums(const pk_tile *tile, int row, int column) {
  return tile->continues ? _mm512_load_ps(tile->sums + row * 48 + column) : _mm512_setzero_ps();
}

INLINE void store_whole(const pk_tile *tile, __m512 y, int64_t at, int column) {
  if (tile->bias) y = _mm512_add_ps(y, _mm512_loadu_ps(tile->bias + column));
  if (tile->y_type == PK_F32) {
    float *p = (float *)tile->y + at;
    if (tile->accumulate) y = _mm512_add_ps(y, _mm512_loadu_ps(p));
    _mm512_storeu_ps(p, y);
  } else {
    __m256i *p = (__m256i *)((uint16_t *)tile->y + at);
    if (tile->accumulate) y = _mm512_add_ps(y, widen_bf16(_mm256_loadu_si256(p)));
    _mm256_storeu_si256(p, narrow_bf16(y));
  }
}

INLINE void store_masked(const pk_tile *tile, __m512 y, int64_t at, int column, __mmask16 lanes) {
  if (tile->bias) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(lanes, tile->bias + column));
  if (tile->y_type == PK_F32) {
    float *p = (float *)tile->y + at;
    if (tile->accumulate) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(lanes, p));
    _mm512_mask_storeu_ps(p, lanes, y);
  } else {
    uint16_t *p = (uint16_t *)tile->y + at;
    if (tile->accumulate) y = _mm512_add_ps(y, widen_bf16(_mm256_maskz_loadu_epi16(lanes, p)));
    _mm256_mask_storeu_epi16(p, lanes, narrow_bf16(y));
  }
}

/* Y = alpha·sums + bias (+ Y), of rows on from `first`. Not in line: that was six sevenths of each shape's code, for 0-3 % of a product's time. */
static __attribute__((noinline, unused)) void finish(const pk_tile *tile, const float *sums, int first, int rows, int vectors) {
  const __m512 alpha = _mm512_set1_ps(tile->alpha);
  for (int r = 0; r < rows; r++, sums += 48) {
    for (int column = 0; column < 16 * vectors; column += 16) {
      const __m512 product = _mm512_mul_ps(_mm512_load_ps(sums + column), alpha);
      const int64_t at = (first + r) * tile->ldy + column;
      if (tile->columns - column >= 16) { /* masked stores are slow: only at the right edge */
        store_whole(tile, product, at, column);
      } else {
        store_masked(tile, product, at, column, first_lanes(tile->columns - column));
      }
    }
  }
}

/* The sums wait for the next block of k, or become outputs. */
INLINE void end_sums(const pk_tile *tile, __m512 sum[8][3], int rows, int vectors) {
  float own[8 * 48] __attribute__((aligned(64)));
  float *to = tile->ends ? own : tile->sums;
#pragma unroll
  for (int r = 0; r < rows; r++) {
#pragma unroll
    for (int v = 0; v < vectors; v++) _mm512_store_ps(to + 48 * r + 16 * v, sum[r][v]);
  }
  if (tile->ends) finish(tile, own, 0, rows, vectors);
}

/* The sums of four vectors. */
INLINE __m128 sum_lanes(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab0 = _mm512_unpacklo_ps(a, b), ab1 = _mm512_unpackhi_ps(a, b);
  const __m512 cd0 = _mm512_unpacklo_ps(c, d), cd1 = _mm512_unpackhi_ps(c, d);
  const __m512 ab = _mm512_add_ps(ab0, ab1), cd = _mm512_add_ps(cd0, cd1);
  const __m512 abcd = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

/* Calls multiply_tile(tile, rows, vectors) with constants, so that the sums are registers. */
#define EACH_SHAPE(tile)                                                     \
  switch ((tile)->vectors * 16 + (tile)->rows) {                             \
    SHAPES(tile, 1) SHAPES(tile, 2) SHAPES(tile, 3)                          \
  }
#define SHAPES(tile, v)                                                      \
  case (v) * 16 + 1: multiply_tile(tile, 1, v); break;                       \
  case (v) * 16 + 2: multiply_tile(tile, 2, v); break;                       \
  case (v) * 16 + 3: multiply_tile(tile, 3, v); break;                       \
  case (v) * 16 + 4: multiply_tile(tile, 4, v); break;                       \
  case (v) * 16 + 5: multiply_tile(tile, 5, v); break;                       \
  case (v) * 16 + 6: multiply_tile(tile, 6, v); break;                       \
  case (v) * 16 + 7: multiply_tile(tile, 7, v); break;                       \
  case (v) * 16 + 8: multiply_tile(tile, 8, v); break;

#endif
