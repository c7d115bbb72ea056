/* Few-row products with AVX2, in f32. */
#include "half.h"
#include "matmul.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)

#define INLINE static inline __attribute__((always_inline))
#include "matmul_avx2.h"

/* The sums of four vectors. */
INLINE __m128 sum_lanes(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 abcd = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
}

/* Values at … at + 7 of a row in f32 or bf16. */
INLINE __m256 load(const int is_bf16, const uint8_t *row, int64_t at) {
  if (!is_bf16) return _mm256_loadu_ps((const float *)row + at);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)((const uint16_t *)row + at))), 16));
}

/* The first `left` < 8 of them, zeros behind. */
INLINE __m256 load_last(const int is_bf16, const uint8_t *row, int64_t at, int64_t left) {
  if (!is_bf16) {
    const __m256i lanes = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)left), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return _mm256_maskload_ps((const float *)row + at, lanes);
  }
  uint16_t last[8] = {0};
  memcpy(last, (const uint16_t *)row + at, (size_t)left * 2);
  return load(is_bf16, (const uint8_t *)last, 0);
}

/* Rows this short are not worth a kernel that fetches ahead and sums in many chains: 13 instructions for rank 8. */
INLINE void narrow_dot(const int is_bf16, const uint8_t *b, int64_t rank, const float *h, float sums[4]) {
  __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
  for (int64_t at = 0; at < rank; at += 8) {
    const __m256 x = _mm256_loadu_ps(h + at);
    for (int r = 0; r < 4; r++) sum[r] = _mm256_fmadd_ps(load(is_bf16, b, r * rank + at), x, sum[r]);
  }
  _mm_storeu_ps(sums, sum_lanes(sum[0], sum[1], sum[2], sum[3]));
}

void pk_narrow_dot(int32_t type, const void *b, int64_t rank, const float *h, float sums[4]) {
  if (type == PK_BF16) {
    narrow_dot(1, b, rank, h, sums);
  } else {
    narrow_dot(0, b, rank, h, sums);
  }
}

/* Eight bf16 of a row are 16 bytes, those of even places its words' lower halves: two rows to a vector, row i and i + 4. */
INLINE void narrow_dots_bf16(const uint16_t *b, int64_t rank, const float *h, float sums[8]) {
  __m256 two[4];
#pragma unroll
  for (int i = 0; i < 4; i++) two[i] = _mm256_setzero_ps();
  for (int64_t at = 0; at < rank; at += 8) {
    const __m128 low = _mm_loadu_ps(h + at), high = _mm_loadu_ps(h + at + 4);
    const __m128 even = _mm_shuffle_ps(low, high, 0x88), odd = _mm_shuffle_ps(low, high, 0xdd);
    const __m256 first = _mm256_set_m128(even, even), second = _mm256_set_m128(odd, odd);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint16_t *const row = b + i * rank + at;
      const __m256i w = _mm256_loadu2_m128i((const __m128i *)(row + 4 * rank), (const __m128i *)row);
      two[i] = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(w, 16)), first, two[i]);
      two[i] = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32((int32_t)0xffff0000u))), second, two[i]);
    }
  }
  _mm256_storeu_ps(sums, _mm256_hadd_ps(_mm256_hadd_ps(two[0], two[1]), _mm256_hadd_ps(two[2], two[3])));
}

void pk_narrow_dots_avx2(int32_t type, const void *b, int64_t rank, const float *h, float sums[16]) {
  if (type == PK_BF16) {
    narrow_dots_bf16(b, rank, h, sums);
    narrow_dots_bf16((const uint16_t *)b + 8 * rank, rank, h, sums + 8);
  } else {
    for (int64_t r = 0; r < 16; r += 4) narrow_dot(0, (const uint8_t *)b + r * rank * 4, rank, h, sums + r);
  }
}

