/* f32 tiles with AVX-512.
 *
 * Tile 8 × 48: 24 sums, 3 vectors of the panel, one broadcast of A: 28 of 32 registers; 24 FMA a step against 3 vector
 * loads and 8 broadcasts. */
#include "matmul.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#include "matmul_avx512.h"

INLINE void multiply_tile(const pk_tile *tile, int rows, int vectors) {
  __m512 sum[8][3];
#pragma unroll
  for (int r = 0; r < rows; r++) {
#pragma unroll
    for (int v = 0; v < vectors; v++) sum[r][v] = begin_sums(tile, r, 16 * v);
  }
  const float *a = tile->a, *panel = tile->panel;
  const int64_t lda = tile->lda, steps = tile->steps;
  for (int64_t s = 0; s < steps; s++, a++, panel += 16 * vectors) {
    __m512 b[3];
#pragma unroll
    for (int v = 0; v < vectors; v++) b[v] = _mm512_load_ps(panel + 16 * v);
#pragma unroll
    for (int r = 0; r < rows; r++) {
      const __m512 x = _mm512_set1_ps(a[r * lda]);
#pragma unroll
      for (int v = 0; v < vectors; v++) sum[r][v] = _mm512_fmadd_ps(x, b[v], sum[r][v]);
    }
  }
  end_sums(tile, sum, rows, vectors);
}

static void multiply(const pk_tile *tile) { EACH_SHAPE(tile) }

static void pack_columns(const void *from, int64_t ld, int32_t columns, int64_t k, void *panel, int32_t vectors) {
  for (int64_t s = 0; s < k; s += 16) {
    __m512i r[16];
#pragma unroll
    for (int i = 0; i < 16; i++) r[i] = i < columns ? _mm512_maskz_loadu_epi32(first_lanes(k - s), (const float *)from + i * ld + s) : _mm512_setzero_si512();
    transpose16(r);
    float *to = (float *)panel + s * vectors * 16;
#pragma unroll
    for (int i = 0; i < 16; i++) {
      if (s + i < k) _mm512_store_si512(to + i * vectors * 16, r[i]);
    }
  }
}

static void pack_step(const void *even, const void *odd, int32_t columns, void *panel, int32_t vectors) {
  (void)odd;
  for (int32_t v = 0; v < vectors; v++) {
    _mm512_store_ps((float *)panel + 16 * v, _mm512_maskz_loadu_ps(first_lanes(columns - 16 * v), (const float *)even + 16 * v));
  }
}

const pk_tile_kernel *pk_kernel_avx512_f32(void) {
  static const pk_tile_kernel kernel = {PK_F32, 8, 16, 3, multiply, pack_columns, pack_step, NULL, NULL, 0};
  return &kernel;
}

#pragma clang attribute pop
#else
const pk_tile_kernel *pk_kernel_avx512_f32(void) { return NULL; }
#endif
