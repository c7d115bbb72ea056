/* Products of block formats with int8 activations on AVX512-VNNI: vpdpbusd multiplies unsigned weight quanta with signed activation quanta and adds
 * fours of them to 16 integers. A block of 32 values of 16 rows (matmul_blocks.h) takes 8 of them for a row of x, a conversion and two fma.
 *
 * The quanta of 16 rows are turned in registers: four loads make a vector of four rows, 8 unpacks turn 4 × 4 words in each quarter. What stands
 * beside the quanta (d and m; fifth bits) is put together in registers too: 16 small stores and a wide load of them took a third of the time.
 * The rows are fetched to L2 well ahead (to L1 they would push each other out).
 *
 * Instructions of vectors for a block of 16 × 32 nibbles: about 55 to take it apart, 12 for each row of x. */
#include "half.h"
#include "matmul.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#include "matmul_avx512.h"

/* A block of 16 rows of W: q[j] has quanta 4j … 4j+3 of each, unsigned. */
typedef struct w_block {
  __m512i q[8];
  __m512 d, m;
} w_block;

enum { most_in_registers = 8, signed_offset = 128 };
#include "matmul_blocks.h"

INLINE int few_elsewhere(layout f) { return (void)f, 0; }
INLINE int dot_super(layout f, const uint8_t *const *w, const uint8_t *x, int64_t k, float *sums) { return (void)f, (void)w, (void)x, (void)k, (void)sums, 0; }

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

/* The words at `at` of each row. */
INLINE __m512i words(const uint8_t *const *w, int64_t at) {
  __m128i four[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const __m128i a = _mm_unpacklo_epi32(_mm_loadu_si32(w[4 * i] + at), _mm_loadu_si32(w[4 * i + 1] + at));
    const __m128i b = _mm_unpacklo_epi32(_mm_loadu_si32(w[4 * i + 2] + at), _mm_loadu_si32(w[4 * i + 3] + at));
    four[i] = _mm_unpacklo_epi64(a, b);
  }
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(four[0]), four[1], 1), high = _mm256_inserti128_si256(_mm256_castsi128_si256(four[2]), four[3], 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

/* `bits` bits of each byte, from bit `from` on. */
INLINE __m512i bits_of(__m512i bytes, int from, int bits) {
  return _mm512_and_si512(_mm512_srl_epi16(bytes, _mm_cvtsi32_si128(from)), _mm512_set1_epi8((char)((1 << bits) - 1)));
}

/* The six bits of sub-block s of a half of q4_K and q5_K (pk_k_factors_of): of words 1 and 2, or four bits of word 3 and two of those. */
INLINE __m512 k_factor(const __m512i word[4], int which, int upper, int s) {
  const __m512i own = _mm512_srli_epi32(word[1 + which], 8 * s), other = _mm512_srli_epi32(word[3], 8 * s + 4 * which);
  const __m512i together = _mm512_or_si512(_mm512_and_si512(other, _mm512_set1_epi32(15)), _mm512_and_si512(_mm512_srli_epi32(own, 2), _mm512_set1_epi32(48)));
  return _mm512_cvtepi32_ps(upper ? together : _mm512_and_si512(own, _mm512_set1_epi32(63)));
}

/* Byte s of each word, signed. */
INLINE __m512 signed_byte(__m512i words, int s) { return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(words, 24 - 8 * s), 24)); }

INLINE void take_super_apart(const layout f, const uint8_t *const *w, int64_t block, w_block to[4]) {
  const int upper = (int)(block / 4 & 1);
  const int64_t at = block / 8 * f.super;
  __m512i more[8], word[4];
  if (f.bits > 4) {
    const int64_t further = at + f.further + (f.bits == 6 ? 32 * upper : 0);
    turn(w, further, more), turn(w, further + 16, more + 4);
  }
#pragma unroll
  for (int pair = 0; pair < 2; pair++) {
    __m512i bytes[8];
    const int64_t quanta = at + f.quanta + 64 * upper + 32 * pair;
    turn(w, quanta, bytes), turn(w, quanta + 16, bytes + 4);
#pragma unroll
    for (int nibble = 0; nibble < 2; nibble++) {
      const int s = f.bits == 6 ? pair + 2 * nibble : 2 * pair + nibble;
      fetch_ahead(f, w, block + 2 * pair + nibble);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        __m512i q = bits_of(bytes[j], 4 * nibble, 4);
        if (f.bits == 5) q = _mm512_or_si512(q, _mm512_slli_epi16(bits_of(more[j], 4 * upper + s, 1), 4));
        if (f.bits == 6) q = _mm512_or_si512(q, _mm512_slli_epi16(bits_of(more[j], 2 * s, 2), 4));
        to[s].q[j] = q;
      }
    }
  }
  __m512 d;
  if (f.bits == 6) { /* d stands last, the scales of 16 values each before it */
    d = halves(_mm512_srli_epi32(words(w, at + 206), 16));
    word[0] = words(w, at + 192 + 8 * upper), word[1] = words(w, at + 196 + 8 * upper);
  } else {
    turn(w, at, word);
    d = halves(word[0]);
  }
