/* Products of block formats with int8 activations on AVX2 (matmul_blocks.h): vpmaddubsw multiplies unsigned bytes with signed ones and adds pairs of
 * products to 16 bits. Quanta of 4 bits are at most 15, those of x 127: eight pairs make at most 30480, so that the sums of a block of 32 stay in
 * 16 bits and are widened once; those of 5 bits twice, of 6 bits four times. Those of 8 bits are signed: the sign goes to x, and every pair is widened.
 *
 * 16 rows are two vectors. Rows of x are taken four at a time: 8 sums, 2 vectors of W, x and a product: 12 of 16 registers; for 16 × 4 × 32
 * multiplications of nibbles 64 vpmaddubsw, 56 additions, 40 for what follows, and 16 + 32 loads. Measured 50–59 % of the rate of vpmaddubsw
 * with an addition, twice f32's tiles (70 % from L1; 40 % where eight rows take W apart on the way, LOG 20). Few rows of q5_K and q6_K: matmul_gemv_k.c. */
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

enum { most_in_registers = 2, signed_offset = 0 };
#include "matmul_avx2.h"
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

/* The f16 in the lower and the upper half of each word. */
INLINE void two_halves(__m256i words, __m256 *low, __m256 *high) {
  const __m256i apart = _mm256_packus_epi32(_mm256_and_si256(words, _mm256_set1_epi32(0xffff)), _mm256_srli_epi32(words, 16));
  const __m256i ordered = _mm256_permute4x64_epi64(apart, 0xd8);
  *low = _mm256_cvtph_ps(_mm256_castsi256_si128(ordered)), *high = _mm256_cvtph_ps(_mm256_extracti128_si256(ordered, 1));
}

/* The fifth bits of quanta 4j … 4j+3 at their place. */
INLINE __m256i fifth_bits(__m256i bits, int j) {
  const __m256i spread = _mm256_shuffle_epi8(bits, _mm256_add_epi8(_mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404, 0x08080808, 0x0c0c0c0c),
                                                                   _mm256_set1_epi8((char)(j / 2))));
  const __m256i bit = _mm256_set1_epi32(j % 2 ? (int)0x80402010 : 0x08040201);
  return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit), _mm256_set1_epi8(16));
}

/* `bits` bits of each byte, from bit `from` on. */
INLINE __m256i bits_of(__m256i bytes, int from, int bits) {
  return _mm256_and_si256(_mm256_srl_epi16(bytes, _mm_cvtsi32_si128(from)), _mm256_set1_epi8((char)((1 << bits) - 1)));
}

/* The six bits of sub-block s of a half of q4_K and q5_K (pk_k_factors_of): of words 1 and 2, or four bits of word 3 and two of those. */
INLINE __m256 k_factor(const __m256i word[4], int which, int upper, int s) {
  const __m256i own = _mm256_srli_epi32(word[1 + which], 8 * s), other = _mm256_srli_epi32(word[3], 8 * s + 4 * which);
  const __m256i together = _mm256_or_si256(_mm256_and_si256(other, _mm256_set1_epi32(15)), _mm256_and_si256(_mm256_srli_epi32(own, 2), _mm256_set1_epi32(48)));
  return _mm256_cvtepi32_ps(upper ? together : _mm256_and_si256(own, _mm256_set1_epi32(63)));
}

/* Byte s of each word, signed. */
INLINE __m256 signed_byte(__m256i words, int s) { return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(words, 24 - 8 * s), 24)); }

