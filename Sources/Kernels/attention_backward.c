/* Gradients of attention. With P = e^(s − lse) recomputed block by block and δ = Σ_d dO·O per query,
 *   dV = Pᵀ dO,   dS = P ∘ (dO Vᵀ − δ) · scale (· 1 − (s/cap)²),   dQ = dS K,   dK = dSᵀ Q
 * (FlashAttention-2, arXiv 2307.08691, algorithm 2). One pass computes all three: queries are owned by a part, so dQ is
 * final; dK and dV are summed per chunk of queries (attention.h) and the chunks are added in phase 1. */
#ifndef LEVEL
#include "attention.h"
#define BODY "attention_backward.c"
#include "levels.h"

size_t pk_attention_backward_scratch(const pk_attention *op) {
  pk_backward_pieces pieces;
  return pk_backward_pieces_of(op, 0, &pieces);
}

void pk_attention_backward(const pk_attention *op, int32_t phase, int32_t part, int32_t parts, void *shared, void *each) {
  const int64_t chunks = pk_chunks(op), pairs_of_heads = op->batch * op->kv_heads, size = pk_sums_size(op);
  if (phase == 0) {
    pk_backward_pieces pieces;
    pk_backward_pieces_of(op, (uintptr_t)each, &pieces);
    const pk_range share = pk_share(pairs_of_heads * chunks, 1, part, parts);
    const int uses_amx = pk_uses_amx(op);
    if (uses_amx) pk_amx_begin(16);
    for (int64_t i = share.begin; i < share.end; i++) {
      const int64_t head = i / chunks;
      if (i == share.begin || i % chunks == 0) memset(pieces.ready, 0, (size_t)pk_blocks(op->k_len));
      AT_LEVEL(op->level, backward_chunk)(op, head / op->kv_heads, head % op->kv_heads, i % chunks, (float *)shared + i * size, &pieces);
    }
    if (uses_amx) pk_amx_end();
  } else {
    const int64_t blocks = pk_blocks(op->k_len);
    const pk_range share = pk_share(pairs_of_heads * blocks, 1, part, parts);
    for (int64_t i = share.begin; i < share.end; i++) {
      const int64_t head = i / blocks;
      AT_LEVEL(op->level, add_chunks)(op, head / op->kv_heads, head % op->kv_heads, i % blocks, (const float *)shared + head * chunks * size);
    }
  }
}

#else

#include "attention_tiles.h"

#if LEVEL == 0
typedef struct pk_backward_pieces {
  void *keys;                     /* [key blocks][head_dim][BLOCK] elements: Kᵀ of one kv head */
  uint8_t *ready;                 /* [key blocks] is that block transposed? */
  uint32_t *q_columns, *o_columns; /* [words][BLOCK] Qᵀ and dOᵀ */
  uint32_t *q_rows, *o_rows;      /* [words of queries][padded head_dim] Q and dO */
  float *scores, *slopes;         /* [BLOCK keys][BLOCK queries] S; dO Vᵀ */
  void *p_rows, *s_rows;          /* [BLOCK keys][BLOCK queries] elements: P and dS, left operands */
  uint32_t *s_panel;              /* [words of keys][BLOCK] dS, right operand */
  float *sums;                    /* [head_dim][BLOCK] dQᵀ */
  float *rows, *value_rows;       /* [BLOCK][head_dim in whole blocks] */
} pk_backward_pieces;

static size_t pk_backward_pieces_of(const pk_attention *op, uintptr_t base, pk_backward_pieces *pieces) {
  const int64_t element = pk_uses_pairs(op) ? 2 : 4, n = op->head_dim, blocks = pk_blocks(op->k_len);
  const int64_t square = 4 * BLOCK * BLOCK, row_block = 4 * BLOCK * pk_blocks(n) * BLOCK;
  size_t used = 0;
  pieces->keys = pk_take(base, &used, n * blocks * BLOCK * element);
  pieces->ready = pk_take(base, &used, blocks);
  pieces->q_columns = pk_take(base, &used, row_block);
  pieces->o_columns = pk_take(base, &used, row_block);
  pieces->q_rows = pk_take(base, &used, row_block);
  pieces->o_rows = pk_take(base, &used, row_block);
  pieces->scores = pk_take(base, &used, square);
  pieces->slopes = pk_take(base, &used, square);
  pieces->p_rows = pk_take(base, &used, square);
  pieces->s_rows = pk_take(base, &used, square);
  pieces->s_panel = pk_take(base, &used, square);
  pieces->sums = pk_take(base, &used, row_block);
  pieces->rows = pk_take(base, &used, row_block);
  pieces->value_rows = pk_take(base, &used, row_block);
  return used;
}
#endif

