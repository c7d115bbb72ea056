/* What the attention kernels share and no instruction set changes: blocks, who sees whom, the layout of scratch.
 *
 * Queries and keys are taken in blocks of 64. Scores of a block pair stand transposed, S[key][query]: 64 queries are
 * the lanes of the vectors, so maxima, sums and gradients run down the keys without any sum across lanes.
 *
 * Operands are f32, or bf16 in pairs ("words" of 32 bits: two neighbours along the sum) where the instruction set
 * multiplies those; sums are always f32.
 */
#ifndef PK_ATTENTION_H
#define PK_ATTENTION_H

#include "kernels.h"
#include "share.h"

#define BLOCK 64
/* Up to this many queries (decoding) are computed one by one, with the lanes along keys and values. */
#define FEW_QUERIES 8

static inline int64_t pk_blocks(int64_t length) { return (length + BLOCK - 1) / BLOCK; }

/* Products of bf16 pairs? Otherwise bf16 tensors are widened to f32 block by block. */
static inline int pk_uses_pairs(const pk_attention *op) {
  return op->level >= PK_LEVEL_AVX512_BF16 && op->compute == PK_COMPUTE_BF16 && op->act == PK_BF16 && op->head_dim % 2 == 0;
}

/* Values from one head of k and v to the next. */
static inline int64_t pk_kv_stride(const pk_attention *op) { return op->kv == PK_Q8_0 ? pk_round_up(op->head_dim, 32) : op->head_dim; }

/* The biases of head h as seen by query `first`: key k takes the value at −k, the queries after `first` those that follow. */
static inline const float *pk_bias_of(const pk_attention *op, int64_t h, int64_t first) {
  return op->distance_bias ? op->distance_bias + h * op->bias_head + first + op->q_offset : NULL;
}

/* Keys that query t may see, before the key mask. */
static inline pk_range pk_visible(const pk_attention *op, int64_t b, int64_t t) {
  const int64_t position = t + op->q_offset;
  int64_t begin = 0, end = op->k_len;
  if (op->causal) end = pk_min(end, position + 1);
  if (op->window > 0) begin = pk_max(begin, position - op->window + 1);
  if (op->first_key) begin = pk_max(begin, op->first_key[b * op->q_len + t]);
  return begin < end ? (pk_range){begin, end} : (pk_range){0, 0};
}

/* A block of queries of one batch row. */
typedef struct pk_queries {
  int64_t first, count;
  int32_t begin[BLOCK], end[BLOCK]; /* visible keys of each */
  pk_range any, every;              /* keys that some query sees; keys that every query sees */
} pk_queries;

static inline void pk_queries_of(const pk_attention *op, int64_t b, int64_t block, pk_queries *queries) {
  queries->first = block * BLOCK;
  queries->count = pk_min(BLOCK, op->q_len - queries->first);
  queries->any = (pk_range){op->k_len, 0};
  queries->every = (pk_range){0, op->k_len};
  for (int64_t i = 0; i < BLOCK; i++) {
    /* lanes beyond the last query repeat it; nothing of theirs is stored */
    const pk_range keys = pk_visible(op, b, queries->first + pk_min(i, queries->count - 1));
    queries->begin[i] = (int32_t)keys.begin;
    queries->end[i] = (int32_t)keys.end;
    if (keys.begin < keys.end) {
      queries->any.begin = pk_min(queries->any.begin, keys.begin);
      queries->any.end = pk_max(queries->any.end, keys.end);
    }
    queries->every.begin = pk_max(queries->every.begin, keys.begin);
    queries->every.end = pk_min(queries->every.end, keys.end);
  }
}

/* How much of a key block a query block sees. */
enum { PK_NOTHING, PK_SOME, PK_EVERYTHING };
static inline int pk_sees(const pk_attention *op, int64_t b, const pk_queries *queries, int64_t first, int64_t count) {
  if (first >= queries->any.end || first + count <= queries->any.begin) return PK_NOTHING;
  int64_t kept = count;
  if (op->key_mask) {
    const uint8_t *mask = op->key_mask + b * op->k_len + first;
    kept = 0;
    for (int64_t k = 0; k < count; k++) kept += mask[k] != 0;
  }
  if (kept == 0) return PK_NOTHING;
  return kept == count && first >= queries->every.begin && first + count <= queries->every.end ? PK_EVERYTHING : PK_SOME;
}

/* What halves of a query block see of halves of a key block: of the four quarters of 32 × 32, those that nobody sees are
 * not computed (two of eight on the diagonal, which is all there is in short sequences). */
typedef struct pk_quarters {
  pk_range keys[2];    /* what each half of the queries sees, whole halves of `count` keys */
  pk_range queries[2]; /* who sees each half of the keys */
} pk_quarters;

