/* What the roofline program is made of: threads, time, peaks, and the rows of the table. */
#ifndef BENCH_H
#define BENCH_H

#include <stddef.h>
#include <stdint.h>

/* ---- threads.c ---- */

typedef void bench_job(void *context, int32_t part, int32_t parts);

/* Starts `threads` − 1 workers; they spin, so that a job starts at once. */
void bench_start(int32_t threads);
void bench_stop(void);
int32_t bench_threads(void);
/* Runs the parts of a job, one per thread, and waits for all. */
void bench_parallel(int32_t parts, bench_job *job, void *context);

/* Seconds of the fastest of several calls of `body`, for about `budget` seconds in all. */
double bench_best(double budget, void (*body)(void *), void *context);

/* Memory that is never given back, 64-byte aligned; huge pages for large pieces. Filled with small random numbers. */
void *bench_memory(size_t bytes);
void bench_fill_f32(float *values, size_t count, float scale);
void bench_fill_bf16(uint16_t *values, size_t count, float scale);

/* ---- peaks.c: what the processor can do, all threads together ---- */

typedef struct bench_peaks {
  double bf16, f32, f32_avx2, int8; /* operations per second (2 per multiply-add), operands in registers */
  double bandwidth;                 /* bytes per second read from memory */
} bench_peaks;
bench_peaks bench_measure_peaks(int32_t level);

/* ---- tables ---- */

typedef struct bench_options {
  int32_t level;
  int32_t compute;  /* PK_COMPUTE_… of tensors of bf16 */
  double budget;    /* seconds per row */
  const char *only; /* print only tables whose name contains this */
  bench_peaks peaks;
} bench_options;

void bench_products(const bench_options *options);
void bench_attention(const bench_options *options);
void bench_rest(const bench_options *options);

/* Prints one row: rate in GFLOP/s or GB/s and its share of the peak. */
void bench_row(const char *name, double seconds, double operations, double peak);
void bench_row_bytes(const char *name, double seconds, double bytes, double peak);
int bench_table(const bench_options *options, const char *name);

#endif
