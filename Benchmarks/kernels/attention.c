/* Attention in SmolLM2's shape: 9 heads of 64, 3 of keys and values, causal. A single query (writing text) meets the keys and values of 30 layers in
 * turn, as it does in a model: none are in the caches from the time before. */
#include <stdio.h>
#include <stdlib.h>

#include "bench.h"
#include "kernels.h"

typedef struct attention {
  pk_attention op;
  const char *k, *v; /* of all layers */
  int64_t layer_bytes;
  int32_t layers, layer, phases;
  size_t shared, each;
  char *scratch;
} attention;

static int32_t phase;

static void part_of(void *context, int32_t part, int32_t parts) {
  attention *a = context;
  char *each = a->scratch + a->shared + (size_t)part * a->each;
  if (a->phases == 1) {
    pk_attention_forward(&a->op, part, parts, each);
  } else {
    pk_attention_backward(&a->op, phase, part, parts, a->scratch, each);
  }
}

static void run(void *context) {
  attention *a = context;
  a->layer = (a->layer + 1) % a->layers;
  a->op.k = a->k + a->layer * a->layer_bytes, a->op.v = a->v + a->layer * a->layer_bytes;
  for (phase = 0; phase < a->phases; phase++) bench_parallel(bench_threads(), part_of, a);
}

static void *tensor(int32_t act, int64_t count) {
  void *p = bench_memory((size_t)count * 4);
  if (act == PK_F32) bench_fill_f32(p, (size_t)count, 1); else bench_fill_bf16(p, (size_t)count, 1);
  return p;
}

static void row(const bench_options *o, int32_t act, int64_t batch, int64_t q_len, int64_t k_len, int backward) {
  const int64_t heads = 9, kv_heads = 3, d = 64, q = batch * q_len * heads * d, kv = batch * k_len * kv_heads * d;
  const int32_t layers = q_len == 1 ? 30 : 1;
  attention a = {.op = {.level = o->level, .compute = o->compute, .act = act, .kv = act, .batch = batch, .q_len = q_len, .k_len = k_len, .heads = heads, .kv_heads = kv_heads, .head_dim = d,
                        .q_token = heads * d, .q_batch = q_len * heads * d, .k_token = kv_heads * d, .k_batch = k_len * kv_heads * d, .v_token = kv_heads * d,
                        .v_batch = k_len * kv_heads * d, .o_token = heads * d, .o_batch = q_len * heads * d, .scale = 0.125f, .causal = 1, .q_offset = k_len - q_len}};
  a.op.q = tensor(act, q), a.op.k = tensor(act, layers * kv), a.op.v = tensor(act, layers * kv), a.op.out = tensor(act, q), a.op.d_out = tensor(act, q);
  a.op.d_q = tensor(act, q), a.op.d_k = tensor(act, kv), a.op.d_v = tensor(act, kv);
  a.k = a.op.k, a.v = a.op.v, a.layers = layers, a.layer_bytes = kv * (act == PK_F32 ? 4 : 2);
  a.op.lse = bench_memory((size_t)(batch * heads * q_len) * 4);
  double seconds = 0;
  for (int pass = 0; pass <= backward; pass++) {
    a.phases = 1 + pass;
    pk_attention_scratch(&a.op, pass, &a.each, &a.shared);
    a.each = (a.each + 63) / 64 * 64, a.shared = (a.shared + 63) / 64 * 64;
    a.scratch = bench_memory(a.shared + a.each * (size_t)bench_threads() + 64);
    seconds = pass == backward ? bench_best(o->budget, run, &a) : (run(&a), 0);
    free(a.scratch);
  }
  /* pairs of query and key that count × 2 products (5 backward) × 2 d operations */
  double pairs = 0;
  for (int64_t t = 0; t < q_len; t++) pairs += (double)(t + 1 + k_len - q_len);
  const double operations = (double)(batch * heads) * pairs * 2 * (double)d * (backward ? 5 : 2);
  char name[128];
  snprintf(name, sizeof name, "%s %s batch %lld queries %lld keys %lld", backward ? "backward" : "forward ", pk_format_of(act)->name, (long long)batch,
           (long long)q_len, (long long)k_len);
  if (q_len == 1) {
    bench_row_bytes(name, seconds, 2.0 * (double)kv * (act == PK_F32 ? 4 : 2), o->peaks.bandwidth);
  } else {
    bench_row(name, seconds, operations, act == PK_BF16 && o->compute == PK_COMPUTE_BF16 ? o->peaks.bf16 : o->level >= PK_LEVEL_AVX512 ? o->peaks.f32 : o->peaks.f32_avx2);
  }
  free((void *)a.op.q), free((void *)a.k), free((void *)a.v), free(a.op.out), free((void *)a.op.d_out);
  free(a.op.d_q), free(a.op.d_k), free(a.op.d_v), free(a.op.lse);
}

void bench_attention(const bench_options *o) {
  if (!bench_table(o, "attention")) return;
  static const int32_t acts[] = {PK_BF16, PK_F32};
  for (int i = 0; i < 2; i++) {
    for (int backward = 0; backward < 2; backward++) {
      row(o, acts[i], 1, 512, 512, backward);
      row(o, acts[i], 8, 64, 64, backward);
      row(o, acts[i], 1, 4096, 4096, backward);
    }
    row(o, acts[i], 1, 1, 512, 0);
    row(o, acts[i], 1, 1, 4096, 0);
  }
}
