/* Decoders straight to bf16, for products of bf16: what the f32 decoders give, rounded to nearest even (subnormals to 0,
 * as the processor's conversion does).
 *
 * A block of q4 or q5 has 16 or 32 different values. They are computed once, rounded, and then looked up by the quanta: 32
 * values cost one word permute instead of two conversions, two multiply-adds and a rounding. q8_0 and q6_K have too many
 * values for that and are computed. About 0.4 cycles a value. */
#include "coded.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,bmi,bmi2"))), apply_to = function)
#pragma STDC FP_CONTRACT OFF

#define INLINE static inline __attribute__((always_inline))

INLINE __m512i round_two(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

/* 0, 1, … 15 */
INLINE __m512 count_up(void) { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

/* Two f16 side by side, converted together: which = 0 or 1 of them in all lanes. */
INLINE __m128 halves_at(const uint8_t *p) { return _mm_cvtph_ps(_mm_cvtsi32_si128((int)pk_load32(p))); }
INLINE __m512 first_of(__m128 halves) { return _mm512_broadcastss_ps(halves); }
INLINE __m512 second_of(__m128 halves) { return _mm512_broadcastss_ps(_mm_movehdup_ps(halves)); }

/* 16 bytes of nibbles: words 0 … 15 have the low ones, 16 … 31 the high ones; what the low ones' words hold above must
 * not matter (look_up takes five bits, table16 has its values twice). */
INLINE __m512i nibbles_at(const uint8_t *p) {
  const __m256i bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p));
  return _mm512_inserti64x4(_mm512_castsi256_si512(bytes), _mm256_srli_epi16(bytes, 4), 1);
}
INLINE __m512i only_nibbles(__m512i words) { return _mm512_and_si512(words, _mm512_set1_epi16(15)); }

/* 32 bytes as words. */
INLINE __m512i words_at(const uint8_t *p) { return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)p)); }

INLINE __m512i with_fifth_bits(__m512i quanta, __mmask32 set) { return _mm512_or_si512(quanta, _mm512_maskz_set1_epi16(set, 16)); }

/* d·(q − zero) + m for q = 0 … 15, twice. The product is exact (at most 22 bits), so that a multiply-add rounds as often as
 * the f32 decoders do. */
INLINE __m512i table16(__m512 d, float zero, __m512 m) {
  const __m512 low = _mm512_fmadd_ps(d, _mm512_sub_ps(count_up(), _mm512_set1_ps(zero)), m);
  return round_two(low, low);
}

/* The same for q = 0 … 31. */
INLINE __m512i table32(__m512 d, float zero, __m512 m) {
  const __m512 from = _mm512_sub_ps(count_up(), _mm512_set1_ps(zero));
  const __m512 low = _mm512_fmadd_ps(d, from, m);
  const __m512 high = _mm512_fmadd_ps(d, _mm512_add_ps(from, _mm512_set1_ps(16)), m);
  return round_two(low, high);
}

INLINE void look_up(__m512i table, __m512i quanta, uint16_t *to) { _mm512_storeu_si512(to, _mm512_permutexvar_epi16(quanta, table)); }

static void decode_f32(const void *row, int64_t first, int64_t count, void *out) {
  const float *from = (const float *)row + first;
  uint16_t *to = out;
  for (int64_t i = 0; i < count; i += 32, from += 32, to += 32) {
    const int64_t left = count - i;
    const __mmask32 use = left >= 32 ? 0xffffffffu : (1u << left) - 1;
    _mm512_mask_storeu_epi16(to, use, round_two(_mm512_maskz_loadu_ps((__mmask16)use, from), _mm512_maskz_loadu_ps((__mmask16)(use >> 16), from + 16)));
  }
}

/* By way of f32. */
static void through_f32(pk_decode_fn *decode, const void *row, int64_t first, int64_t count, uint16_t *to) {
  enum { box = 256 };
  float values[box];
  for (int64_t at = 0; at < count; at += box) {
    const int64_t few = count - at < box ? count - at : box;
    decode(row, first + at, few, values);
    decode_f32(values, 0, few, to + at);
  }
}

static void decode_f16(const void *row, int64_t first, int64_t count, void *out) {
  const uint16_t *from = (const uint16_t *)row + first;
  uint16_t *to = out;
  for (int64_t i = 0; i < count; i += 32, from += 32, to += 32) {
    const int64_t left = count - i;
    const __mmask32 use = left >= 32 ? 0xffffffffu : (1u << left) - 1;
    const __m512i halves = _mm512_maskz_loadu_epi16(use, from);
    const __m512 low = _mm512_cvtph_ps(_mm512_castsi512_si256(halves)), high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1));
    _mm512_mask_storeu_epi16(to, use, round_two(low, high));
  }
}