INLINE void take_super_apart(const layout f, const uint8_t *const *rows, int64_t block, w_block to[4]) {
  const int upper = (int)(block / 4 & 1);
  const int64_t at = block / 8 * f.super;
#pragma clang loop unroll(disable)
  for (int half = 0; half < 2; half++) {
    const uint8_t *const *const w = rows + 8 * half;
    __m256i more[8], word[4];
    __m256 d, minimum;
    if (f.bits > 4) {
      const int64_t further = at + f.further + (f.bits == 6 ? 32 * upper : 0);
      turn(w, further, more), turn(w, further + 16, more + 4);
    }
#pragma unroll
    for (int pair = 0; pair < 2; pair++) {
      __m256i bytes[8];
      fetch_ahead(f, rows, block + 2 * half + pair);
      const int64_t quanta = at + f.quanta + 64 * upper + 32 * pair;
      turn(w, quanta, bytes), turn(w, quanta + 16, bytes + 4);
#pragma unroll
      for (int nibble = 0; nibble < 2; nibble++) {
        const int s = f.bits == 6 ? pair + 2 * nibble : 2 * pair + nibble;
#pragma unroll
        for (int j = 0; j < 8; j++) {
          __m256i q = bits_of(bytes[j], 4 * nibble, 4);
          if (f.bits == 5) q = _mm256_or_si256(q, _mm256_slli_epi16(bits_of(more[j], 4 * upper + s, 1), 4));
          if (f.bits == 6) q = _mm256_or_si256(q, _mm256_slli_epi16(bits_of(more[j], 2 * s, 2), 4));
          to[s].q[j][half] = q;
        }
      }
    }
    if (f.bits == 6) { /* d stands last, the scales of 16 values each before it */
      two_halves(words(w, at + 206), &minimum, &d);
      word[0] = words(w, at + 192 + 8 * upper), word[1] = words(w, at + 196 + 8 * upper);
    } else {
      turn(w, at, word);
      two_halves(word[0], &d, &minimum);
    }
#pragma unroll
    for (int s = 0; s < 4; s++) {
      to[s].d[half] = _mm256_mul_ps(d, f.bits == 6 ? signed_byte(word[s / 2], 2 * (s % 2)) : k_factor(word, 0, upper, s));
      to[s].m[half] = f.bits == 6 ? _mm256_mul_ps(d, signed_byte(word[s / 2], 2 * (s % 2) + 1))
                                  : _mm256_sub_ps(_mm256_setzero_ps(), _mm256_mul_ps(minimum, k_factor(word, 1, upper, s)));
    }
  }
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
    const __m256i bits = f.bits == 5 ? words(w, at + f.further) : _mm256_setzero_si256();
#pragma unroll
    for (int j = 0; j < 8; j++) to.q[j][half] = f.bits == 5 ? _mm256_or_si256(q[j], fifth_bits(bits, j)) : q[j];
    two_halves(words(w, at), &to.d[half], &to.m[half]);
  }
  return to;
}

/* add_block for at most four rows of x. */
INLINE void add_rows(const layout f, const w_block *w, const uint8_t *x, size_t stride, const int rows, float sums[][lanes]) {
  const int run = f.bits == 4 ? 8 : f.bits == 5 ? 4 : f.bits == 6 ? 2 : 1; /* pairs in 16 bits */
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i whole[4][2], first_whole[4][2];
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
        if (has_halves(f) && first == 4) first_whole[i][half] = whole[i][half];
        whole[i][half] = first && !(has_halves(f) && first == 4) ? _mm256_add_epi32(whole[i][half], fours) : fours;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < rows; i++) {
    const x_block *block = (const x_block *)(x + (size_t)i * stride);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float *to = sums[i] + 8 * half;
      const __m256 scale = _mm256_set1_ps(block->scale);
      __m256 sum = _mm256_load_ps(to);
      if (has_halves(f)) {
        const __m256i s = _mm256_add_epi32(first_whole[i][half], _mm256_set1_epi32(block->starts[0]));
        sum = _mm256_fmadd_ps(_mm256_mul_ps(w->d[half], scale), _mm256_cvtepi32_ps(s), sum);
      }
      __m256i s = whole[i][half];
      if (f.offset) s = _mm256_add_epi32(s, _mm256_set1_epi32(block->starts[has_halves(f)]));
      sum = _mm256_fmadd_ps(_mm256_mul_ps(has_halves(f) ? w->m[half] : w->d[half], scale), _mm256_cvtepi32_ps(s), sum);
      if (f.minimum) sum = _mm256_fmadd_ps(w->m[half], _mm256_set1_ps(block->sum), sum);
      _mm256_store_ps(to, sum);
    }
  }
}