/* Rows `key` and, in pairs, key + 1 of the left operands, 64 lanes of queries. Returns the pair rounded, if it is one. */
INLINE vu NAME(put_rows)(int pairs, void *rows, int64_t key, int64_t lane, const vf x[2]) {
#if LEVEL == 3
  if (pairs) {
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(__builtin_bit_cast(__m512, x[1]), __builtin_bit_cast(__m512, x[0]));
    uint16_t *to = (uint16_t *)rows + key * BLOCK + lane;
    _mm256_storeu_si256((__m256i *)to, _mm512_castsi512_si256(both));
    _mm256_storeu_si256((__m256i *)(to + BLOCK), _mm512_extracti64x4_epi64(both, 1));
    return __builtin_bit_cast(vu, both);
  }
#else
  (void)pairs;
#endif
  vput((float *)rows + key * BLOCK + lane, x[0]);
  return vbits(x[0]);
}

/* S and dO Vᵀ of a block pair → P and dS / scale as operands. lse is +∞ where there is no query: P = 0. */
INLINE void NAME(slopes_block)(const pk_attention *op, int pairs, int plain, const uint8_t *mask, const pk_queries *queries, const pk_quarters *quarters,
                               const float *bias, int64_t first, const float *lse, const float *delta, pk_backward_pieces *pieces) {
  const float unit = EXPONENT_UNIT(pairs), factor = plain ? op->scale * unit : unit;
  for (int64_t lane = 0; lane < BLOCK; lane += WIDTH) {
    const pk_range keys = quarters->keys[2 * lane / BLOCK];
    const vf shift = vget(lse + lane) * unit, mean = vget(delta + lane);
    for (int64_t k = keys.begin; k < keys.end; k += pairs ? 2 : 1) {
      vf p[2] = {0, 0}, d[2] = {0, 0};
      for (int64_t i = 0; i < (pairs ? 2 : 1) && k + i < keys.end; i++) {
        vf s = vget(pieces->scores + (k + i) * BLOCK + lane), slope = 1;
        if (!plain) s = score_of(op, s, queries, bias, lane, first + k + i, !mask || mask[k + i], &slope);
        p[i] = probability(pairs, s, factor, shift);
        d[i] = p[i] * (vget(pieces->slopes + (k + i) * BLOCK + lane) - mean);
        if (!plain) d[i] *= slope;
      }
      NAME(put_rows)(pairs, pieces->p_rows, k, lane, p);
      vu word = NAME(put_rows)(pairs, pieces->s_rows, k, lane, d);
      if (pairs) word = alternate(word);
      memcpy(pieces->s_panel + (pairs ? k / 2 : k) * BLOCK + lane, &word, sizeof word);
    }
  }
}

