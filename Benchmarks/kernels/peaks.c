/* The processor's own limits: multiply-adds on registers, and memory read from end to end. */
#include <immintrin.h>
#include <string.h>

#include "bench.h"
#include "kernels.h"

enum { rounds = 200000, chains = 24 };

#define PEAK(name, features, type, zero, step)                                           \
  __attribute__((target(features))) static void name(void *context, int32_t part, int32_t parts) { \
    (void)part, (void)parts;                                                              \
    type sum[chains], a = zero, b = zero;                                                 \
    for (int i = 0; i < chains; i++) sum[i] = zero;                                       \
    __asm__ volatile("" : "+v"(a), "+v"(b));                                              \
    for (int r = 0; r < rounds; r++) {                                                    \
      _Pragma("unroll") for (int i = 0; i < chains; i++) sum[i] = step;                   \
      __asm__ volatile("" : "+v"(a), "+v"(b));                                            \
    }                                                                                     \
    type total = sum[0];                                                                  \
    for (int i = 1; i < chains; i++) total = ADD(total, sum[i]);                          \
    memcpy((char *)context + 64 * part, &total, sizeof total < 64 ? sizeof total : 64);   \
  }

#define AVX512 "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma"
#define ADD _mm512_add_ps
PEAK(bf16, AVX512, __m512, _mm512_setzero_ps(), _mm512_dpbf16_ps(sum[i], (__m512bh)a, (__m512bh)b))
PEAK(f32, AVX512, __m512, _mm512_setzero_ps(), _mm512_fmadd_ps(a, b, sum[i]))
#undef ADD
#define ADD _mm512_add_epi32
PEAK(int8, AVX512, __m512i, _mm512_setzero_si512(), _mm512_dpbusd_epi32(sum[i], a, b))

/* Tiles: four sums, two of each operand, of ordinary values (with zeros the unit is a fifth faster). */
__attribute__((target("amx-tile,amx-bf16"))) static void bf16_amx(void *context, int32_t part, int32_t parts) {
  (void)context, (void)part, (void)parts;
  uint16_t values[4 * 512];
  static const struct {
    uint8_t palette, start, reserved[14];
    uint16_t line_bytes[16];
    uint8_t rows[16];
  } tiles = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
  bench_fill_bf16(values, 4 * 512, 1);
  _tile_loadconfig(&tiles);
  _tile_loadd(4, values + 0 * 512, 64);
  _tile_loadd(5, values + 1 * 512, 64);
  _tile_loadd(6, values + 2 * 512, 64);
  _tile_loadd(7, values + 3 * 512, 64);
  for (int r = 0; r < rounds; r++) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
}

/* AVX2: 12 sums, of 16 registers. Bytes: pairs to 16 bits, and added up there. */
__attribute__((target("avx2,fma"))) static void f32_avx2(void *context, int32_t part, int32_t parts) {
  (void)parts;
  __m256 sum[12], a = _mm256_setzero_ps(), b = a;
  for (int i = 0; i < 12; i++) sum[i] = a;
  __asm__ volatile("" : "+x"(a), "+x"(b));
  for (int r = 0; r < rounds; r++) {
#pragma unroll
    for (int i = 0; i < 12; i++) sum[i] = _mm256_fmadd_ps(a, b, sum[i]);
    __asm__ volatile("" : "+x"(a), "+x"(b));
  }
  __m256 total = sum[0];
  for (int i = 1; i < 12; i++) total = _mm256_add_ps(total, sum[i]);
  memcpy((char *)context + 64 * part, &total, sizeof total);
}

__attribute__((target("avx2"))) static void int8_avx2(void *context, int32_t part, int32_t parts) {
  (void)parts;
  __m256i sum[12], a = _mm256_setzero_si256(), b = a;
  for (int i = 0; i < 12; i++) sum[i] = a;
  for (int r = 0; r < rounds; r++) {
#pragma unroll
    for (int i = 0; i < 12; i++) {
      __asm__ volatile("" : "+x"(a), "+x"(b));
      sum[i] = _mm256_add_epi16(sum[i], _mm256_maddubs_epi16(a, b));
    }
  }
  __m256i total = sum[0];
  for (int i = 1; i < 12; i++) total = _mm256_add_epi16(total, sum[i]);
  memcpy((char *)context + 64 * part, &total, sizeof total);
}

static const size_t stream_bytes = (size_t)256 << 20;
static const char *stream;

__attribute__((target("avx2"))) static void read_stream(void *context, int32_t part, int32_t parts) {
  const size_t share = stream_bytes / (size_t)parts;
  const char *p = stream + share * (size_t)part;
  __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
  for (size_t i = 0; i < share; i += 128) {
    for (int v = 0; v < 4; v++) sum[v] = _mm256_xor_si256(sum[v], _mm256_loadu_si256((const __m256i *)(p + i + 32 * (size_t)v)));
  }
  sum[0] = _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3]));
  memcpy((char *)context + 64 * part, &sum[0], sizeof sum[0]);
}

static bench_job *current;
static void run(void *context) { bench_parallel(bench_threads(), current, context); }

/* What a level does not have is 0, but bytes, which AVX2 multiplies in its way. */
bench_peaks bench_measure_peaks(int32_t level) {
  void *sink = bench_memory(64 * 64);
  stream = bench_memory(stream_bytes);
  const double threads = bench_threads(), steps = threads * rounds;
  bench_peaks p = {0};
  if (level >= PK_LEVEL_AVX512) current = f32, p.f32 = steps * chains * 32 / bench_best(0.2, run, sink);
  if (level >= PK_LEVEL_AVX512_BF16) {
    current = bf16, p.bf16 = steps * chains * 64 / bench_best(0.2, run, sink);
    current = int8, p.int8 = steps * chains * 128 / bench_best(0.2, run, sink);
  } else {
    current = int8_avx2, p.int8 = steps * 12 * 64 / bench_best(0.2, run, sink);
  }
  if (level >= PK_LEVEL_AMX) current = bf16_amx, p.bf16 = steps * 4 * 16384 / bench_best(0.2, run, sink);
  current = f32_avx2, p.f32_avx2 = steps * 12 * 16 / bench_best(0.2, run, sink);
  current = read_stream, p.bandwidth = (double)stream_bytes / bench_best(0.4, run, sink);
  return p;
}
