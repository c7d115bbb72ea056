/* Few-row products with int8 activations on AVX512-VNNI: x ≈ scale·q per 32 values; vpdpbusd multiplies unsigned weight quanta with
 * signed activation quanta and adds fours of them to 16 integers. The lanes are 16 rows of W, so that a block of 32 values takes
 * 8 vpdpbusd for a row of x, whose quanta are broadcast four at a time, one conversion and two fma, and no sum across lanes.
 *
 * The quanta of 16 rows are turned in registers: four loads make a vector of four rows, 8 unpacks turn 4 × 4 words in each quarter.
 * What stands beside the quanta (d and m; fifth bits) is collected first, a row after the other: memory then comes in order, which the
 * processor foresees, and the second reading is from L1.
 *
 * Instructions of vectors for a block of 16 × 32 nibbles: about 40 to take it apart, 12 for each row of x. */
#include "half.h"
#include "matmul.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#include "matmul_avx512.h"

enum { lanes = PK_GEMV_WIDE, most_blocks = 32 /* collected at a time */ };

/* 32 values of x. */
typedef struct x_block {
  int8_t q[32];
  int32_t start; /* −offset · Σq: quanta of W are `offset` too large */
  float scale, sum; /* sum: scale · Σq, what a minimum is multiplied with */
  int32_t unused[5];
} x_block;

static size_t x_bytes(int64_t k) { return (size_t)(k + 31) / 32 * sizeof(x_block); }

/* 32 values to quanta; the scale is returned. NaN or infinity: NaN, and so is every sum it enters. */
INLINE float quantise(const float *x, int8_t q[32]) {
  const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
  const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
  const __mmask16 bad = _mm512_fpclass_ps_mask(a, 0x99) | _mm512_fpclass_ps_mask(b, 0x99); /* NaN, ±infinity */
  const float scale = largest / 127;
  const __m512 inverse = _mm512_set1_ps(!bad && scale > 0 ? 1 / scale : 0);
  const __m512i qa = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)), qb = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
  _mm_storeu_si128((__m128i *)q, _mm512_cvtsepi32_epi8(qa));
  _mm_storeu_si128((__m128i *)(q + 16), _mm512_cvtsepi32_epi8(qb));
  return bad ? __builtin_nanf("") : scale;
}

INLINE void prepare(const float *x, int64_t k, void *prepared, int32_t offset) {
  x_block *blocks = prepared;
  for (int64_t at = 0; at < k; at += 32, blocks++) {
    blocks->scale = quantise(x + at, blocks->q);
    int32_t sum = 0;
    for (int i = 0; i < 32; i++) sum += blocks->q[i];
    blocks->start = -offset * sum;
    blocks->sum = blocks->scale * (float)sum;
  }
}

/* word[j] = word j of the 16 bytes that begin at `at` of each row. */
INLINE void turn(const uint8_t *const w[lanes], int64_t at, __m512i word[4]) {
  __m512i four[4];
#pragma unroll
  for (int r = 0; r < 4; r++) {
    four[r] = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(w[r] + at)));
    four[r] = _mm512_mask_broadcast_i32x4(four[r], 0x00f0, _mm_loadu_si128((const __m128i *)(w[r + 4] + at)));
    four[r] = _mm512_mask_broadcast_i32x4(four[r], 0x0f00, _mm_loadu_si128((const __m128i *)(w[r + 8] + at)));
    four[r] = _mm512_mask_broadcast_i32x4(four[r], 0xf000, _mm_loadu_si128((const __m128i *)(w[r + 12] + at)));
  }
  const __m512i a = _mm512_unpacklo_epi32(four[0], four[1]), b = _mm512_unpacklo_epi32(four[2], four[3]);
  const __m512i c = _mm512_unpackhi_epi32(four[0], four[1]), d = _mm512_unpackhi_epi32(four[2], four[3]);
  word[0] = _mm512_unpacklo_epi64(a, b), word[1] = _mm512_unpackhi_epi64(a, b);
  word[2] = _mm512_unpacklo_epi64(c, d), word[3] = _mm512_unpackhi_epi64(c, d);
}

INLINE __m512 halves(__m512i words) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words)); }

/* Bit 4 of byte i is bit i of the index. */
INLINE __m512i fifth_bits(void) {
  return _mm512_setr_epi32(0x00000000, 0x00000010, 0x00001000, 0x00001010, 0x00100000, 0x00100010, 0x00101000, 0x00101010, 0x10000000, 0x10000010, 0x10001000,
                           0x10001010, 0x10100000, 0x10100010, 0x10101000, 0x10101010);
}

/* sums[i·16 + r]. `minimum`: where m stands in a block, 0: it has none; `fifth`: where fifth bits stand, 0: quanta have none; `quanta`: where those
 * begin; `wide`: they have 8 bits each (turned from signed to unsigned), else 4. */
