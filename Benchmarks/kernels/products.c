/* Products in the shapes of SmolLM2-135M: hidden 576, feed-forward 1536, keys and values 192, vocabulary 49152. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "kernels.h"

typedef struct product {
  pk_matmul op;
  int32_t parts;
  size_t shared_bytes, each_bytes;
  char *scratch;
} product;

static void phase0(void *context, int32_t part, int32_t parts) {
  product *p = context;
  pk_matmul_run(&p->op, 0, part, parts, p->scratch, p->scratch + p->shared_bytes + (size_t)part * p->each_bytes);
}

static void phase1(void *context, int32_t part, int32_t parts) {
  product *p = context;
  pk_matmul_run(&p->op, 1, part, parts, p->scratch, p->scratch + p->shared_bytes + (size_t)part * p->each_bytes);
}

static void run(void *context) {
  product *p = context;
  if (p->shared_bytes) bench_parallel(p->parts, phase0, p);
  bench_parallel(p->parts, phase1, p);
}

static size_t round64(size_t n) { return (n + 63) / 64 * 64; }

static int64_t row_bytes(int32_t type, int64_t columns) {
  const pk_format *format = pk_format_of(type);
  if (type == PK_INT8) return 4 + (columns + 3) / 4 * 4;
  return format->encode ? columns / format->block_values * format->block_bytes : pk_coded_row_bytes(type, columns, 64, 0);
}

/* A row in a coded format, blocks of 64. */
static void encode_coded(int32_t type, const float *values, int64_t columns, int64_t bytes, void *row) {
  float *scales = malloc((size_t)columns / 64 * 4);
  uint8_t *codes = malloc((size_t)columns);
  pk_coded_encode(type, values, columns, 64, scales, codes, 0, 1);
  const pk_coded parts = {.type = type, .shift = 6, .blocks = columns / 64, .codes = codes, .scales = scales};
  pk_coded_write(&parts, 0, columns, bytes, row);
  free(scales), free(codes);
}

/* A matrix of the type, with decodable random contents. */
static void *matrix(int32_t type, int64_t rows, int64_t columns) {
  const pk_format *format = pk_format_of(type);
  const size_t row = (size_t)row_bytes(type, columns);
  char *bytes = bench_memory(row * (size_t)rows + 64);
  float *values = malloc((size_t)columns * 4);
  for (int64_t i = 0; i < rows; i++) {
    if (i < 8) { /* encoders of some formats search long: eight different rows do */
      bench_fill_f32(values, (size_t)columns, 1);
      if (format->encode) {
        format->encode(values, bytes + (size_t)i * row, (size_t)columns);
      } else {
        encode_coded(type, values, columns, (int64_t)row, bytes + (size_t)i * row);
      }
    } else {
      memcpy(bytes + (size_t)i * row, bytes + (size_t)(i & 7) * row, row);
    }
  }
  free(values);
  return bytes;
}

static product make(const bench_options *o, int32_t compute, int32_t mode, int32_t x_type, int32_t w_type, int32_t y_type, int64_t m, int64_t n, int64_t k) {
  product p = {.op = {.level = o->level, .compute = compute, .mode = mode, .x_type = x_type, .w_type = w_type, .y_type = y_type, .m = m, .n = n, .k = k, .alpha = 1}};
  p.op.ldx = mode == PK_TN ? m : k, p.op.ldy = n;
  p.op.w_row_bytes = row_bytes(w_type, mode == PK_NT ? k : n);
  p.op.x = mode == PK_TN ? matrix(x_type, k, m) : matrix(x_type, m, k);
  p.op.w = mode == PK_NT ? matrix(w_type, n, k) : matrix(w_type, k, n);
  p.op.y = bench_memory((size_t)(m * n) * 4);
  pk_matmul_scratch(&p.op, &p.shared_bytes, &p.each_bytes);
  p.shared_bytes = round64(p.shared_bytes), p.each_bytes = round64(p.each_bytes);
  p.parts = pk_matmul_parts(&p.op, bench_threads());
  p.scratch = bench_memory(p.shared_bytes + (size_t)p.parts * p.each_bytes + 64);
  return p;
}

static void drop(product *p) { free((void *)p->op.x), free((void *)p->op.w), free(p->op.y), free(p->scratch); }

static const char *mode_names[] = {"NT", "NN", "TN"};

static int32_t accumulates;

