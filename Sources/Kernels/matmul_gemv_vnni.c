/* Few-row products with int8 activations on AVX512-VNNI: x ≈ scale·q per 32 values, vpdpbusd multiplies 64 unsigned
 * weight quanta with signed activation quanta and adds fours of them to 16 integers. Two arrangements:
 *
 * Nibble formats (q4_0 q4_1 q5_0 q5_1), four blocks of 32 a step. The blocks of a row lie side by side, 18 to 24 bytes each;
 * two loads cover four of them, and word permutes gather from them
 *     the 4×16 bytes of nibbles (low nibbles: values 0–15 of each block, high: 16–31),
 *     the scales d (and minima m), each four times: lane 4b+j of the sums belongs to block b.
 * So per 128 values: 2 loads, 2 permutes, 2 vpdpbusd, a conversion and two fma, about 2 cycles a block, twice the speed of
 * memory.
 *
 * q8_0, two blocks a step: weights are made unsigned by adding 128, taken back by starting the integers at −128·Σq. */
#include "half.h"
#include "matmul.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#include "matmul_avx512.h"

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

/* ---- nibble formats ---- */

/* Four blocks of x. Lane 4b+j: values 4j…4j+3 and 16+4j… of block b. */
typedef struct x_quad {
  int8_t low[64], high[64];
  float scale[16], sum[16]; /* sum: scale · Σ of the lane's eight quanta */
} x_quad;

static size_t x_bytes_quad(int64_t k) { return (size_t)(k + 127) / 128 * sizeof(x_quad); }

static void prepare_quad(const float *x, int64_t k, void *prepared) {
  x_quad *quads = prepared;
  for (int64_t at = 0; at < k; at += 128, quads++) {
    for (int b = 0; b < 4; b++) {
      int8_t q[32];
      const float scale = quantise(x + at + 32 * b, q);
      memcpy(quads->low + 16 * b, q, 16);
      memcpy(quads->high + 16 * b, q + 16, 16);
      for (int j = 0; j < 4; j++) quads->scale[4 * b + j] = scale;
    }
    const __m512i ones = _mm512_set1_epi8(1);
    const __m512i sums = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, _mm512_load_si512(quads->low)), ones, _mm512_load_si512(quads->high));
    _mm512_store_ps(quads->sum, _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_load_ps(quads->scale)));
  }
}

INLINE __mmask32 first_words(int64_t count) { return count >= 32 ? 0xffffffffu : count > 0 ? (1u << count) - 1 : 0; }

/* Word w of four blocks of B words, in the pair of vectors that begin at words 0 and 4B − 32. */
#define WORD(B, w) (uint16_t)((w) < 32 ? (w) : (w) - (4 * (B) - 32) + 32)
#define FOUR_SAME(B, w) WORD(B, w), WORD(B, w), WORD(B, w), WORD(B, w)
#define EIGHT(B, w) WORD(B, w), WORD(B, (w) + 1), WORD(B, (w) + 2), WORD(B, (w) + 3), WORD(B, (w) + 4), WORD(B, (w) + 5), WORD(B, (w) + 6), WORD(B, (w) + 7)
#define FOUR_PAIRS(B, w) WORD(B, w), WORD(B, (w) + 1), WORD(B, w), WORD(B, (w) + 1), WORD(B, w), WORD(B, (w) + 1), WORD(B, w), WORD(B, (w) + 1)
#define OF_BLOCKS(WHAT, B, w) WHAT(B, w), WHAT(B, (B) + (w)), WHAT(B, 2 * (B) + (w)), WHAT(B, 3 * (B) + (w))
/* Rows: nibbles; d in the low half and m (or d again) in the high half; the fifth bits of a block in each of its lanes. */
#define ORDERS(name, B, nibble_word, m_word, fifth_word)                    \
  static const uint16_t orders_##name[3][32] __attribute__((aligned(64))) = { \
      {OF_BLOCKS(EIGHT, B, nibble_word)},                                   \
      {OF_BLOCKS(FOUR_SAME, B, 0), OF_BLOCKS(FOUR_SAME, B, m_word)},        \
      {OF_BLOCKS(FOUR_PAIRS, B, fifth_word)},                               \
  };
ORDERS(q4_0, 9, 1, 0, 0)
ORDERS(q4_1, 10, 2, 1, 0)
ORDERS(q5_0, 11, 3, 0, 1)
ORDERS(q5_1, 12, 4, 1, 2)

/* Sets bit 4 of byte i of each lane where bit i (+16) of the lane's word is set. */
INLINE __m512i fifth_bits(__m512i quanta, __m512i words, const int high) {
  const __m128i bytes = high ? _mm_setr_epi8(2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3)
                             : _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  const __m512i spread = _mm512_shuffle_epi8(words, _mm512_broadcast_i32x4(bytes));
  const __mmask64 set = _mm512_test_epi8_mask(spread, _mm512_set1_epi64((int64_t)0x8040201008040201));
  return _mm512_mask_add_epi8(quanta, set, quanta, _mm512_set1_epi8(16));
}

