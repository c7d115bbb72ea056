/* Philox 4x32-10, a counter-based generator (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3",
 * SC 2011), and dropout with it. Element e of a stream is word e mod 4 of block e div 4; block b is the image of the
 * counter (b low, b high, 0, 0) under the key (seed low, seed high). */
#ifndef LEVEL
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

static void NAME(dropout)(int32_t act, const void *x, void *y, uint64_t threshold, float keep_scale, uint64_t seed,
                          uint64_t offset, int32_t accumulate, pk_range share) {
  uint32_t words[4 * WIDTH + 4];
  const vu bound = (uint32_t)threshold;
  for (int64_t i = share.begin; i < share.end; i += 4 * WIDTH) {
    const uint64_t element = offset + (uint64_t)i, skip = element % 4;
    NAME(philox_blocks)(element / 4, seed, words);
    if (skip) { /* an offset that is no multiple of 4 reaches into one block more */
      const uint64_t last = element / 4 + WIDTH;
      pk_philox_block((uint32_t[4]){(uint32_t)last, (uint32_t)(last >> 32), 0, 0},
                      (uint32_t[2]){(uint32_t)seed, (uint32_t)(seed >> 32)}, words + 4 * WIDTH);
    }
    FOR_VECTORS(j, n, i, pk_min(i + 4 * WIDTH, share.end)) {
      vu word;
      memcpy(&word, words + skip + (j - i), sizeof word);
      const vf scale = word >= bound ? keep_scale : 0.0f;
      vf v = threshold >> 32 ? (vf)0.0f : scale * vload(act, x, j, n);
      if (accumulate) v += vload(act, y, j, n);
      vstore(act, y, j, n, v);
    }
  }
}

#endif
