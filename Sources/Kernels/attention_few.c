/* Attention of a few queries (decoding: one) over cached keys, a query at a time: the lanes run along the head's values. Measured on Zen 3 (AVX2), one
 * thread, 4096 keys of 3 × 64 in bf16: from memory half of the rate at which it can be read (11 of 22 GB/s), from L2 15 GB/s. */
#ifndef LEVEL
#include "attention.h"
#define AVX2_IS_ENOUGH
#define BODY "attention_few.c"
#include "levels.h"

size_t pk_attention_few_scratch(const pk_attention *op) {
  pk_few_pieces pieces;
  return pk_few_pieces_of(op, 0, &pieces);
}

/* A part takes neighbouring (batch, query, head) triples; heads of one query go together. */
void pk_attention_few(const pk_attention *op, int32_t part, int32_t parts, void *each) {
  pk_few_pieces pieces;
  pk_few_pieces_of(op, (uintptr_t)each, &pieces);
  const pk_range share = pk_share(op->batch * op->q_len * op->heads, 1, part, parts);
  for (int64_t i = share.begin; i < share.end;) {
    const int64_t h = i % op->heads, t = i / op->heads % op->q_len, b = i / op->heads / op->q_len;
    const int64_t count = pk_min(op->heads - h, share.end - i);
    AT_LEVEL(op->level, few_heads)(op, b, t, h, count, &pieces);
    i += count;
  }
}

#else

#include "attention_tiles.h"

#if LEVEL == 0
/* The keys, or values, of a token lie side by side, those of a head far apart: a few tokens' are read for all heads before the next few, so that memory
 * is read in order, and asked for as many tokens earlier. 32 tokens of 3 heads of 64 in bf16 are 12 kB. */
#define TOKENS 32
/* Heads with the same keys that are computed together, or else one: 3 × 4 sums, 3 weights and a vector of V are the 16 registers of AVX2. */
#define HEADS 3

typedef struct pk_few_pieces {
  float *weights; /* [heads][padded k_len] scores, then P */
  float *queries; /* [heads][head_dim] widened queries */
  float *totals;  /* [heads] Σ P */
  float *sums;    /* [heads][padded head_dim] Σ P·V */
} pk_few_pieces;

static size_t pk_few_pieces_of(const pk_attention *op, uintptr_t base, pk_few_pieces *pieces) {
  size_t used = 0;
  pieces->weights = pk_take(base, &used, 4 * op->heads * pk_blocks(op->k_len) * BLOCK);
  pieces->queries = pk_take(base, &used, 4 * op->heads * op->head_dim);
  pieces->totals = pk_take(base, &used, 4 * op->heads);
  pieces->sums = pk_take(base, &used, 4 * op->heads * pk_padded(op->head_dim));
  return used;
}

/* Fetches n values of a head from value i on, of keys or values (0: none, where there are no more or they are being fetched already). */
static inline __attribute__((always_inline)) void pk_fetch(int32_t type, const void *p, int64_t i, int64_t n) {
  const uint8_t *const row = (const uint8_t *)p + (type == PK_Q8_0 ? i / 32 * 34 : type == PK_F32 ? 4 * i : 2 * i);
  const int64_t bytes = type == PK_Q8_0 ? (n + 31) / 32 * 34 : type == PK_F32 ? 4 * n : 2 * n;
  for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(row + line, 0, 3);
}
#endif

/* WIDTH words of a row from word w on, zeros beyond `words`. */
INLINE vu NAME(words_at)(const void *row, int64_t w, int64_t words) {
  vu x = 0;
  const int64_t n = pk_min(WIDTH, words - w);
  if (n == WIDTH) {
    memcpy(&x, (const uint8_t *)row + 4 * w, sizeof x);
  } else {
    uint32_t part[WIDTH] = {0};
    memcpy(part, (const uint8_t *)row + 4 * w, 4 * (size_t)n);
    memcpy(&x, part, sizeof x);
  }
  return x;
}

