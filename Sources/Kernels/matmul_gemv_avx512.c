/* Few-row products in f32 with AVX-512: 32 values of a row of W become two vectors in registers, whatever the format,
 * and are multiplied with the rows of X. */
#include "half.h"
#include "matmul.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#include "matmul_avx512.h"

static size_t x_bytes(int64_t k) { return (size_t)(k + 127) / 128 * 128 * 4; }

static void prepare(const float *x, int64_t k, void *prepared) { memcpy(prepared, x, x_bytes(k)); }

/* ---- 32 values at block b of a row; `left` of them exist (plain formats only) ---- */

typedef void load_fn(const uint8_t *row, int64_t b, int64_t left, __m512 w[2]);

INLINE void load_f32(const uint8_t *row, int64_t b, int64_t left, __m512 w[2]) {
  w[0] = _mm512_maskz_loadu_ps(first_lanes(left), row + 128 * b);
  w[1] = _mm512_maskz_loadu_ps(first_lanes(left - 16), row + 128 * b + 64);
}

INLINE void load_f16(const uint8_t *row, int64_t b, int64_t left, __m512 w[2]) {
  w[0] = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(left), row + 64 * b));
  w[1] = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(left - 16), row + 64 * b + 32));
}

INLINE void load_bf16(const uint8_t *row, int64_t b, int64_t left, __m512 w[2]) {
  w[0] = widen_bf16(_mm256_maskz_loadu_epi16(first_lanes(left), row + 64 * b));
  w[1] = widen_bf16(_mm256_maskz_loadu_epi16(first_lanes(left - 16), row + 64 * b + 32));
}

INLINE __m512 half_at(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_set1_epi16((short)pk_load16(p))); }

INLINE __m512 from_bytes(__m128i q) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)); }

INLINE void load_q8_0(const uint8_t *row, int64_t b, int64_t left, __m512 w[2]) {
  (void)left;
  const uint8_t *p = row + 34 * b;
  const __m512 d = half_at(p);
  w[0] = _mm512_mul_ps(d, from_bytes(_mm_loadu_si128((const __m128i *)(p + 2))));
  w[1] = _mm512_mul_ps(d, from_bytes(_mm_loadu_si128((const __m128i *)(p + 18))));
}

INLINE void nibbles(const uint8_t *p, __m128i q[2]) {
  const __m128i packed = _mm_loadu_si128((const __m128i *)p), mask = _mm_set1_epi8(15);
  q[0] = _mm_and_si128(packed, mask);
  q[1] = _mm_and_si128(_mm_srli_epi16(packed, 4), mask);
}

INLINE void fifth_bits(const uint8_t *p, __m128i q[2]) {
  const uint32_t high = pk_load32(p);
  const __m128i bit = _mm_set1_epi8(16);
  q[0] = _mm_or_si128(q[0], _mm_maskz_mov_epi8((__mmask16)high, bit));
  q[1] = _mm_or_si128(q[1], _mm_maskz_mov_epi8((__mmask16)(high >> 16), bit));
}

INLINE void load_q4_0(const uint8_t *row, int64_t b, int64_t left, __m512 w[2]) {
  (void)left;
  const uint8_t *p = row + 18 * b;
  __m128i q[2];
  nibbles(p + 2, q);
  const __m512 d = half_at(p), zero = _mm512_mul_ps(d, _mm512_set1_ps(-8));
  for (int i = 0; i < 2; i++) w[i] = _mm512_fmadd_ps(d, from_bytes(q[i]), zero);
}

INLINE void load_q4_1(const uint8_t *row, int64_t b, int64_t left, __m512 w[2]) {
  (void)left;
  const uint8_t *p = row + 20 * b;
  __m128i q[2];
  nibbles(p + 4, q);
  const __m512 d = half_at(p), m = half_at(p + 2);
  for (int i = 0; i < 2; i++) w[i] = _mm512_fmadd_ps(d, from_bytes(q[i]), m);
}

INLINE void load_q5_0(const uint8_t *row, int64_t b, int64_t left, __m512 w[2]) {
  (void)left;
  const uint8_t *p = row + 22 * b;
  __m128i q[2];
  nibbles(p + 6, q);
  fifth_bits(p + 2, q);
  const __m512 d = half_at(p), zero = _mm512_mul_ps(d, _mm512_set1_ps(-16));
  for (int i = 0; i < 2; i++) w[i] = _mm512_fmadd_ps(d, from_bytes(q[i]), zero);
}

