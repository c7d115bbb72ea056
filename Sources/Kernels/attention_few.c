/* Attention of a few queries (decoding: one) over cached keys. One row of scores at a time: the lanes run along the
 * keys for the scores and along the head's values for the weighted sum, so that no lane is wasted. */
#ifndef LEVEL
#include "attention.h"
#define BODY "attention_few.c"
#include "levels.h"

size_t pk_attention_few_scratch(const pk_attention *op) {
  pk_few_pieces pieces;
  return pk_few_pieces_of(op, 0, &pieces);
}

/* A part takes neighbouring (batch, query, head) triples; heads that share keys and values go together. */
void pk_attention_few(const pk_attention *op, int32_t part, int32_t parts, void *each) {
  pk_few_pieces pieces;
  pk_few_pieces_of(op, (uintptr_t)each, &pieces);
  const int64_t group = op->heads / op->kv_heads;
  const pk_range share = pk_share(op->batch * op->q_len * op->heads, 1, part, parts);
  for (int64_t i = share.begin; i < share.end;) {
    const int64_t h = i % op->heads, t = i / op->heads % op->q_len, b = i / op->heads / op->q_len;
    const int64_t count = pk_min(pk_min(group - h % group, share.end - i), FEW_HEADS);
    AT_LEVEL(op->level, few_heads)(op, b, t, h, count, &pieces);
    i += count;
  }
}

#else

#include "attention_tiles.h"

#if LEVEL == 0
#define FEW_HEADS 4 /* heads computed together */

typedef struct pk_few_pieces {
  float *weights; /* [FEW_HEADS][padded k_len] scores, then P */
  float *rows;    /* [BLOCK][head_dim] keys, where they are no operands as they lie */
  float *queries; /* [FEW_HEADS][head_dim] widened queries */
} pk_few_pieces;