/* Words of the key at k_at. */
INLINE vu NAME(key_words)(int pairs, int32_t type, const pk_attention *op, int64_t k_at, int64_t w, int64_t words) {
  if (pairs) return NAME(words_at)((const uint16_t *)op->k + k_at, w, words);
  return vbits(load_cached(type, op->k, k_at + w, pk_min(WIDTH, words - w)));
}

/* sum[head][i] += the words from w on of q[head] times those of two keys. */
INLINE void NAME(add_words)(int pairs, int32_t type, int heads, const pk_attention *op, const uint8_t *q, int64_t q_bytes, int64_t first, int64_t second, int64_t w,
                            int64_t words, vf sum[HEADS][2]) {
  const vu key[2] = {NAME(key_words)(pairs, type, op, first, w, words), NAME(key_words)(pairs, type, op, second, w, words)};
  for (int h = 0; h < heads; h++) {
    const vu query = NAME(words_at)(q + h * q_bytes, w, words);
    for (int i = 0; i < 2; i++) sum[h][i] = multiply_words(pairs, sum[h][i], query, key[i]);
  }
}

/* weights[head][k] = q[head] · k for `count` ≤ WIDTH tokens, whose first key is at k_at; rows of q and weights are q_bytes and ld apart; of later keys
 * `ahead` values are fetched. Two keys at a time share the loads of q. */
INLINE void NAME(scores_as)(int pairs, int32_t type, int heads, const pk_attention *op, const uint8_t *q, int64_t q_bytes, int64_t k_at, int64_t count,
                            int64_t ahead, float *weights, int64_t ld) {
  for (int64_t k = 0; ahead && k < count; k++) pk_fetch(type, op->k, k_at + (TOKENS + k) * op->k_token, ahead);
  const int64_t words = pairs ? op->head_dim / 2 : op->head_dim, whole = words / WIDTH * WIDTH;
  vf sums[HEADS][WIDTH];
  for (int64_t k = 0; k < count; k += 2, k_at += 2 * op->k_token) {
    const int64_t next = k + 1 < count ? k_at + op->k_token : k_at; /* beyond the last: again the last, nobody reads its lane */
    vf sum[HEADS][2] = {0};
    for (int64_t w = 0; w < whole; w += WIDTH) NAME(add_words)(pairs, type, heads, op, q, q_bytes, k_at, next, w, w + WIDTH, sum);
    if (whole < words) NAME(add_words)(pairs, type, heads, op, q, q_bytes, k_at, next, whole, words, sum);
    for (int h = 0; h < heads; h++) sums[h][k] = sum[h][0], sums[h][k + 1] = sum[h][1];
  }
  if (count < WIDTH - 1) {
    for (int64_t k = (count + 1) / 2 * 2; k < WIDTH; k++) {
      for (int h = 0; h < heads; h++) sums[h][k] = (vf){0};
    }
  }
  for (int h = 0; h < heads; h++) { /* the sum of each vector, a lane each */
    vu square[WIDTH];
    for (int i = 0; i < WIDTH; i++) square[i] = vbits(sums[h][i]);
    transpose_square(square);
    for (int s = WIDTH / 2; s > 0; s /= 2) {
      for (int i = 0; i < s; i++) square[i] = vbits(vfloat(square[i]) + vfloat(square[i + s]));
    }
    vput(weights + h * ld, vfloat(square[0]));
  }
}

static void NAME(scores)(int pairs, int heads, const pk_attention *op, const uint8_t *q, int64_t q_bytes, int64_t k_at, int64_t count, int64_t ahead,
                         float *weights, int64_t ld) {
#define SCORES(pairs, type)                                                                      \
  (heads == HEADS ? NAME(scores_as)(pairs, type, HEADS, op, q, q_bytes, k_at, count, ahead, weights, ld) \
                  : NAME(scores_as)(pairs, type, 1, op, q, q_bytes, k_at, count, ahead, weights, ld))
  if (pairs) return SCORES(LEVEL == 3, PK_BF16);
  if (LEVEL > 0 && op->kv == PK_BF16) return SCORES(0, PK_BF16);
  if (LEVEL > 0 && op->kv == PK_F32) return SCORES(0, PK_F32);
  SCORES(0, op->kv);
}