INLINE void add_block(const layout f, const w_block *w, const x_block *x, size_t stride, const int rows, float sums[][lanes]) {
#pragma clang loop unroll(disable) /* else the vectors of W are kept for the other four, on the stack */
  for (int i = 0; i < rows; i += 4) add_rows(f, w, (const uint8_t *)x + (size_t)i * stride, stride, rows < 4 ? rows : 4, sums + i);
}

INLINE int few_elsewhere(const layout f) { return f.super && f.bits > 4; }

/* q4_K with one row of x, eight rows of W at a time: nothing waits in memory between turning and multiplying. The sums are add_block's. */
INLINE int dot_super(const layout f, const uint8_t *const *w, const uint8_t *x, int64_t k, float *sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256 sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (int64_t block = 0; block < k / 32; block += 4) {
    const x_block *const xs = (const x_block *)x + block;
    const int upper = (int)(block / 4 & 1);
    const int64_t at = block / 8 * f.super;
#pragma clang loop unroll(disable)
    for (int half = 0; half < 2; half++) {
      const uint8_t *const *const rows = w + 8 * half;
      __m256i word[4];
      __m256 d, minimum, total = sum[half];
      turn(rows, at, word);
      two_halves(word[0], &d, &minimum);
#pragma unroll
      for (int pair = 0; pair < 2; pair++) {
        __m256i short_sum[2];
        fetch_ahead(f, w, block + 2 * half + pair);
#pragma unroll
        for (int i = 0; i < 32; i += 16) {
          __m256i bytes[4];
          turn(rows, at + f.quanta + 64 * upper + 32 * pair + i, bytes);
#pragma unroll
          for (int j = 0; j < 4; j++) {
#pragma unroll
            for (int nibble = 0; nibble < 2; nibble++) {
              const __m256i xq = _mm256_set1_epi32((int32_t)pk_load32(xs[2 * pair + nibble].q + i + 4 * j));
              const __m256i pairs = _mm256_maddubs_epi16(bits_of(bytes[j], 4 * nibble, 4), xq);
              short_sum[nibble] = i + j ? _mm256_add_epi16(short_sum[nibble], pairs) : pairs;
            }
          }
        }
#pragma unroll
        for (int s = 2 * pair; s < 2 * pair + 2; s++) {
          const __m256 scale = _mm256_mul_ps(_mm256_mul_ps(d, k_factor(word, 0, upper, s)), _mm256_set1_ps(xs[s].scale));
          total = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(_mm256_madd_epi16(short_sum[s % 2], ones)), total);
          total = _mm256_fnmadd_ps(_mm256_mul_ps(minimum, k_factor(word, 1, upper, s)), _mm256_set1_ps(xs[s].sum), total);
        }
      }
      sum[half] = total;
    }
  }
  memcpy(sums, sum, sizeof sum);
  return 1;
}

INLINE void round_block(const layout f, const float *x, x_block *to) {
  __m256 bad = _mm256_setzero_ps();
  float inverse;
  int32_t sums[2];
  const float largest = largest_of(x, &bad), scale = scale_of(largest, _mm256_movemask_ps(bad), &inverse);
  round_32(x, inverse, to->q, sums);
  finish_block(f, scale, sums[0], sums[1], to);
}

const pk_gemv_kernel *pk_gemv_avx2_int8(int32_t w_type) { return kernel_of(w_type); }

#pragma clang attribute pop
#else
const pk_gemv_kernel *pk_gemv_avx2_int8(int32_t w_type) { (void)w_type; return NULL; }
#endif
