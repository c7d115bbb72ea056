/* Exact attention, forward: blocks of queries × blocks of keys with a running maximum and sum (Dao et al.,
 * "FlashAttention", arXiv 2205.14135), so that no row of scores ever exists as a whole. */
#ifndef LEVEL
#include "attention.h"
#define BODY "attention.c"
#include "levels.h"

void pk_attention_scratch(const pk_attention *op, int32_t backward, size_t *each, size_t *shared) {
  size_t needed_each = 0, needed_shared = 0;
  if (backward) {
    needed_each = pk_attention_backward_scratch(op);
    needed_shared = (size_t)(pk_chunks(op) * op->batch * op->kv_heads * pk_sums_size(op)) * sizeof(float);
  } else if (op->q_len <= FEW_QUERIES) {
    needed_each = pk_attention_few_scratch(op);
  } else {
    pk_forward_pieces pieces;
    needed_each = pk_forward_pieces_of(op, 0, &pieces);
  }
  if (each) *each = needed_each;
  if (shared) *shared = needed_shared;
}

/* A part takes neighbouring (batch, head, query block) triples of about equal work. */
void pk_attention_forward(const pk_attention *op, int32_t part, int32_t parts, void *each) {
  if (op->q_len <= FEW_QUERIES) {
    pk_attention_few(op, part, parts, each);
    return;
  }
  pk_forward_pieces pieces;
  pk_forward_pieces_of(op, (uintptr_t)each, &pieces);
  const int64_t blocks = pk_blocks(op->q_len), heads = op->batch * op->heads;
  int64_t cost = 0;
  for (int64_t i = 0; i < blocks; i++) cost += pk_block_cost(op, i);
  const int64_t total = cost * heads;

  const int uses_amx = pk_uses_amx(op);
  if (uses_amx) pk_amx_begin(16);
  int64_t done = 0, prepared = -1;
  for (int64_t head = 0; head < heads; head++) {
    for (int64_t block = 0; block < blocks; block++) {
      const int64_t owner = done * parts / pk_max(1, total);
      done += pk_block_cost(op, block);
      if (owner != part) continue;
      const int64_t b = head / op->heads, h = head % op->heads, kv = h / (op->heads / op->kv_heads);
      if (prepared != b * op->kv_heads + kv) { /* values of another kv head: none is transposed yet */
        prepared = b * op->kv_heads + kv;
        memset(pieces.ready, 0, (size_t)pk_blocks(op->k_len));
      }
      AT_LEVEL(op->level, forward_block)(op, b, h, kv, block, &pieces);
    }
  }
  if (uses_amx) pk_amx_end();
}

#else

#include "attention_tiles.h"

#if LEVEL == 0
/* Scratch of one part. An element is 2 bytes in pairs, else 4. */
typedef struct pk_forward_pieces {
  void *values;      /* [key blocks][head_dim][BLOCK] elements: V of one kv head, transposed block by block when first seen */
  uint8_t *ready;    /* [key blocks] is that block transposed? */
  uint32_t *queries; /* [words][BLOCK] Qᵀ */
  float *scores;     /* [BLOCK keys][BLOCK queries] */
  uint32_t *weights; /* [words of keys][BLOCK] P */
  float *sums;       /* [head_dim][BLOCK] Oᵀ */
  float *rows;       /* [BLOCK][head_dim in whole blocks] */
} pk_forward_pieces;

static size_t pk_forward_pieces_of(const pk_attention *op, uintptr_t base, pk_forward_pieces *pieces) {
  const int64_t element = pk_uses_pairs(op) ? 2 : 4, n = op->head_dim, blocks = pk_blocks(op->k_len);
  size_t used = 0;
  pieces->values = pk_take(base, &used, n * blocks * BLOCK * element);
  pieces->ready = pk_take(base, &used, blocks);
  pieces->queries = pk_take(base, &used, 4 * n * BLOCK);
  pieces->scores = pk_take(base, &used, 4 * BLOCK * BLOCK);
  pieces->weights = pk_take(base, &used, 4 * BLOCK * BLOCK);
  pieces->sums = pk_take(base, &used, 4 * n * BLOCK);
  pieces->rows = pk_take(base, &used, 4 * BLOCK * pk_blocks(n) * BLOCK);
  return used;
}
#endif