static void decode_bf16(const void *row, int64_t first, int64_t count, void *out) { memcpy(out, (const uint16_t *)row + first, (size_t)count * 2); }

/* The formats of 32 values: `size` bytes a block, and how to store one block at p. */
#define BLOCKS(name, size, store)                                                               \
  static void decode_##name(const void *row, int64_t first, int64_t count, void *out) {         \
    const uint8_t *p = (const uint8_t *)row + first / 32 * size;                                \
    uint16_t *to = out;                                                                         \
    for (int64_t i = 0; i < count; i += 32, p += size, to += 32) { store; }                     \
  }
BLOCKS(q4_0, 18, look_up(table16(first_of(halves_at(p)), 8, _mm512_setzero_ps()), nibbles_at(p + 2), to))
BLOCKS(q5_0, 22, look_up(table32(first_of(halves_at(p)), 16, _mm512_setzero_ps()), with_fifth_bits(only_nibbles(nibbles_at(p + 6)), pk_load32(p + 2)), to))

INLINE void store_iq4_nl(const uint8_t *p, uint16_t *to) {
  const __m512 levels = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)pk_iq4_nl_levels)));
  const __m512 values = _mm512_mul_ps(first_of(halves_at(p)), levels);
  look_up(round_two(values, values), nibbles_at(p + 2), to);
}
BLOCKS(iq4_nl, 18, store_iq4_nl(p, to))

INLINE void store_q4_1(const uint8_t *p, uint16_t *to) {
  const __m128 halves = halves_at(p);
  look_up(table16(first_of(halves), 0, second_of(halves)), nibbles_at(p + 4), to);
}
BLOCKS(q4_1, 20, store_q4_1(p, to))

INLINE void store_q5_1(const uint8_t *p, uint16_t *to) {
  const __m128 halves = halves_at(p);
  look_up(table32(first_of(halves), 0, second_of(halves)), with_fifth_bits(only_nibbles(nibbles_at(p + 8)), pk_load32(p + 4)), to);
}
BLOCKS(q5_1, 24, store_q5_1(p, to))

INLINE void store_q8_0(const uint8_t *p, uint16_t *to) {
  const __m512 d = first_of(halves_at(p));
  const __m512i low = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(p + 2)));
  const __m512i high = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(p + 18)));
  _mm512_storeu_si512(to, round_two(_mm512_mul_ps(d, _mm512_cvtepi32_ps(low)), _mm512_mul_ps(d, _mm512_cvtepi32_ps(high))));
}
BLOCKS(q8_0, 34, store_q8_0(p, to))

/* The super-blocks: sub-block s of the one at p. */
#define SUPERBLOCKS(name, size)                                                                 \
  static void decode_##name(const void *row, int64_t first, int64_t count, void *out) {         \
    uint16_t *to = out;                                                                         \
    for (int64_t sub = first / 32; sub < (first + count) / 32; sub++, to += 32) {               \
      store_##name((const uint8_t *)row + sub / 8 * size, (int)(sub & 7), to);                  \
    }                                                                                           \
  }

/* Nibbles of sub-block s among 128 bytes: 2j and 2j+1 are the low and the high ones of bytes 32j …. */
INLINE __m512i k_nibbles(const uint8_t *p, int s) {
  return _mm512_srl_epi16(words_at(p + 32 * (s / 2)), _mm_cvtsi32_si128(4 * (s & 1)));
}

/* d·scale and −dmin·minimum. */
INLINE __m128 k_factors_at(const uint8_t *p, int s) {
  const pk_k_factors k = pk_k_factors_of(p, s);
  return _mm_mul_ps(halves_at(p), _mm_cvtepi32_ps(_mm_setr_epi32(k.scale, -k.minimum, 0, 0)));
}

INLINE void store_q4_K(const uint8_t *p, int s, uint16_t *to) {
  const __m128 k = k_factors_at(p, s);
  look_up(table16(first_of(k), 0, second_of(k)), k_nibbles(p + 16, s), to);
}
SUPERBLOCKS(q4_K, 144)