INLINE void load_q5_1(const uint8_t *row, int64_t b, int64_t left, __m512 w[2]) {
  (void)left;
  const uint8_t *p = row + 24 * b;
  __m128i q[2];
  nibbles(p + 8, q);
  fifth_bits(p + 4, q);
  const __m512 d = half_at(p), m = half_at(p + 2);
  for (int i = 0; i < 2; i++) w[i] = _mm512_fmadd_ps(d, from_bytes(q[i]), m);
}

/* ---- sixteen rows of a matrix with few columns ---- */

/* Row r of each four is r mod 4 of a quarter: the lanes of the four vectors of a quarter become its rows' sums. */
INLINE __m512 sum_quarters(__m512 r0, __m512 r1, __m512 r2, __m512 r3) {
  const __m512d a = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(r0, r1), _mm512_unpackhi_ps(r0, r1)));
  const __m512d c = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(r2, r3), _mm512_unpackhi_ps(r2, r3)));
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, c)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, c)));
}

static void narrow_dots_f32(const float *b, int64_t rank, const float *h, float sums[16]) {
  __m512 two[8]; /* rows 2i and 2i + 1, 8 lanes each */
#pragma unroll
  for (int i = 0; i < 8; i++) two[i] = _mm512_setzero_ps();
  for (int64_t at = 0; at < rank; at += 8) {
    const __m512 x = _mm512_broadcast_f32x8(_mm256_loadu_ps(h + at));
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const float *const row = b + 2 * i * rank + at;
      two[i] = _mm512_fmadd_ps(_mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(row)), _mm256_loadu_ps(row + rank), 1), x, two[i]);
    }
  }
  const __m512 low = sum_quarters(two[0], two[1], two[2], two[3]), high = sum_quarters(two[4], two[5], two[6], two[7]);
  const __m512 all = _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
  const __m512i order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
  _mm512_storeu_ps(sums, _mm512_permutexvar_ps(order, all));
}

/* Eight values of a row are 16 bytes: a vector has them of four rows, those of even places are its words' lower halves. */
static void narrow_dots_bf16(const uint16_t *b, int64_t rank, const float *h, float sums[16]) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6, 0, 2, 4, 6, 0, 2, 4, 6), high_half = _mm512_set1_epi32((int32_t)0xffff0000u);
  __m512 sum[4]; /* row 4q + i in quarter q of i */
#pragma unroll
  for (int i = 0; i < 4; i++) sum[i] = _mm512_setzero_ps();
  for (int64_t at = 0; at < rank; at += 8) {
    const __m512 x = _mm512_castps256_ps512(_mm256_loadu_ps(h + at));
    const __m512 first = _mm512_permutexvar_ps(even, x), second = _mm512_permutexvar_ps(_mm512_add_epi32(even, _mm512_set1_epi32(1)), x);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint16_t *const row = b + i * rank + at;
      __m512i w = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)row));
      w = _mm512_mask_broadcast_i32x4(w, 0x00f0, _mm_loadu_si128((const __m128i *)(row + 4 * rank)));
      w = _mm512_mask_broadcast_i32x4(w, 0x0f00, _mm_loadu_si128((const __m128i *)(row + 8 * rank)));
      w = _mm512_mask_broadcast_i32x4(w, 0xf000, _mm_loadu_si128((const __m128i *)(row + 12 * rank)));
      sum[i] = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(w, 16)), first, sum[i]);
      sum[i] = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(w, high_half)), second, sum[i]);
    }
  }
  _mm512_storeu_ps(sums, sum_quarters(sum[0], sum[1], sum[2], sum[3]));
}

void pk_narrow_dots_avx512(int32_t type, const void *b, int64_t rank, const float *h, float sums[16]) {
  if (type == PK_BF16) {
    narrow_dots_bf16(b, rank, h, sums);
  } else {
    narrow_dots_f32(b, rank, h, sums);
  }
}