INLINE void dot(const uint8_t *const w[lanes], const uint8_t *x, size_t stride, const int rows, int64_t k, float *sums, const int block, const int minimum,
                const int fifth, const int quanta, const int wide) {
  uint32_t heads[most_blocks][lanes] __attribute__((aligned(64))), fifths[most_blocks][lanes] __attribute__((aligned(64)));
  const uint8_t *next = w[0] + lanes * (w[1] - w[0]); /* the 16 rows that follow */
  __m512 sum[8];
#pragma unroll
  for (int i = 0; i < rows; i++) sum[i] = _mm512_setzero_ps();
  for (int64_t first = 0; first < k / 32; first += most_blocks) {
    const int64_t count = k / 32 - first < most_blocks ? k / 32 - first : most_blocks;
    for (int r = 0; r < lanes; r++) {
      const uint8_t *p = w[r] + first * block;
      for (int64_t b = 0; b < count; b++, p += block) {
        heads[b][r] = minimum ? pk_load32(p) : pk_load16(p);
        if (fifth) fifths[b][r] = pk_load32(p + fifth);
      }
    }
    for (int64_t b = 0; b < count; b++) {
      const int64_t at = (first + b) * block + quanta;
      for (int64_t line = 0; line < lanes * block; line += 64) __builtin_prefetch(next + (first + b) * lanes * block + line);
      const __m512i head = _mm512_load_si512(heads[b]);
      __m512i q[8];
      turn(w, at, q);
      if (wide) {
        turn(w, at + 16, q + 4);
#pragma unroll
        for (int j = 0; j < 8; j++) q[j] = _mm512_xor_si512(q[j], _mm512_set1_epi8((char)128));
      } else {
        const __m512i low = _mm512_set1_epi8(15);
#pragma unroll
        for (int j = 0; j < 4; j++) q[4 + j] = _mm512_and_si512(_mm512_srli_epi16(q[j], 4), low), q[j] = _mm512_and_si512(q[j], low);
      }
      if (fifth) {
        const __m512i bits = _mm512_load_si512(fifths[b]), table = fifth_bits();
#pragma unroll
        for (int j = 0; j < 8; j++) q[j] = _mm512_or_si512(q[j], _mm512_permutexvar_epi32(_mm512_srli_epi32(bits, 4 * j), table));
      }
      const __m512 d = halves(head), m = minimum ? halves(_mm512_srli_epi32(head, 16)) : d;
#pragma unroll
      for (int i = 0; i < rows; i++) {
        const x_block *of = (const x_block *)(x + (size_t)i * stride) + first + b;
        __m512i s = minimum ? _mm512_setzero_si512() : _mm512_set1_epi32(of->start);
#pragma unroll
        for (int j = 0; j < 8; j++) s = _mm512_dpbusd_epi32(s, q[j], _mm512_set1_epi32((int32_t)pk_load32(of->q + 4 * j)));
        sum[i] = _mm512_fmadd_ps(_mm512_mul_ps(d, _mm512_set1_ps(of->scale)), _mm512_cvtepi32_ps(s), sum[i]);
        if (minimum) sum[i] = _mm512_fmadd_ps(m, _mm512_set1_ps(of->sum), sum[i]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < rows; i++) _mm512_storeu_ps(sums + lanes * i, sum[i]);
}

#define KERNEL(name, offset, ...)                                                                                              \
  static void prepare_##name(const float *x, int64_t k, void *prepared) { prepare(x, k, prepared, offset); }                   \
  static void multiply_##name(const uint8_t *const *w, const uint8_t *x, size_t stride, int32_t count, int64_t k, float *sums) { \
    if (count == 1) dot(w, x, stride, 1, k, sums, __VA_ARGS__);                                                                \
    if (count == 2) dot(w, x, stride, 2, k, sums, __VA_ARGS__);                                                                \
    if (count == 4) dot(w, x, stride, 4, k, sums, __VA_ARGS__);                                                                \
    if (count == 8) dot(w, x, stride, 8, k, sums, __VA_ARGS__);                                                                \
  }                                                                                                                            \
  static const pk_gemv_kernel kernel_##name = {x_bytes, prepare_##name, multiply_##name, lanes, 8};
/* offset of quanta; bytes of a block, where its minimum, fifth bits and quanta stand, quanta of eight bits */
KERNEL(q4_0, 8, 18, 0, 0, 2, 0)
KERNEL(q4_1, 0, 20, 2, 0, 4, 0)
KERNEL(q5_0, 16, 22, 0, 2, 6, 0)
KERNEL(q5_1, 0, 24, 2, 4, 8, 0)
KERNEL(q8_0, 128, 34, 0, 0, 2, 1)

const pk_gemv_kernel *pk_gemv_vnni_int8(int32_t w_type) {
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
const pk_gemv_kernel *pk_gemv_vnni_int8(int32_t w_type) { (void)w_type; return NULL; }
#endif