/* Scores of one head over the keys [begin, end) → weights e^(s − top); their sum, and the top score. */
INLINE float NAME(weigh)(const pk_attention *op, int64_t b, pk_range keys, const float *bias, float *weights, float *top) {
  vf maximum = -INFINITY;
  FOR_VECTORS(k, m, keys.begin, keys.end) {
    vf s = vget(weights + k - keys.begin) * op->scale;
    if (op->softcap > 0) s = op->softcap * vtanh(s / op->softcap);
    if (bias) {
      for (int64_t lane = 0; lane < m; lane++) s[lane] += bias[-(k + lane)];
    }
    if (m < WIDTH) s = vlanes() < (vi)(int32_t)m ? s : -INFINITY;
    if (op->key_mask) {
      for (int64_t lane = 0; lane < m; lane++) {
        if (!op->key_mask[b * op->k_len + k + lane]) s[lane] = -INFINITY;
      }
    }
    vput(weights + k - keys.begin, s);
    maximum = vmax(maximum, s);
  }
  *top = vtop(maximum);
  const float shift = *top == -INFINITY ? 0 : *top;
  vf sum = 0;
  for (int64_t k = 0; k < keys.end - keys.begin; k += WIDTH) { /* the lanes beyond the end hold −∞ → 0 */
    const vf p = vexp(vget(weights + k) - shift);
    vput(weights + k, p);
    sum += p;
  }
  return vsum(sum);
}

/* sums[head][d …] += Σ_k weights[head][k] · V[k][d …] for some tokens, `vectors` vectors of `lanes` values each; rows of sums are sums_ld apart. */
INLINE void NAME(weighted_sum_as)(int32_t type, int heads, int vectors, const pk_attention *op, const float *weights, int64_t ld, int64_t v_at, int64_t count, int64_t lanes,
                                  int64_t ahead, float *sums, int64_t sums_ld) {
  const void *const values = op->v;
  const int64_t token = op->v_token;
  vf sum[HEADS][4];
  for (int h = 0; h < heads; h++) {
    for (int v = 0; v < vectors; v++) sum[h][v] = vget(sums + h * sums_ld + v * WIDTH);
  }
  for (int64_t k = 0; k < count; k++, v_at += token) {
    pk_fetch(type, values, v_at + TOKENS * token, pk_min(ahead, vectors * lanes));
    vf weight[HEADS];
    for (int h = 0; h < heads; h++) weight[h] = (vf)weights[h * ld + k];
    for (int v = 0; v < vectors; v++) {
      vf value = load_cached(type, values, v_at + v * WIDTH, lanes);
#if LEVEL == 1 /* one value after the other: a sum that does not stay in its register costs more than its multiplication */
      __asm__ volatile("" : "+x"(value));
#endif
      for (int h = 0; h < heads; h++) sum[h][v] += weight[h] * value;
#if LEVEL == 1
      for (int h = 0; h < heads; h++) __asm__ volatile("" : "+x"(sum[h][v]));
#endif
    }
  }
  for (int h = 0; h < heads; h++) {
    for (int v = 0; v < vectors; v++) vput(sums + h * sums_ld + v * WIDTH, sum[h][v]);
  }
}

/* The same for all d. */
static void NAME(weighted_sum)(int heads, const pk_attention *op, const float *weights, int64_t ld, int64_t v_at, int64_t count, int64_t ahead, float *sums,
                               int64_t sums_ld) {
#define WEIGHTED_SUM(type, vectors, lanes)                                                                                            \
  (heads == HEADS ? NAME(weighted_sum_as)(type, HEADS, vectors, op, weights, ld, v_at + d, count, lanes, ahead, sums + d, sums_ld)            \
                  : NAME(weighted_sum_as)(type, 1, vectors, op, weights, ld, v_at + d, count, lanes, ahead, sums + d, sums_ld))
  const int64_t n = op->head_dim;
  for (int64_t d = 0; d < n;) {
    const int wide = n - d >= 4 * WIDTH;
    if (!wide && LEVEL > 0 && op->kv == PK_BF16 && n - d >= WIDTH) {
      WEIGHTED_SUM(PK_BF16, 1, WIDTH);
    } else if (!wide && LEVEL > 0 && op->kv == PK_F32 && n - d >= WIDTH) {
      WEIGHTED_SUM(PK_F32, 1, WIDTH);
    } else if (!wide) {
      WEIGHTED_SUM(op->kv, 1, pk_min(WIDTH, n - d));
    } else if (LEVEL > 0 && op->kv == PK_BF16) {
      WEIGHTED_SUM(PK_BF16, 4, WIDTH);
    } else if (LEVEL > 0 && op->kv == PK_F32) {
      WEIGHTED_SUM(PK_F32, 4, WIDTH);
    } else {
      WEIGHTED_SUM(op->kv, 4, WIDTH);
    }
    d += wide ? 4 * WIDTH : WIDTH;
  }
}

