/* Threads that wait in a loop, and the clock. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "bench.h"
#include "kernels.h"

enum { most_threads = 64 };

static pthread_t workers[most_threads];
static int32_t thread_count = 1;
static bench_job *job;
static void *job_context;
static int32_t job_parts;
static atomic_int generation, running, stopping;

static void *work(void *argument) {
  const int32_t part = (int32_t)(intptr_t)argument;
  int seen = 0;
  for (;;) {
    while (atomic_load_explicit(&generation, memory_order_acquire) == seen) pk_pause();
    seen = atomic_load(&generation);
    if (atomic_load(&stopping)) return NULL;
    if (part < job_parts) job(job_context, part, job_parts);
    atomic_fetch_sub(&running, 1);
  }
}

void bench_start(int32_t threads) {
  thread_count = threads < 1 ? 1 : threads > most_threads ? most_threads : threads;
  atomic_store(&generation, 0);
  atomic_store(&stopping, 0);
  for (int32_t i = 1; i < thread_count; i++) pthread_create(&workers[i], NULL, work, (void *)(intptr_t)i);
}

void bench_stop(void) {
  atomic_store(&stopping, 1);
  atomic_fetch_add(&generation, 1);
  for (int32_t i = 1; i < thread_count; i++) pthread_join(workers[i], NULL);
  thread_count = 1;
}

int32_t bench_threads(void) { return thread_count; }

void bench_parallel(int32_t parts, bench_job *body, void *context) {
  if (parts <= 1 || thread_count == 1) {
    for (int32_t i = 0; i < parts; i++) body(context, i, parts);
    return;
  }
  job = body, job_context = context, job_parts = parts;
  atomic_store(&running, thread_count - 1);
  atomic_fetch_add_explicit(&generation, 1, memory_order_release);
  body(context, 0, parts);
  while (atomic_load_explicit(&running, memory_order_acquire) > 0) pk_pause();
}

/* With one thread: its own processor time, which other programs' turns are not part of. */
static double now(void) {
  struct timespec t;
  clock_gettime(thread_count == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double bench_best(double budget, void (*body)(void *), void *context) {
  body(context);
  const double begin = now();
  double best = 1e9;
  for (int i = 0; i < 3 || now() - begin < budget; i++) {
    const double start = now();
    body(context);
    const double taken = now() - start;
    if (taken < best) best = taken;
  }
  return best;
}

static uint32_t random_word(void) {
  static uint64_t state = 0x9E3779B97F4A7C15;
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return (uint32_t)(state >> 32);
}

void bench_fill_f32(float *values, size_t count, float scale) {
  for (size_t i = 0; i < count; i++) values[i] = scale * ((float)random_word() * 0x1p-31f - 1);
}

void bench_fill_bf16(uint16_t *values, size_t count, float scale) {
  for (size_t i = 0; i < count; i++) {
    float x;
    bench_fill_f32(&x, 1, scale);
    uint32_t bits;
    memcpy(&bits, &x, 4);
    values[i] = (uint16_t)(bits >> 16);
  }
}

void *bench_memory(size_t bytes) {
  const size_t huge = (size_t)2 << 20;
  void *memory = NULL;
  if (posix_memalign(&memory, bytes >= huge ? huge : 64, (bytes + 63) / 64 * 64) != 0) abort();
  if (bytes >= huge) madvise(memory, bytes, MADV_HUGEPAGE);
  memset(memory, 0, bytes);
  return memory;
}