void pk_finish_16_avx2(const pk_matmul *op, int64_t at, const float *bias, const float *sums, const float *beside, const float *factors) {
  for (int i = 0; i < 16; i += 8) {
    __m256 y = _mm256_add_ps(_mm256_mul_ps(_mm256_set1_ps(op->alpha), _mm256_loadu_ps(sums + i)), _mm256_loadu_ps(beside + i));
    if (factors) y = _mm256_mul_ps(y, _mm256_loadu_ps(factors + i));
    if (bias) y = _mm256_add_ps(y, _mm256_loadu_ps(bias + i));
    if (op->y_type == PK_F32) {
      _mm256_storeu_ps((float *)op->y + at + i, y);
    } else {
      _mm_storeu_si128((__m128i *)((uint16_t *)op->y + at + i), narrow_bf16(y));
    }
  }
}

/* Eight values of a row of W at a time; other formats are decoded first. */

static size_t x_bytes(int64_t k) { return (size_t)(k + 127) / 128 * 128 * 4; }

static void prepare(const float *x, int64_t k, void *prepared) { memcpy(prepared, x, x_bytes(k)); }

INLINE void dot(const int is_bf16, const uint8_t *const w[4], const uint8_t *x, size_t stride, const int rows, int64_t k, float *sums) {
  __m256 sum[2][4];
  for (int r = 0; r < 4; r++) {
    const uint8_t *row = w[r];
    __m256 chain[2][2]; /* two for each row of X */
#pragma unroll
    for (int i = 0; i < rows; i++) chain[i][0] = chain[i][1] = _mm256_setzero_ps();
    int64_t at = 0;
    for (; at + 16 <= k; at += 16) {
      __builtin_prefetch(row + at * (is_bf16 ? 2 : 4) + PK_GEMV_AHEAD);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const __m256 v = load(is_bf16, row, at + 8 * half);
#pragma unroll
        for (int i = 0; i < rows; i++) {
          chain[i][half] = _mm256_fmadd_ps(v, _mm256_load_ps((const float *)(x + (size_t)i * stride) + at + 8 * half), chain[i][half]);
        }
      }
    }
    for (; at < k; at += 8) {
      const __m256 v = k - at < 8 ? load_last(is_bf16, row, at, k - at) : load(is_bf16, row, at);
#pragma unroll
      for (int i = 0; i < rows; i++) chain[i][0] = _mm256_fmadd_ps(v, _mm256_load_ps((const float *)(x + (size_t)i * stride) + at), chain[i][0]);
    }
#pragma unroll
    for (int i = 0; i < rows; i++) sum[i][r] = _mm256_add_ps(chain[i][0], chain[i][1]);
  }
#pragma unroll
  for (int i = 0; i < rows; i++) _mm_storeu_ps(sums + 4 * i, sum_lanes(sum[i][0], sum[i][1], sum[i][2], sum[i][3]));
}

#define KERNEL(name, is_bf16)                                                                                                          \
  static void multiply_##name(const uint8_t *const *w, const uint8_t *x, size_t stride, int32_t count, int64_t k, float *sums) {       \
    if (count == 1) dot(is_bf16, w, x, stride, 1, k, sums);                                                                            \
    for (int32_t i = 0; count > 1 && i < count; i += 2) dot(is_bf16, w, x + (size_t)i * stride, stride, 2, k, sums + 4 * i);           \
  }                                                                                                                                    \
  static const pk_gemv_kernel kernel_##name = {.x_bytes = x_bytes, .prepare = prepare, .multiply = multiply_##name, .w_rows = 4, .x_rows = 4};
KERNEL(f32, 0)
KERNEL(bf16, 1)

const pk_gemv_kernel *pk_gemv_avx2_f32(int32_t w_type) { return w_type == PK_F32 ? &kernel_f32 : w_type == PK_BF16 ? &kernel_bf16 : NULL; }

#pragma clang attribute pop
#else
void pk_narrow_dot(int32_t type, const void *b, int64_t rank, const float *h, float sums[4]) { (void)type, (void)b, (void)rank, (void)h, (void)sums; }
void pk_narrow_dots_avx2(int32_t type, const void *b, int64_t rank, const float *h, float sums[16]) { (void)type, (void)b, (void)rank, (void)h, (void)sums; }
void pk_finish_16_avx2(const pk_matmul *op, int64_t at, const float *bias, const float *sums, const float *beside, const float *factors) {
  (void)op, (void)at, (void)bias, (void)sums, (void)beside, (void)factors;
}
const pk_gemv_kernel *pk_gemv_avx2_f32(int32_t w_type) { (void)w_type; return NULL; }
#endif