/* Four blocks of W, taken apart. */
typedef struct w_quad {
  __m512i low, high; /* quanta of values 0–15 and 16–31 of each block */
  __m512 d, m;       /* what multiplies products, and sums */
} w_quad;

typedef struct nibble_format {
  __m512i nibbles, scales, fifths; /* word orders */
  int block, fifth, offset;        /* words in a block; has fifth bits; what to subtract from a quantum (0: it has a minimum) */
} nibble_format;

INLINE w_quad take_apart(const nibble_format *f, __m512i a, __m512i b) {
  const __m512i packed = _mm512_permutex2var_epi16(a, f->nibbles, b), low_bits = _mm512_set1_epi8(15);
  w_quad w = {.low = _mm512_and_si512(packed, low_bits), .high = _mm512_and_si512(_mm512_srli_epi16(packed, 4), low_bits)};
  if (f->fifth) {
    const __m512i bits = _mm512_permutex2var_epi16(a, f->fifths, b);
    w.low = fifth_bits(w.low, bits, 0), w.high = fifth_bits(w.high, bits, 1);
  }
  const __m512i scales = _mm512_permutex2var_epi16(a, f->scales, b);
  w.d = _mm512_cvtph_ps(_mm512_castsi512_si256(scales));
  w.m = f->offset ? _mm512_mul_ps(w.d, _mm512_set1_ps(-(float)f->offset)) : _mm512_cvtph_ps(_mm512_extracti64x4_epi64(scales, 1));
  return w;
}

/* products[i] += Σ d·scale·q·x and shifts[i] += Σ m·sum, for each row of x. */
INLINE void add_quads(w_quad w, const uint8_t *x, size_t stride, const int rows, __m512 *products, __m512 *shifts) {
#pragma unroll
  for (int i = 0; i < rows; i++) {
    const x_quad *quad = (const x_quad *)(x + (size_t)i * stride);
    const __m512i quanta = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), w.low, _mm512_load_si512(quad->low)), w.high, _mm512_load_si512(quad->high));
    products[i] = _mm512_fmadd_ps(_mm512_mul_ps(w.d, _mm512_load_ps(quad->scale)), _mm512_cvtepi32_ps(quanta), products[i]);
    shifts[i] = _mm512_fmadd_ps(w.m, _mm512_load_ps(quad->sum), shifts[i]);
  }
}

INLINE void dot_nibbles(const uint8_t *const w[4], const uint8_t *x, size_t stride, const int rows, int64_t k, float *sums,
                        const uint16_t orders[3][32], const int block, const int fifth, const int offset) {
  const nibble_format f = {_mm512_load_si512(orders[0]), _mm512_load_si512(orders[1]), _mm512_load_si512(orders[2]), block, fifth, offset};
  const int second = 4 * block - 32; /* the word where the second load begins */
  const int64_t steps = k / 128, words = k % 128 / 32 * block; /* of the blocks behind the last whole step */
  const __mmask32 first_left = first_words(words), second_left = first_words(words - second);
  __m512 sum[8][4];
  for (int r = 0; r < 4; r++) {
    const uint16_t *p = (const uint16_t *)w[r];
    const uint8_t *quads = x;
    __m512 products[8], shifts[8];
#pragma unroll
    for (int i = 0; i < rows; i++) products[i] = shifts[i] = _mm512_setzero_ps();
    for (int64_t step = 0; step < steps; step++, p += 4 * block, quads += sizeof(x_quad)) {
      __builtin_prefetch((const uint8_t *)p + PK_GEMV_AHEAD);
      add_quads(take_apart(&f, _mm512_loadu_si512(p), _mm512_loadu_si512(p + second)), quads, stride, rows, products, shifts);
    }
    if (words) {
      __builtin_prefetch((const uint8_t *)p + PK_GEMV_AHEAD);
      const __m512i a = _mm512_maskz_loadu_epi16(first_left, p), b = _mm512_maskz_loadu_epi16(second_left, p + second);
      add_quads(take_apart(&f, a, b), quads, stride, rows, products, shifts);
    }
#pragma unroll
    for (int i = 0; i < rows; i++) sum[i][r] = _mm512_add_ps(products[i], shifts[i]);
  }
#pragma unroll
  for (int i = 0; i < rows; i++) _mm_storeu_ps(sums + 4 * i, sum_lanes(sum[i][0], sum[i][1], sum[i][2], sum[i][3]));
}

/* ---- q8_0 ---- */

typedef struct x_pair {
  int8_t q[64];
  int32_t start[16]; /* −128 · Σ of the lane's four quanta */
  float scale[16];
} x_pair;

static size_t x_bytes_pair(int64_t k) { return (size_t)(k + 63) / 64 * sizeof(x_pair); }