#pragma unroll
  for (int s = 0; s < 4; s++) {
    to[s].d = _mm512_mul_ps(d, f.bits == 6 ? signed_byte(word[s / 2], 2 * (s % 2)) : k_factor(word, 0, upper, s));
    to[s].m = f.bits == 6 ? _mm512_mul_ps(d, signed_byte(word[s / 2], 2 * (s % 2) + 1))
                          : _mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(halves(_mm512_srli_epi32(word[0], 16)), k_factor(word, 1, upper, s)));
  }
}

INLINE w_block take_apart(const layout f, const uint8_t *const *w, int64_t block) {
  w_block to;
  const int64_t at = block * f.block + f.quanta;
  turn(w, at, to.q);
  if (f.bits == 8) {
    turn(w, at + 16, to.q + 4);
#pragma unroll
    for (int j = 0; j < 8; j++) to.q[j] = _mm512_xor_si512(to.q[j], _mm512_set1_epi8((char)signed_offset));
  } else {
    const __m512i low = _mm512_set1_epi8(15);
#pragma unroll
    for (int j = 0; j < 4; j++) to.q[4 + j] = _mm512_and_si512(_mm512_srli_epi16(to.q[j], 4), low), to.q[j] = _mm512_and_si512(to.q[j], low);
  }
  if (f.bits == 5) {
    const __m512i bits = words(w, block * f.block + f.further), table = fifth_bits();
#pragma unroll
    for (int j = 0; j < 8; j++) to.q[j] = _mm512_or_si512(to.q[j], _mm512_permutexvar_epi32(_mm512_srli_epi32(bits, 4 * j), table));
  }
  const __m512i head = words(w, block * f.block);
  to.d = halves(head), to.m = f.minimum ? halves(_mm512_srli_epi32(head, 16)) : to.d;
  return to;
}

/* start + Σ p·q of words first … end − 1. */
INLINE __m512 dots(const w_block *w, const x_block *x, const int first, const int end, __m512i start) {
#pragma unroll
  for (int j = first; j < end; j++) start = _mm512_dpbusd_epi32(start, w->q[j], _mm512_set1_epi32((int32_t)pk_load32(x->q + 4 * j)));
  return _mm512_cvtepi32_ps(start);
}

INLINE void add_block(layout f, const w_block *w, const x_block *x, size_t stride, int rows, float sums[][lanes]) {
#pragma unroll
  for (int i = 0; i < rows; i++, x = (const x_block *)((const uint8_t *)x + stride)) {
    const __m512 scale = _mm512_set1_ps(x->scale);
    __m512 sum = _mm512_load_ps(sums[i]);
    if (has_halves(f)) sum = _mm512_fmadd_ps(_mm512_mul_ps(w->d, scale), dots(w, x, 0, 4, _mm512_set1_epi32(x->starts[0])), sum);
    const __m512i start = f.minimum ? _mm512_setzero_si512() : _mm512_set1_epi32(x->starts[has_halves(f)]);
    sum = _mm512_fmadd_ps(_mm512_mul_ps(has_halves(f) ? w->m : w->d, scale), dots(w, x, has_halves(f) ? 4 : 0, 8, start), sum);
    if (f.minimum) sum = _mm512_fmadd_ps(w->m, _mm512_set1_ps(x->sum), sum);
    _mm512_store_ps(sums[i], sum);
  }
}

INLINE void round_block(const layout f, const float *x, x_block *to) {
  const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
  const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
  const __mmask16 bad = _mm512_fpclass_ps_mask(a, 0x99) | _mm512_fpclass_ps_mask(b, 0x99); /* NaN, ±infinity */
  float inverse;
  const float scale = scale_of(largest, bad, &inverse);
  const __m512i qa = _mm512_cvtps_epi32(_mm512_mul_ps(a, _mm512_set1_ps(inverse))), qb = _mm512_cvtps_epi32(_mm512_mul_ps(b, _mm512_set1_ps(inverse)));
  _mm_storeu_si128((__m128i *)to->q, _mm512_cvtsepi32_epi8(qa));
  _mm_storeu_si128((__m128i *)(to->q + 16), _mm512_cvtsepi32_epi8(qb));
  finish_block(f, scale, _mm512_reduce_add_epi32(qa), _mm512_reduce_add_epi32(qb), to);
}

const pk_gemv_kernel *pk_gemv_vnni_int8(int32_t w_type) { return kernel_of(w_type); }

#pragma clang attribute pop
#else
const pk_gemv_kernel *pk_gemv_vnni_int8(int32_t w_type) { (void)w_type; return NULL; }
#endif