static size_t pk_few_pieces_of(const pk_attention *op, uintptr_t base, pk_few_pieces *pieces) {
  size_t used = 0;
  pieces->weights = pk_take(base, &used, 4 * FEW_HEADS * pk_blocks(op->k_len) * BLOCK);
  pieces->rows = pk_take(base, &used, 4 * BLOCK * op->head_dim);
  pieces->queries = pk_take(base, &used, 4 * FEW_HEADS * op->head_dim);
  return used;
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

/* q · k for `count` ≤ WIDTH keys, one lane each. */
INLINE vf NAME(products)(int pairs, const void *query, const uint8_t *keys, int64_t key_bytes, int64_t count, int64_t words) {
  vf sums[WIDTH];
  for (int i = 0; i < WIDTH; i++) sums[i] = 0;
  for (int64_t w = 0; w < words; w += WIDTH) {
    const vu q = NAME(words_at)(query, w, words);
    for (int i = 0; i < WIDTH; i++) {
      if (i < count) sums[i] = multiply_words(pairs, sums[i], q, NAME(words_at)(keys + i * key_bytes, w, words));
    }
  }
  vu square[WIDTH];
  for (int i = 0; i < WIDTH; i++) square[i] = vbits(sums[i]);
  transpose_square(square);
  for (int s = WIDTH / 2; s > 0; s /= 2) {
    for (int i = 0; i < s; i++) square[i] = vbits(vfloat(square[i]) + vfloat(square[i + s]));
  }
  return vfloat(square[0]);
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

/* out[head] = Σ_k weights[head][k] · V[k] / total[head], for `vectors` vectors of values from d on. */
INLINE void NAME(weighted_sum)(const pk_attention *op, int heads, int vectors, const float *weights, int64_t ld, int64_t v_at, int64_t keys,
                               int64_t d, int64_t lanes, const float *total, int64_t o_at) {
  vf sums[FEW_HEADS][4];
  for (int h = 0; h < heads; h++) {
    for (int v = 0; v < vectors; v++) sums[h][v] = 0;
  }
  for (int64_t k = 0; k < keys; k++) {
    vf values[4];
    for (int v = 0; v < vectors; v++) values[v] = load_cached(op->kv, op->v, v_at + k * op->v_token + d + v * WIDTH, lanes);
    for (int h = 0; h < heads; h++) {
      for (int v = 0; v < vectors; v++) sums[h][v] += weights[h * ld + k] * values[v];
    }
  }
  for (int h = 0; h < heads; h++) {
    const float inverse = total[h] != 0 ? 1.0f / total[h] : 0.0f;
    for (int v = 0; v < vectors; v++) vstore(op->act, op->out, o_at + h * op->head_dim + d + v * WIDTH, lanes, sums[h][v] * inverse);
  }
}

INLINE void NAME(few_heads_as)(int pairs, const pk_attention *op, int64_t b, int64_t t, int64_t h, int64_t count, pk_few_pieces *pieces) {
  const int64_t n = op->head_dim, words = pairs ? n / 2 : n, kv = h / (op->heads / op->kv_heads), ld = pk_blocks(op->k_len) * BLOCK;
  const pk_range keys = pk_visible(op, b, t);
  const int64_t q_at = b * op->q_batch + t * op->q_token + h * n, o_at = b * op->o_batch + t * op->o_token + h * n;
  const rows_view q = operand_rows(pairs, op->act, op->q, q_at, n, count, n, pieces->queries); /* heads are neighbours */

  for (int64_t k = keys.begin; k < keys.end; k += WIDTH) {
    const int64_t use = pk_min(WIDTH, keys.end - k), k_at = b * op->k_batch + k * op->k_token + kv * pk_kv_stride(op);
    const rows_view rows = operand_rows(pairs, op->kv, op->k, k_at, op->k_token, use, n, pieces->rows);
    for (int64_t i = 0; i < count; i++) {
      const void *query = (const uint8_t *)q.rows + i * q.row_bytes;
      float *at = pieces->weights + i * ld + (k - keys.begin);
      if (use == WIDTH) {
        vput(at, NAME(products)(pairs, query, rows.rows, rows.row_bytes, WIDTH, words));
      } else {
        vput(at, NAME(products)(pairs, query, rows.rows, rows.row_bytes, use, words));
      }
    }
  }

  float total[FEW_HEADS];
  for (int64_t i = 0; i < count; i++) {
    float top;
    total[i] = NAME(weigh)(op, b, keys, pk_bias_of(op, h + i, t), pieces->weights + i * ld, &top);
    if (op->lse) op->lse[(b * op->heads + h + i) * op->q_len + t] = total[i] != 0 ? top + logf(total[i]) : -INFINITY;
  }

  const int64_t v_at = b * op->v_batch + keys.begin * op->v_token + kv * pk_kv_stride(op), visible = keys.end - keys.begin;
  for (int64_t d = 0; d < n;) {
    const int wide = n - d >= 4 * WIDTH;
    const int64_t lanes = wide ? WIDTH : pk_min(WIDTH, n - d);
    for (int64_t i = 0; i < count;) { /* three heads, or one */
      const int three = count - i >= 3;
      const float *weights = pieces->weights + i * ld;
      if (wide && three) {
        NAME(weighted_sum)(op, 3, 4, weights, ld, v_at, visible, d, WIDTH, total + i, o_at + i * n);
      } else if (wide) {
        NAME(weighted_sum)(op, 1, 4, weights, ld, v_at, visible, d, WIDTH, total + i, o_at + i * n);
      } else if (three) {
        NAME(weighted_sum)(op, 3, 1, weights, ld, v_at, visible, d, lanes, total + i, o_at + i * n);
      } else {
        NAME(weighted_sum)(op, 1, 1, weights, ld, v_at, visible, d, lanes, total + i, o_at + i * n);
      }
      i += three ? 3 : 1;
    }
    d += wide ? 4 * WIDTH : WIDTH;
  }
}

static void NAME(few_heads)(const pk_attention *op, int64_t b, int64_t t, int64_t h, int64_t count, pk_few_pieces *pieces) {
#if LEVEL == 3
  if (pk_uses_pairs(op)) {
    NAME(few_heads_as)(1, op, b, t, h, count, pieces);
    return;
  }
#endif
  NAME(few_heads_as)(0, op, b, t, h, count, pieces);
}

#endif
