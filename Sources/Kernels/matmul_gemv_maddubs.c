/* Products of block formats with int8 activations on AVX2 (matmul_blocks.h): vpmaddubsw multiplies unsigned bytes with signed ones and adds pairs of
 * products to 16 bits. Quanta of 4 bits are at most 15, those of x 127: eight pairs make at most 30480, so that the sums of a block of 32 stay in
 * 16 bits and are widened once; those of 5 bits twice. Those of 8 bits are signed: the sign goes to x, and every pair is widened.
 *
 * 16 rows are two vectors. Rows of x are taken four at a time: 8 sums, 2 vectors of W, x and a product: 12 of 16 registers; for 16 × 4 × 32
 * multiplications of nibbles 64 vpmaddubsw, 56 additions, 40 for what follows, and 16 + 32 loads: about 2.5 times what f32 multiplies. */
#include "half.h"
#include "matmul.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)

#define INLINE static inline __attribute__((always_inline))

/* A block of 16 rows of W: q[j] has quanta 4j … 4j+3 of rows 0 … 7 and 8 … 15. */
typedef struct w_block {
  __m256i q[8][2];
  __m256 d[2], m[2];
} w_block;

enum { ahead = 28 << 10, most_in_registers = 2, signed_offset = 0 };
#include "matmul_blocks.h"

/* word[j] = word j of the 16 bytes that begin at `at` of each of eight rows. */
INLINE void turn(const uint8_t *const *w, int64_t at, __m256i word[4]) {
  __m256i two[4];
#pragma unroll
  for (int r = 0; r < 4; r++) two[r] = _mm256_loadu2_m128i((const __m128i *)(w[r + 4] + at), (const __m128i *)(w[r] + at));
  const __m256i a = _mm256_unpacklo_epi32(two[0], two[1]), b = _mm256_unpacklo_epi32(two[2], two[3]);
  const __m256i c = _mm256_unpackhi_epi32(two[0], two[1]), d = _mm256_unpackhi_epi32(two[2], two[3]);
  word[0] = _mm256_unpacklo_epi64(a, b), word[1] = _mm256_unpackhi_epi64(a, b);
  word[2] = _mm256_unpacklo_epi64(c, d), word[3] = _mm256_unpackhi_epi64(c, d);
}

/* The words at `at` of each of eight rows. */
INLINE __m256i words(const uint8_t *const *w, int64_t at) {
  __m128i four[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const __m128i a = _mm_unpacklo_epi32(_mm_loadu_si32(w[4 * i] + at), _mm_loadu_si32(w[4 * i + 1] + at));
    const __m128i b = _mm_unpacklo_epi32(_mm_loadu_si32(w[4 * i + 2] + at), _mm_loadu_si32(w[4 * i + 3] + at));
    four[i] = _mm_unpacklo_epi64(a, b);
  }
  return _mm256_set_m128i(four[1], four[0]);
}

/* The fifth bits of quanta 4j … 4j+3 at their place. */
INLINE __m256i fifth_bits(__m256i bits, int j) {
  const __m256i spread = _mm256_shuffle_epi8(bits, _mm256_add_epi8(_mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404, 0x08080808, 0x0c0c0c0c),
                                                                   _mm256_set1_epi8((char)(j / 2))));
  const __m256i bit = _mm256_set1_epi32(j % 2 ? (int)0x80402010 : 0x08040201);
  return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit), _mm256_set1_epi8(16));
}

INLINE w_block take_apart(const layout f, const uint8_t *const *w, int64_t block) {
  w_block to;
  const int64_t at = block * f.block;
#pragma unroll
  for (int half = 0; half < 2; half++, w += 8) {
    __m256i q[8];
    turn(w, at + f.quanta, q);
    if (f.bits == 8) {
      turn(w, at + f.quanta + 16, q + 4);
    } else {
      const __m256i low = _mm256_set1_epi8(15);
#pragma unroll
      for (int j = 0; j < 4; j++) q[4 + j] = _mm256_and_si256(_mm256_srli_epi16(q[j], 4), low), q[j] = _mm256_and_si256(q[j], low);
    }
    const __m256i bits = f.fifth ? words(w, at + f.fifth) : _mm256_setzero_si256();
#pragma unroll
    for (int j = 0; j < 8; j++) to.q[j][half] = f.fifth ? _mm256_or_si256(q[j], fifth_bits(bits, j)) : q[j];
    /* d of the eight rows, and what follows it. */
    const __m256i head = words(w, at);
    const __m256i apart = _mm256_packus_epi32(_mm256_and_si256(head, _mm256_set1_epi32(0xffff)), _mm256_srli_epi32(head, 16));
    const __m256i ordered = _mm256_permute4x64_epi64(apart, 0xd8);
    to.d[half] = _mm256_cvtph_ps(_mm256_castsi256_si128(ordered));
    to.m[half] = f.minimum ? _mm256_cvtph_ps(_mm256_extracti128_si256(ordered, 1)) : to.d[half];
  }
  return to;
}

