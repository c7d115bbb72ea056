/* Philox 4x32-10, a counter-based generator (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3",
 * SC 2011), and dropout and normal numbers with it. Element e of a stream is word e mod 4 of block e div 4; block b is the image of the
 * counter (b low, b high, 0, 0) under the key (seed low, seed high). */
#ifndef LEVEL
#define AVX2_IS_ENOUGH
#define BODY "dropout.c"
#include "levels.h"

void pk_philox_block(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
  uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];
  for (int round = 0; round < 10; round++) {
    const uint64_t p0 = (uint64_t)0xD2511F53 * c0, p1 = (uint64_t)0xCD9E8D57 * c2;
    c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
    c1 = (uint32_t)p1;
    c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c3 = (uint32_t)p0;
    k0 += 0x9E3779B9; /* the golden ratio and √3 − 1, in 32 bits */
    k1 += 0xBB67AE85;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

void pk_philox(uint64_t seed, uint64_t offset, uint32_t *out, size_t count) {
  const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
  uint32_t words[4];
  for (size_t i = 0; i < count; i++) {
    const uint64_t element = offset + i, block = element / 4;
    if (i == 0 || element % 4 == 0) pk_philox_block((uint32_t[4]){(uint32_t)block, (uint32_t)(block >> 32), 0, 0}, key, words);
    out[i] = words[element % 4];
  }
}

/* Shares begin at multiples of PK_GRAIN elements; the words of a vector are computed from its own offset. */
void pk_dropout(int32_t level, int32_t act, const void *x, void *y, size_t count, float p, uint64_t seed,
                uint64_t offset, int32_t accumulate, int32_t part, int32_t parts) {
  /* An element is dropped when its word is below p·2³²; p ≥ 1 drops everything. */
  const double bound = (double)p * 4294967296.0;
  const uint64_t threshold = bound <= 0 ? 0 : bound >= 4294967296.0 ? (uint64_t)1 << 32 : (uint64_t)bound;
  const float keep_scale = p < 1 ? 1.0f / (1.0f - p) : 0.0f;
  AT_LEVEL(level, dropout)
  (act, x, y, threshold, keep_scale, seed, offset, accumulate, pk_share((int64_t)count, PK_GRAIN, part, parts));
}

void pk_normals(int32_t level, float *y, size_t count, uint64_t seed, uint64_t offset, int32_t part, int32_t parts) {
  AT_LEVEL(level, normals)(y, seed, offset, pk_share((int64_t)count, PK_GRAIN, part, parts));
}

void pk_sample(int32_t level, int32_t act, const void *x, const float *normals, void *noise, void *y, int64_t rows,
               int64_t n, int32_t part, int32_t parts) {
  AT_LEVEL(level, sample)(act, x, normals, noise, y, n, pk_share(rows, 1, part, parts));
}

#else

#define vl NAME(vl)
typedef uint64_t vl __attribute__((ext_vector_type(WIDTH)));

/* The blocks first, first + 1, … first + WIDTH − 1: word w of block b goes to words[4·b + w]. */
INLINE void NAME(philox_blocks)(uint64_t first, uint64_t seed, uint32_t *words) {
  vl block = first;
  for (int lane = 0; lane < WIDTH; lane++) block[lane] += (uint64_t)lane;
  vu c0 = __builtin_convertvector(block, vu), c1 = __builtin_convertvector(block >> 32, vu), c2 = 0, c3 = 0;
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; round++) {
    const vl p0 = __builtin_convertvector(c0, vl) * 0xD2511F53, p1 = __builtin_convertvector(c2, vl) * 0xCD9E8D57;
    c0 = __builtin_convertvector(p1 >> 32, vu) ^ c1 ^ k0;
    c1 = __builtin_convertvector(p1, vu);
    c2 = __builtin_convertvector(p0 >> 32, vu) ^ c3 ^ k1;
    c3 = __builtin_convertvector(p0, vu);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  for (int lane = 0; lane < WIDTH; lane++) {
    words[4 * lane + 0] = c0[lane];
    words[4 * lane + 1] = c1[lane];
    words[4 * lane + 2] = c2[lane];
    words[4 * lane + 3] = c3[lane];
  }
}

/* 4·WIDTH words of the stream from `element` on: where they begin in `words`, which has room for 4·WIDTH + 4. */
static __attribute__((noinline)) const uint32_t *NAME(philox_words)(uint64_t element, uint64_t seed, uint32_t *words) {
  const uint64_t skip = element % 4;
  NAME(philox_blocks)(element / 4, seed, words);
  if (skip) { /* an offset that is no multiple of 4 reaches into one block more */
    const uint64_t last = element / 4 + WIDTH;
    pk_philox_block((uint32_t[4]){(uint32_t)last, (uint32_t)(last >> 32), 0, 0},
                    (uint32_t[2]){(uint32_t)seed, (uint32_t)(seed >> 32)}, words + 4 * WIDTH);
  }
  return words + skip;
}

static void NAME(dropout)(int32_t act, const void *x, void *y, uint64_t threshold, float keep_scale, uint64_t seed,
                          uint64_t offset, int32_t accumulate, pk_range share) {
  uint32_t room[4 * WIDTH + 4];
  const vu bound = (uint32_t)threshold;
  for (int64_t i = share.begin; i < share.end; i += 4 * WIDTH) {
    const uint32_t *words = NAME(philox_words)(offset + (uint64_t)i, seed, room);
    FOR_VECTORS(j, n, i, pk_min(i + 4 * WIDTH, share.end)) {
      vu word;
      memcpy(&word, words + (j - i), sizeof word);
      const vf scale = word >= bound ? keep_scale : 0.0f;
      vf v = threshold >> 32 ? (vf)0.0f : scale * vload(act, x, j, n);
      if (accumulate) v += vload(act, y, j, n);
      vstore(act, y, j, n, v);
    }
  }
}

/* ln x for normal x > 0, error 1 ulp (Cephes' logf): x = m·2ⁿ with m between √½ and √2, ln m = z − z²/2 + z³·P(z), z = m − 1. */
INLINE vf NAME(logarithm)(vf x) {
  const vu shifted = vbits(x) - 0x3f3504f3; /* √½ */
  const vf n = __builtin_convertvector(__builtin_bit_cast(vi, shifted) >> 23, vf);
  const vf z = vfloat((shifted & 0x7fffff) + 0x3f3504f3) - 1.0f;
  vf p = 7.0376836292e-2f * z - 1.1514610310e-1f;
  p = p * z + 1.1676998740e-1f;
  p = p * z - 1.2420140846e-1f;
  p = p * z + 1.4249322787e-1f;
  p = p * z - 1.6668057665e-1f;
  p = p * z + 2.0000714765e-1f;
  p = p * z - 2.4999993993e-1f;
  p = p * z + 3.3333331174e-1f;
  return z + (p * z * z * z - 0.5f * z * z + n * -2.12194440e-4f) + n * 0.693359375f;
}

/* Box–Muller: words u, v of the stream become r·cos θ, r·sin θ with r = √(−2·ln((u/2⁸ + 1)/2²⁴)), θ = 2π·(v/2⁸)/2²⁴. */
static void NAME(normals)(float *y, uint64_t seed, uint64_t offset, pk_range share) {
  uint32_t room[4 * WIDTH + 4];
  float values[4 * WIDTH];
  for (int64_t i = share.begin; i < share.end; i += 4 * WIDTH) {
    const uint32_t *words = NAME(philox_words)(offset + (uint64_t)i, seed, room);
    for (int half = 0; half < 4 * WIDTH; half += 2 * WIDTH) {
      vu first, second, u, v;
      memcpy(&first, words + half, sizeof first);
      memcpy(&second, words + half + WIDTH, sizeof second);
      u.lo = first.even, u.hi = second.even, v.lo = first.odd, v.hi = second.odd;
      const vf r = __builtin_elementwise_sqrt(-2.0f * NAME(logarithm)((__builtin_convertvector(u >> 8, vf) + 1.0f) * 0x1p-24f));
      /* Quarters of a turn, and what is left: at most an eighth to either side. */
      const vf quarters = __builtin_convertvector(v >> 8, vf) * 0x1p-22f;
      const vf z = quarters + VMAGIC;
      const vf a = (quarters - (z - VMAGIC)) * 1.57079632679f, square = a * a;
      vf sine = -1.9515295891e-4f * square + 8.3321608736e-3f;
      sine = ((sine * square - 1.6666654611e-1f) * square * a) + a;
      vf cosine = 2.443315711809948e-5f * square - 1.388731625493765e-3f;
      cosine = ((cosine * square + 4.166664568298827e-2f) * square - 0.5f) * square + 1.0f;
      const vu quarter = vbits(z) & 3;
      const vf across = (quarter & 1) == 1 ? sine : cosine, up = (quarter & 1) == 1 ? cosine : sine;
      const vf x = r * (((quarter == 1) | (quarter == 2)) ? -across : across), w = r * (quarter >= 2 ? -up : up);
      vf low, high;
      low.even = x.lo, low.odd = w.lo, high.even = x.hi, high.odd = w.hi;
      vput(values + half, low);
      vput(values + half + WIDTH, high);
    }
    memcpy(y + i, values, (size_t)pk_min(4 * WIDTH, share.end - i) * sizeof(float));
  }
}

static void NAME(sample)(int32_t act, const void *x, const float *normals, void *noise, void *y, int64_t n, pk_range rows) {
  for (int64_t r = rows.begin; r < rows.end; r++) {
    FOR_VECTORS(c, m, 0, n) {
      const vf e = vexp(0.5f * vload(act, x, (2 * r + 1) * n + c, m)) * vload(PK_F32, normals, r * n + c, m);
      vstore(act, noise, r * n + c, m, e);
      vstore(act, y, r * n + c, m, vload(act, x, 2 * r * n + c, m) + e);
    }
  }
}

#endif
