/* Products of few rows in q5_K and q6_K (formats_decode.h) with int8 activations on AVX2, a row of W after the other: 32 quanta are a vector, next to each
 * other in W and in x, so that nothing is turned. A sub-block's scale is a whole number there, and so is x' beside the one of its 256 values:
 *
 *     x ≈ unit · e[s] · q     e = 1 … 63, as small as the sub-block's largest magnitude allows
 *     y = Σ over super-blocks of  unit · (d · Σ over s of scale[s]·e[s] · Σ p·q  −  dmin · Σ over s of minimum[s]·e[s] · Σ q)
 *
 * so that a super-block is summed in whole numbers (in a lane of q6_K at most 8 · 2 · 2·63·127 · 128·63 < 2³¹) and multiplied twice in f32. The sums stand in
 * one order for any number of few rows; a prompt's (matmul_gemv_maddubs.c) in another, and x is rounded otherwise there.
 *
 * For one row of x 112 instructions for 256 values of q5_K, 101 of q6_K. Beside 16 rows side by side, turned: one row of x 0.5–0.75 of the time from memory,
 * which is read in order, and 0.6–0.9 in L2. Eight rows of x, which share a super-block taken apart: q6_K 0.8–1.1 of the time, q5_K 1.25–1.5. (q4_K: 0.75–1 and
 * 1.9: it stays there.) */
#include "half.h"
#include "matmul.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)

#define INLINE static inline __attribute__((always_inline))
#include "matmul_avx2.h"

enum { w_rows = 4, x_rows = 8, most_e = 63 };

/* 256 values of x. */
typedef struct x_super {
  int8_t q[256];
  int16_t e[2][8];    /* twice */
  int16_t sums[2][8]; /* Σq of the sub-blocks, second; of q6_K of their first and their second 16 */
  float unit;
} __attribute__((aligned(32))) x_super;

/* A format: bits of its quanta; bytes of a super-block. A constant of each function. */
typedef struct layout {
  int bits, bytes;
} layout;

static size_t x_bytes(int64_t k) { return (size_t)pk_round_up(k / 256 * (int64_t)sizeof(x_super), 64); }

/* NaN or infinity among the values: the unit is NaN, and so is every sum it enters. */
INLINE void round_super(const float *x, int is_halved, x_super *to) {
  float largest[8], top = 0;
  __m256 bad = _mm256_setzero_ps();
  for (int s = 0; s < 8; s++) {
    largest[s] = largest_of(x + 32 * s, &bad);
    top = largest[s] > top ? largest[s] : top;
  }
  memset(to, 0, sizeof *to);
  to->unit = _mm256_movemask_ps(bad) ? __builtin_nanf("") : top / (127 * most_e);
  if (!(to->unit >= 0x1p-120f)) { /* its inverse might be infinite: zeros */
    to->unit = to->unit == to->unit ? 0 : to->unit;
    return;
  }
  const float per_top = most_e / top;
  for (int s = 0; s < 8; s++) {
    const float e = __builtin_fminf(most_e, __builtin_fmaxf(1, __builtin_ceilf(largest[s] * per_top)));
    int32_t sums[2];
    round_32(x + 32 * s, 1 / (to->unit * e), to->q + 32 * s, sums); /* all of this rounded upwards, a quantum is still at most 127 */
    to->e[0][s] = to->e[1][s] = (int16_t)e;
    to->sums[0][s] = (int16_t)(is_halved ? sums[0] : 0), to->sums[1][s] = (int16_t)(is_halved ? sums[1] : sums[0] + sums[1]);
  }
}

INLINE __m256i bytes_at(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }

/* The whole factors of the sub-blocks: scales and minima (pk_k_factors_of); of q6_K scales of the first 16 values, and of the second. */
INLINE __m256i take_factors(const layout f, const uint8_t *p) {
  if (f.bits == 6) {
    const __m128i scales = _mm_loadu_si128((const __m128i *)(p + 192));
    return _mm256_cvtepi8_epi16(_mm_shuffle_epi8(scales, _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15)));
  }
  const __m128i head = _mm_loadu_si128((const __m128i *)p);
  const __m128i own = _mm_srlv_epi32(_mm_shuffle_epi8(head, _mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15)), _mm_setr_epi32(0, 0, 0, 4));
  const __m128i other = _mm_srli_epi16(_mm_shuffle_epi8(head, _mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11)), 2);
  const __m128i bits = _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f);
  return _mm256_cvtepu8_epi16(_mm_or_si128(_mm_and_si128(own, bits), _mm_and_si128(other, _mm_set1_epi8(48))));
}

/* The quanta of each sub-block. */
INLINE void take_quanta(const layout f, const uint8_t *p, __m256i q[8]) {
  const __m256i low = _mm256_set1_epi8(15), fifth = _mm256_set1_epi8(16), two = _mm256_set1_epi8(48);
  if (f.bits == 6) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const __m256i first = bytes_at(p + 64 * half), second = bytes_at(p + 64 * half + 32), high = bytes_at(p + 128 + 32 * half);
      q[4 * half] = _mm256_or_si256(_mm256_and_si256(first, low), _mm256_and_si256(_mm256_slli_epi16(high, 4), two));
      q[4 * half + 1] = _mm256_or_si256(_mm256_and_si256(second, low), _mm256_and_si256(_mm256_slli_epi16(high, 2), two));
      q[4 * half + 2] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(first, 4), low), _mm256_and_si256(high, two));
      q[4 * half + 3] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(second, 4), low), _mm256_and_si256(_mm256_srli_epi16(high, 2), two));
    }
    return;
  }
  const __m256i high = bytes_at(p + 16);
