/* bf16 tiles with AVX512-BF16: vdpbf16ps multiplies 16 pairs and adds both products to 16 f32 sums.
 *
 * Tile 8 × 48: 24 sums, 3 vectors of the panel, one broadcast pair of A: 28 of 32 registers. A step is 24 vdpbf16ps
 * against 3 vector loads and 8 broadcasts. */
#include "matmul.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#define HAS_BF16
#include "matmul_avx512.h"

INLINE void multiply_tile(const pk_tile *tile, int rows, int vectors) {
  __m512 sum[8][3];
#pragma unroll
  for (int r = 0; r < rows; r++) {
#pragma unroll
    for (int v = 0; v < vectors; v++) sum[r][v] = begin_sums(tile, r, 16 * v);
  }
  const uint16_t *a = tile->a;
  const int64_t lda = tile->lda, steps = tile->steps;
  const uint8_t *panel = tile->panel;
  for (int64_t s = 0; s < steps; s++, a += 2, panel += 64 * vectors) {
    __m512bh b[3];
#pragma unroll
    for (int v = 0; v < vectors; v++) b[v] = (__m512bh)_mm512_load_si512(panel + 64 * v);
#pragma unroll
    for (int r = 0; r < rows; r++) {
      int pair;
      __builtin_memcpy(&pair, a + r * lda, 4);
      const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
#pragma unroll
      for (int v = 0; v < vectors; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], x, b[v]);
    }
  }
  end_sums(tile, sum, rows, vectors);
}

static void multiply(const pk_tile *tile) { EACH_SHAPE(tile) }

/* Sixteen rows × 16 pairs at a time. */
void pk_pack_pairs(const void *from, int64_t ld, int32_t columns, int64_t k, void *panel, int32_t vectors) {
  const int64_t pairs = (k + 1) / 2;
  for (int64_t p = 0; p < pairs; p += 16) {
    const int64_t left = k - 2 * p;
    const __mmask32 values = left >= 32 ? 0xffffffffu : (1u << left) - 1;
    __m512i r[16];
#pragma unroll
    for (int i = 0; i < 16; i++) {
      r[i] = i < columns ? _mm512_maskz_loadu_epi16(values, (const uint16_t *)from + i * ld + 2 * p) : _mm512_setzero_si512();
    }
    transpose16(r);
    uint8_t *to = (uint8_t *)panel + (size_t)(p * vectors) * 64;
#pragma unroll
    for (int i = 0; i < 16; i++) {
      if (p + i < pairs) _mm512_store_si512(to + (size_t)(i * vectors) * 64, r[i]);
    }
  }
}

/* Words 0, 16, 1, 17, … : two rows of sixteen become sixteen pairs. */
INLINE __m512i interleave(__m512i rows) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                         23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, rows);
}

void pk_pack_two_rows(const void *even, const void *odd, int32_t columns, void *panel, int32_t vectors) {
  for (int32_t v = 0; v < vectors; v++) {
    const __mmask16 lanes = first_lanes(columns - 16 * v);
    const __m256i low = _mm256_maskz_loadu_epi16(lanes, (const uint16_t *)even + 16 * v);
    const __m256i high = odd ? _mm256_maskz_loadu_epi16(lanes, (const uint16_t *)odd + 16 * v) : _mm256_setzero_si256();
    _mm512_store_si512((uint8_t *)panel + 64 * v, interleave(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)));
  }
}

const pk_tile_kernel *pk_kernel_bf16(void) {
  static const pk_tile_kernel kernel = {PK_BF16, 8, 16, 3, multiply, pk_pack_pairs, pk_pack_two_rows, NULL, NULL, 0};
  return &kernel;
}

#pragma clang attribute pop
#else
const pk_tile_kernel *pk_kernel_bf16(void) { return NULL; }
#endif