/* Scores of a block pair → weights P = e^(s − top); top and total are the running maximum and Σ P of each query, and
 * what was summed before must be multiplied by `fade` = e^(old top − new top). plain: everything is seen and nothing capped,
 * so the scale goes into the exponent. */
INLINE void NAME(softmax_block)(const pk_attention *op, int pairs, int plain, const uint8_t *mask, const pk_queries *queries, const pk_quarters *quarters,
                                const float *bias, int64_t first, float *scores, uint32_t *weights, float *top, float *total, float *fade) {
  const float unit = EXPONENT_UNIT(pairs), factor = plain ? op->scale * unit : unit;
  for (int64_t lane = 0; lane < BLOCK; lane += WIDTH) {
    const pk_range keys = quarters->keys[2 * lane / BLOCK];
    const vf before = vget(top + lane);
    vf now = plain ? (vf)-INFINITY : before;
    for (int64_t k = keys.begin; k < keys.end; k++) {
      float *at = scores + k * BLOCK + lane;
      vf s = vget(at), slope;
      if (!plain) {
        s = score_of(op, s, queries, bias, lane, first + k, !mask || mask[k], &slope);
        vput(at, s);
      }
      now = vmax(now, s);
    }
    if (plain) now = vmax(before, now * op->scale);
    const vf shift = (now == -INFINITY ? 0.0f : now) * unit; /* −∞: a query that has seen no key yet */
    const vf old = probability(pairs, before, unit, shift);
    vf sums[2] = {vget(total + lane) * old, 0};
    for (int64_t k = keys.begin; k < keys.end; k += pairs ? 2 : 1) {
      const vf p = probability(pairs, vget(scores + k * BLOCK + lane), factor, shift);
      sums[0] += p;
      vu word = vbits(p);
      if (pairs) {
        vf next = 0;
        if (k + 1 < keys.end) next = probability(pairs, vget(scores + (k + 1) * BLOCK + lane), factor, shift);
        sums[1] += next;
        word = pack_pair(p, next);
      }
      memcpy(weights + (pairs ? k / 2 : k) * BLOCK + lane, &word, sizeof word);
    }
    vput(top + lane, now);
    vput(total + lane, sums[0] + sums[1]);
    vput(fade + lane, old);
  }
}