void pk_finish_16_avx512(const pk_matmul *op, int64_t at, const float *bias, const float *sums, const float *beside, const float *factors) {
  __m512 y = _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(op->alpha), _mm512_loadu_ps(sums)), _mm512_loadu_ps(beside));
  if (factors) y = _mm512_mul_ps(y, _mm512_loadu_ps(factors));
  if (bias) y = _mm512_add_ps(y, _mm512_loadu_ps(bias));
  if (op->y_type == PK_F32) {
    _mm512_storeu_ps((float *)op->y + at, y);
  } else {
    _mm256_storeu_si256((__m256i *)((uint16_t *)op->y + at), narrow_bf16(y));
  }
}

/* ---- the product; `bytes` of W hold 32 values ---- */

INLINE void dot(const uint8_t *const w[4], const uint8_t *x, size_t x_stride, const int rows, int64_t k, float *sums, load_fn *load, const int bytes) {
  __m512 sum[4][4];
  for (int r = 0; r < 4; r++) {
    __m512 low[4], high[4]; /* two chains each */
#pragma unroll
    for (int i = 0; i < rows; i++) low[i] = high[i] = _mm512_setzero_ps();
    for (int64_t b = 0; b * 32 < k; b++) {
      __m512 v[2];
      load(w[r], b, k - b * 32, v);
      __builtin_prefetch(w[r] + b * bytes + PK_GEMV_AHEAD);
#pragma unroll
      for (int i = 0; i < rows; i++) {
        const uint8_t *at = x + (size_t)i * x_stride + 128 * b;
        low[i] = _mm512_fmadd_ps(v[0], _mm512_load_ps(at), low[i]);
        high[i] = _mm512_fmadd_ps(v[1], _mm512_load_ps(at + 64), high[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < rows; i++) sum[i][r] = _mm512_add_ps(low[i], high[i]);
  }
#pragma unroll
  for (int i = 0; i < rows; i++) _mm_storeu_ps(sums + 4 * i, sum_lanes(sum[i][0], sum[i][1], sum[i][2], sum[i][3]));
}

#define KERNEL(name, bytes)                                                                                                       \
  static void multiply_##name(const uint8_t *const *w, const uint8_t *x, size_t stride, int32_t count, int64_t k, float *sums) { \
    if (count == 1) dot(w, x, stride, 1, k, sums, load_##name, bytes);                                                              \
    if (count == 2) dot(w, x, stride, 2, k, sums, load_##name, bytes);                                                              \
    if (count == 4) dot(w, x, stride, 4, k, sums, load_##name, bytes);                                                              \
  }                                                                                                                          \
  static const pk_gemv_kernel kernel_##name = {.x_bytes = x_bytes, .prepare = prepare, .multiply = multiply_##name, .w_rows = 4, .x_rows = 4};
KERNEL(f32, 128)
KERNEL(f16, 64)
KERNEL(bf16, 64)
KERNEL(q4_0, 18)
KERNEL(q4_1, 20)
KERNEL(q5_0, 22)
KERNEL(q5_1, 24)
KERNEL(q8_0, 34)

const pk_gemv_kernel *pk_gemv_avx512_f32(int32_t w_type) {
  switch (w_type) {
    case PK_F32: return &kernel_f32;
    case PK_F16: return &kernel_f16;
    case PK_BF16: return &kernel_bf16;
    case PK_Q4_0: return &kernel_q4_0;
    case PK_Q4_1: return &kernel_q4_1;
    case PK_Q5_0: return &kernel_q5_0;
    case PK_Q5_1: return &kernel_q5_1;
    case PK_Q8_0: return &kernel_q8_0;
    default: return NULL;
  }
}

#pragma clang attribute pop
#else
const pk_gemv_kernel *pk_gemv_avx512_f32(int32_t w_type) { (void)w_type; return NULL; }
void pk_narrow_dots_avx512(int32_t type, const void *b, int64_t rank, const float *h, float sums[16]) { (void)type, (void)b, (void)rank, (void)h, (void)sums; }
void pk_finish_16_avx512(const pk_matmul *op, int64_t at, const float *bias, const float *sums, const float *beside, const float *factors) {
  (void)op, (void)at, (void)bias, (void)sums, (void)beside, (void)factors;
}
#endif
