/* roofline: how near each kernel comes to what this processor can do, measured in the same run.
 *
 *     make -C Benchmarks/kernels            builds and runs with one and with two threads
 *     roofline [threads] [table] [level] [seconds per row] [pairs]
 *
 * A share is of the peak of that arithmetic or of the memory bandwidth. Tensors of bf16 are multiplied in the faster arithmetic
 * of this processor; pairs: 1 bf16's, 0 f32's. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "kernels.h"

void bench_row(const char *name, double seconds, double operations, double peak) {
  printf("  %-62s %9.1f µs %8.1f GFLOP/s %5.1f %%\n", name, seconds * 1e6, operations / seconds * 1e-9, 100 * operations / seconds / peak);
  fflush(stdout);
}

void bench_row_bytes(const char *name, double seconds, double bytes, double peak) {
  printf("  %-62s %9.1f µs %8.1f GB/s    %5.1f %%\n", name, seconds * 1e6, bytes / seconds * 1e-9, 100 * bytes / seconds / peak);
  fflush(stdout);
}

int bench_table(const bench_options *options, const char *name) {
  if (options->only && !strstr(name, options->only)) return 0;
  printf("%s\n", name);
  return 1;
}

int main(int argc, char **argv) {
  bench_start(argc > 1 ? atoi(argv[1]) : 1);
  bench_options options = {.level = pk_take_level(argc > 3 ? atoi(argv[3]) : INT32_MAX), .budget = 0.1};
  if (argc > 2 && argv[2][0]) options.only = argv[2];
  if (argc > 4) options.budget = atof(argv[4]);
  const int pairs = argc > 5 ? atoi(argv[5]) && options.level >= PK_LEVEL_AVX512_BF16 : pk_pairs_are_fast(options.level);
  options.compute = pairs ? PK_COMPUTE_BF16 : PK_COMPUTE_F32;
  options.peaks = bench_measure_peaks(options.level);
  const bench_peaks *p = &options.peaks;
  printf("threads %d, level %d, bf16 multiplied in %s; peaks: bf16 %.0f, f32 %.0f (AVX2 %.0f), int8 %.0f GFLOP/s; memory %.1f GB/s\n", bench_threads(), options.level, pairs ? "pairs" : "f32", p->bf16 * 1e-9,
         p->f32 * 1e-9, p->f32_avx2 * 1e-9, p->int8 * 1e-9, p->bandwidth * 1e-9);
  bench_products(&options);
  bench_attention(&options);
  bench_rest(&options);
  bench_stop();
  return 0;
}