static void prepare_pair(const float *x, int64_t k, void *prepared) {
  x_pair *pairs = prepared;
  for (int64_t at = 0; at < k; at += 64, pairs++) {
    for (int b = 0; b < 2; b++) {
      const float scale = quantise(x + at + 32 * b, pairs->q + 32 * b);
      for (int j = 0; j < 8; j++) pairs->scale[8 * b + j] = scale;
    }
    const __m512i sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8((char)128), _mm512_load_si512(pairs->q));
    _mm512_store_si512(pairs->start, _mm512_sub_epi32(_mm512_setzero_si512(), sums));
  }
}

/* products[i] += Σ d·scale·q·x of two blocks, for each row of x; `heads`: words of which the first and the 18th are the scales. */
INLINE void add_pair(__m512i heads, __m512i q, const uint8_t *x, size_t stride, const int rows, __m512 *products) {
  const __m512i scale_order = _mm512_castsi256_si512(_mm256_setr_epi16(0, 0, 0, 0, 0, 0, 0, 0, 17, 17, 17, 17, 17, 17, 17, 17));
  const __m512 d = _mm512_cvtph_ps(_mm512_castsi512_si256(_mm512_permutexvar_epi16(scale_order, heads)));
  q = _mm512_xor_si512(q, _mm512_set1_epi8((char)128));
#pragma unroll
  for (int i = 0; i < rows; i++) {
    const x_pair *pair = (const x_pair *)(x + (size_t)i * stride);
    const __m512i quanta = _mm512_dpbusd_epi32(_mm512_load_si512(pair->start), q, _mm512_load_si512(pair->q));
    products[i] = _mm512_fmadd_ps(_mm512_mul_ps(d, _mm512_load_ps(pair->scale)), _mm512_cvtepi32_ps(quanta), products[i]);
  }
}

INLINE void dot_q8_0(const uint8_t *const w[4], const uint8_t *x, size_t stride, const int rows, int64_t k, float *sums) {
  __m512 sum[8][4];
  for (int r = 0; r < 4; r++) {
    const uint8_t *p = w[r], *pairs = x;
    __m512 products[8];
#pragma unroll
    for (int i = 0; i < rows; i++) products[i] = _mm512_setzero_ps();
    for (int64_t step = k / 64; step > 0; step--, p += 68, pairs += sizeof(x_pair)) {
      __builtin_prefetch(p + PK_GEMV_AHEAD);
      const __m512i q = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(p + 2)));
      add_pair(_mm512_loadu_si512(p), _mm512_inserti64x4(q, _mm256_loadu_si256((const __m256i *)(p + 36)), 1), pairs, stride, rows, products);
    }
    if (k % 64) { /* one block; the scale of the other is 0 */
      const __m512i head = _mm512_zextsi256_si512(_mm256_setr_epi16((short)pk_load16(p), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0));
      add_pair(head, _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *)(p + 2))), pairs, stride, rows, products);
    }
#pragma unroll
    for (int i = 0; i < rows; i++) sum[i][r] = products[i];
  }
#pragma unroll
  for (int i = 0; i < rows; i++) _mm_storeu_ps(sums + 4 * i, sum_lanes(sum[i][0], sum[i][1], sum[i][2], sum[i][3]));
}

/* ---- the table ---- */

#define KERNEL(name, x_bytes, prepare, call)                                                                                 \
  static void multiply_##name(const uint8_t *const w[4], const uint8_t *x, size_t stride, int32_t count, int64_t k, float *sums) { \
    if (count == 1) call(1);                                                                                                 \
    if (count == 2) call(2);                                                                                                 \
    if (count == 4) call(4);                                                                                                 \
    if (count == 8) call(8);                                                                                                 \
  }                                                                                                                          \
  static const pk_gemv_kernel kernel_##name = {x_bytes, prepare, multiply_##name, 1};
#define Q4_0(rows) dot_nibbles(w, x, stride, rows, k, sums, orders_q4_0, 9, 0, 8)
#define Q4_1(rows) dot_nibbles(w, x, stride, rows, k, sums, orders_q4_1, 10, 0, 0)
#define Q5_0(rows) dot_nibbles(w, x, stride, rows, k, sums, orders_q5_0, 11, 1, 16)
#define Q5_1(rows) dot_nibbles(w, x, stride, rows, k, sums, orders_q5_1, 12, 1, 0)
#define Q8_0(rows) dot_q8_0(w, x, stride, rows, k, sums)
KERNEL(q4_0, x_bytes_quad, prepare_quad, Q4_0)
KERNEL(q4_1, x_bytes_quad, prepare_quad, Q4_1)
KERNEL(q5_0, x_bytes_quad, prepare_quad, Q5_0)
KERNEL(q5_1, x_bytes_quad, prepare_quad, Q5_1)
KERNEL(q8_0, x_bytes_pair, prepare_pair, Q8_0)

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