/* `count` heads of a query from head h on. */
static void NAME(few_heads)(const pk_attention *op, int64_t b, int64_t t, int64_t h, int64_t count, pk_few_pieces *pieces) {
  const int pairs = LEVEL == 3 && pk_uses_pairs(op) && op->kv == PK_BF16;
  const int64_t n = op->head_dim, group = op->heads / op->kv_heads, ld = pk_blocks(op->k_len) * BLOCK, padded = pk_padded(n);
  const pk_range keys = pk_visible(op, b, t);
  const int64_t q_at = b * op->q_batch + t * op->q_token + h * n, o_at = b * op->o_batch + t * op->o_token + h * n, visible = keys.end - keys.begin;
  const rows_view q = operand_rows(pairs, op->act, op->q, q_at, n, count, n, pieces->queries); /* heads are neighbours */

  for (int64_t k = 0; k < visible; k += WIDTH) {
    for (int64_t i = 0, some, last = -1; i < count; i += some) {
      const int64_t same = pk_min(group - (h + i) % group, count - i); /* heads that share keys */
      const int64_t k_at = b * op->k_batch + (keys.begin + k) * op->k_token + (h + i) / group * pk_kv_stride(op);
      const int64_t ahead = last != k_at && k + TOKENS < visible ? n : 0;
      some = !IS_SMALL && same >= HEADS ? HEADS : 1, last = k_at;
      NAME(scores)(pairs, (int)some, op, (const uint8_t *)q.rows + i * q.row_bytes, q.row_bytes, k_at, pk_min(WIDTH, visible - k), ahead, pieces->weights + i * ld + k, ld);
    }
  }
  for (int64_t i = 0; i < count; i++) {
    float top;
    const float total = NAME(weigh)(op, b, keys, pk_bias_of(op, h + i, t), pieces->weights + i * ld, &top);
    if (op->lse) op->lse[(b * op->heads + h + i) * op->q_len + t] = total != 0 ? top + logf(total) : -INFINITY;
    pieces->totals[i] = total;
  }
  memset(pieces->sums, 0, (size_t)(count * padded) * sizeof(float));
  for (int64_t k = 0; k < visible; k += TOKENS) {
    for (int64_t i = 0, some, last = -1; i < count; i += some) {
      const int64_t same = pk_min(group - (h + i) % group, count - i);
      const int64_t v_at = b * op->v_batch + (keys.begin + k) * op->v_token + (h + i) / group * pk_kv_stride(op);
      const int64_t ahead = last != v_at && k + TOKENS < visible ? n : 0;
      some = !IS_SMALL && same >= HEADS ? HEADS : 1, last = v_at;
      NAME(weighted_sum)((int)some, op, pieces->weights + i * ld + k, ld, v_at, pk_min(TOKENS, visible - k), ahead, pieces->sums + i * padded, padded);
    }
  }
  for (int64_t i = 0; i < count; i++) {
    const float inverse = pieces->totals[i] != 0 ? 1.0f / pieces->totals[i] : 0.0f;
    FOR_VECTORS(d, lanes, 0, n) vstore(op->act, op->out, o_at + i * n + d, lanes, vget(pieces->sums + i * padded + d) * inverse);
  }
}

#endif