/* One query block of one head against all its keys. */
INLINE void NAME(backward_block)(int pairs, const pk_attention *op, int64_t b, int64_t h, int64_t kv, int64_t block, float *dk, float *dv,
                                 pk_backward_pieces *pieces) {
  const int64_t n = op->head_dim, words = pairs ? n / 2 : n, element = pairs ? 2 : 4, padded = pk_padded(n);
  pk_queries queries;
  pk_queries_of(op, b, block, &queries);
  const float *bias = pk_bias_of(op, h, queries.first);
  const int64_t query_words = pairs ? (queries.count + 1) / 2 : queries.count;

  const int64_t q_at = b * op->q_batch + queries.first * op->q_token + h * n;
  const int64_t o_at = b * op->o_batch + queries.first * op->o_token + h * n;
  const rows_view q = operand_rows(pairs, op->act, op->q, q_at, op->q_token, queries.count, n, pieces->rows);
  transpose_words(q.rows, q.row_bytes, queries.count, words, pieces->q_columns, BLOCK);
  panel_of_rows(pairs, q.rows, q.row_bytes, queries.count, n, pieces->q_rows, padded);
  const rows_view o = operand_rows(pairs, op->act, op->d_out, o_at, op->o_token, queries.count, n, pieces->rows);
  transpose_words(o.rows, o.row_bytes, queries.count, words, pieces->o_columns, BLOCK);
  panel_of_rows(pairs, o.rows, o.row_bytes, queries.count, n, pieces->o_rows, padded);

  float lse[BLOCK], delta[BLOCK], scales[BLOCK];
  const float *lse_of = op->lse + (b * op->heads + h) * op->q_len + queries.first;
  for (int64_t i = 0; i < BLOCK; i++) {
    lse[i] = INFINITY;
    delta[i] = 0;
    scales[i] = op->scale;
    if (i >= queries.count || lse_of[i] == -INFINITY) continue;
    lse[i] = lse_of[i];
    vf sum = 0;
    FOR_VECTORS(d, m, 0, n) {
      const int64_t at = o_at + i * op->o_token + d;
      sum += vload(op->act, op->out, at, m) * vload(op->act, op->d_out, at, m);
    }
    delta[i] = vsum(sum);
  }
  memset(pieces->sums, 0, (size_t)(n * BLOCK) * sizeof(float));

  const pk_range keys = pk_key_blocks(op, block);
  for (int64_t j = keys.begin; j < keys.end; j++) {
    const int64_t first = j * BLOCK, count = pk_min(BLOCK, op->k_len - first);
    const int sees = pk_sees(op, b, &queries, first, count);
    if (sees == PK_NOTHING) continue;

    const int64_t k_at = b * op->k_batch + first * op->k_token + kv * n, v_at = b * op->v_batch + first * op->v_token + kv * n;
    const rows_view k = operand_rows(pairs, op->act, op->k, k_at, op->k_token, count, n, pieces->rows);
    const rows_view v = operand_rows(pairs, op->act, op->v, v_at, op->v_token, count, n, pieces->value_rows);
    uint8_t *key_columns = (uint8_t *)pieces->keys + first * n * element;
    if (!pieces->ready[j]) {
      transpose_elements(pairs, k.rows, k.row_bytes, count, n, (uint32_t *)pieces->rows, key_columns, BLOCK);
      pieces->ready[j] = 1;
    }
    const uint8_t *mask = op->key_mask ? op->key_mask + b * op->k_len + first : NULL;
    const pk_quarters quarters = pk_quarters_of(&queries, sees, first, count);
    const int halves = sees == PK_EVERYTHING ? 1 : 2;
    const int64_t wide = BLOCK / halves; /* queries, and keys, taken together */
    for (int half = 0; half < halves; half++) {
      const pk_range seen = quarters.keys[half];
      const int64_t lane = half * wide, at = seen.begin * BLOCK + lane, m = seen.end - seen.begin;
      multiply(op, pairs, (const uint8_t *)k.rows + seen.begin * k.row_bytes, k.row_bytes, pieces->q_columns + lane, BLOCK, pieces->scores + at, BLOCK, m, wide, words, 0, NULL);
      multiply(op, pairs, (const uint8_t *)v.rows + seen.begin * v.row_bytes, v.row_bytes, pieces->o_columns + lane, BLOCK, pieces->slopes + at, BLOCK, m, wide, words, 0, NULL);
    }
    if (sees == PK_EVERYTHING && op->softcap == 0 && !bias) {
      NAME(slopes_block)(op, pairs, 1, NULL, &queries, &quarters, NULL, first, lse, delta, pieces);
    } else {
      NAME(slopes_block)(op, pairs, 0, mask, &queries, &quarters, bias, first, lse, delta, pieces);
    }
    for (int half = 0; half < halves; half++) {
      const int64_t key = half * wide, m = pk_min(wide, count - key), per_word = pairs ? 2 : 1;
      const pk_range asking = quarters.queries[half], seen = quarters.keys[half];
      const int64_t word = asking.begin / per_word, depth = pk_min(asking.end / per_word, query_words) - word;
      if (m > 0 && depth > 0) {
        const int64_t at = (key * BLOCK + asking.begin) * element, to = (first + key) * padded;
        multiply(op, pairs, (const uint8_t *)pieces->p_rows + at, BLOCK * element, pieces->o_rows + word * padded, padded, dv + to, padded, m, padded, depth, 1, NULL);
        multiply(op, pairs, (const uint8_t *)pieces->s_rows + at, BLOCK * element, pieces->q_rows + word * padded, padded, dk + to, padded, m, padded, depth, 1, NULL);
      }
      const int64_t lane = half * wide, from = seen.begin / per_word, to = (seen.end + per_word - 1) / per_word;
      multiply(op, pairs, key_columns + seen.begin * element, BLOCK * element, pieces->s_panel + from * BLOCK + lane, BLOCK, pieces->sums + lane, BLOCK, n, wide,
               to - from, 1, NULL);
    }
  }
  store_transposed(pieces->sums, n, scales, pieces->rows, op->act, op->d_q, q_at, op->q_token, queries.count);
}