static double row(const bench_options *o, int32_t compute, int32_t mode, int32_t x_type, int32_t w_type, int32_t y_type, int64_t m, int64_t n, int64_t k) {
  product p = make(o, compute, mode, x_type, w_type, y_type, m, n, k);
  p.op.accumulate = accumulates;
  const double seconds = bench_best(o->budget, run, &p);
  char name[128];
  snprintf(name, sizeof name, "%s %-4s×%-4s→%-4s m=%-5lld n=%-5lld k=%-5lld", mode_names[mode], pk_format_of(x_type)->name, pk_format_of(w_type)->name,
           pk_format_of(y_type)->name, (long long)m, (long long)n, (long long)k);
  const double peak = compute == PK_COMPUTE_ROUNDED || compute == PK_COMPUTE_INT8 ? o->peaks.int8 : compute == PK_COMPUTE_F32 ? (o->level >= PK_LEVEL_AVX512 ? o->peaks.f32 : o->peaks.f32_avx2) : o->peaks.bf16;
  bench_row(name, seconds, 2.0 * (double)m * (double)n * (double)k, peak);
  drop(&p);
  return seconds;
}

/* Output and input sizes of a linear layer. */
typedef struct shape {
  int64_t out, in;
} shape;
static const shape layers[] = {{576, 576}, {192, 576}, {1536, 576}, {576, 1536}};

static void decode_row(const bench_options *o, int32_t compute, int32_t w_type, int64_t m, int64_t n, int64_t k) {
  product p = make(o, compute, PK_NT, PK_BF16, w_type, PK_F32, m, n, k);
  const double seconds = bench_best(o->budget, run, &p);
  char name[128];
  snprintf(name, sizeof name, "%-4s %s m=%-2lld n=%-6lld k=%lld", pk_format_of(w_type)->name, compute == PK_COMPUTE_INT8 ? "int8" : "f32 ", (long long)m,
           (long long)n, (long long)k);
  bench_row_bytes(name, seconds, (double)(n * p.op.w_row_bytes), o->peaks.bandwidth);
  drop(&p);
}