#pragma unroll
  for (int s = 0; s < 8; s++) {
    const __m256i bytes = bytes_at(p + 48 + 32 * (s / 2));
    const __m256i nibbles = _mm256_and_si256(s % 2 ? _mm256_srli_epi16(bytes, 4) : bytes, low);
    q[s] = _mm256_or_si256(nibbles, _mm256_and_si256(s < 4 ? _mm256_slli_epi16(high, 4 - s) : _mm256_srli_epi16(high, s - 4), fifth));
  }
}

/* Lanes of the sums: of quanta, and of what is taken off them: times minima, or (32 of q6_K's quanta are 0) times scales. */
typedef struct lane_sums {
  __m256 quanta, off;
} lane_sums;

/* d: [0] is d, [1] dmin, or d again. */
INLINE void add_super(const layout f, const __m256i q[8], __m256i factors, __m128 d, const x_super *x, lane_sums *sums) {
  const __m256i both = _mm256_mullo_epi16(factors, _mm256_load_si256((const __m256i *)x->e));
  __m256i scales = f.bits == 6 ? both : _mm256_permute4x64_epi64(both, 0x44);
  __asm__("" : "+x"(scales)); /* both halves alike, which must not be known: else it takes two shuffles to broadcast each */
  __m256i sum = _mm256_setzero_si256();
#pragma unroll
  for (int s = 0; s < 8; s++) {
    const __m256i products = _mm256_maddubs_epi16(q[s], _mm256_load_si256((const __m256i *)(x->q + 32 * s)));
    const __m256i scale = _mm256_shuffle_epi8(scales, _mm256_set1_epi16((short)(2 * s + ((2 * s + 1) << 8))));
    const __m256i scaled = _mm256_madd_epi16(products, scale);
    sum = s ? _mm256_add_epi32(sum, scaled) : scaled;
  }
  const __m128 unit = _mm_mul_ps(d, _mm_set1_ps(x->unit));
  sums->quanta = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_broadcastss_ps(unit), sums->quanta);
  const __m256i off = _mm256_madd_epi16(both, _mm256_load_si256((const __m256i *)x->sums));
  sums->off = _mm256_fmadd_ps(_mm256_cvtepi32_ps(off), _mm256_broadcastss_ps(f.bits == 6 ? unit : _mm_movehdup_ps(unit)), sums->off);
}

/* Sums of four rows: from memory they come in order, and what follows is fetched to L2. */
INLINE void dot(const layout f, const uint8_t *const *w, const uint8_t *x, size_t stride, const int rows, int64_t k, float *sums) {
  const uint8_t *ahead = w[w_rows];
  for (int r = 0; r < w_rows; r++) {
    lane_sums of[x_rows] = {0};
    const uint8_t *p = w[r];
    for (int64_t b = 0; b < k / 256; b++, p += f.bytes, ahead += f.bytes) {
      __m256i q[8];
      const int lines = f.bytes / 64;
      for (int line = 0; line < lines; line++) __builtin_prefetch(ahead + line * f.bytes / lines, 0, 2);
      take_quanta(f, p, q);
      const __m256i factors = take_factors(f, p);
      const __m128 d = _mm_cvtph_ps(_mm_cvtsi32_si128(f.bits == 6 ? pk_load16(p + 208) : (int32_t)pk_load32(p)));
      if (rows == 1) add_super(f, q, factors, d, (const x_super *)x + b, of);
#pragma clang loop unroll(disable)
      for (int i = 0; rows > 1 && i < rows; i++) add_super(f, q, factors, d, (const x_super *)(x + (size_t)i * stride) + b, of + i);
    }
    for (int i = 0; i < rows; i++) {
      const __m256 all = _mm256_fnmadd_ps(of[i].off, _mm256_set1_ps(f.bits == 6 ? 32 : 1), of[i].quanta);
      __m128 sum = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
      sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
      sums[w_rows * i + r] = _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
    }
  }
}

#define KERNEL(name, ...)                                                                                                        \
  static void prepare_##name(const float *x, int64_t k, void *prepared) {                                                        \
    for (int64_t b = 0; b < k / 256; b++) round_super(x + 256 * b, ((layout){__VA_ARGS__}).bits == 6, (x_super *)prepared + b);  \
  }                                                                                                                              \
  static void multiply_##name(const uint8_t *const *w, const uint8_t *x, size_t stride, int32_t count, int64_t k, float *sums) { \
    const layout f = {__VA_ARGS__};                                                                                              \
    if (count == 1) return dot(f, w, x, stride, 1, k, sums);                                                                     \
    dot(f, w, x, stride, count, k, sums);                                                                                        \
  }                                                                                                                              \
  static const pk_gemv_kernel kernel_##name = {.x_bytes = x_bytes, .prepare = prepare_##name, .multiply = multiply_##name, .w_rows = w_rows, .x_rows = x_rows};
KERNEL(q5_K, .bits = 5, .bytes = 176)
KERNEL(q6_K, .bits = 6, .bytes = 210)

const pk_gemv_kernel *pk_gemv_avx2_k(int32_t w_type) {
  return w_type == PK_Q5_K ? &kernel_q5_K : w_type == PK_Q6_K ? &kernel_q6_K : NULL;
}

#pragma clang attribute pop
#else
const pk_gemv_kernel *pk_gemv_avx2_k(int32_t w_type) { (void)w_type; return NULL; }
#endif