INLINE void NAME(backward_chunk_as)(int pairs, const pk_attention *op, int64_t b, int64_t kv, int64_t chunk, float *sums, pk_backward_pieces *pieces) {
  const int64_t padded = pk_padded(op->head_dim), group = op->heads / op->kv_heads;
  const pk_range queries = pk_chunk_queries(op, chunk), keys = pk_chunk_keys(op, chunk);
  float *dk = sums, *dv = sums + pk_sums_size(op) / 2;
  const size_t covered = (size_t)((keys.end - keys.begin) * BLOCK * padded) * sizeof(float);
  memset(dk + keys.begin * BLOCK * padded, 0, covered);
  memset(dv + keys.begin * BLOCK * padded, 0, covered);
  for (int64_t block = queries.begin; block < queries.end; block++) {
    for (int64_t h = kv * group; h < (kv + 1) * group; h++) NAME(backward_block)(pairs, op, b, h, kv, block, dk, dv, pieces);
  }
}

static void NAME(backward_chunk)(const pk_attention *op, int64_t b, int64_t kv, int64_t chunk, float *sums, pk_backward_pieces *pieces) {
#if LEVEL == 3
  if (pk_uses_pairs(op)) {
    NAME(backward_chunk_as)(1, op, b, kv, chunk, sums, pieces);
    return;
  }
#endif
  NAME(backward_chunk_as)(0, op, b, kv, chunk, sums, pieces);
}

/* d_k, d_v of one key block: the chunks that cover it, in order. */
static void NAME(add_chunks)(const pk_attention *op, int64_t b, int64_t kv, int64_t block, const float *sums) {
  const int64_t n = op->head_dim, padded = pk_padded(n), size = pk_sums_size(op), chunks = pk_chunks(op);
  int64_t covering[8], found = 0;
  for (int64_t c = 0; c < chunks; c++) {
    const pk_range keys = pk_chunk_keys(op, c);
    if (keys.begin <= block && block < keys.end) covering[found++] = c;
  }
  for (int64_t k = block * BLOCK; k < pk_min(op->k_len, (block + 1) * BLOCK); k++) {
    const int64_t k_at = b * op->k_batch + k * op->k_token + kv * n, v_at = b * op->v_batch + k * op->v_token + kv * n;
    FOR_VECTORS(d, m, 0, n) {
      vf dk = 0, dv = 0;
      for (int64_t c = 0; c < found; c++) {
        const float *from = sums + covering[c] * size + k * padded + d;
        dk += vload(PK_F32, from, 0, m);
        dv += vload(PK_F32, from + size / 2, 0, m);
      }
      vstore(op->act, op->d_k, k_at + d, m, dk * op->scale);
      vstore(op->act, op->d_v, v_at + d, m, dv);
    }
  }
}

#endif