void bench_products(const bench_options *o) {
  static const int32_t formats[] = {PK_F32, PK_F16, PK_BF16, PK_Q4_0, PK_Q4_1, PK_Q5_0, PK_Q5_1, PK_Q8_0, PK_Q2_K, PK_Q3_K,
                                    PK_Q4_K, PK_Q5_K, PK_Q6_K, PK_IQ4_NL, PK_TQ1_0, PK_TQ2_0, PK_F8_E4M3, PK_F8_E5M2, PK_NF4, PK_FP4, PK_BLOCKWISE8, PK_INT8};
  const int32_t compute = o->compute, act = o->level >= PK_LEVEL_AVX512_BF16 ? PK_BF16 : PK_F32;

  if (bench_table(o, "products of a layer, bf16")) {
    static const int32_t few[] = {PK_BF16, PK_Q4_1};
    for (int f = 0; f < 2; f++) {
      for (int64_t m = 512; m <= 2048; m *= 4) {
        for (int s = 0; s < 4; s++) row(o, compute, PK_NT, act, few[f], act, m, layers[s].out, layers[s].in);
        for (int s = 0; s < 4; s++) row(o, compute, PK_NN, act, few[f], act, m, layers[s].in, layers[s].out);
      }
    }
  }
  if (o->level >= PK_LEVEL_AVX512_BF16 && bench_table(o, "products of a layer, int8")) {
    static const int32_t few[] = {PK_BF16, PK_Q4_1, PK_Q8_0};
    for (int f = 0; f < 3; f++) {
      for (int s = 0; s < 4; s++) row(o, PK_COMPUTE_ROUNDED, PK_NT, act, few[f], act, 512, layers[s].out, layers[s].in);
      row(o, PK_COMPUTE_ROUNDED, PK_NT, act, few[f], act, 2048, 1536, 576);
    }
  }
  if (o->level >= PK_LEVEL_AVX2 && bench_table(o, "prompts, int8 by blocks")) {
    static const int32_t few[] = {PK_Q4_0, PK_Q4_1, PK_Q5_1, PK_Q8_0, PK_Q4_K, PK_Q6_K};
    for (int f = 0; f < 6; f++) {
      for (int s = 0; s < 4; s++) {
        if (layers[s].in % pk_format_of(few[f])->block_values == 0) row(o, PK_COMPUTE_INT8, PK_NT, act, few[f], act, 512, layers[s].out, layers[s].in);
      }
    }
  }
  if (bench_table(o, "products of a layer, f32")) {
    for (int s = 0; s < 4; s++) row(o, PK_COMPUTE_F32, PK_NT, PK_F32, PK_F32, PK_F32, 512, layers[s].out, layers[s].in);
    for (int s = 0; s < 4; s++) row(o, PK_COMPUTE_F32, PK_NN, PK_F32, PK_F32, PK_F32, 512, layers[s].in, layers[s].out);
    row(o, PK_COMPUTE_F32, PK_NT, PK_F32, PK_Q4_1, PK_F32, 512, 1536, 576);
    row(o, PK_COMPUTE_F32, PK_NN, PK_F32, PK_Q4_1, PK_F32, 512, 576, 1536);
  }
  if (bench_table(o, "head")) {
    for (int64_t m = 160; m <= 512; m += 352) { /* the loss takes some 160 rows at a time */
      row(o, compute, PK_NT, act, PK_Q8_0, PK_F32, m, 49152, 576);
      row(o, compute, PK_NN, PK_F32, PK_Q8_0, act, m, 576, 49152);
      row(o, compute, PK_NN, act, PK_Q8_0, act, m, 576, 49152);
    }
    row(o, PK_COMPUTE_F32, PK_NT, PK_F32, PK_Q8_0, PK_F32, 512, 49152, 576);
    row(o, PK_COMPUTE_F32, PK_NN, PK_F32, PK_Q8_0, PK_F32, 512, 576, 49152);
  }
  if (bench_table(o, "weight formats")) {
    for (int mode = PK_NT; mode <= PK_NN; mode++) { /* beside weights that need no decoding */
      const double plain = row(o, compute, mode, act, act, act, 512, 1536, 768);
      for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
        const double seconds = row(o, compute, mode, act, formats[f], act, 512, 1536, 768);
        printf("    decoding %+.1f %%\n", (seconds / plain - 1) * 100);
      }
    }
  }
  if (bench_table(o, "low rank")) { /* LoRA's 8, LoHa's 8² */
    static const shape two[] = {{576, 576}, {1536, 576}, {576, 1536}};
    for (int64_t r = 8; r <= 64; r *= 8) {
      for (int s = 0; s < 3; s++) {
        const int64_t out = two[s].out, in = two[s].in;
        accumulates = 0;
        row(o, compute, PK_NT, act, PK_F32, act, 512, r, in);   /* H = X·Aᵀ */
        row(o, compute, PK_NN, act, PK_F32, act, 512, r, out);  /* dH = dY·B */
        accumulates = 1;
        row(o, compute, PK_NT, act, PK_F32, act, 512, out, r);  /* Y += H·Bᵀ */
        row(o, compute, PK_NN, act, PK_F32, act, 512, in, r);   /* dX += dH·A */
        row(o, compute, PK_TN, act, act, PK_F32, out, r, 512);  /* dB += dYᵀ·H */
        row(o, compute, PK_TN, act, act, PK_F32, r, in, 512);   /* dA += dHᵀ·X */
      }
    }
  }
  if (bench_table(o, "decoding")) {
    static const int32_t some[] = {PK_BF16, PK_Q4_0, PK_Q4_1, PK_Q5_1, PK_Q8_0, PK_Q4_K, PK_Q5_K, PK_Q6_K};
    for (size_t f = 0; f < sizeof some / sizeof *some; f++) {
      decode_row(o, PK_COMPUTE_INT8, some[f], 1, 98304, 768);
      decode_row(o, PK_COMPUTE_F32, some[f], 1, 98304, 768);
    }
    for (size_t f = 5; f < sizeof some / sizeof *some; f++) { /* layers of 1.1B; from L2 */
      for (int64_t m = 1; m <= 8; m *= 2) decode_row(o, PK_COMPUTE_INT8, some[f], m, 32768, 2048);
      decode_row(o, PK_COMPUTE_INT8, some[f], 1, 192, 2048);
    }
    for (int64_t m = 2; m <= 8; m *= 2) decode_row(o, PK_COMPUTE_INT8, PK_Q4_1, m, 98304, 768);
    for (int64_t m = 2; m <= 8; m *= 2) decode_row(o, PK_COMPUTE_INT8, PK_Q8_0, m, 98304, 768);
    for (int64_t m = 1; m <= 8; m *= 8) decode_row(o, PK_COMPUTE_INT8, PK_Q4_1, m, 16384, 5632);
    decode_row(o, PK_COMPUTE_INT8, PK_Q4_1, 1, 576, 576);
    decode_row(o, PK_COMPUTE_INT8, PK_Q4_1, 1, 1536, 576);
  }
}