INLINE void NAME(forward_block_as)(int pairs, const pk_attention *op, int64_t b, int64_t h, int64_t kv, int64_t block, pk_forward_pieces *pieces) {
  const int64_t n = op->head_dim, words = pairs ? n / 2 : n, element = pairs ? 2 : 4;
  pk_queries queries;
  pk_queries_of(op, b, block, &queries);
  const float *bias = pk_bias_of(op, h, queries.first);

  const int64_t q_at = b * op->q_batch + queries.first * op->q_token + h * n;
  const rows_view q = operand_rows(pairs, op->act, op->q, q_at, op->q_token, queries.count, n, pieces->rows);
  transpose_words(q.rows, q.row_bytes, queries.count, words, pieces->queries, BLOCK);

  float top[BLOCK], total[BLOCK], fade[BLOCK], inverse[BLOCK];
  for (int64_t i = 0; i < BLOCK; i++) {
    top[i] = -INFINITY;
    total[i] = 0;
  }
  memset(pieces->sums, 0, (size_t)(n * BLOCK) * sizeof(float));

  const pk_range keys = pk_key_blocks(op, block);
  for (int64_t j = keys.begin; j < keys.end; j++) {
    const int64_t first = j * BLOCK, count = pk_min(BLOCK, op->k_len - first);
    const int sees = pk_sees(op, b, &queries, first, count);
    if (sees == PK_NOTHING) continue;

    uint8_t *values = (uint8_t *)pieces->values + first * n * element;
    if (!pieces->ready[j]) {
      const int64_t v_at = b * op->v_batch + first * op->v_token + kv * pk_kv_stride(op);
      const rows_view v = operand_rows(pairs, op->kv, op->v, v_at, op->v_token, count, n, pieces->rows);
      /* in pairs the half of `rows` that no copy of bf16 takes is free as scratch */
      transpose_elements(pairs, v.rows, v.row_bytes, count, n, (uint32_t *)pieces->rows + BLOCK * n / 2, values, BLOCK);
      pieces->ready[j] = 1;
    }

    const int64_t k_at = b * op->k_batch + first * op->k_token + kv * pk_kv_stride(op);
    const rows_view k = operand_rows(pairs, op->kv, op->k, k_at, op->k_token, count, n, pieces->rows);
    const uint8_t *mask = op->key_mask ? op->key_mask + b * op->k_len + first : NULL;
    const pk_quarters quarters = pk_quarters_of(&queries, sees, first, count);
    if (sees == PK_EVERYTHING) {
      multiply(op, pairs, k.rows, k.row_bytes, pieces->queries, BLOCK, pieces->scores, BLOCK, count, BLOCK, words, 0, NULL);
    } else {
      for (int half = 0; half < 2; half++) {
        const pk_range seen = quarters.keys[half];
        multiply(op, pairs, (const uint8_t *)k.rows + seen.begin * k.row_bytes, k.row_bytes, pieces->queries + half * BLOCK / 2, BLOCK,
                 pieces->scores + seen.begin * BLOCK + half * BLOCK / 2, BLOCK, seen.end - seen.begin, BLOCK / 2, words, 0, NULL);
      }
    }
    if (sees == PK_EVERYTHING && op->softcap == 0 && op->scale > 0 && !bias) {
      NAME(softmax_block)(op, pairs, 1, NULL, &queries, &quarters, NULL, first, pieces->scores, pieces->weights, top, total, fade);
    } else {
      NAME(softmax_block)(op, pairs, 0, mask, &queries, &quarters, bias, first, pieces->scores, pieces->weights, top, total, fade);
    }
    if (sees == PK_EVERYTHING) {
      multiply(op, pairs, values, BLOCK * element, pieces->weights, BLOCK, pieces->sums, BLOCK, n, BLOCK, pairs ? (count + 1) / 2 : count, 1, fade);
    } else {
      for (int half = 0; half < 2; half++) {
        const pk_range seen = quarters.keys[half];
        const int64_t words_before = pairs ? seen.begin / 2 : seen.begin, words_end = pairs ? (seen.end + 1) / 2 : seen.end;
        multiply(op, pairs, values + seen.begin * element, BLOCK * element, pieces->weights + words_before * BLOCK + half * BLOCK / 2, BLOCK,
                 pieces->sums + half * BLOCK / 2, BLOCK, n, BLOCK / 2, words_end - words_before, 1, fade + half * BLOCK / 2);
      }
    }
  }

  for (int64_t i = 0; i < BLOCK; i++) inverse[i] = total[i] != 0 ? 1.0f / total[i] : 0.0f; /* no key at all: zeros; NaN stays */
  const int64_t o_at = b * op->o_batch + queries.first * op->o_token + h * n;
  store_transposed(pieces->sums, n, inverse, pieces->rows, op->act, op->out, o_at, op->o_token, queries.count);
  if (!op->lse) return;
  float *lse = op->lse + (b * op->heads + h) * op->q_len + queries.first;
  for (int64_t i = 0; i < queries.count; i++) lse[i] = total[i] != 0 ? top[i] + logf(total[i]) : -INFINITY;
}

static void NAME(forward_block)(const pk_attention *op, int64_t b, int64_t h, int64_t kv, int64_t block, pk_forward_pieces *pieces) {
#if LEVEL == 3
  if (pk_uses_pairs(op)) {
    NAME(forward_block_as)(1, op, b, h, kv, block, pieces);
    return;
  }
#endif
  NAME(forward_block_as)(0, op, b, h, kv, block, pieces);
}

#endif