INLINE void store_q5_K(const uint8_t *p, int s, uint16_t *to) {
  const __m128 k = k_factors_at(p, s);
  const __mmask32 fifth = _mm512_test_epi16_mask(words_at(p + 16), _mm512_set1_epi16((short)(1 << s)));
  look_up(table32(first_of(k), 0, second_of(k)), with_fifth_bits(only_nibbles(k_nibbles(p + 48, s)), fifth), to);
}
SUPERBLOCKS(q5_K, 176)

INLINE void store_q6_K(const uint8_t *p, int s, uint16_t *to) {
  const int half = s / 4, quarter = s & 3;
  const __m256i low = _mm256_loadu_si256((const __m256i *)(p + 64 * half + 32 * (quarter & 1)));
  const __m256i high = _mm256_loadu_si256((const __m256i *)(p + 128 + 32 * half));
  const __m256i nibbles = _mm256_and_si256(_mm256_srl_epi16(low, _mm_cvtsi32_si128(4 * (quarter >> 1))), _mm256_set1_epi8(15));
  const __m256i bits = _mm256_and_si256(_mm256_srl_epi16(high, _mm_cvtsi32_si128(2 * quarter)), _mm256_set1_epi8(3));
  const __m256i q = _mm256_sub_epi8(_mm256_or_si256(nibbles, _mm256_slli_epi16(bits, 4)), _mm256_set1_epi8(32));
  const float d = _cvtsh_ss(pk_load16(p + 208));
  const int8_t *scales = (const int8_t *)p + 192 + 2 * s;
  const __m512 low_values = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(q)));
  const __m512 high_values = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(q, 1)));
  _mm512_storeu_si512(to, round_two(_mm512_mul_ps(_mm512_set1_ps(d * (float)scales[0]), low_values),
                                    _mm512_mul_ps(_mm512_set1_ps(d * (float)scales[1]), high_values)));
}
SUPERBLOCKS(q6_K, 210)

/* nf4 and fp4: the 16 values of a block, looked up as above; the first of a byte's two is in its high bits. */
INLINE void decode_coded(const float *table, pk_decode_fn *slow, const void *row, int64_t first, int64_t count, void *out) {
  const pk_coded_row r = pk_coded_row_at(row);
  const __m512 entries = _mm512_loadu_ps(table);
  uint16_t *to = out;
  if (r.phase % 32 == 0 && first % 32 == 0) {
    for (; count >= 32; first += 32, count -= 32, to += 32) {
      const __m512 scaled = _mm512_mul_ps(entries, _mm512_set1_ps(pk_coded_scale(&r, (r.phase + first) >> r.shift)));
      const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(r.codes + first / 2)));
      look_up(round_two(scaled, scaled), _mm512_or_si512(_mm512_srli_epi32(bytes, 4), _mm512_slli_epi32(bytes, 16)), to);
    }
  }
  if (count > 0) through_f32(slow, row, first, count, to);
}

static void decode_nf4(const void *row, int64_t first, int64_t count, void *out) { decode_coded(pk_nf4_values, pk_decode_nf4, row, first, count, out); }
static void decode_fp4(const void *row, int64_t first, int64_t count, void *out) { decode_coded(pk_fp4_values, pk_decode_fp4, row, first, count, out); }

/* Eight bits, an entry of a table of 256 times the scale. */
static void decode_blockwise8(const void *row, int64_t first, int64_t count, void *out) {
  const pk_coded_row r = pk_coded_row_at(row);
  uint16_t *to = out;
  if (r.phase % 32 == 0 && first % 32 == 0) {
    for (; count >= 32; first += 32, count -= 32, to += 32) {
      const __m512 scale = _mm512_set1_ps(pk_coded_scale(&r, (r.phase + first) >> r.shift));
      const __m512i low = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(r.codes + first)));
      const __m512i high = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(r.codes + first + 16)));
      _mm512_storeu_si512(to, round_two(_mm512_mul_ps(_mm512_i32gather_ps(low, pk_dynamic_values, 4), scale),
                                        _mm512_mul_ps(_mm512_i32gather_ps(high, pk_dynamic_values, 4), scale)));
    }
  }
  if (count > 0) through_f32(pk_decode_blockwise8, row, first, count, to);
}