/* The same for at most four rows of x. */
INLINE void add_rows(const layout f, const w_block *w, const uint8_t *x, size_t stride, const int rows, float sums[][lanes]) {
  const int run = f.bits == 4 ? 8 : f.bits == 5 ? 4 : 1; /* pairs in 16 bits */
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i whole[4][2];
#pragma unroll
  for (int first = 0; first < 8; first += run) {
    __m256i short_sum[4][2];
#pragma unroll
    for (int j = first; j < first + run; j++) {
#pragma unroll
      for (int i = 0; i < rows; i++) {
        const __m256i xq = _mm256_set1_epi32((int32_t)pk_load32(x + (size_t)i * stride + 4 * j));
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const __m256i q = w->q[j][half];
          const __m256i pairs = f.bits == 8 ? _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(xq, q)) : _mm256_maddubs_epi16(q, xq);
          short_sum[i][half] = j > first ? _mm256_add_epi16(short_sum[i][half], pairs) : pairs;
          __asm__("" : "+x"(short_sum[i][half])); /* in this order: reordered, the additions of a row come together and W is read once for each */
        }
      }
    }
#pragma unroll
    for (int i = 0; i < rows; i++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const __m256i fours = _mm256_madd_epi16(short_sum[i][half], ones);
        whole[i][half] = first ? _mm256_add_epi32(whole[i][half], fours) : fours;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < rows; i++) {
    const x_block *block = (const x_block *)(x + (size_t)i * stride);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float *to = sums[i] + 8 * half;
      __m256i s = whole[i][half];
      if (f.offset) s = _mm256_add_epi32(s, _mm256_set1_epi32(block->start));
      __m256 sum = _mm256_fmadd_ps(_mm256_mul_ps(w->d[half], _mm256_set1_ps(block->scale)), _mm256_cvtepi32_ps(s), _mm256_load_ps(to));
      if (f.minimum) sum = _mm256_fmadd_ps(w->m[half], _mm256_set1_ps(block->sum), sum);
      _mm256_store_ps(to, sum);
    }
  }
}

INLINE void add_block(const layout f, const w_block *w, const x_block *x, size_t stride, const int rows, float sums[][lanes]) {
#pragma clang loop unroll(disable) /* else the vectors of W are kept for the other four, on the stack */
  for (int i = 0; i < rows; i += 4) add_rows(f, w, (const uint8_t *)x + (size_t)i * stride, stride, rows < 4 ? rows : 4, sums + i);
}

INLINE void round_block(const float *x, int32_t offset, x_block *to) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 v[4], largest = _mm256_setzero_ps(), bad = _mm256_setzero_ps();
#pragma unroll
  for (int i = 0; i < 4; i++) {
    v[i] = _mm256_loadu_ps(x + 8 * i);
    const __m256 size = _mm256_andnot_ps(sign, v[i]);
    largest = _mm256_max_ps(size, largest);
    bad = _mm256_or_ps(bad, _mm256_cmp_ps(size, _mm256_set1_ps(__builtin_inff()), _CMP_NLT_UQ));
  }
  __m128 top = _mm_max_ps(_mm256_castps256_ps128(largest), _mm256_extractf128_ps(largest, 1));
  top = _mm_max_ps(top, _mm_movehl_ps(top, top));
  top = _mm_max_ss(top, _mm_movehdup_ps(top));
  const int is_bad = _mm256_movemask_ps(bad);
  const float scale = _mm_cvtss_f32(top) / 127;
  const __m256 inverse = _mm256_set1_ps(!is_bad && scale > 0 ? 1 / scale : 0);
  __m256i q[4];
#pragma unroll
  for (int i = 0; i < 4; i++) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
  const __m256i low = _mm256_packs_epi32(q[0], q[1]), high = _mm256_packs_epi32(q[2], q[3]);
  const __m256i fours = _mm256_madd_epi16(_mm256_add_epi16(low, high), _mm256_set1_epi16(1));
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
  _mm256_storeu_si256((__m256i *)to->q, _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
  to->start = -offset * _mm_cvtsi128_si32(sum);
  to->scale = is_bad ? __builtin_nanf("") : scale;
  to->sum = to->scale * (float)_mm_cvtsi128_si32(sum);
}

const pk_gemv_kernel *pk_gemv_avx2_int8(int32_t w_type) { return kernel_of(w_type); }

#pragma clang attribute pop
#else
const pk_gemv_kernel *pk_gemv_avx2_int8(int32_t w_type) { (void)w_type; return NULL; }
#endif
