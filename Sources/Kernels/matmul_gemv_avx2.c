/* Few-row products with AVX2, in f32 and with int8 activations. */
#include "half.h"
#include "matmul.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)

#define INLINE static inline __attribute__((always_inline))

/* The sums of four vectors. */
INLINE __m128 sum_lanes(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 abcd = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
}

/* Rows this short are not worth a kernel that fetches ahead and sums in many chains: 13 instructions for rank 8. */
void pk_narrow_dot(const float *b, int64_t rank, const float *h, float sums[4]) {
  __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
  for (int64_t at = 0; at < rank; at += 8) {
    const __m256 x = _mm256_loadu_ps(h + at);
    for (int r = 0; r < 4; r++) sum[r] = _mm256_fmadd_ps(_mm256_loadu_ps(b + r * rank + at), x, sum[r]);
  }
  _mm_storeu_ps(sums, sum_lanes(sum[0], sum[1], sum[2], sum[3]));
}

/* ---- f32: eight values of a row of W at a time; only f32 itself, other formats are decoded first ---- */

static size_t x_bytes_f32(int64_t k) { return (size_t)(k + 127) / 128 * 128 * 4; }

static void prepare_f32(const float *x, int64_t k, void *prepared) { memcpy(prepared, x, x_bytes_f32(k)); }

INLINE void dot_f32(const uint8_t *const w[4], const uint8_t *x, size_t stride, const int rows, int64_t k, float *sums) {
  __m256 sum[2][4];
  for (int r = 0; r < 4; r++) {
    const float *row = (const float *)w[r];
    __m256 chain[2][2]; /* two for each row of X */
#pragma unroll
    for (int i = 0; i < rows; i++) chain[i][0] = chain[i][1] = _mm256_setzero_ps();
    int64_t at = 0;
    for (; at + 16 <= k; at += 16) {
      __builtin_prefetch((const uint8_t *)(row + at) + PK_GEMV_AHEAD);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const __m256 v = _mm256_loadu_ps(row + at + 8 * half);
#pragma unroll
        for (int i = 0; i < rows; i++) {
          chain[i][half] = _mm256_fmadd_ps(v, _mm256_load_ps((const float *)(x + (size_t)i * stride) + at + 8 * half), chain[i][half]);
        }
      }
    }
    for (; at < k; at += 8) {
      const __m256i lanes = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(k - at)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
      const __m256 v = _mm256_maskload_ps(row + at, lanes);
#pragma unroll
      for (int i = 0; i < rows; i++) chain[i][0] = _mm256_fmadd_ps(v, _mm256_load_ps((const float *)(x + (size_t)i * stride) + at), chain[i][0]);
    }
#pragma unroll
    for (int i = 0; i < rows; i++) sum[i][r] = _mm256_add_ps(chain[i][0], chain[i][1]);
  }
#pragma unroll
  for (int i = 0; i < rows; i++) _mm_storeu_ps(sums + 4 * i, sum_lanes(sum[i][0], sum[i][1], sum[i][2], sum[i][3]));
}

static void multiply_f32(const uint8_t *const *w, const uint8_t *x, size_t stride, int32_t count, int64_t k, float *sums) {
  if (count == 1) {
    dot_f32(w, x, stride, 1, k, sums);
    return;
  }
  for (int32_t i = 0; i < count; i += 2) dot_f32(w, x + (size_t)i * stride, stride, 2, k, sums + 4 * i);
}

static const pk_gemv_kernel kernel_f32 = {.x_bytes = x_bytes_f32, .prepare = prepare_f32, .multiply = multiply_f32, .w_rows = 4, .x_rows = 4};

const pk_gemv_kernel *pk_gemv_avx2_f32(int32_t w_type) { return w_type == PK_F32 ? &kernel_f32 : NULL; }

/* ---- int8: x ≈ scale·q per 32 values ---- */

/* 64 bytes: the block's 32 quanta, then its scale and scale·Σq. */
typedef struct x_block {
  int8_t q[32];
  float scale, sum;
  float unused[6];
} x_block;

static size_t x_bytes_int8(int64_t k) { return (size_t)(k + 31) / 32 * sizeof(x_block); }

/* A block with a NaN or an infinity gets the scale NaN: so does every sum it enters. */
static void prepare_int8(const float *x, int64_t k, void *prepared) {
  x_block *blocks = prepared;
  for (int64_t b = 0; b * 32 < k; b++, x += 32) {
    float largest = 0, nothing = 0;
    for (int i = 0; i < 32; i++) {
      const float size = pk_float(pk_bits(x[i]) & 0x7fffffff);
      largest = size > largest ? size : largest;
      nothing += x[i] * 0;
    }
    const int finite = nothing == 0;
    const float scale = largest / 127, inverse = finite && scale > 0 ? 1 / scale : 0;
    int sum = 0;
    for (int i = 0; i < 32; i++) {
      const int q = finite ? _mm_cvtss_si32(_mm_set_ss(x[i] * inverse)) : 0;
      blocks[b].q[i] = (int8_t)(q > 127 ? 127 : q < -127 ? -127 : q);
      sum += blocks[b].q[i];
    }
    blocks[b].scale = scale + nothing;
    blocks[b].sum = blocks[b].scale * (float)sum;
  }
}