static inline pk_quarters pk_quarters_of(const pk_queries *queries, int sees, int64_t first, int64_t count) {
  enum { half = BLOCK / 2 };
  pk_quarters q = {{{0, count}, {0, count}}, {{0, BLOCK}, {0, BLOCK}}};
  if (sees == PK_EVERYTHING) return q;
  for (int l = 0; l < 2; l++) {
    int64_t begin = count, end = 0;
    for (int64_t i = l * half; i < (l + 1) * half; i++) {
      const int64_t from = pk_max(queries->begin[i] - first, 0), to = pk_min(queries->end[i] - first, count);
      if (from >= to) continue;
      begin = pk_min(begin, from), end = pk_max(end, to);
    }
    q.keys[l] = begin < end ? (pk_range){begin / half * half, pk_min(count, pk_round_up(end, half))} : (pk_range){0, 0};
  }
  for (int k = 0; k < 2; k++) {
    const int64_t from = k * half, to = from + half;
    const int low = q.keys[0].begin < to && q.keys[0].end > from, high = q.keys[1].begin < to && q.keys[1].end > from;
    q.queries[k] = (pk_range){low ? 0 : half, high ? BLOCK : half};
  }
  return q;
}

/* Key blocks that causality and the window leave to a query block; masks and packing may leave fewer. */
static inline pk_range pk_key_blocks(const pk_attention *op, int64_t query_block) {
  const int64_t first = query_block * BLOCK + op->q_offset;
  const int64_t last = pk_min((query_block + 1) * BLOCK, op->q_len) - 1 + op->q_offset;
  const int64_t begin = op->window > 0 ? pk_max(0, first - op->window + 1) : 0;
  const int64_t end = op->causal ? pk_max(0, pk_min(op->k_len, last + 1)) : op->k_len;
  return begin < end ? (pk_range){begin / BLOCK, pk_blocks(end)} : (pk_range){0, 0};
}

/* Work of a query block, in block pairs. */
static inline int64_t pk_block_cost(const pk_attention *op, int64_t query_block) {
  const pk_range keys = pk_key_blocks(op, query_block);
  return keys.end - keys.begin + 1;
}

/* ---- chunks of queries in the backward pass ----
 * d_k and d_v are sums over queries. To give several parts something to do per kv head and still add in one order, the
 * queries are cut into chunks of equal work whose number depends on the shapes only; each chunk has its own sums. */

static inline int64_t pk_chunks(const pk_attention *op) {
  int64_t chunks = 1;
  while (op->batch * op->kv_heads * chunks < 6) chunks *= 2;
  return pk_min(chunks, pk_blocks(op->q_len));
}

/* The query blocks of a chunk. */
static inline pk_range pk_chunk_queries(const pk_attention *op, int64_t chunk) {
  const int64_t blocks = pk_blocks(op->q_len), chunks = pk_chunks(op);
  int64_t total = 0, sum = 0;
  for (int64_t i = 0; i < blocks; i++) total += pk_block_cost(op, i);
  pk_range range = {blocks, blocks};
  for (int64_t i = 0; i < blocks; i++) {
    /* block i belongs to the chunk in which its middle lies */
    const int64_t cost = pk_block_cost(op, i), owner = pk_min(chunks - 1, (2 * sum + cost) * chunks / (2 * total));
    if (owner == chunk && range.begin == blocks) range.begin = i;
    if (owner > chunk && range.end == blocks) range.end = i;
    sum += cost;
  }
  return range.begin < range.end ? range : (pk_range){0, 0};
}

/* The key blocks that a chunk's sums cover. */
static inline pk_range pk_chunk_keys(const pk_attention *op, int64_t chunk) {
  const pk_range queries = pk_chunk_queries(op, chunk);
  pk_range keys = {pk_blocks(op->k_len), 0};
  for (int64_t i = queries.begin; i < queries.end; i++) {
    const pk_range some = pk_key_blocks(op, i);
    if (some.begin == some.end) continue;
    keys.begin = pk_min(keys.begin, some.begin);
    keys.end = pk_max(keys.end, some.end);
  }
  return keys.begin < keys.end ? keys : (pk_range){0, 0};
}

/* Row length of f32 sums over a head's values: whole vectors at every level. */
static inline int64_t pk_padded(int64_t head_dim) { return pk_round_up(head_dim, 16); }

/* A chunk's sums for one (batch, kv head): [2][padded k_len][padded head_dim], d_k then d_v. */
static inline int64_t pk_sums_size(const pk_attention *op) {
  return 2 * pk_blocks(op->k_len) * BLOCK * pk_padded(op->head_dim);
}

/* ---- matmul_amx.c ---- */

/* Are blocks multiplied by AMX? Then between pk_amx_begin(16) and pk_amx_end. */
static inline int pk_uses_amx(const pk_attention *op) { return op->level >= PK_LEVEL_AMX && pk_uses_pairs(op); }
void pk_amx_begin(int64_t steps);
void pk_amx_end(void);
/* C[m,n] = (keep ? C · (factor ? factor[column] : 1) : 0) + A[m,depth] · B[depth,n] in pairs of bf16; m, n and depth (pairs) are multiples of 16. Rows of A
 * are a_bytes apart. */
void pk_amx_multiply(const void *a, int64_t a_bytes, const uint32_t *b, int64_t ldb, float *c, int64_t ldc, int64_t m, int64_t n, int64_t depth, int keep,
                     const float *factor);

/* ---- scratch ---- */

/* attention_few.c */
size_t pk_attention_few_scratch(const pk_attention *op);
void pk_attention_few(const pk_attention *op, int32_t part, int32_t parts, void *each);
/* attention_backward.c */
size_t pk_attention_backward_scratch(const pk_attention *op);

#endif
