/* What stands between the products of a step: bound by memory or by exponentials. Rates are bytes read and written. */
#include <stdio.h>
#include <stdlib.h>

#include "bench.h"
#include "kernels.h"

static const bench_options *options;
static void *a, *b, *c, *d;
static float *f, *g, *inverse;
static int32_t *labels, *positions;
static int64_t rows, n;
static int32_t act;

#define JOB(name, ...)                                                                          \
  static void name##_part(void *unused, int32_t part, int32_t parts) { (void)unused; __VA_ARGS__; } \
  static void name(void *unused) { bench_parallel(bench_threads(), name##_part, unused); }
#define COUNT ((size_t)(rows * n))
JOB(rmsnorm, pk_rmsnorm_forward(options->level, act, a, f, 0, 1e-5f, b, inverse, rows, n, part, parts))
JOB(rmsnorm_backward, pk_rmsnorm_backward(options->level, act, a, f, 0, inverse, b, c, 1, rows, n, part, parts))
JOB(swiglu, pk_glu_forward(options->level, act, PK_SILU, a, b, c, COUNT, part, parts))
JOB(swiglu_backward, pk_glu_backward(options->level, act, PK_SILU, a, b, c, a, b, NULL, COUNT, part, parts))
JOB(add, pk_add(options->level, act, a, b, c, COUNT, part, parts))
JOB(rope, pk_rope(options->level, act, a, b, f, g, positions, rows, 9, 64, 64, n, n, 0, 0, part, parts))
JOB(dropout, pk_dropout(options->level, act, a, b, COUNT, 0.1f, 7, 0, 0, part, parts))
JOB(cross_entropy, pk_cross_entropy(options->level, a, rows, n, n, labels, 0, 1.0f, inverse, part, parts))
JOB(adamw, pk_adamw(options->level, a, b, c, d, COUNT, 1, 1e-6f, 0.9f, 0.999f, 1e-8f, 0, 5, part, parts))
JOB(to_bf16, pk_convert(options->level, a, PK_F32, b, PK_BF16, COUNT, part, parts))
JOB(to_f32, pk_convert(options->level, b, PK_BF16, a, PK_F32, COUNT, part, parts))
static void sum_part(void *unused, int32_t part, int32_t parts) { (void)unused, (void)part, (void)parts; *(volatile double *)d = pk_sumsq(options->level, a, COUNT); }
static void sumsq(void *unused) { bench_parallel(1, sum_part, unused); }

/* `touched`: bytes read and written per element. */
static void row(const char *name, void (*body)(void *), double touched) {
  const double seconds = bench_best(options->budget, body, NULL);
  char text[128];
  snprintf(text, sizeof text, "%-18s %s %lld × %lld  (%.2f ns a value)", name, act == PK_F32 ? "f32 " : "bf16", (long long)rows, (long long)n,
           seconds * 1e9 / (double)COUNT);
  bench_row_bytes(text, seconds, touched * (double)COUNT, options->peaks.bandwidth);
}

void bench_rest(const bench_options *o) {
  if (!bench_table(o, "the rest")) return;
  options = o;
  const size_t most = (size_t)512 * 49152;
  a = bench_memory(most * 4), b = bench_memory(most * 4), c = bench_memory(most * 4), d = bench_memory(most * 4);
  f = bench_memory(65536 * 4), g = bench_memory(65536 * 4), inverse = bench_memory(65536 * 4);
  labels = bench_memory(65536 * 4), positions = bench_memory(65536 * 4);
  bench_fill_f32(f, 65536, 1), bench_fill_f32(g, 65536, 1);
  for (int i = 0; i < 512; i++) positions[i] = i;
  for (int pass = 0; pass < 2; pass++) {
    act = pass ? PK_F32 : PK_BF16;
    const double bytes = pass ? 4 : 2;
    if (pass) bench_fill_f32(a, most, 1), bench_fill_f32(b, most, 1), bench_fill_f32(c, most, 1);
    else bench_fill_bf16(a, most, 1), bench_fill_bf16(b, most, 1), bench_fill_bf16(c, most, 1);
    rows = 512, n = 576;
    row("rmsnorm", rmsnorm, 2 * bytes);
    row("rmsnorm backward", rmsnorm_backward, 4 * bytes);
    row("rope", rope, 2 * bytes);
    row("add", add, 3 * bytes);
    row("dropout", dropout, 2 * bytes);
    n = 1536;
    row("swiglu", swiglu, 3 * bytes);
    row("swiglu backward", swiglu_backward, 5 * bytes);
  }
  n = 576;
  row("f32 → bf16", to_bf16, 6);
  row("bf16 → f32", to_f32, 6);
  rows = 64, n = 49152;
  bench_fill_f32(a, most, 1);
  row("cross-entropy", cross_entropy, 8);
  rows = 2440, n = 1000;
  row("adamw", adamw, 28);
  row("sum of squares", sumsq, 4);
  free(a), free(b), free(c), free(d), free(f), free(g), free(inverse), free(labels), free(positions);
}