/* Block b of a row of W: 32 bytes of quanta, d, and what to multiply with x's sum. */
typedef void load_fn(const uint8_t *row, int64_t b, __m256i *q, float *d, float *m);

INLINE __m256i nibbles(const uint8_t *p) {
  const __m128i packed = _mm_loadu_si128((const __m128i *)p);
  return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(packed, 4), packed), _mm256_set1_epi8(15));
}

/* Bit i of a word becomes 16 in byte i. */
INLINE __m256i fifth_bits(const uint8_t *p) {
  const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32((int)pk_load32(p)),
      _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3));
  const __m256i bit = _mm256_set1_epi64x((int64_t)0x8040201008040201);
  return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit), _mm256_set1_epi8(16));
}

INLINE void load_q4_0(const uint8_t *row, int64_t b, __m256i *q, float *d, float *m) {
  const uint8_t *p = row + 18 * b;
  *q = nibbles(p + 2), *d = _cvtsh_ss(pk_load16(p)), *m = -8 * *d;
}

INLINE void load_q4_1(const uint8_t *row, int64_t b, __m256i *q, float *d, float *m) {
  const uint8_t *p = row + 20 * b;
  *q = nibbles(p + 4), *d = _cvtsh_ss(pk_load16(p)), *m = _cvtsh_ss(pk_load16(p + 2));
}

INLINE void load_q5_0(const uint8_t *row, int64_t b, __m256i *q, float *d, float *m) {
  const uint8_t *p = row + 22 * b;
  *q = _mm256_or_si256(nibbles(p + 6), fifth_bits(p + 2)), *d = _cvtsh_ss(pk_load16(p)), *m = -16 * *d;
}

INLINE void load_q5_1(const uint8_t *row, int64_t b, __m256i *q, float *d, float *m) {
  const uint8_t *p = row + 24 * b;
  *q = _mm256_or_si256(nibbles(p + 8), fifth_bits(p + 4)), *d = _cvtsh_ss(pk_load16(p)), *m = _cvtsh_ss(pk_load16(p + 2));
}

/* Signed: multiply() moves the sign to x. */
INLINE void load_q8_0(const uint8_t *row, int64_t b, __m256i *q, float *d, float *m) {
  const uint8_t *p = row + 34 * b;
  *q = _mm256_loadu_si256((const __m256i *)(p + 2)), *d = _cvtsh_ss(pk_load16(p)), *m = 0;
}

INLINE void dot_int8(const uint8_t *const w[4], const x_block *x, int64_t k, float *sums, load_fn *load, const int is_signed) {
  __m256 sum[4];
  float shifts[4]; /* Σ m·sum */
  for (int r = 0; r < 4; r++) {
    __m256 products = _mm256_setzero_ps();
    float shift = 0;
    for (int64_t b = 0; b * 32 < k; b++) {
      const __m256i xq = _mm256_load_si256((const __m256i *)x[b].q);
      __m256i q;
      float d, m;
      load(w[r], b, &q, &d, &m);
      const __m256i pairs = is_signed ? _mm256_maddubs_epi16(_mm256_sign_epi8(q, q), _mm256_sign_epi8(xq, q))
                                      : _mm256_maddubs_epi16(q, xq);
      const __m256i quads = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
      products = _mm256_fmadd_ps(_mm256_set1_ps(d * x[b].scale), _mm256_cvtepi32_ps(quads), products);
      if (!is_signed) shift += m * x[b].sum;
    }
    sum[r] = products, shifts[r] = shift;
  }
  _mm_storeu_ps(sums, _mm_add_ps(sum_lanes(sum[0], sum[1], sum[2], sum[3]), _mm_loadu_ps(shifts)));
}

#define KERNEL(name, is_signed)                                                                                               \
  static void multiply_##name(const uint8_t *const *w, const uint8_t *x, size_t stride, int32_t count, int64_t k, float *sums) { \
    for (int32_t i = 0; i < count; i++) {                                                                                    \
      dot_int8(w, (const x_block *)(x + (size_t)i * stride), k, sums + 4 * i, load_##name, is_signed);                       \
    }                                                                                                                        \
  }                                                                                                                          \
  static const pk_gemv_kernel kernel_##name = {.x_bytes = x_bytes_int8, .prepare = prepare_int8, .multiply = multiply_##name, .w_rows = 4, .x_rows = 4};
KERNEL(q4_0, 0)
KERNEL(q4_1, 0)
KERNEL(q5_0, 0)
KERNEL(q5_1, 0)
KERNEL(q8_0, 1)

const pk_gemv_kernel *pk_gemv_avx2_int8(int32_t w_type) {
  switch (w_type) {
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
void pk_narrow_dot(const float *b, int64_t rank, const float *h, float sums[4]) { (void)b, (void)rank, (void)h, (void)sums; }
const pk_gemv_kernel *pk_gemv_avx2_f32(int32_t w_type) { (void)w_type; return NULL; }
const pk_gemv_kernel *pk_gemv_avx2_int8(int32_t w_type) { (void)w_type; return NULL; }
#endif
