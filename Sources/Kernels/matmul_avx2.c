/* f32 tiles with AVX2 and FMA.
 *
 * Tile 6 × 16: 12 sums, 2 vectors of the panel, one broadcast of A: 15 of 16 registers; 12 FMA a step against 2 vector
 * loads and 6 broadcasts. */
#include "half.h"
#include "matmul.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)

#define INLINE static inline __attribute__((always_inline))

#include "matmul_avx2.h"

/* The sums of a vector of a tile begin at 0, or where the block of k before left them. */
INLINE __m256 begin_sums(const pk_tile *tile, int row, int column) {
  return tile->continues ? _mm256_load_ps(tile->sums + row * 16 + column) : _mm256_setzero_ps();
}

/* They wait for the next block of k, or Y = alpha·sum + bias (+ Y); by the element at the right edge. */
INLINE void end_sums(const pk_tile *tile, __m256 sum, int row, int column) {
  if (!tile->ends) {
    _mm256_store_ps(tile->sums + row * 16 + column, sum);
    return;
  }
  const int64_t at = row * tile->ldy + column;
  __m256 y = _mm256_mul_ps(sum, _mm256_set1_ps(tile->alpha));
  if (tile->columns - column >= 8) {
    if (tile->bias) y = _mm256_add_ps(y, _mm256_loadu_ps(tile->bias + column));
    if (tile->y_type == PK_F32) {
      float *p = (float *)tile->y + at;
      _mm256_storeu_ps(p, tile->accumulate ? _mm256_add_ps(y, _mm256_loadu_ps(p)) : y);
    } else {
      __m128i *p = (__m128i *)((uint16_t *)tile->y + at);
      _mm_storeu_si128(p, narrow_bf16(tile->accumulate ? _mm256_add_ps(y, widen_bf16(_mm_loadu_si128(p))) : y));
    }
    return;
  }
  float values[8];
  _mm256_storeu_ps(values, y);
  for (int64_t c = 0; c < 8 && column + c < tile->columns; c++) {
    float value = values[c];
    if (tile->bias) value += tile->bias[column + c];
    if (tile->y_type == PK_F32) {
      float *p = (float *)tile->y + at + c;
      *p = tile->accumulate ? value + *p : value;
    } else {
      uint16_t *p = (uint16_t *)tile->y + at + c;
      *p = pk_f32_to_bf16(tile->accumulate ? value + pk_bf16_to_f32(*p) : value);
    }
  }
}

INLINE void multiply_tile(const pk_tile *tile, int rows, int vectors) {
  __m256 sum[6][2];
#pragma unroll
  for (int r = 0; r < rows; r++) {
#pragma unroll
    for (int v = 0; v < vectors; v++) sum[r][v] = begin_sums(tile, r, 8 * v);
  }
  const float *a = tile->a, *panel = tile->panel;
  const int64_t lda = tile->lda, steps = tile->steps;
  for (int64_t s = 0; s < steps; s++, a++, panel += 8 * vectors) {
    __m256 b[2];
#pragma unroll
    for (int v = 0; v < vectors; v++) b[v] = _mm256_load_ps(panel + 8 * v);
#pragma unroll
    for (int r = 0; r < rows; r++) {
      const __m256 x = _mm256_broadcast_ss(a + r * lda);
#pragma unroll
      for (int v = 0; v < vectors; v++) sum[r][v] = _mm256_fmadd_ps(x, b[v], sum[r][v]);
    }
  }
#pragma unroll
  for (int r = 0; r < rows; r++) {
#pragma unroll
    for (int v = 0; v < vectors; v++) end_sums(tile, sum[r][v], r, 8 * v);
  }
}

#define SHAPES(v)                                         \
  case (v) * 8 + 1: multiply_tile(tile, 1, v); break;     \
  case (v) * 8 + 2: multiply_tile(tile, 2, v); break;     \
  case (v) * 8 + 3: multiply_tile(tile, 3, v); break;     \
  case (v) * 8 + 4: multiply_tile(tile, 4, v); break;     \
  case (v) * 8 + 5: multiply_tile(tile, 5, v); break;     \
  case (v) * 8 + 6: multiply_tile(tile, 6, v); break;

static void multiply(const pk_tile *tile) {
  switch (tile->vectors * 8 + tile->rows) { SHAPES(1) SHAPES(2) }
}

/* 8×8 values: r[i] lane j becomes r[j] lane i. */
INLINE void transpose8(__m256 r[8]) {
  __m256 t[8], u[8];
#pragma unroll
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma unroll
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

static void pack_columns(const void *from, int64_t ld, int32_t columns, int64_t k, void *panel, int32_t vectors) {
  for (int64_t s = 0; s < k; s += 8) {
    const __m256i use = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(k - s)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    __m256 r[8];
#pragma unroll
    for (int i = 0; i < 8; i++) r[i] = i < columns ? _mm256_maskload_ps((const float *)from + i * ld + s, use) : _mm256_setzero_ps();
    transpose8(r);
    float *to = (float *)panel + s * vectors * 8;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      if (s + i < k) _mm256_store_ps(to + i * vectors * 8, r[i]);
    }
  }
}

static void pack_step(const void *even, const void *odd, int32_t columns, void *panel, int32_t vectors) {
  (void)odd;
  const float *values = even;
  float *to = panel;
  const int32_t width = 8 * vectors;
  if (columns >= width) {
    for (int32_t v = 0; v < vectors; v++) _mm256_store_ps(to + 8 * v, _mm256_loadu_ps(values + 8 * v));
    return;
  }
  for (int32_t c = 0; c < width; c++) to[c] = c < columns ? values[c] : 0;
}

const pk_tile_kernel *pk_kernel_avx2_f32(void) {
  static const pk_tile_kernel kernel = {PK_F32, 6, 8, 2, multiply, pack_columns, pack_step, NULL, NULL, 160 << 10 /* of 256 to 512 kB of L2 */};
  return &kernel;
}

#pragma clang attribute pop
#else
const pk_tile_kernel *pk_kernel_avx2_f32(void) { return NULL; }
#endif