/* q·largest/127 of the row, multiplied in the order of the f32 decoder. */
static void decode_int8(const void *row, int64_t first, int64_t count, void *out) {
  const __m512 largest = _mm512_set1_ps(pk_float(pk_load32(row))), part = _mm512_set1_ps(7.874015718698502e-3f);
  const uint8_t *q = (const uint8_t *)row + 4 + first;
  uint16_t *to = out;
  for (; count >= 32; q += 32, first += 32, count -= 32, to += 32) {
    const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)q)));
    const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(q + 16))));
    _mm512_storeu_si512(to, round_two(_mm512_mul_ps(_mm512_mul_ps(low, largest), part), _mm512_mul_ps(_mm512_mul_ps(high, largest), part)));
  }
  if (count > 0) through_f32(pk_decode_int8, row, first, count, to);
}

/* 32 f16 times a power of two. */
INLINE __m512i round_halves(__m512i halves, __m512 factor) {
  const __m512 low = _mm512_cvtph_ps(_mm512_castsi512_si256(halves)), high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1));
  return round_two(_mm512_mul_ps(low, factor), _mm512_mul_ps(high, factor));
}

/* Exponent and mantissa of an e4m3 in the place of an f16's are the value over 2⁸, exponent 0 included; NaN is all ones. */
static void decode_f8_e4m3(const void *row, int64_t first, int64_t count, void *out) {
  const uint8_t *p = (const uint8_t *)row + first;
  uint16_t *to = out;
  for (; count >= 32; p += 32, first += 32, count -= 32, to += 32) {
    const __m512i words = words_at(p), magnitude = _mm512_and_si512(words, _mm512_set1_epi16(0x7f));
    const __m512i sign = _mm512_slli_epi16(_mm512_srli_epi16(words, 7), 15);
    const __m512i values = round_halves(_mm512_or_si512(sign, _mm512_slli_epi16(magnitude, 7)), _mm512_set1_ps(256));
    const __mmask32 nan = _mm512_cmpeq_epi16_mask(magnitude, _mm512_set1_epi16(0x7f));
    _mm512_storeu_si512(to, _mm512_mask_blend_epi16(nan, values, _mm512_or_si512(sign, _mm512_set1_epi16(0x7fc0))));
  }
  if (count > 0) through_f32(pk_decode_f8_e4m3, row, first, count, to);
}

static void decode_f8_e5m2(const void *row, int64_t first, int64_t count, void *out) {
  const uint8_t *p = (const uint8_t *)row + first;
  uint16_t *to = out;
  for (; count >= 32; p += 32, first += 32, count -= 32, to += 32) {
    _mm512_storeu_si512(to, round_halves(_mm512_slli_epi16(words_at(p), 8), _mm512_set1_ps(1)));
  }
  if (count > 0) through_f32(pk_decode_f8_e5m2, row, first, count, to);
}

/* The rarer formats. */
#define THROUGH(name, type) \
  static void decode_##name(const void *row, int64_t first, int64_t count, void *out) { through_f32(pk_decoder(PK_LEVEL_AVX512, type), row, first, count, out); }
THROUGH(q2_K, PK_Q2_K)
THROUGH(q3_K, PK_Q3_K)
THROUGH(tq1_0, PK_TQ1_0)
THROUGH(tq2_0, PK_TQ2_0)

pk_decode_fn *pk_decoder_bf16(int32_t type) {
  switch (type) {
    case PK_NF4: return decode_nf4;
    case PK_FP4: return decode_fp4;
    case PK_F8_E4M3: return decode_f8_e4m3;
    case PK_F8_E5M2: return decode_f8_e5m2;
    case PK_Q2_K: return decode_q2_K;
    case PK_Q3_K: return decode_q3_K;
    case PK_IQ4_NL: return decode_iq4_nl;
    case PK_TQ1_0: return decode_tq1_0;
    case PK_TQ2_0: return decode_tq2_0;
    case PK_INT8: return decode_int8;
    case PK_BLOCKWISE8: return decode_blockwise8;
    case PK_F32: return decode_f32;
    case PK_F16: return decode_f16;
    case PK_BF16: return decode_bf16;
    case PK_Q4_0: return decode_q4_0;
    case PK_Q4_1: return decode_q4_1;
    case PK_Q5_0: return decode_q5_0;
    case PK_Q5_1: return decode_q5_1;
    case PK_Q8_0: return decode_q8_0;
    case PK_Q4_K: return decode_q4_K;
    case PK_Q5_K: return decode_q5_K;
    case PK_Q6_K: return decode_q6_K;
    default: return NULL;
  }
}

#pragma clang attribute pop
#else
pk_decode_fn *pk_decoder_bf16(int32_t type) { (void)type; return NULL; }
#endif
